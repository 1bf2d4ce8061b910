"""Keys and values of tokens already seen, so that generating costs one token a step.

The official code caches hidden states and projects them again each time; the result is the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from glm_dist.model.attention.dispatch import PrefixAttention


class VisibleKeys:
    """Cached keys that later tokens may see, the same for all layers."""

    def __init__(self) -> None:
        """Start without keys."""
        self.mask: torch.Tensor | None = None
        """[b, s_seen] bool; None if all are visible."""


class KeyValueCache:
    """Grows by the new tokens of every forward pass of one attention layer."""

    def __init__(self, keys: VisibleKeys | None = None) -> None:
        """Start empty.

        Args:
            keys: What is visible; None: everything.
        """
        self._visible = keys or VisibleKeys()
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None

    @property
    def visible(self) -> torch.Tensor | None:
        """See ``AttentionCache``."""
        return self._visible.mask

    def extend(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add new tokens and return all of them.

        Args:
            key: [b, a, s_new, d].
            value: [b, a, s_new, d].

        Returns:
            Keys and values [b, a, s_seen + s_new, d].
        """
        if self._keys is None or self._values is None:
            self._keys, self._values = key, value
        else:
            self._keys = torch.cat([self._keys, key], dim=2)
            self._values = torch.cat([self._values, value], dim=2)
        return self._keys, self._values

    def select(self, rows: torch.Tensor) -> None:
        """Continue with other rows, each a copy of one that is there.

        Args:
            rows: Row that each of the new ones continues [b].
        """
        if self._keys is not None and self._values is not None:
            self._keys = self._keys.index_select(0, rows)
            self._values = self._values.index_select(0, rows)


@contextmanager
def cached_attention(
    model: torch.nn.Module, keys: VisibleKeys | None = None
) -> Iterator[list[KeyValueCache]]:
    """Give every attention layer a fresh cache for the time of the block.

    Args:
        model: A stage in evaluation mode.
        keys: What is visible in all of them; None: everything.

    Yields:
        The caches.
    """
    layers = [module for module in model.modules() if isinstance(module, PrefixAttention)]
    caches = [KeyValueCache(keys) for _ in layers]
    for layer, cache in zip(layers, caches, strict=True):
        layer.cache = cache
    try:
        yield caches
    finally:
        for layer in layers:
            layer.cache = None
