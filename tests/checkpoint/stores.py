"""Stores for tests: in memory, or below the URL of ``GLM_DIST_TEST_STORE``, such as a local S3."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from glm_dist.checkpoint.remote import RemoteStore, open_store
from glm_dist.checkpoint.retention import Upkeep
from glm_dist.checkpoint.save import save_checkpoint


def new_url(folder: Path | None = None) -> str:
    """Return the URL of an empty folder.

    Args:
        folder: Local folder for it; None: memory.
    """
    base = os.environ.get("GLM_DIST_TEST_STORE")
    if base is None:
        base = "memory://tests" if folder is None else f"file://{folder}"
    return f"{base}/{uuid.uuid4().hex}"


def new_store() -> RemoteStore:
    """Return an empty store of a run ``a``."""
    return open_store(new_url(), "a")


def save(directory: Path, step: int, *, upkeep: Upkeep | None = None, **extra: Any) -> Path:
    """Save a checkpoint of one tensor that depends on the step."""
    return save_checkpoint(
        directory,
        step=step,
        tensors={"model.w": torch.full((4, 3), float(step))},
        extra=extra,
        layout={},
        keep_last=10,
        upkeep=upkeep,
    )


class Patched:
    """fsspec's file system whose methods a test replaces."""

    def __init__(self, system: Any, **methods: Callable[..., Any]) -> None:
        self._system = system
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        return self._methods.get(name) or getattr(self._system, name)


def patch(store: RemoteStore, **methods: Callable[..., Any]) -> Any:
    """Replace methods of the store's file system; return the original one."""
    system = store._system
    store._system = Patched(system, **methods)
    return system
