"""Baselines: what is visible, what is predicted, and that rows are full."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from glm_dist.config.schema import PretrainingTask
from glm_dist.data.objectives.base import Window
from glm_dist.data.objectives.baselines import CausalLM, MaskedLM, Sight, SpanCorruption
from glm_dist.data.objectives.span import SpanHiding
from glm_dist.data.row_source import open_row_source
from glm_dist.errors import ConfigError
from tests.data.corpora import make_config, make_documents, write_corpus
from tests.data.examples import BERT

SENTINELS = replace(BERT, first_sentinel=30526, sentinel_pairs=30)
TEXT = np.array([101, *range(1000, 1062), 0])  # 64 tokens


def spans(row_length: int = 64) -> SpanHiding:
    return SpanHiding.create(SENTINELS, row_length=row_length, mask_ratio=0.15, mean_length=3.0)


def masked(sight: Sight) -> MaskedLM:
    return MaskedLM(BERT, 64, replace(spans(), max_blanks=64), sight=sight)


def test_causal_rows_predict_every_next_token() -> None:
    tokens = np.array([101, 5, 6, 0, 101, 7, 8])
    row = CausalLM(BERT, 8).build(Window(tokens, False), np.random.default_rng(0))

    assert row.tokens.tolist() == [101, 5, 6, 0, 101, 7, 0, 0]
    assert row.targets[:6].tolist() == [5, 6, 0, 101, 7, 8]
    # What follows a document's end is another document: not trained.
    assert row.loss_mask.tolist() == [True, True, True, False, True, True, False, False]
    assert row.positions[:6].tolist() == [0, 1, 2, 3, 4, 5]
    assert row.prefix_length == 0
    assert not row.block_positions.any()


def test_masked_rows_see_both_sides_and_predict_in_place() -> None:
    row = masked(Sight.both).build(Window(TEXT, False), np.random.default_rng(0))
    hidden = row.loss_mask

    assert row.prefix_length == 64
    assert (row.tokens[hidden] == BERT.mask).all()
    assert (row.tokens[~hidden] == TEXT[~hidden]).all()
    assert (row.targets[hidden] == TEXT[hidden]).all()
    assert 9 <= hidden.sum() <= 9 + 38  # int(0.15 * 64) = 9, and the last span may overshoot
    assert not hidden[[0, 63]].any()


def test_left_view_is_causal_and_right_view_its_mirror() -> None:
    left = masked(Sight.left).build(Window(TEXT, False), np.random.default_rng(0))
    right = masked(Sight.right).build(Window(TEXT, False), np.random.default_rng(0))

    assert left.prefix_length == right.prefix_length == 0
    assert (right.tokens == left.tokens[::-1]).all()
    assert (right.targets == left.targets[::-1]).all()
    # A token keeps its place in the text; only what it may look at is reversed.
    assert right.positions.tolist() == list(range(63, -1, -1))


def test_source_view_splits_the_text_in_its_middle_half() -> None:
    rng = np.random.default_rng(0)
    cuts = [masked(Sight.source).build(Window(TEXT, False), rng).prefix_length for _ in range(500)]

    assert min(cuts) == 16
    assert max(cuts) == 47


def test_span_corruption_writes_sentinels_and_spans_in_text_order() -> None:
    objective = SpanCorruption(SENTINELS, 64, spans(63))
    tokens = TEXT[: objective.window_length]
    row = objective.build(Window(tokens, False), np.random.default_rng(1))
    source = row.tokens[: row.prefix_length].tolist()
    answer = row.targets[row.prefix_length : row.num_real_tokens].tolist()

    assert row.tokens[row.prefix_length] == BERT.sop
    assert row.tokens[row.prefix_length + 1 : row.num_real_tokens].tolist() == answer[:-1]
    assert answer[-1] == BERT.eop
    # Putting each sentinel's span in its place gives the text back.
    parts: dict[int, list[int]] = {}
    for token in answer[:-1]:
        if token >= 30526:
            parts[token] = []
            current = parts[token]
        else:
            current.append(token)
    assert list(parts) == [30526 + 2 * number for number in range(len(parts))]
    restored = [t for token in source for t in parts.get(token, [token])]
    assert restored == tokens.tolist()
    assert row.positions[: row.num_real_tokens].tolist() == list(range(row.num_real_tokens))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    write_corpus(folder, "news", make_documents(200))
    return folder


@pytest.mark.parametrize("task", list(PretrainingTask), ids=lambda task: task.value)
def test_every_task_fills_its_rows(folder: Path, task: PretrainingTask) -> None:
    config = make_config(folder, {"news": str(folder / "news")}, task=task, sentinel_pairs=30)
    source = open_row_source(config)
    rows = [source.row(index) for index in range(200)]

    assert sum(row.num_real_tokens for row in rows) / (200 * 576) >= 0.98
    assert all(row.loss_mask.any() for row in rows)
    for objective in source.objectives:
        assert source.validation.row(objective, "news", 0).objective == objective


def test_unilm_mixes_its_views_by_their_shares(folder: Path) -> None:
    config = make_config(
        folder, {"news": str(folder / "news")}, task=PretrainingTask.unilm, row_length=128
    )
    source = open_row_source(config)
    epoch = source.blend()[0].rows_per_round
    names = [source.address(index)[1].objective for index in range(epoch)]

    assert source.objectives == ("unilm_both", "unilm_source", "unilm_left", "unilm_right")
    assert abs(names.count("unilm_both") - epoch / 3) < 1
    assert abs(names.count("unilm_left") - epoch / 6) < 1


def test_sentinels_that_the_tokenizer_lacks_are_asked_for(folder: Path) -> None:
    config = make_config(
        folder, {"news": str(folder / "news")}, task=PretrainingTask.span_corruption
    )

    with pytest.raises(ConfigError, match=r"tokenizer\.sentinel_pairs=27"):
        open_row_source(config)


def test_masked_ratio_of_the_baseline_is_the_configured_one(folder: Path) -> None:
    config = make_config(folder, {"news": str(folder / "news")}, task=PretrainingTask.masked_lm)
    source = open_row_source(config)
    rows = [source.row(index) for index in range(300)]
    share = sum(int(row.loss_mask.sum()) for row in rows) / (300 * 576)

    # Spans are drawn until 15 % is covered; the last one overshoots by about one token of 86.
    assert share == pytest.approx(0.152, abs=0.003)
