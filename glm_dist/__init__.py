"""Distributed pretraining of GLM (arXiv 2103.10360) by autoregressive blank infilling."""

__version__ = "0.1.0"
