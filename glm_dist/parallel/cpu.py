"""Patches that let megatron-core run without CUDA.

megatron-core 0.16 hard-codes the CUDA device in a few functions that we call. ``enable_cpu``
replaces exactly those names. It raises if a CUDA device exists, because the replacements would then
send work to the wrong device. It also makes the C library keep freed memory.
"""

import ctypes
import logging
import types

import torch
from megatron.core.pipeline_parallel import schedules
from megatron.core.tensor_parallel import random as megatron_random

from glm_dist.errors import LaunchError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Options of glibc's mallopt(3)."""


CPU = torch.device("cpu")


class _TorchElsewhere(types.ModuleType):
    """Replacement for ``torch`` in the schedules module; ``device="cuda"`` means another one."""

    def __init__(self, device: torch.device) -> None:
        super().__init__("torch")
        self._device = device

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)

    def zeros(self, size: list[int], *, dtype: torch.dtype, device: str) -> torch.Tensor:
        """Allocate the schedules' token counter, the only tensor with a device name."""
        return torch.zeros(size, dtype=dtype, device=self._device)


def enable_cpu(device: torch.device = CPU) -> None:
    """Let megatron-core's layers and schedules run on CPU tensors. Calling twice is harmless.

    Args:
        device: Device that stands for the CUDA device; meta tensors have no memory at all.

    Raises:
        LaunchError: A CUDA device is present.
    """
    if torch.cuda.is_available():
        raise LaunchError(
            "This process sees a GPU, but was asked to train on the CPU.\n"
            "  Set DS_ACCELERATOR=cpu, or CUDA_VISIBLE_DEVICES= for a plain"
            " script.",
            key="DS_ACCELERATOR",
            value=None,
            fix="DS_ACCELERATOR=cpu",
        )
    replacements: tuple[tuple[object, str, object], ...] = (
        (torch.cuda, "current_device", lambda: device),
        (torch.cuda, "synchronize", lambda device=None: None),
        (torch.cuda, "manual_seed", torch.manual_seed),
        (torch.cuda, "get_rng_state", _get_rng_state),
        (megatron_random, "_get_cuda_rng_state", _get_rng_state),
        (megatron_random, "_set_cuda_rng_state", _set_rng_state),
        (schedules, "torch", _TorchElsewhere(device)),
    )
    for module, name, replacement in replacements:
        setattr(module, name, replacement)
    # The dropout stream is the CPU's generator here; megatron warns about it in every layer.
    logging.getLogger(megatron_random.__name__).setLevel(logging.ERROR)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors; do nothing under another C library.

    By default it returns every large block, and the kernel zeroes the same pages at each use: a
    tenth of a step's time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def _get_rng_state(
    device: object = None, clone: bool = False, graph_safe: bool = False
) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(new_state: torch.Tensor, device: int = -1, graph_safe: bool = False) -> None:
    torch.set_rng_state(new_state)
