"""Tasks of finetuning: choosing between candidates, classes, and sequences.

An example of C candidates is C consecutive rows of a micro-batch; a missing candidate is a row
without targets. The label stands in each row of an example; an example with label -1 has no loss.

Letters: b rows, e examples, c candidates of each or classes, n targets, h hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from glm_dist.config.schema import ChoiceLoss, Pool
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.model.batch import StageBatch
from glm_dist.model.choice_loss import MISSING_SCORE, candidate_scores, choice_loss, right_choices
from glm_dist.model.head import head_loss
from glm_dist.model.scores import head_scores
from glm_dist.model.stage import GLMStage
from glm_dist.train.task import TaskLoss

ACCURACY = "accuracy"
CROSS_ENTROPY = "cross_entropy"


@dataclass(frozen=True)
class ChoiceTask:
    """Choose a candidate by the log-probability of its tokens."""

    num_choices: int
    """Candidates of an example, c."""
    kind: ChoiceLoss = ChoiceLoss.cross_entropy
    length_penalty: float = 0.0
    """Scores are divided by tokens ^ penalty."""
    answer_ids: Sequence[int] = ()
    """The candidates [c] where each is one token, the same in every example. An example is then one
    row with one target, whatever its id; empty: a candidate is a row."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """See ``Task``."""
        return (ACCURACY,)

    @property
    def rows_per_example(self) -> int:
        """Consecutive rows of an example."""
        return 1 if self.answer_ids else self.num_choices

    def batch(self, micro_batch: MicroBatch, device: torch.device) -> StageBatch:
        """See ``Task``."""
        return StageBatch.from_micro_batch(micro_batch, device)

    def weight(self, batch: StageBatch) -> int:
        """Return the number of labelled examples."""
        return batch.num_labelled // self.rows_per_example

    def scores(self, stage: GLMStage, hidden: torch.Tensor, batch: StageBatch) -> torch.Tensor:
        """See ``ScoringTask``; a missing candidate has ``MISSING_SCORE``."""
        return self._scores(stage, hidden, batch)[0]

    def loss(self, stage: GLMStage, hidden: torch.Tensor, batch: StageBatch) -> TaskLoss:
        """See ``Task``."""
        scores, is_there = self._scores(stage, hidden, batch)
        return _choice(stage, batch, scores, is_there, kind=self.kind)

    def _scores(
        self, stage: GLMStage, hidden: torch.Tensor, batch: StageBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores [e, c], and False for missing candidates [e, c]."""
        at_targets = stage.at_targets(hidden, batch.target_index)  # [n, h]
        target_ids, width = batch.target_ids, max(len(self.answer_ids), 1)
        if self.answer_ids:
            at_targets = at_targets.repeat_interleave(width, dim=0)
            target_ids = _ids(self.answer_ids, batch).repeat(len(target_ids))  # [n c]
        found = head_scores(
            at_targets,
            stage.head_weight,
            target_ids,
            vocab_size=stage.vocab_size,
            group=stage.groups.tensor,
        )
        by_target = found.log_probability.view(-1, width)  # [n, 1 or c]
        by_row, num_tokens = _sum_by_row(by_target, batch)  # [b, 1 or c], [b]
        num_tokens = num_tokens.unsqueeze(1).expand_as(by_row)
        scores = candidate_scores(
            by_row.view(-1, self.num_choices),
            num_tokens.reshape(-1, self.num_choices),
            length_penalty=self.length_penalty,
        )
        return scores, num_tokens.reshape(-1, self.num_choices) > 0


@dataclass(frozen=True)
class ClassifyTask:
    """Classify a row by the classification head, or choose between rows with one logit each."""

    pool: Pool = Pool.cls
    """Token whose hidden state the head reads."""
    num_choices: int = 1
    """Rows of an example: 1, or its candidates where the head has one output."""
    kind: ChoiceLoss = ChoiceLoss.cross_entropy

    @property
    def metric_names(self) -> tuple[str, ...]:
        """See ``Task``."""
        return (ACCURACY,)

    @property
    def rows_per_example(self) -> int:
        """Consecutive rows of an example."""
        return self.num_choices

    def batch(self, micro_batch: MicroBatch, device: torch.device) -> StageBatch:
        """See ``Task``; the batch's targets are the tokens that the head reads.

        A row among several of an example is missing if it has no targets.
        """
        mask = torch.zeros_like(micro_batch.loss_mask)
        position = {
            Pool.cls: torch.zeros_like(micro_batch.prefix_length),
            Pool.pad: micro_batch.prefix_length - 1,
            Pool.start: micro_batch.prefix_length,
        }[self.pool]
        mask.scatter_(1, position.unsqueeze(1), True)
        if self.num_choices > 1:
            mask &= micro_batch.loss_mask.any(dim=1, keepdim=True)
        return StageBatch.from_micro_batch(replace(micro_batch, loss_mask=mask), device)

    def weight(self, batch: StageBatch) -> int:
        """Return the number of labelled examples."""
        return batch.num_labelled // self.num_choices

    def scores(self, stage: GLMStage, hidden: torch.Tensor, batch: StageBatch) -> torch.Tensor:
        """See ``ScoringTask``; these are logits, and ``MISSING_SCORE`` for a missing candidate."""
        return self._scores(stage, hidden, batch)[0]

    def loss(self, stage: GLMStage, hidden: torch.Tensor, batch: StageBatch) -> TaskLoss:
        """See ``Task``."""
        scores, is_there = self._scores(stage, hidden, batch)
        return _choice(stage, batch, scores, is_there, kind=self.kind)

    def _scores(
        self, stage: GLMStage, hidden: torch.Tensor, batch: StageBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores [e, c], and False for missing candidates [e, c]."""
        logits = stage.class_logits(stage.at_targets(hidden, batch.target_index))
        by_row, num_read = _sum_by_row(logits, batch)  # [b, classes], [b]
        is_there = (num_read > 0).unsqueeze(1).expand_as(by_row)
        if self.num_choices > 1:
            by_row = by_row.view(-1, self.num_choices)
            is_there = is_there.reshape(-1, self.num_choices)
        return by_row.where(is_there, MISSING_SCORE), is_there


@dataclass(frozen=True)
class SequenceTask:
    """Predict the tokens of an answer."""

    label_smoothing: float = 0.0
    """Share of the loss that all tokens have alike; the step's weight is the number of tokens."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """See ``Task``; cross entropy is reported where it is not the loss itself."""
        return (CROSS_ENTROPY,) if self.label_smoothing > 0.0 else ()

    @property
    def rows_per_example(self) -> int:
        """Consecutive rows of an example."""
        return 1

    def batch(self, micro_batch: MicroBatch, device: torch.device) -> StageBatch:
        """See ``Task``."""
        return StageBatch.from_micro_batch(micro_batch, device)

    def weight(self, batch: StageBatch) -> int:
        """Return the number of predicted tokens."""
        return batch.target_ids.numel()

    def scores(self, stage: GLMStage, hidden: torch.Tensor, batch: StageBatch) -> torch.Tensor:
        """Return the log-probability of each row's answer [b, 1]."""
        found = head_scores(
            stage.at_targets(hidden, batch.target_index),
            stage.head_weight,
            batch.target_ids,
            vocab_size=stage.vocab_size,
            group=stage.groups.tensor,
        )
        return _sum_by_row(found.log_probability.unsqueeze(1), batch)[0]

    def loss(self, stage: GLMStage, hidden: torch.Tensor, batch: StageBatch) -> TaskLoss:
        """See ``Task``."""
        smoothed = self.label_smoothing > 0.0
        every_target = torch.ones_like(batch.target_ids, dtype=torch.bool).unsqueeze(0)
        total, plain = head_loss(
            stage.at_targets(hidden, batch.target_index),
            stage.head_weight,
            batch.target_ids,
            vocab_size=stage.vocab_size,
            group=stage.groups.tensor,
            is_fused=stage.pointwise.is_fused,
            target_groups=every_target if smoothed else None,
            label_smoothing=self.label_smoothing,
        )
        # Every tensor rank has a part of the sum, but only one may count the targets.
        number = batch.target_ids.numel() if stage.groups.reports_loss else 0
        return TaskLoss(total, torch.stack([plain, torch.full_like(plain, number)], dim=1))


def _ids(answer_ids: Sequence[int], batch: StageBatch) -> torch.Tensor:
    ids = torch.tensor(answer_ids, dtype=batch.target_ids.dtype)
    if batch.target_ids.device.type == "cuda":
        ids = ids.pin_memory()  # otherwise the copy waits for the device
    return ids.to(batch.target_ids.device, non_blocking=True)


def _sum_by_row(by_target: torch.Tensor, batch: StageBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum numbers of targets [n, m] over the targets of each row [b, m] in fp32; count these [b].

    The sum is a product in fp64: always in the same order, unlike ``index_add`` on GPUs.
    """
    num_rows = batch.tokens.size(0)
    rows = torch.arange(num_rows, device=batch.tokens.device)
    is_in_row = batch.target_index % num_rows == rows.unsqueeze(1)  # [b, n]
    return (is_in_row.double() @ by_target.double()).float(), is_in_row.sum(dim=1)


def _choice(
    stage: GLMStage,
    batch: StageBatch,
    scores: torch.Tensor,
    is_there: torch.Tensor,
    *,
    kind: ChoiceLoss,
) -> TaskLoss:
    """Compute loss and accuracy from scores [e, c]."""
    labels = batch.labels
    if labels is None:
        labels = torch.full_like(batch.tokens[:, 0], -1)
    labels = labels.view(scores.size(0), -1)[:, 0]  # [b] -> [e]
    total = choice_loss(scores, labels, is_there, kind=kind)
    counts = torch.stack([right_choices(scores, labels), (labels >= 0).sum()]).double()
    if not stage.groups.reports_loss:
        counts = torch.zeros_like(counts)
    return TaskLoss(total, counts.unsqueeze(0))
