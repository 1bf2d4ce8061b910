"""MFU and HFU of a run, from counts of each step's rows.

Counting happens on the host, where the rows are; only a record adds up over replicas.
"""

from collections.abc import Sequence
from dataclasses import astuple

import torch
import torch.distributed as dist

from glm_dist.config.schema import Dtype, RunConfig
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.model.attention.dispatch import uses_mask
from glm_dist.model.block import TORCH_DTYPES
from glm_dist.observe.flops import (
    Frozen,
    Work,
    convention_operations,
    executed_operations,
    peak_tflops,
    row_work,
    useful_operations,
)
from glm_dist.observe.metrics import (
    HFU,
    MFU,
    PADDING_SHARE,
    TARGET_SHARE,
    USEFUL_MFU,
    USEFUL_TFLOPS,
)
from glm_dist.parallel.groups import ParallelGroups


def micro_batch_work(micro_batch: MicroBatch, *, uses_mask: bool) -> Work:
    """Count the work of a micro-batch.

    Args:
        micro_batch: Rows on the host.
        uses_mask: See ``row_work``.
    """
    row_length = micro_batch.tokens.size(1)
    real = micro_batch.num_real_tokens.tolist()
    prefixes = micro_batch.prefix_length.tolist()
    targets = micro_batch.loss_mask.sum(dim=1).tolist()
    packed = micro_batch.segments or ((),) * len(real)
    work = Work()
    for i, segments in enumerate(packed):
        work += row_work(
            [(part.length, part.prefix_length) for part in segments] or [(real[i], prefixes[i])],
            row_length=row_length,
            num_targets=targets[i],
            is_packed=bool(segments),
            uses_mask=uses_mask,
        )
    return work


class Efficiency:
    """Counter of the work since the last record."""

    def __init__(self, config: RunConfig, *, groups: ParallelGroups, device: torch.device) -> None:
        """Find the device's peak.

        Args:
            config: Model, precision and the user's peak.
            groups: This rank's process groups.
            device: The rank's device; all ranks have the same kind.
        """
        dtype = config.precision.dtype
        self._model = config.model
        self._frozen = Frozen.of(config)
        self._vocab_size = config.tokenizer.vocab_size
        self._recompute = config.recompute.mode
        self._groups = groups
        self._device = device
        self._uses_mask = uses_mask(
            device,
            TORCH_DTYPES[dtype],
            dropout=config.model.attention_dropout,
            head_size=config.model.head_size,
        )
        self._peak = peak_tflops(
            torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            is_16_bit=dtype is not Dtype.fp32,
            override=config.observe.peak_tflops,
        )
        self._work = Work()

    def restart(self) -> None:
        """Forget the steps since the last call of ``take``."""
        self._work = Work()

    def step_done(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Count a step of this replica."""
        for micro_batch in micro_batches:
            self._work += micro_batch_work(micro_batch, uses_mask=self._uses_mask)

    def take(self, seconds: float) -> dict[str, float]:
        """Return metrics of the steps since the last call. Collective over all ranks.

        Args:
            seconds: Time those steps took.

        Returns:
            Metric name -> value; shares of the peak only if it is known.
        """
        counts = astuple(self._work if self._groups.reports_loss else Work())
        summed = torch.tensor(counts, dtype=torch.float64, device=self._device)
        dist.all_reduce(summed, group=self._groups.world)
        work = Work(*(int(count) for count in summed.tolist()))
        self._work = Work()
        if work.positions == 0 or seconds <= 0:
            return {}
        per_device = 1e-12 / seconds / self._groups.layout.world_size
        model, vocab_size, frozen = self._model, self._vocab_size, self._frozen
        useful = useful_operations(model, work, vocab_size=vocab_size, frozen=frozen)
        useful_per_device = useful * per_device
        metrics = {
            USEFUL_TFLOPS: useful_per_device,
            PADDING_SHARE: 1 - work.real_tokens / work.positions,
            TARGET_SHARE: work.targets / work.positions,
        }
        if self._peak is not None:
            executed = executed_operations(
                model,
                work,
                vocab_size=vocab_size,
                frozen=frozen,
                recompute=self._recompute,
                fused_attention=not self._uses_mask,
            )
            convention = convention_operations(model, work, vocab_size=vocab_size, frozen=frozen)
            metrics |= {
                MFU: convention * per_device / self._peak,
                USEFUL_MFU: useful_per_device / self._peak,
                HFU: executed * per_device / self._peak,
            }
        return metrics
