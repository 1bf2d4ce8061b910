"""Answers of runs of other objectives than GLM's: laid out as those pretrain, and their prompts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from glm_dist.config.load import load_config
from glm_dist.config.schema import RunConfig
from glm_dist.data.row_source import open_row_source
from glm_dist.data.rows import Row
from glm_dist.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from glm_dist.errors import ConfigError, DataError
from glm_dist.generate.part_b import PartB
from glm_dist.generate.prompt import Data, Room, make_prompt
from glm_dist.tasks.rows import answers_row
from tests.data.corpora import CLS, EOP, EOS, MASK, make_documents, write_corpus, write_vocabulary
from tests.messages import Says

GROUPS = ("bert", "gpt", "t5", "unilm")
ARRAYS = ("tokens", "positions", "block_positions", "targets")
SENTINEL_PAIRS = 100


def compose(folder: Path, group: str, *overrides: str) -> RunConfig:
    return load_config(
        [
            "experiment=tiny",
            f"corruption={group}",
            "data=single",
            f"data.corpora.text.prefix={folder / 'words'}",
            "data.num_workers=0",
            "tokenizer=bert",
            f"tokenizer.path={folder / 'vocab.txt'}",
            "tokenizer.task_masks=true",
            f"tokenizer.sentinel_pairs={SENTINEL_PAIRS}",
            f"tokenizer.vocab_size={1004 + 2 * SENTINEL_PAIRS}",
            *overrides,
        ]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_vocabulary(folder)
    write_corpus(folder, "words", make_documents(60))
    return folder


@pytest.fixture(scope="module")
def words(folder: Path) -> Tokenizer:
    return load_tokenizer(compose(folder, "bert").tokenizer)


@pytest.mark.parametrize("group", GROUPS)
def test_an_option_of_its_own_trains_each_objective(folder: Path, group: str) -> None:
    source = open_row_source(compose(folder, group))
    assert all(source.row(number).loss_mask.any() for number in range(16))


def test_sentinels_that_are_absent_are_asked_for_in_one_line(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["experiment=tiny", "corruption=t5"])
    fix = caught.value.fix.split()
    assert load_config(["experiment=tiny", "corruption=t5", *fix]).tokenizer.sentinel_pairs == 100


def cut_to_prompt(row: Row, special_mask: int, group: str) -> tuple[list[int], list[int], list]:
    """Read a row of pretraining as a context, its blanks and their answers."""
    size = row.num_real_tokens
    tokens, targets = row.tokens[:size].tolist(), row.targets[:size].tolist()
    if group == "gpt":
        return tokens[:1], [0], [targets]
    if group == "t5":
        prefix = tokens[: row.prefix_length]
        blanks = [n for n, token in enumerate(prefix) if token >= 1004]
        answers: list[list[int]] = []
        for token in targets[row.prefix_length : -1]:
            answers.append([]) if token >= 1004 else answers[-1].append(token)
        for blank in blanks:
            prefix[blank] = special_mask
        return prefix, blanks, [[*answer, EOP] for answer in answers]
    context: list[int] = []
    blanks, answers = [], []
    for place in range(size):
        if not row.loss_mask[place]:
            context.append(tokens[place])
            continue
        if place == 0 or not row.loss_mask[place - 1]:
            blanks.append(len(context))
            context.append(special_mask)
            answers.append([])
        answers[-1].append(targets[place])
    return context, blanks, [[*answer, EOP] for answer in answers]


@pytest.mark.parametrize("group", GROUPS)
def test_an_answer_is_laid_out_as_a_blank_of_pretraining(folder: Path, group: str) -> None:
    config = compose(folder, group)
    source = open_row_source(config)
    part_b = PartB.of(config, load_tokenizer(config.tokenizer).special)
    rows = [source.row(number) for number in range(40)]
    # Of UniLM's views, answers have the one of both sides.
    other_views = ("unilm_source", "unilm_left", "unilm_right")
    rows = [row for row in rows if row.objective not in other_views]
    assert len(rows) > 5
    for row in rows:
        context, blanks, answers = cut_to_prompt(row, MASK, group)
        made = answers_row(context, blanks, answers, part_b, row_length=len(row.tokens))
        for name in ARRAYS:
            assert getattr(made, name).tolist() == getattr(row, name).tolist(), name
        assert made.prefix_length == row.prefix_length
        scored = row.loss_mask.copy()
        if group == "gpt":  # a prompt is no answer, even where it holds a document's end
            scored[: row.num_real_tokens] = True
        if group == "t5":  # a sentinel says nothing about the answer
            scored &= row.targets < 1004
        assert made.loss_mask.tolist() == scored.tolist()


def test_masks_of_an_answer_have_no_end_and_sentinels_only_where_it_counts(folder: Path) -> None:
    def row(group: str, answer: list[int]) -> Row:
        config = compose(folder, group)
        part_b = PartB.of(config, load_tokenizer(config.tokenizer).special)
        return answers_row([CLS, 10, MASK, 11, EOS], [2], [answer], part_b)

    in_place = row("bert", [20, 21, EOP])
    assert in_place.tokens.tolist() == [CLS, 10, MASK, MASK, 11, EOS]
    assert in_place.targets[in_place.loss_mask].tolist() == [20, 21]
    assert in_place.prefix_length == 6
    for ends in ([], [EOP]):
        after = row("t5", [20, 21, *ends])
        assert after.tokens.tolist()[5:] == [1000, 1004, 20, *([21] if ends else [])]
        assert after.targets[after.loss_mask].tolist() == [20, 21, *ends]
        assert after.positions.tolist() == list(range(after.num_real_tokens))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        pytest.param([Data("w10"), " w11 [MASK]."], [10, 11], id="punctuation"),
        pytest.param(["w9 ", Data("w10"), "? [MASK], ", Data("w11")], [11, 9, 10, 4], id="two"),
        pytest.param(["[MASK] w10 ", Data("w11")], [10, 11], id="first"),
        pytest.param([Data("[MASK]"), " w10 [MASK]"], [4, 3, 4, 10], id="data"),
    ],
)
def test_a_causal_prompt_has_its_blank_last(
    folder: Path, words: Tokenizer, parts: list[str], expected: list[int]
) -> None:
    prompt = make_prompt(parts, words, compose(folder, "gpt").corruption, room=Room(99))
    if Data("[MASK]") in parts:
        expected = [*words.encode_document("[MASK]"), 10]
    assert prompt.tokens == [CLS, *expected]
    assert prompt.mask_indices == [len(prompt.tokens) - 1]
    assert prompt.answer(0, "w12") == " w12"


def test_several_blanks_of_a_causal_prompt_are_refused(folder: Path, words: Tokenizer) -> None:
    with pytest.raises(DataError, match="has a blank"):
        make_prompt(["[MASK] w10 [MASK]"], words, compose(folder, "gpt").corruption, room=Room(99))


def test_other_objectives_know_one_mask(folder: Path, words: Tokenizer, says: Says) -> None:
    corruption = replace(compose(folder, "bert").corruption, span_share=0.0, sentence_share=1.0)
    parts = ["w10 [MASK] w11"]
    assert make_prompt(parts, words, corruption, room=Room(99)).mask_indices == [2]
    with pytest.raises(DataError) as caught:
        make_prompt(["w10 [sMASK]"], words, corruption, room=Room(99))
    says(caught.value)


def test_prompts_that_leave_no_room_for_an_answer_are_refused(folder: Path) -> None:
    for group in GROUPS:
        config = compose(folder, group)
        part_b = PartB.of(config, load_tokenizer(config.tokenizer).special)
        size = config.model.max_position_embeddings + 1
        context = [CLS, *[10] * (size - 4), MASK]
        index = len(context) - 1
        fits = part_b.longest(context) + 1
        row = answers_row(context, [index], [[20] * fits], part_b)
        assert row.positions.max() <= config.model.max_position_embeddings
        assert np.diff(row.positions).min() >= 0
        with pytest.raises(DataError, match="more than the"):
            answers_row(context, [index], [[20] * (fits + 1)], part_b)
