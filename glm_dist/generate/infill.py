"""Filling every blank of a text, left to right (official interactive generation, GLM 4f61ed7).

The context is read once in both directions. Each blank then starts from [sop] at its mask token's
position and grows token by token; later blanks see the answers of earlier ones. Of an answer that
``max_tokens`` cuts they do not see the last token, which is never read, as in the official code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from glm_dist.config.schema import RunConfig
from glm_dist.data.tokenizer.special_tokens import SpecialTokens
from glm_dist.errors import DataError
from glm_dist.generate.cache import cached_attention
from glm_dist.generate.draw import next_token
from glm_dist.generate.sampling import Sampling
from glm_dist.model.batch import StageBatch
from glm_dist.model.stage import GLMStage


@dataclass(frozen=True)
class Blank:
    """One filled blank."""

    mask_index: int
    """Index of its mask token in the context."""
    tokens: list[int]
    """The answer, without [sop] and [eop]."""


@dataclass(frozen=True)
class PartB:
    """First inputs and position ids of Part B, as the run was trained."""

    special: SpecialTokens
    max_position: int
    """Largest position id the model knows (P)."""
    sentinels: bool = False
    """Blanks after the first have their own [sop] and share the position P."""
    no_block_positions: bool = False
    """Every second position is 1."""

    @staticmethod
    def of(config: RunConfig, special: SpecialTokens) -> "PartB":
        """Take from a run's configuration how its rows were laid out."""
        return PartB(
            special,
            max_position=config.model.max_position_embeddings,
            sentinels=config.corruption.sentinels,
            no_block_positions=config.corruption.no_block_positions,
        )

    def sop(self, number: int) -> int:
        """Return the first input of a blank, counted from 0 in the order of emission."""
        if not self.sentinels or number == 0:
            return self.special.sop
        return int(self.special.sentinel_sop(np.array(number - 1)))

    def positions(self, mask_index: int, step: int) -> tuple[int, int]:
        """Return both position ids of an input.

        Args:
            mask_index: Index of the blank's mask in Part A.
            step: 1 for [sop], 2 for the first token of the answer, …
        """
        position = self.max_position if self.sentinels else mask_index
        return position, 1 if self.no_block_positions else step

    @property
    def longest_answer(self) -> int:
        """Tokens of an answer for which there are block positions."""
        return self.max_position - 1


@torch.no_grad()
def fill_blanks(
    stage: GLMStage,
    context: Sequence[int],
    *,
    part_b: PartB,
    mask_indices: Sequence[int],
    sampling: Sampling,
    max_tokens: int,
    banned: Sequence[int] = (),
    seed: int = 0,
) -> list[Blank]:
    """Generate the answer of every blank of a context.

    Args:
        stage: This rank's stage, in evaluation mode; every rank of a replica calls alike.
        context: Token ids of Part A, mask tokens included.
        part_b: How Part B is laid out.
        mask_indices: Index of each blank's mask, in the order in which they are filled.
        sampling: How tokens are drawn.
        max_tokens: Longest answer per blank.
        banned: Token ids that are never drawn; the official code bans none.
        seed: Of the draws; any integer, counted modulo 2^64.

    Returns:
        The blanks in the order of ``mask_indices``.

    Raises:
        DataError: The context is longer than the model's positions.
    """
    check_length(context, part_b)
    stops = {part_b.special.eop, part_b.special.eos}
    never = sorted(set(banned) - stops)
    generator = torch.Generator().manual_seed(seed % 2**64)
    length = min(max_tokens, part_b.longest_answer)
    blanks = []
    with cached_attention(stage):
        read_context(stage, context)
        for number, mask_index in enumerate(mask_indices):
            answer: list[int] = []
            token = part_b.sop(number)
            for step in range(1, length + 1):
                position, block_position = part_b.positions(mask_index, step)
                logits = next_logits(stage, [token], position, block_position)[0]
                logits[never] = float("-inf")
                token = next_token(logits, sampling, generator=generator)
                if token in stops:
                    break
                answer.append(token)
            blanks.append(Blank(mask_index=mask_index, tokens=answer))
    return blanks


def check_length(context: Sequence[int], part_b: PartB) -> None:
    """Refuse a context that is longer than the model's positions.

    Raises:
        DataError: It is.
    """
    room = part_b.max_position + 1
    if len(context) > room:
        raise DataError(
            f"The text has {len(context)} tokens, more than the {room} positions of the model.\n"
            "  Shorten it.",
            key="text",
            value=len(context),
            fix="",
        )


def read_context(stage: GLMStage, context: Sequence[int]) -> None:
    """Feed Part A of one row, so that the caches hold it.

    Args:
        stage: This rank's stage, with caches.
        context: Token ids of Part A.
    """
    length = len(context)
    _forward(stage, [list(context)], list(range(length)), [0] * length, prefix=length)


def next_logits(
    stage: GLMStage, tokens: Sequence[int], position: int, block_position: int
) -> torch.Tensor:
    """Feed one more input of Part B to each row of the caches.

    Args:
        stage: This rank's stage, with caches of b rows.
        tokens: Input of each row. [b]
        position: Position id of the inputs.
        block_position: Block position id of the inputs.

    Returns:
        Logits of the tokens that follow [b, v], on the host of every rank.
    """
    inputs = [[token] for token in tokens]
    return _forward(stage, inputs, [position], [block_position], prefix=0)


def _forward(
    stage: GLMStage,
    tokens: list[list[int]],
    positions: list[int],
    block_positions: list[int],
    *,
    prefix: int,
) -> torch.Tensor:
    """Feed tokens [b, s] at the positions [s] of every row; logits [b, v] after the last."""
    device = next(stage.parameters()).device
    rows, length = len(tokens), len(positions)
    batch = StageBatch(
        tokens=torch.tensor(tokens, device=device),
        positions=torch.tensor([positions] * rows, device=device),
        block_positions=torch.tensor([block_positions] * rows, device=device),
        prefix_length=torch.full((rows,), prefix),
        target_index=torch.arange((length - 1) * rows, length * rows, device=device),
        target_ids=torch.zeros(rows, dtype=torch.int64, device=device),
    )
    return _pipelined_logits(stage, batch).cpu()


def _pipelined_logits(stage: GLMStage, batch: StageBatch) -> torch.Tensor:
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
