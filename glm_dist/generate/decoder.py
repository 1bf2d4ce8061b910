"""Rows that grow by one token a step: contexts of different lengths side by side, with caches.

Letters: b rows, s tokens of a pass, v vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from glm_dist.generate.cache import KeyValueCache, VisibleKeys, cached_attention
from glm_dist.generate.context import Context
from glm_dist.model.batch import StageBatch
from glm_dist.model.scores import Scores, head_scores
from glm_dist.model.stage import GLMStage


@dataclass(frozen=True)
class Inputs:
    """Next tokens of each row of Part B: one of each row [b], or several [b, s]."""

    tokens: Sequence[int] | Sequence[Sequence[int]]
    positions: Sequence[int] | Sequence[Sequence[int]]
    block_positions: Sequence[int] | Sequence[Sequence[int]]


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
        if longest == 0:
            return
        lengths = torch.tensor([len(context.tokens) for context in contexts], device=self._device)

        def padded(lists: list[list[int]]) -> torch.Tensor:
            rows = [values + [0] * (longest - len(values)) for values in lists]
            return torch.tensor(rows, device=self._device)

        batch = StageBatch(
            tokens=padded([context.tokens for context in contexts]),
            positions=padded([context.positions for context in contexts]),
            block_positions=padded([context.block_positions for context in contexts]),
            prefix_length=torch.tensor([context.prefix_length for context in contexts]),
            target_index=torch.zeros(1, dtype=torch.int64, device=self._device),
            target_ids=torch.zeros(1, dtype=torch.int64, device=self._device),
        )
        _pipelined(self._stage, batch, lambda hidden, batch: hidden[0, :1, :1].float(), 1)
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
        batch = self._batch(inputs)
        return _pipelined(self._stage, batch, self._stage.logits_of, self._stage.vocab_size).cpu()

    @torch.no_grad()
    def score(self, inputs: Inputs, targets: Sequence[Sequence[int]]) -> Scores:
        """Feed several tokens to each row and score the ones that should follow.

        Args:
            inputs: Tokens and position ids. [b, s]
            targets: Token after each input. [b, s]

        Returns:
            Scores [b, s], on the host of every rank.
        """
        batch = self._batch(inputs, torch.tensor(targets, device=self._device))

        def finish(hidden: torch.Tensor, batch: StageBatch) -> torch.Tensor:
            stage = self._stage
            found = head_scores(
                stage.at_targets(hidden, batch.target_index),
                stage.head_weight,
                batch.target_ids,
                vocab_size=stage.vocab_size,
                group=stage.groups.tensor,
            )
            return torch.stack([found.log_probability, found.is_likeliest.float()], dim=1)

        found = _pipelined(self._stage, batch, finish, 2).cpu()  # [s b, 2]
        found = found.view(len(targets[0]), len(targets), 2).transpose(0, 1)
        return Scores(found[:, :, 0], found[:, :, 1] > 0)

    def _batch(self, inputs: Inputs, targets: torch.Tensor | None = None) -> StageBatch:
        """Make new tokens of Part B a batch; without targets the last of each row counts."""
        tokens = torch.tensor(inputs.tokens, device=self._device)
        rows = len(tokens)
        tokens = tokens.view(rows, -1)
        length = tokens.size(1)
        if self._keys.mask is not None:
            fresh = self._keys.mask.new_ones(rows, length)
            self._keys.mask = torch.cat([self._keys.mask, fresh], dim=1)
        if targets is None:
            index = torch.arange((length - 1) * rows, length * rows, device=self._device)
            targets = torch.zeros(rows, dtype=torch.int64, device=self._device)
        else:
            index = torch.arange(length * rows, device=self._device)
            targets = targets.t().reshape(-1)
        return StageBatch(
            tokens=tokens,
            positions=torch.tensor(inputs.positions, device=self._device).view(rows, -1),
            block_positions=torch.tensor(inputs.block_positions, device=self._device).view(
                rows, -1
            ),
            prefix_length=torch.zeros(rows, dtype=torch.int64),
            target_index=index,
            target_ids=targets,
        )

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
    with cached_attention(stage, keys) as caches:
        yield Decoder(stage, caches, keys)


def _pipelined(
    stage: GLMStage,
    batch: StageBatch,
    finish: Callable[[torch.Tensor, StageBatch], torch.Tensor],
    width: int,
) -> torch.Tensor:
    """Pass a batch through the stages.

    Args:
        stage: This rank's stage.
        batch: Equal on all ranks.
        finish: Turns the last stage's hidden states into an fp32 result [m, width], for m targets.
        width: Second size of the result.

    Returns:
        The result, on every rank.
    """
    groups = stage.groups
    last, own = groups.layout.pipeline_parallel_size - 1, groups.coordinates.pipeline
    if own > 0:
        rows, length = batch.tokens.shape
        hidden = torch.empty(
            (length, rows, stage.config.hidden_size),
            dtype=stage.config.params_dtype,
            device=batch.tokens.device,
        )
        dist.recv(hidden, group=groups.pipeline, group_src=own - 1)
        stage.set_input_tensor([hidden])
    hidden = stage(batch)
    if last == 0:
        return finish(hidden, batch)
    if own < last:
        dist.send(hidden.contiguous(), group=groups.pipeline, group_dst=own + 1)
        result = torch.empty((batch.target_ids.numel(), width), device=hidden.device)
    else:
        result = finish(hidden, batch).contiguous()
    dist.broadcast(result, group=groups.pipeline, group_src=last)
    return result
