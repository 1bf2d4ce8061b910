"""Tensors that were computed, kept in nameless files instead of memory.

Writers of torch need all tensors of a file at once. Pages of a mapped file do not count as memory
that the process holds: the system may drop them and read them again.
"""

from pathlib import Path

import torch


class Spill:
    """Store of tensors on a disk; each is freed with its last reference."""

    def __init__(self, folder: Path) -> None:
        """Use a folder for files that lose their names at once.

        Args:
            folder: Exists; on the disk of what is being written.
        """
        self._file = folder / ".spilled"

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return an equal tensor whose values are on disk.

        Raises:
            OSError: The disk is full.
        """
        flat = tensor.detach().contiguous().view(-1)
        try:
            # Written, not mapped and filled: a full disk is an error then, not a signal.
            with self._file.open("wb") as stream:
                stream.write(flat.view(torch.uint8).numpy().data)
            mapped = torch.from_file(
                str(self._file), shared=False, size=flat.numel(), dtype=flat.dtype
            )
        finally:
            self._file.unlink(missing_ok=True)
        return mapped.view(tensor.shape)
