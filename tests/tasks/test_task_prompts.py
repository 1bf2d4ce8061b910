"""Prompts and answers of examples: kinds, labels, lengths, and examples that cannot be used."""

import random
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest

from glm_dist.config.load import load_config
from glm_dist.config.schema import RunConfig, TaskConfig, TaskKind
from glm_dist.config.task import Pool
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.errors import ConfigError, DataError
from glm_dist.tasks.infilling import found_blanks, hide_words
from glm_dist.tasks.readers.records import Record
from glm_dist.tasks.task_prompts import TaskExample, TaskPrompts
from tests.data.corpora import CLS, EOS, MASK
from tests.messages import Says

CLOZE = TaskConfig(
    kind=TaskKind.cloze, pattern="{text} w6 [MASK].", answers={"a": "w7", "b": "w8"}, max_length=16
)
CHOICES = replace(CLOZE, answers={"from": "choices"})
CLASSES = replace(CLOZE, kind=TaskKind.classify, classifier_pattern="{text}[SEP]{choice}")
WRITTEN = TaskConfig(
    kind=TaskKind.seq2seq,
    pattern="[sMASK] w6 {text}",
    target=" {summary}",
    source_length=16,
    target_length=3,
)
INFILLED = TaskConfig(kind=TaskKind.infill, pattern="{text}", source_length=16, blank_share=0.5)
TEN = " ".join(f"w{n}" for n in range(10, 20))


@lru_cache
def base() -> RunConfig:
    return load_config(["experiment=quickstart", "run.name=x"])


def made(task: TaskConfig, words: Tokenizer, *, draw: int = 0, **fields: Any) -> TaskExample:
    record = Record("x.jsonl:3", fields)
    return TaskPrompts(replace(base(), task=task), words).example(record, draw=draw)


def test_single_tokens_are_one_row(words: Tokenizer) -> None:
    prompts = TaskPrompts(replace(base(), task=CLOZE), words)
    example = prompts.example(Record("x:1", {"text": "w10", "label": "b"}))
    (question,) = example.questions
    assert prompts.answer_ids == (7, 8)
    assert question.prompt.tokens == [CLS, 10, 6, MASK, words.encode(".")[0], EOS]
    assert (question.blanks, question.answers, example.label) == ([3], [[8]], 1)
    assert prompts.num_questions([]) == 1


def test_longer_answers_are_a_row_each_that_ends(words: Tokenizer) -> None:
    task = replace(CLOZE, answers={"a": "w7", "b": "w8 w9"})
    example = made(task, words, text="w10", label="a")
    eop = words.special.eop
    assert [question.answers for question in example.questions] == [[[7, eop]], [[8, 9, eop]]]
    one = replace(CLOZE, single_token=False)
    assert [q.answers for q in made(one, words, text="w10", label="a").questions] == [
        [[7, eop]],
        [[8, eop]],
    ]


def test_each_answer_leaves_its_prompt_the_rest_of_the_row(words: Tokenizer) -> None:
    task = replace(CLOZE, answers={"from": "choices"}, max_length=16)
    example = made(task, words, text=TEN, choices=["w7", "w7 w8 w9"], label=0)
    # [CLS] w6 [MASK] . [eos] and 2 or 4 tokens of answer: 9 or 7 of ten words stay.
    lengths = [len(question.prompt.tokens) for question in example.questions]
    assert lengths == [14, 12]
    assert example.questions[1].prompt.tokens[1:8] == [*range(10, 17)]


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 0), (1, 1), ("w8", 1)], ids=["first", "second", "text"]
)
def test_answers_of_an_example_have_an_index_or_a_text(
    value: object, expected: int, words: Tokenizer
) -> None:
    example = made(CHOICES, words, text="w10", choices=["w7", "w8"], label=value)
    assert (example.label, example.choices) == (expected, ("w7", "w8"))


def test_the_most_answers_of_an_example_count(words: Tokenizer) -> None:
    prompts = TaskPrompts(replace(base(), task=CHOICES), words)
    records = [Record("x:1", {"choices": ["w7"] * count}) for count in (2, 5, 3)]
    assert prompts.num_questions(records) == 5


def test_labels_may_be_switches_and_numbers(words: Tokenizer) -> None:
    for value, label in ((True, "true"), (1, "1"), ("x y", "x y")):
        task = replace(CLOZE, answers={"no": "w7", label: "w8"})
        assert made(task, words, text="w10", label=value).label == 1


def test_one_of_several_right_answers_is_the_label(words: Tokenizer) -> None:
    fields = {"choices": ["w7", "w8", "w9"], "answers": ["w9", "w8"]}
    example = made(CHOICES, words, text="w10", **fields)
    assert (example.label, example.references) == (1, ("w9", "w8"))


def test_a_classifier_reads_each_answer_or_the_text_alone(words: Tokenizer) -> None:
    sep = words.special.sep
    task = replace(CLASSES, answers={"from": "choices"})
    example = made(task, words, text="w10", choices=["w7", "w8"], label=1)
    assert [question.prompt.tokens for question in example.questions] == [
        [CLS, 10, sep, 7, EOS],
        [CLS, 10, sep, 8, EOS],
    ]
    fixed = replace(CLASSES, classifier_pattern="{text}")
    (question,) = made(fixed, words, text=TEN * 3, label="b").questions
    assert (len(question.prompt.tokens), question.answers) == (16, [])
    # The start of the answer stands behind the prompt.
    (start,) = made(replace(fixed, pool=Pool.start), words, text=TEN * 3, label="b").questions
    assert len(start.prompt.tokens) == 15


def test_a_written_answer_ends_where_there_is_room(words: Tokenizer) -> None:
    smask, eop = words.special.smask, words.special.eop
    example = made(WRITTEN, words, text="w10", summary=["w11", "w12"])
    (question,) = example.questions
    assert question.prompt.tokens == [CLS, smask, 6, 10, EOS]
    assert (question.blanks, question.answers) == ([1], [[11, eop]])
    assert example.references == ("w11", "w12")
    long = made(WRITTEN, words, text="w10", summary="w11 w12 w13 w14")
    assert long.questions[0].answers == [[11, 12, 13]]


def test_official_prompts_are_filled_up(words: Tokenizer) -> None:
    smask, pad = words.special.smask, words.special.pad
    padded = replace(WRITTEN, pad_prompt=True)
    (question,) = made(padded, words, text="w10", summary="w11").questions
    assert question.prompt.tokens == [CLS, smask, 6, 10, *[pad] * 12]
    (full,) = made(padded, words, text=TEN + " " + TEN, summary="w11").questions
    assert len(full.prompt.tokens) == 16
    assert full.prompt.tokens[-1] != pad
    blank_last = replace(padded, pattern="{text:keep_end}[sMASK]")
    (closed,) = made(blank_last, words, text=TEN + " " + TEN, summary="w11").questions
    assert closed.prompt.tokens[-2:] == [smask, EOS]
    assert closed.prompt.tokens[1:3] == [17, 18], "the beginning of the source gave way"


def test_words_are_hidden_and_neighbours_share_a_blank(words: Tokenizer) -> None:
    roomy = replace(INFILLED, source_length=32)
    example = made(roomy, words, text=TEN)
    (question,) = example.questions
    hidden = [token for answer in question.answers for token in answer if token < 100]
    assert len(hidden) == 5
    shown = [token for token in question.prompt.tokens if 10 <= token < 20]
    assert sorted(hidden + shown) == [*range(10, 20)]
    assert all(question.prompt.tokens[index] == MASK for index in question.blanks)
    assert not any(b - a == 1 for a, b in zip(question.blanks, question.blanks[1:], strict=False))
    assert len(question.prompt.tokens) == 32
    draws = {str(made(roomy, words, text=TEN, draw=n).questions) for n in range(5)}
    assert len(draws) > 1
    assert made(roomy, words, text=TEN) == example


def test_long_infilling_keeps_the_blanks_that_fit(words: Tokenizer) -> None:
    (question,) = made(INFILLED, words, text=" ".join([TEN] * 9)).questions
    assert len(question.prompt.tokens) == 16
    assert sum(map(len, question.answers)) <= 8  # half of 16
    assert len(question.blanks) == len(question.answers)


@pytest.mark.parametrize("share", [0.01, 0.1])
def test_every_infilling_learns_something(words: Tokenizer, share: float) -> None:
    task = replace(INFILLED, blank_share=share)
    for draw in range(20):
        for text in (" ".join([TEN] * 99), "unknown" * 50, "w10"):
            (question,) = made(task, words, draw=draw, text=text).questions
            assert len(question.prompt.tokens) == 16
            assert len(question.blanks) == len(question.answers) > 0
            assert 0 < sum(map(len, question.answers)) <= max(1, int(16 * share))


def test_text_without_spaces_is_hidden_by_characters() -> None:
    pieces, hidden = hide_words("他来了北京", share=0.4, seed=1, draw=0)
    assert len("".join(hidden)) == 2
    rebuilt = pieces[0] + "".join(h + p for h, p in zip(hidden, pieces[1:], strict=True))
    assert rebuilt == "他来了北京"


def test_blanks_of_a_file_hide_what_the_text_has() -> None:
    found = found_blanks("<blank> quick fox <blank>", "the very quick fox jumps")
    assert found == (["", "quick fox", ""], ["the very", "jumps"])


def test_any_text_of_a_field_is_only_text(words: Tokenizer) -> None:
    texts = ["[MASK]", "{text} {x}", "}}", "w10 [SEP] [gMASK]", "不是", "\u2028", "a" * 5000]
    rng = random.Random(0)
    texts += ["".join(rng.choices("[MASK]{|*}: ", k=30)) for _ in range(200)]
    texts.append(" ".join(f"w{n % 900 + 10}" for n in range(10_000)))
    special = words.special
    for text in texts:
        (question,) = made(CLOZE, words, text=text, label="a").questions
        tokens = question.prompt.tokens
        assert tokens.count(MASK) == 1
        assert len(tokens) <= 15, "with [sop] 16"
        assert not {special.sep, special.gmask, special.sop} & set(tokens)


def test_learned_tokens_of_the_run_are_in_its_prompts(words: Tokenizer) -> None:
    config = replace(base(), task=CLOZE, model=replace(base().model, prompt_tokens=2))
    example = TaskPrompts(config, words).example(Record("x:1", {"text": "w10", "label": "a"}))
    assert example.questions[0].prompt.tokens[1:4] == [*config.prompt_slots, 10]


def test_an_empty_field_leaves_the_rest(words: Tokenizer) -> None:
    (question,) = made(CLOZE, words, text="", label="a").questions
    assert question.prompt.tokens[:3] == [CLS, 6, MASK]


BAD: dict[str, tuple[TaskConfig, dict[str, Any]]] = {
    "unknown label": (CLOZE, {"text": "x", "label": "c"}),
    "no label": (CLOZE, {"text": "x"}),
    "other field": (CLOZE, {"body": "x", "label": "a"}),
    "index": (CHOICES, {"text": "x", "choices": ["w7"], "label": 1}),
    "negative index": (CHOICES, {"text": "x", "choices": ["w7"], "label": -1}),
    "switch as index": (CHOICES, {"text": "x", "choices": ["w7", "w8"], "label": True}),
    "no list": (CHOICES, {"text": "x", "choices": "w7", "label": 0}),
    "empty list": (CHOICES, {"text": "x", "choices": [], "label": 0}),
    "empty answer": (CHOICES, {"text": "x", "choices": ["w7", " "], "label": 0}),
    "long answer": (CHOICES, {"text": "x", "choices": [TEN * 3, "w7"], "label": 0}),
    "long pattern": (
        replace(CHOICES, pattern=f"{TEN} {{text}} [MASK]"),
        {"text": "x", "choices": ["w7 w8 w9 w10", "w7"], "label": 0},
    ),
    "no target": (WRITTEN, {"text": "x"}),
    "no targets": (WRITTEN, {"text": "x", "summary": []}),
    "no words": (INFILLED, {"text": " "}),
    "no blank in room": (INFILLED, {"text": f"{TEN * 3} x", "blanked": f"{TEN * 3} <blank>"}),
}


def test_fields_and_labels_are_checked_without_prompts(words: Tokenizer) -> None:
    prompts = TaskPrompts(replace(base(), task=CHOICES), words)
    prompts.check(Record("x:1", {"text": "x", "choices": ["w7"], "label": 0}))
    for name in (
        "unknown label",
        "other field",
        "index",
        "no list",
        "no target",
        "no targets",
        "no words",
    ):
        task, fields = BAD[name]
        with pytest.raises(DataError, match=r"^x:7"):
            TaskPrompts(replace(base(), task=task), words).check(Record("x:7", fields))


@pytest.mark.parametrize("name", BAD)
def test_an_example_that_cannot_be_used_is_named(name: str, words: Tokenizer, says: Says) -> None:
    task, fields = BAD[name]
    with pytest.raises(DataError) as caught:
        made(task, words, **fields)
    says(caught.value)


@pytest.mark.parametrize(
    "answers", [{"a": "w7", "b": "w8 w9"}, {"a": "w7", "b": "w7"}], ids=["long", "equal"]
)
def test_answers_that_one_token_does_not_tell_apart_are_refused(
    answers: dict[str, str], words: Tokenizer, says: Says
) -> None:
    with pytest.raises(ConfigError) as caught:
        made(replace(CLOZE, answers=answers, single_token=True), words, text="x", label="a")
    says(caught.value)
