"""Rows of prompts with answers: equal to pretraining, generation and the official code."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glm_dist.data.objectives.base import Blanks
from glm_dist.data.objectives.layout import lay_out_blanks
from glm_dist.data.rows import Row
from glm_dist.errors import DataError
from glm_dist.generate.part_b import LeftToRight, PartB
from glm_dist.generate.prompt import Prompt
from glm_dist.tasks.rows import answers_row, context_row, without_answer
from tests.data.examples import BERT
from tests.golden.reference import reference_files
from tests.messages import Says

PART_B = PartB(BERT, max_position=511)
# [CLS] a [MASK] b [MASK] c [eos]
PROMPT = Prompt(
    [BERT.cls, 2001, BERT.mask, 2002, BERT.mask, 2003, BERT.eos], [2, 4], ["a ", " b ", " c"]
)
ARRAYS = ("tokens", "positions", "block_positions", "targets", "loss_mask")


def answer_row(prompt: Prompt, answer: list[int], part_b: PartB, **options: Any) -> Row:
    """A prompt with an answer in its last blank, as tasks ask for it."""
    return answers_row(prompt.tokens, prompt.mask_indices[-1:], [answer], part_b, **options)


def test_answers_are_laid_out_as_blanks_in_pretraining() -> None:
    answers = [[3001, 3002, BERT.eop], [3003, BERT.eop]]
    row = answers_row(PROMPT.tokens, [2, 4], answers, PART_B, row_length=16)
    source = np.array([BERT.cls, 2001, 3001, 3002, 2002, 3003, 2003, BERT.eos])
    expected = lay_out_blanks(
        source,
        Blanks(np.array([2, 5]), np.array([2, 1])),
        closes_with_eop=True,
        mask=BERT.mask,
        special=BERT,
        objective="task",
        row_length=16,
    )
    for name in ARRAYS:
        assert getattr(row, name).tolist() == getattr(expected, name).tolist(), name
    assert (row.prefix_length, row.num_real_tokens) == (7, 12)


def test_one_answer_stands_in_the_last_blank_and_has_its_label() -> None:
    row = answer_row(PROMPT, [3003], PART_B, row_length=9, label=1)
    assert row.tokens.tolist() == [*PROMPT.tokens, BERT.sop, BERT.pad]
    assert (row.positions[7], row.block_positions[7], row.targets[7]) == (4, 1, 3003)
    assert row.loss_mask.tolist() == [False] * 7 + [True, False]
    assert row.label == 1
    assert not without_answer(row).loss_mask.any()


def test_a_causal_run_continues_the_prompt_from_its_last_token() -> None:
    part_b = LeftToRight(BERT, max_position=511)
    prompt = Prompt([BERT.cls, 2001, 2002], [2], ["a b ", ""])
    row = answer_row(prompt, [3001, part_b.end], part_b, row_length=6)
    assert row.tokens.tolist() == [BERT.cls, 2001, 2002, 3001, BERT.pad, BERT.pad]
    assert row.targets[row.loss_mask].tolist() == [3001, BERT.eos]
    assert row.positions.tolist() == [0, 1, 2, 3, 0, 0]
    assert row.prefix_length == 0
    assert not row.block_positions.any()


def test_a_context_for_a_head_has_no_part_b() -> None:
    row = context_row([BERT.cls, 2001, BERT.eos], special=BERT, row_length=5, label=2)
    assert row.tokens.tolist() == [BERT.cls, 2001, BERT.eos, BERT.pad, BERT.pad]
    assert (row.prefix_length, row.num_real_tokens, row.label) == (3, 3, 2)
    assert row.loss_mask.tolist() == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("answer", "row_length", "part_b"),
    [
        pytest.param([], 16, PART_B, id="empty"),
        pytest.param([3001, 3002], 8, PART_B, id="row"),
        pytest.param([3001] * 6, 32, replace(PART_B, max_position=4), id="positions"),
    ],
)
def test_answers_that_have_no_room_are_refused(
    answer: list[int], row_length: int, part_b: PartB, says: Says
) -> None:
    with pytest.raises(DataError) as caught:
        answer_row(PROMPT, answer, part_b, row_length=row_length)
    says(caught.value)


def official_rows(case: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a case with several tokens in its answers, which are marked in ``logit_mask``."""
    if not case["text"] or not isinstance(case["text"][0], list):
        return []
    keys = ("text", "position", "mask", "target", "logit_mask")
    return [
        dict(zip(keys, values, strict=True))
        for values in zip(*(case[key] for key in keys), strict=True)
    ]


@pytest.mark.golden
@pytest.mark.parametrize("file", reference_files("finetune/*.json"))
def test_candidates_are_laid_out_as_in_the_official_code(file: Path) -> None:
    cases = json.loads(file.read_text())
    cloze = {n: c for n, c in cases.items() if isinstance(c, dict) and "logit_mask" in c}
    rows = [row for case in cloze.values() for row in official_rows(case)]
    for row in rows:
        text, (positions, blocks), begin = row["text"], row["position"], row["mask"]
        special = replace(BERT, sop=text[begin], pad=text[-1])
        answer = [t for t, m in zip(row["target"], row["logit_mask"], strict=True) if m]
        made = answer_row(
            Prompt(text[:begin], [positions[begin]], ["", ""]),
            answer,
            PartB(special, max_position=511),
            row_length=len(text),
        )
        assert made.tokens.tolist() == text
        assert made.positions.tolist() == positions
        assert made.block_positions.tolist() == blocks
        assert made.loss_mask.tolist() == [bool(m) for m in row["logit_mask"]]
        assert made.targets[made.loss_mask].tolist() == answer
    assert rows or file.stem == "examples"
