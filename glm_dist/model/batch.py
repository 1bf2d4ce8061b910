"""One micro-batch as a pipeline stage consumes it.

Targets are listed by index, so that vocabulary logits are computed only there. The list is built on
the host, where the loss mask already is: building it on a GPU would synchronise the stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch

from glm_dist.data.micro_batch import MicroBatch
from glm_dist.data.rows import Segment
from glm_dist.model.attention.plan import AttentionPlan, plan_attention


@dataclass(frozen=True)
class StageBatch:
    """Inputs of one forward pass; tensors on the rank's device unless said otherwise."""

    tokens: torch.Tensor
    """Token ids [b, s], Part A then Part B."""
    positions: torch.Tensor
    """Position in the corrupted text [b, s]; Part B repeats the position of its mask token."""
    block_positions: torch.Tensor
    """Position inside the blank [b, s]; 0 in Part A."""
    prefix_length: torch.Tensor
    """Length of Part A [b], on the host: attention splits rows there."""
    target_index: torch.Tensor
    """Indices of the targets [n], as s_index * b + b_index: the order of [s, b, h] memory."""
    target_ids: torch.Tensor
    """Token ids to predict [n]."""
    segments: tuple[tuple[Segment, ...], ...] = ()
    """Segments of packed rows, as in ``MicroBatch``."""
    target_groups: torch.Tensor | None = None
    """Members of each group of targets whose loss is a metric [g, n], bool; None: no groups."""
    labels: torch.Tensor | None = None
    """Right answer or class of each row's example, int64 [b], -1 for none; None: no row has one."""
    num_labelled: int = 0
    """Rows with a label."""

    @cached_property
    def attention(self) -> AttentionPlan:
        """Attention plan; built once, in the first forward pass of the micro-batch."""
        return plan_attention(
            self.prefix_length.tolist(),
            row_length=self.tokens.size(1),
            segments=self.segments,
        ).to(self.tokens.device)

    def planned(self) -> Self:
        """Plan the attention now, while the device is busy, and return the batch."""
        _ = self.attention
        return self

    @classmethod
    def from_micro_batch(
        cls, micro_batch: MicroBatch, device: torch.device, *, groups: Sequence[str] = ()
    ) -> "StageBatch":
        """List the targets of a micro-batch and move it to the device.

        Args:
            micro_batch: Host tensors as the loader yields them.
            device: The rank's device.
            groups: Objectives whose targets are groups.
        """
        loss_mask = micro_batch.loss_mask.t()  # [s, b], the order of the hidden states
        index = loss_mask.reshape(-1).nonzero().squeeze(1)
        ids = micro_batch.targets.t().reshape(-1)[index]
        in_group = torch.tensor(
            [[name == group for name in micro_batch.objectives] for group in groups],
            dtype=torch.bool,
        ).view(len(groups), loss_mask.size(1))  # [g, b]

        def to_device(tensor: torch.Tensor) -> torch.Tensor:
            if device.type == "cuda" and not tensor.is_pinned():
                tensor = tensor.pin_memory()  # otherwise the copy waits for the previous step
            return tensor.to(device, non_blocking=True)

        return cls(
            tokens=to_device(micro_batch.tokens),
            positions=to_device(micro_batch.positions),
            block_positions=to_device(micro_batch.block_positions),
            prefix_length=micro_batch.prefix_length,
            target_index=to_device(index),
            target_ids=to_device(ids),
            segments=micro_batch.segments,
            target_groups=to_device(in_group[:, index % loss_mask.size(1)]),
            labels=None if micro_batch.labels is None else to_device(micro_batch.labels),
            num_labelled=(
                0 if micro_batch.labels is None else int((micro_batch.labels >= 0).sum())
            ),
        )
