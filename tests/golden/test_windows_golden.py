"""Windows of the official perplexity and LAMBADA evaluations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glm_dist.config.schema import TokenizerKind
from glm_dist.data.tokenizer.tokenizer import Tokenizer, TokenizerSpec, open_tokenizer
from glm_dist.generate.part_b import PartB
from glm_dist.generate.score import Question
from glm_dist.generate.windows import last_words, perplexity_windows
from tests.golden.reference import REFERENCE, reference_files

pytestmark = pytest.mark.golden

VOCABULARIES = {
    "bert": (TokenizerKind.bert, "bert-base-uncased-vocab.txt"),
    "chinese": (TokenizerKind.chinese_sentencepiece, "cog-pretrain.model"),
    "gpt2": (TokenizerKind.gpt2, "gpt2-vocab.json"),
    "roberta": (TokenizerKind.roberta, "roberta-vocab.json"),
}


def tokenizer_of(file: Path, cases: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a reference file, with the task masks that its windows use."""
    kind, name = VOCABULARIES[file.stem]
    path = REFERENCE / "tokenizers" / name
    if not path.exists():
        pytest.skip(f"no {path}")
    mask = cases["lm/bi"][0]["text"][2]  # [CLS], the first token, the blank
    tokenizers = [
        open_tokenizer(TokenizerSpec(kind, str(path), task_masks, fixed_task_masks=is_fixed))
        for task_masks in (True, False)
        for is_fixed in (True, False)
    ]
    return next(tokenizer for tokenizer in tokenizers if tokenizer.special.gmask == mask)


def laid_out(question: Question, part_b: PartB, length: int) -> dict[str, Any]:
    """A question with one answer as a row of the official code."""
    (answer,) = question.answers
    begin, special = len(question.context), part_b.special
    text = [*question.context, special.sop, *answer[:-1]]
    places = [part_b.positions(question.mask_index, step) for step in range(1, len(answer) + 1)]
    scored = [0] * (begin + question.skipped) + [1] * (len(answer) - question.skipped)
    target = [0] * begin + list(answer)

    def padded(values: list[int], pad: int = 0) -> list[int]:
        return values + [pad] * (length - len(values))

    return {
        "text": padded(text, special.pad),
        "attention_mask": begin,
        "loss_mask": padded(scored),
        "position_id": [
            padded([*range(begin), *(position for position, _ in places)]),
            padded([0] * begin + [block for _, block in places]),
        ],
        "scored": [t for t, is_scored in zip(target, scored, strict=True) if is_scored],
    }


def official(row: dict[str, Any]) -> dict[str, Any]:
    """The same parts of a row of the official code."""
    kept = {key: row[key] for key in ("text", "attention_mask", "loss_mask", "position_id")}
    chosen = np.array(row["loss_mask"]) > 0
    return {**kept, "scored": np.array(row["target"])[chosen].tolist()}


@pytest.mark.parametrize("direction", ["bi", "uni"])
@pytest.mark.parametrize("file", reference_files("finetune/[!eh]*.json"))
def test_windows_equal_the_official_ones(file: Path, direction: str) -> None:
    cases = json.loads(file.read_text(encoding="utf-8"))
    examples = json.loads((file.parent / "examples.json").read_text(encoding="utf-8"))
    tokenizer = tokenizer_of(file, cases)
    special, unidirectional = tokenizer.special, direction == "uni"
    part_b = PartB(special, max_position=1024)
    rows, settings = cases[f"lm/{direction}"], examples["_settings"]
    windows = perplexity_windows(
        tokenizer.encode_document(examples["_lm_text"]),
        part_b,
        window=settings["lm_seq_length"] - 1,
        stride=settings["lm_overlap"],
        unidirectional=unidirectional,
    )
    assert [laid_out(window, part_b, len(rows[0]["text"])) for window in windows] == [
        official(row) for row in rows
    ]

    row = cases[f"lambada/{direction}"]
    context, _, word = examples["_lambada"].rpartition(" ")
    question = last_words(
        tokenizer.encode_document(context),
        [tokenizer.encode_document(f" {word}")],
        special,
        unidirectional=unidirectional,
    )
    assert laid_out(question, part_b, len(row["text"])) == official(row)
