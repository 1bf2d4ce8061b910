"""Losses of finetuning through the schedule, against those of the official code."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from glm_dist.config.schema import ChoiceLoss, Pool
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.model.stage import GLMShard, GLMStage
from glm_dist.parallel.layout import Layout
from glm_dist.train.task import ScoringTask, run_scores, run_task
from glm_dist.train.task_losses import ChoiceTask, ClassifyTask
from tests.golden.reference import official_stage, reference_files, tensors_under
from tests.golden.test_infill_golden import NUM_HEADS
from tests.ranks import run_ranks

pytestmark = pytest.mark.golden

LAYOUTS = {
    "one process": Layout(),
    "tp2": Layout(tensor_parallel_size=2),
    "tp2 sp": Layout(tensor_parallel_size=2, sequence_parallel=True),
    "pp2": Layout(pipeline_parallel_size=2),
}
TOLERANCE = 1e-5


def micro_batch(of: Mapping[str, torch.Tensor], labels: torch.Tensor) -> MicroBatch:
    """Rows of the official code [..., s], with the labels of their examples."""
    length = of["text"].size(-1)
    tokens, targets = (of[name].reshape(-1, length) for name in ("text", "target"))
    positions = of["position"].reshape(-1, 2, length)
    return MicroBatch(
        tokens=tokens,
        positions=positions[:, 0],
        block_positions=positions[:, 1],
        targets=targets,
        loss_mask=of["logit_mask"].reshape(-1, length).bool(),
        prefix_length=of["mask"].reshape(-1),
        num_real_tokens=torch.full((len(tokens),), length),
        objectives=("",) * len(tokens),
        labels=labels.repeat_interleave(len(tokens) // len(labels)),
    )


def with_missing(batch: MicroBatch, is_there: torch.Tensor) -> MicroBatch:
    """The batch without the targets of missing candidates [e, c]."""
    return replace(batch, loss_mask=batch.loss_mask & is_there.reshape(-1, 1).bool())


def scores_and_loss(
    stage: GLMStage, task: ScoringTask, batch: MicroBatch
) -> tuple[torch.Tensor, float] | None:
    """Scores [e, c] and mean loss on the last stage."""
    ours = task.batch(batch, torch.device("cpu"))
    losses = run_task(GLMShard([stage]), task, [ours], groups=stage.groups)
    scores = run_scores(GLMShard([stage]), task, [ours], groups=stage.groups)
    if not losses:
        return None
    return scores[0], float(losses[0].total) / task.weight(ours)


def candidate_rows(single: Mapping[str, torch.Tensor]) -> MicroBatch:
    """A row for each verbalizer, whose only target is the verbalizer at the first place of Part B.

    Everything but the scored place is random in these files, so it is in ours.
    """
    verbalizers = single["verbalizer"]
    width, length = verbalizers.size(1), single["text"].size(1)
    rows = {name: single[name].repeat_interleave(width, dim=0) for name in ("text", "position")}
    begin = single["mask"].repeat_interleave(width)
    at_begin = torch.arange(length) == begin.unsqueeze(1)
    targets = at_begin * verbalizers.reshape(-1, 1)
    return micro_batch(
        rows | {"mask": begin, "target": targets, "logit_mask": at_begin}, single["label"]
    )


Compare = Callable[[str, torch.Tensor | float, np.ndarray], None]


def compare_choices(stage: GLMStage, arrays: Mapping[str, np.ndarray], compare: Compare) -> None:
    """Candidates of several tokens; the scores in the file do not know of missing ones."""
    multi = tensors_under(arrays, "multi/")
    is_there = multi["loss_mask"].bool()
    batch = micro_batch(multi, multi["label"])
    for penalty in (0, 1):
        task = ChoiceTask(is_there.size(1), length_penalty=penalty)
        if (result := scores_and_loss(stage, task, batch)) is not None:
            compare(f"scores lp{penalty}", result[0], arrays[f"multi/logits_lp{penalty}"])
        for kind in ("cross_entropy", "hinge", "generative", "mix"):
            task = ChoiceTask(is_there.size(1), ChoiceLoss(kind), length_penalty=penalty)
            result = scores_and_loss(stage, task, with_missing(batch, is_there))
            if result is not None:
                compare(f"{kind} lp{penalty}", result[1], arrays[f"multi/loss_{kind}_lp{penalty}"])


def compare_tokens(stage: GLMStage, arrays: Mapping[str, np.ndarray], compare: Compare) -> None:
    """Candidates of one token, as rows and as ids; official scores are logits, without a sum."""
    single = tensors_under(arrays, "single/")
    rows, width = candidate_rows(single), single["verbalizer"].size(1)
    tried: list[tuple[str, ChoiceTask, MicroBatch]] = [("rows", ChoiceTask(width), rows)]
    answers = {tuple(ids) for ids in single["verbalizer"].tolist()}
    if len(answers) == 1:
        one_row = candidate_rows(single | {"verbalizer": single["verbalizer"][:, :1]})
        tried.append(("ids", ChoiceTask(width, answer_ids=answers.pop()), one_row))
    for name, task, batch in tried:
        if (result := scores_and_loss(stage, task, batch)) is not None:
            official = torch.from_numpy(arrays["single/logits"]).log_softmax(dim=1).numpy()
            compare(f"single scores by {name}", result[0].log_softmax(dim=1), official)
            compare(f"single loss by {name}", result[1], arrays["single/loss"])


def compare_classes(stage: GLMStage, arrays: Mapping[str, np.ndarray], compare: Compare) -> None:
    """Logits of the classification head, which reads one of three tokens."""
    single = tensors_under(arrays, "single/")
    batch = micro_batch(single, single["label"])
    for pool in Pool:
        if (result := scores_and_loss(stage, ClassifyTask(pool), batch)) is not None:
            logits = arrays[f"cls/logits_{pool.value}"]
            compare(f"logits {pool.value}", result[0], logits)
            loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits), single["label"])
            compare(f"class loss {pool.value}", result[1], loss.numpy())


@torch.no_grad()
def differences(file: Path, layout: Layout) -> dict[str, float]:
    """Largest difference of each score and loss in the file; empty before the last stage."""
    arrays = dict(np.load(file))
    weights = tensors_under(arrays, "w/") | tensors_under(arrays, "cls/w/")
    stage = official_stage(weights, num_attention_heads=NUM_HEADS, layout=layout).eval()
    found: dict[str, float] = {}

    def compare(name: str, ours: torch.Tensor | float, official: np.ndarray) -> None:
        found[name] = float(np.abs(np.asarray(ours) - official).max())

    compare_choices(stage, arrays, compare)
    compare_tokens(stage, arrays, compare)
    compare_classes(stage, arrays, compare)
    return found


@pytest.mark.parametrize("file", reference_files("finetune/*.npz"))
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_losses_of_finetuning_equal_the_official_ones(file: Path, layout: str) -> None:
    chosen = LAYOUTS[layout]
    found = run_ranks(differences, file, chosen, world_size=chosen.world_size)
    # With several stages the first has no scores.
    assert [bool(each) for each in found] == [
        rank >= chosen.world_size - chosen.tensor_parallel_size for rank in range(chosen.world_size)
    ]
    wrong = {n: d for each in found for n, d in each.items() if not d <= TOLERANCE}
    assert not wrong
