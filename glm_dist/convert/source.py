"""Weights to convert, whatever they come from, in one form: official names, whole, on demand."""

import ctypes
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from glm_dist.checkpoint.manifest import Json
from glm_dist.config.schema import ModelConfig, RunConfig

_LIBC = ctypes.CDLL(None)


def release_freed() -> None:
    """Give the memory of tensors that are gone back to the system; glibc keeps up to 32 MB each."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


class Tensors(Mapping[str, torch.Tensor]):
    """Tensors by name, each made when it is asked for."""

    def __init__(self, names: Mapping[str, object], make: Callable[[str], torch.Tensor]) -> None:
        """Keep the names.

        Args:
            names: All names, in order.
            make: Makes the tensor of a name.
        """
        self._names = dict.fromkeys(names)
        self._make = make

    def __getitem__(self, name: str) -> torch.Tensor:
        """Make a tensor."""
        if name not in self._names:
            raise KeyError(name)
        release_freed()
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._names)

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self._names)


@dataclass(frozen=True)
class Source:
    """Weights of a model, with all that its files say of it."""

    title: str
    """Kind and place, for the account."""
    model: ModelConfig
    """Sizes; of the other values only those that ``sizes`` lists are known."""
    sizes: Mapping[str, int]
    """Configuration keys that the files decide, such as model.num_layers."""
    padded_vocab_size: int
    """Rows of the word table, V."""
    tensors: Mapping[str, torch.Tensor]
    """Whole parameters by official name, in official row order; made when asked for."""
    dtype: torch.dtype
    """Of the stored weights."""
    step: int
    """Optimizer steps that the weights have seen, as far as the files say."""
    is_mapped: bool = False
    """True if the tensors are views of mapped files rather than copies in memory."""
    ignored: tuple[str, ...] = ()
    """Names in the files that are no parameters of GLM."""
    notes: tuple[str, ...] = ()
    """Further remarks for the account."""
    origin: Mapping[str, Json] = field(default_factory=dict)
    """Origin of the weights, for the checkpoint's manifest."""
    config: RunConfig | None = None
    """Complete configuration, if the source is a run."""
    overrides: tuple[str, ...] = ()
    """Values that the files know beyond sizes, as overrides before those that were typed."""
