"""Scores of candidates of the official code: several tokens each, and single ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from glm_dist.generate.context import Context
from glm_dist.generate.decoder import Inputs, decoding
from glm_dist.model.scores import Scores
from glm_dist.model.stage import GLMStage
from glm_dist.parallel.layout import Layout
from tests.golden.reference import official_stage, reference_files, tensors_under
from tests.golden.test_infill_golden import NUM_HEADS
from tests.ranks import run_ranks

pytestmark = pytest.mark.golden

LAYOUTS = {
    "one process": Layout(),
    "tp2": Layout(tensor_parallel_size=2),
    "pp2": Layout(pipeline_parallel_size=2),
    "tp2·pp2": Layout(tensor_parallel_size=2, pipeline_parallel_size=2),
}


def rows_under(arrays: dict[str, np.ndarray], name: str) -> list[dict[str, np.ndarray]]:
    """Rows of an entry, whatever its leading sizes."""
    rows = {
        key: arrays[f"{name}/{key}"].reshape(-1, *arrays[f"{name}/{key}"].shape[dims:])
        for key, dims in (
            ("text", -1),
            ("target", -1),
            ("position", -2),
            ("mask", arrays[f"{name}/mask"].ndim),
            ("logit_mask", -1),
        )
    }
    return [{key: values[n] for key, values in rows.items()} for n in range(len(rows["text"]))]


def scores_of(stage: GLMStage, row: dict[str, np.ndarray], targets: list[list[int]]) -> Scores:
    """Scores of targets at a row's first places of Part B; inputs are random in these files."""
    begin = int(row["mask"])
    end = begin + len(targets[0])
    inputs = [values[begin:end].tolist() for values in (row["text"], *row["position"])]
    with decoding(stage) as decoder:
        decoder.read([Context.of_part_a(row["text"][:begin].tolist())])
        decoder.select([0] * len(targets))
        return decoder.score(Inputs(*([values] * len(targets) for values in inputs)), targets)


def differences(file: Path, layout: Layout) -> list[float]:
    """Largest differences to the official scores of one file."""
    arrays = dict(np.load(file))
    weights = tensors_under(arrays, "w/")
    stage = official_stage(weights, num_attention_heads=NUM_HEADS, layout=layout).eval()
    found = [
        scores_of(stage, row, [row["target"][row["logit_mask"] > 0].tolist()])
        for row in rows_under(arrays, "multi")
    ]
    largest = []
    for penalty in (0, 1):
        scores = np.array(
            [float(s.log_probability.sum()) / s.log_probability.numel() ** penalty for s in found]
        )
        expected = arrays[f"multi/logits_lp{penalty}"].reshape(-1)
        largest.append(float(np.abs(scores - expected).max()))
    verbalizers = arrays["single/verbalizer"].tolist()
    of_tokens = torch.stack(
        [
            scores_of(stage, row, [[token] for token in tokens]).log_probability[:, 0]
            for row, tokens in zip(rows_under(arrays, "single"), verbalizers, strict=True)
        ]
    )
    expected = torch.from_numpy(arrays["single/logits"]).log_softmax(dim=1)
    largest.append(float((of_tokens.log_softmax(dim=1) - expected).abs().max()))
    return largest


@pytest.mark.parametrize("file", reference_files("finetune/heads.npz"))
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_scores_of_candidates_equal_the_official_ones(file: Path, layout: str) -> None:
    chosen = LAYOUTS[layout]
    for largest in run_ranks(differences, file, chosen, world_size=chosen.world_size):
        assert max(largest) <= 1e-5
