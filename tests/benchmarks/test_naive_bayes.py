"""Naive Bayes against probabilities worked out by hand."""

import json
from pathlib import Path

import pytest

from benchmarks.naive_bayes import Example, NaiveBayes, main, read

CHOICES = ["bad", "good"]
TRAIN = [
    ("a fine film", 1),
    ("fine, fine", 1),
    ("a dull film", 0),
    ("a film", 0),
    ("dull " * 21, 0),
]


def _write(file: Path, examples: list[tuple[str, int]]) -> None:
    lines = [
        {"id": "bad bad", "text": text, "choices": CHOICES, "label": label}
        for text, label in examples
    ]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def test_answer_is_the_likeliest_of_the_examples_own_choices(tmp_path: Path) -> None:
    _write(tmp_path / "train.jsonl", TRAIN)
    model = NaiveBayes(read(tmp_path / "train.jsonl", []))
    # Words: a fine film , dull: 5. good has 6 words, bad has 26; priors are 2/5 and 3/5.
    # "film": good 2/5 * 2/11 = 0.073 > bad 3/5 * 3/31 = 0.058, though more bad ones have it.
    assert model.answer(["film"], CHOICES) == "good"
    # "dull": good 2/5 * 1/11 < bad 3/5 * 23/31.
    assert model.answer(["dull"], CHOICES) == "bad"
    # Words that are new leave it at the priors.
    assert model.answer(["new"], CHOICES) == "bad"
    assert model.answer([",", "new"], CHOICES) == "good"
    assert model.answer(["dull"], ["good", "never seen"]) == "good"
    assert model.majority(CHOICES) == "bad"


def test_words_are_lower_case_and_punctuation_counts(tmp_path: Path) -> None:
    _write(tmp_path / "train.jsonl", [("Fine, it's\u0085 10.5!", 1)])
    (example,) = read(tmp_path / "train.jsonl", [])
    words = ["fine", ",", "it", "'", "s", "10", ".", "5", "!"]
    assert example == Example(words, CHOICES, "good")


def test_a_line_shows_majority_and_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "train.jsonl", TRAIN)
    _write(tmp_path / "valid.jsonl", [("fine", 1), ("dull", 0), ("film", 1), ("fine dull", 1)])
    main([str(tmp_path)])
    line = capsys.readouterr().out.splitlines()[-1]
    # Wrong: "fine dull", good 2/5 * 4 * 1 / 11^2 = 0.0132 < bad 3/5 * 1 * 23 / 31^2 = 0.0144.
    assert line == f"| {tmp_path.name} | 5 | 4 | 0.250 | 0.750 | 0.250 to 1.000 |"
