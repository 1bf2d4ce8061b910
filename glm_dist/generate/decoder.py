"""Rows that grow by one token a step: contexts of different lengths side by side, with caches.

Letters: b rows, s tokens of a pass, v vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from glm_dist.generate.cache import KeyValueCache, VisibleKeys, caches_of
from glm_dist.model.batch import StageBatch
from glm_dist.model.stage import GLMStage


@dataclass(frozen=True)
class Context:
    """Beginning of a row: Part A, and Part B as far as it is known."""

    tokens: list[int]
    positions: list[int]
    block_positions: list[int]
    prefix_length: int
    """Tokens of Part A."""

    @staticmethod
    def of_part_a(tokens: Sequence[int]) -> "Context":
        """Begin a row with Part A alone."""
        length = len(tokens)
        return Context(list(tokens), list(range(length)), [0] * length, length)

    def extended(
        self, tokens: Sequence[int], positions: Sequence[int], block_positions: Sequence[int]
    ) -> "Context":
        """Add tokens of Part B."""
        return Context(
            [*self.tokens, *tokens],
            [*self.positions, *positions],
            [*self.block_positions, *block_positions],
            self.prefix_length,
        )


@dataclass(frozen=True)
class Inputs:
    """Next token of each row of Part B."""

    tokens: Sequence[int]
    positions: Sequence[int]
    block_positions: Sequence[int]


class Decoder:
    """One stage and the caches of the rows that it has read. Collective over a replica."""

    def __init__(self, stage: GLMStage, caches: list[KeyValueCache], keys: VisibleKeys) -> None:
        """Join them; see ``decoding``."""
        self._stage = stage
        self._caches = caches
        self._keys = keys
        self._device = next(stage.parameters()).device

    @torch.no_grad()
    def read(self, contexts: Sequence[Context]) -> None:
        """Read the beginnings of all rows, once, before anything else.

        Args:
            contexts: One for each row; shorter ones are padded behind their end. [b]
        """
        longest = max(len(context.tokens) for context in contexts)
        lengths = torch.tensor([len(context.tokens) for context in contexts], device=self._device)

        def padded(lists: list[list[int]]) -> torch.Tensor:
            rows = [values + [0] * (longest - len(values)) for values in lists]
            return torch.tensor(rows, device=self._device)

        rows = len(contexts)
        batch = StageBatch(
            tokens=padded([context.tokens for context in contexts]),
            positions=padded([context.positions for context in contexts]),
            block_positions=padded([context.block_positions for context in contexts]),
            prefix_length=torch.tensor([context.prefix_length for context in contexts]),
            target_index=torch.arange((longest - 1) * rows, longest * rows, device=self._device),
            target_ids=torch.zeros(rows, dtype=torch.int64, device=self._device),
        )
        logits_of(self._stage, batch)
        if int(lengths.min()) < longest:
            places = torch.arange(longest, device=self._device)
            self._keys.mask = places < lengths.unsqueeze(1)

    @torch.no_grad()
    def step(self, inputs: Inputs) -> torch.Tensor:
        """Feed one more token to each row.

        Args:
            inputs: Tokens and position ids. [b]

        Returns:
            Logits of the tokens that follow [b, v] in fp32, on the host of every rank.
        """
        rows = len(inputs.tokens)
        if self._keys.mask is not None:
            fresh = self._keys.mask.new_ones(rows, 1)
            self._keys.mask = torch.cat([self._keys.mask, fresh], dim=1)

        def column(values: Sequence[int]) -> torch.Tensor:
            return torch.tensor(values, device=self._device).unsqueeze(1)

        batch = StageBatch(
            tokens=column(inputs.tokens),
            positions=column(inputs.positions),
            block_positions=column(inputs.block_positions),
            prefix_length=torch.zeros(rows, dtype=torch.int64),
            target_index=torch.arange(rows, device=self._device),
            target_ids=torch.zeros(rows, dtype=torch.int64, device=self._device),
        )
        return logits_of(self._stage, batch).cpu()

    def select(self, rows: Sequence[int]) -> None:
        """Continue with other rows, each a copy of one that is there.

        Args:
            rows: Row that each of the new ones continues. [b]
        """
        index = torch.tensor(rows, device=self._device)
        for cache in self._caches:
            cache.select(index)
        if self._keys.mask is not None:
            self._keys.mask = self._keys.mask.index_select(0, index)


@contextmanager
def decoding(stage: GLMStage) -> Iterator[Decoder]:
    """Yield a decoder with fresh caches.

    Args:
        stage: This rank's stage, in evaluation mode; every rank of a replica calls alike.
    """
    keys = VisibleKeys()
    with caches_of(stage, keys) as caches:
        yield Decoder(stage, caches, keys)


def logits_of(stage: GLMStage, batch: StageBatch) -> torch.Tensor:
    """Pass a batch through the stages; logits at its targets [n, v] on every rank."""
    groups = stage.groups
    last, own = groups.layout.pipeline_parallel_size - 1, groups.coordinates.pipeline
    if last == 0:
        return stage.logits(batch)
    if own > 0:
        rows, length = batch.tokens.shape
        hidden = torch.empty(
            (length, rows, stage.config.hidden_size),
            dtype=stage.config.params_dtype,
            device=batch.tokens.device,
        )
        dist.recv(hidden, group=groups.pipeline, group_src=own - 1)
        stage.set_input_tensor([hidden])
    if own < last:
        dist.send(stage(batch).contiguous(), group=groups.pipeline, group_dst=own + 1)
        logits = torch.empty(
            (batch.target_ids.numel(), stage.vocab_size), device=batch.tokens.device
        )
    else:
        logits = stage.logits(batch).contiguous()
    dist.broadcast(logits, group=groups.pipeline, group_src=last)
    return logits
