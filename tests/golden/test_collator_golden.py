"""Layouts of the official collator, integer for integer, for every file in the reference folder."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glm_dist.data.objectives.base import Blanks
from glm_dist.data.objectives.layout import lay_out_blanks
from glm_dist.data.rows import Row
from glm_dist.data.tokenizer.special_tokens import SpecialTokens

pytestmark = pytest.mark.golden

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = Path(os.environ.get("GLM_REFERENCE_DIR", ROOT / "../shared/reference")).resolve()


def _cases() -> list[Any]:
    cases = []
    for file in sorted(REFERENCE.glob("collator/*.json")):
        content = json.loads(file.read_text())
        for number, case in enumerate(content["cases"]):
            name = f"{file.stem}-{number}-{case['task']}"
            cases.append(pytest.param(content["special"], case, id=name))
    return cases


CASES = _cases()


def _special(ids: dict[str, int]) -> SpecialTokens:
    unused = {"unk": -1, "sep": -1, "block_mask": -1, "pad": ids.get("pad", ids["eos"])}
    without_task_masks = {"gmask": ids["mask"], "smask": ids["mask"]}
    known = set(SpecialTokens.__dataclass_fields__)
    return SpecialTokens(
        **{**unused, **without_task_masks, **{k: v for k, v in ids.items() if k in known}}
    )


def _lay_out(special: dict[str, int], case: dict[str, Any], row_length: int | None = None) -> Row:
    spans = np.array(case["spans_in_emission_order"], np.int64).reshape(-1, 2)
    return lay_out_blanks(
        np.array(case["source"], np.int64),
        Blanks(spans[:, 0], spans[:, 1]),
        closes_with_eop=case["closes_with_eop"],
        mask=case["mask_token_id"],
        special=_special(special),
        objective=case["task"],
        row_length=row_length,
    )


@pytest.mark.skipif(not CASES, reason=f"no collator/*.json in GLM_REFERENCE_DIR ({REFERENCE})")
class TestOfficialCollator:
    """Source and spans are given; the layout must come out equal."""

    @pytest.mark.parametrize(("special", "case"), CASES)
    def test_layout_equals_the_official_collator(
        self, special: dict[str, int], case: dict[str, Any]
    ) -> None:
        row = _lay_out(special, case)

        assert row.tokens.tolist() == case["tokens"]
        assert row.targets.tolist() == case["targets"]
        assert row.loss_mask.astype(int).tolist() == case["loss_mask"]
        assert row.positions.tolist() == case["positions"]
        assert row.block_positions.tolist() == case["block_positions"]
        assert row.prefix_length == case["prefix_length"]

    @pytest.mark.parametrize(("special", "case"), CASES)
    def test_padding_changes_nothing_before_it(
        self, special: dict[str, int], case: dict[str, Any]
    ) -> None:
        size = len(case["tokens"])
        row = _lay_out(special, case, row_length=size + 7)

        assert row.num_real_tokens == size
        assert row.tokens[:size].tolist() == case["tokens"]
        assert row.targets[:size].tolist() == case["targets"]
        assert not row.loss_mask[size:].any()
        assert not row.positions[size:].any()
        assert not row.block_positions[size:].any()
