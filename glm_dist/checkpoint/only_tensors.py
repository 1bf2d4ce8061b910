"""Names that torch may look up while it unpickles a file: a list of ours, and nothing else."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def only_allowed(allowed: Sequence[Any] = ()) -> Iterator[None]:
    """Allow tensors, containers, numbers and the given names in ``torch.load``.

    Other libraries extend torch's list for the whole process, as megatron-core does; their names
    are taken off the list for the time of the block.

    Args:
        allowed: Classes and functions, as ``torch.serialization.add_safe_globals`` takes them.
    """
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(allowed))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
