"""Modules that the fork server of tests/ranks.py imports once for all ranks."""

import gc

import glm_dist.optim.deepspeed_engine
import glm_dist.train.job  # noqa: F401  (torch, megatron-core)

# A collection in a forked rank would write to, and so copy, every page of these libraries.
gc.freeze()
