"""Official options: what each changes in a row, and that nothing else changes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glm_dist.data.objectives.base import Window
from glm_dist.data.objectives.document import DocumentHiding
from glm_dist.data.objectives.glm import BlankInfilling, Variations, cut_short
from glm_dist.data.objectives.span import SpanHiding
from glm_dist.data.row_source import open_row_source
from glm_dist.data.rows import Row
from glm_dist.errors import ConfigError
from tests.data.corpora import make_config, make_documents, write_corpus
from tests.data.examples import BERT

ROW_LENGTH = 160
SENTINELS = replace(BERT, first_sentinel=30526, sentinel_pairs=20)


def text(count: int, *, documents: int = 1) -> np.ndarray:
    """Numbered tokens from 1000 on; each document opened and closed."""
    tokens = np.arange(1000, 1000 + count)
    size = count // documents
    for number in range(documents):
        tokens[number * size] = BERT.cls
        if number:
            tokens[number * size - 1] = BERT.eos
    return tokens


def spans(**options: object) -> BlankInfilling:
    hiding = SpanHiding.create(SENTINELS, row_length=ROW_LENGTH, mask_ratio=0.15, mean_length=3.0)
    variations = Variations(max_position=512, **options)  # type: ignore[arg-type]
    return BlankInfilling(hiding, SENTINELS, ROW_LENGTH, variations)


def build(infilling: BlankInfilling, *, documents: int = 1, seed: int = 0) -> Row:
    window = Window(text(infilling.window_length, documents=documents), False)
    return infilling.build(window, np.random.default_rng(seed))


def part_b(row: Row) -> slice:
    return slice(row.prefix_length, row.num_real_tokens)


def test_span_order_can_follow_the_text() -> None:
    row = build(spans(keep_span_order=True))
    places = row.positions[part_b(row)]

    assert (np.diff(places) >= 0).all()
    shuffled = build(spans())
    assert (np.diff(shuffled.positions[part_b(shuffled)]) < 0).any()


def test_block_masking_hides_inputs_and_no_target() -> None:
    plain = build(spans())
    hidden = inputs = 0
    for seed in range(200):
        row, other = build(spans(block_mask_prob=0.1), seed=seed), build(spans(), seed=seed)
        changed = row.tokens != other.tokens
        assert (row.tokens[changed] == BERT.block_mask).all()
        assert not changed[: row.prefix_length].any()
        assert not changed[row.tokens == BERT.sop].any()
        assert (row.targets == other.targets).all()
        hidden += int(changed.sum())
        inputs += int((row.block_positions > 1).sum())

    assert (plain.tokens != BERT.block_mask).all()
    # About 200 rows of 21 inputs: standard error of the share 0.005.
    assert hidden / inputs == pytest.approx(0.1, abs=0.02)


def test_block_masking_is_for_short_spans_only() -> None:
    hiding = DocumentHiding(BERT, min_ratio=0.5, suffix_share=0.5)
    variations = Variations(max_position=512, block_mask_prob=1.0)
    row = build(BlankInfilling(hiding, BERT, ROW_LENGTH, variations))

    assert (row.tokens != BERT.block_mask).all()


def test_random_positions_move_all_tokens_alike_and_use_the_table() -> None:
    offsets = []
    for seed in range(400):
        row, plain = build(spans(random_positions=True), seed=seed), build(spans(), seed=seed)
        real = slice(0, row.num_real_tokens)
        difference = row.positions[real] - plain.positions[real]
        assert (difference == difference[0]).all()
        assert not row.positions[row.num_real_tokens :].any()
        assert row.positions.max() <= 511
        offsets.append(int(difference[0]))

    # Part A has about 130 tokens, so offsets are uniform from 0 to about 380.
    assert min(offsets) < 10
    assert max(offsets) > 340
    assert np.mean(offsets) == pytest.approx(190, abs=20)


def test_sentinels_tell_blanks_apart_by_their_tokens() -> None:
    row = build(spans(sentinels=True))
    plain = build(spans())
    starts = [i for i in range(*part_b(row).indices(ROW_LENGTH)) if row.block_positions[i] == 1]
    count = len(starts)

    # The first blank keeps the plain pair; the i-th has [MASKi] and its start, interleaved.
    assert row.tokens[starts].tolist() == [BERT.sop, *(30527 + 2 * i for i in range(count - 1))]
    masks = {30526 + 2 * i for i in range(count - 1)} | {BERT.mask}
    assert set(row.tokens[: row.prefix_length].tolist()) & masks == masks
    in_text = [int(plain.positions[start]) for start in starts]
    by_order = [int(row.tokens[place]) for place in in_text]
    assert by_order == [BERT.mask, *(30526 + 2 * i for i in range(count - 1))]
    assert (row.positions[part_b(row)] == 512).all()
    assert (row.targets == plain.targets)[part_b(row)].all()


def test_without_block_positions_part_b_counts_one() -> None:
    row, plain = build(spans(no_block_positions=True)), build(spans())

    assert (row.block_positions[part_b(row)] == 1).all()
    assert not row.block_positions[: row.prefix_length].any()
    assert (row.positions == plain.positions).all()


def test_positions_can_restart_with_each_document() -> None:
    row = build(spans(restart_positions=True), documents=3)
    plain = build(spans(), documents=3)
    openings = [i for i in range(row.prefix_length) if row.tokens[i] == BERT.cls]

    assert len(openings) == 3
    for begin, end in zip(openings, [*openings[1:], row.prefix_length], strict=True):
        assert row.positions[begin:end].tolist() == list(range(end - begin))
    # A token of Part B still stands where its mask is.
    for index in range(row.prefix_length, row.num_real_tokens):
        assert row.positions[index] == row.positions[plain.positions[index]]


def sees(row: Row) -> np.ndarray:
    """Attention of a packed row as a dense table, from its segments alone."""
    table = np.zeros((len(row.tokens), len(row.tokens)), np.bool_)
    begin = 0
    for length, prefix_length in row.segments:
        for query in range(length):
            for key in range(length):
                table[begin + query, begin + key] = key <= query or key < prefix_length
        begin += length
    return table


def test_isolated_documents_are_rows_of_their_own() -> None:
    row = build(spans(isolate_documents=True, restart_positions=True), documents=3)
    table = sees(row)
    documents = text(len(row.tokens), documents=1)
    sizes = [segment.length for segment in row.segments]

    assert len(row.segments) == 3
    assert sum(sizes) == row.num_real_tokens
    assert len(documents) == ROW_LENGTH
    begin = 0
    for segment in row.segments:
        inside = slice(begin, begin + segment.length)
        assert row.tokens[begin] == BERT.cls
        assert row.positions[begin : begin + segment.prefix_length].tolist() == list(
            range(segment.prefix_length)
        )
        # Every start of piece of the segment points at a mask of the segment.
        masks = [i for i in range(segment.prefix_length) if row.tokens[begin + i] == BERT.mask]
        starts = [i for i in range(*inside.indices(ROW_LENGTH)) if row.tokens[i] == BERT.sop]
        assert sorted(row.positions[starts].tolist()) == masks
        assert not table[inside, : inside.start].any()
        assert not table[inside, inside.stop :].any()
        begin += segment.length


def test_isolation_hides_the_same_spans() -> None:
    row = build(spans(isolate_documents=True), documents=3)
    plain = build(spans(), documents=3)

    assert sorted(row.tokens.tolist()) == sorted(plain.tokens.tolist())
    targets = [sorted(r.targets[r.loss_mask].tolist()) for r in (row, plain)]
    assert targets[0] == targets[1]


def test_isolated_positions_may_count_on() -> None:
    row = build(spans(isolate_documents=True), documents=3)
    begin = before = 0
    for segment in row.segments:
        part_a = row.positions[begin : begin + segment.prefix_length]
        assert part_a.tolist() == list(range(before, before + segment.prefix_length))
        begin += segment.length
        before += segment.prefix_length


def test_each_isolated_document_gets_a_blank_of_its_own() -> None:
    hiding = DocumentHiding(BERT, 0.5, 0.5, max_blanks=3, per_document=True)
    variations = Variations(max_position=512, isolate_documents=True)
    infilling = BlankInfilling(hiding, BERT, ROW_LENGTH, variations)
    forms = set()
    for seed in range(40):
        row = build(infilling, documents=3, seed=seed)
        begin = 0
        for segment in row.segments:
            tokens = row.tokens[begin : begin + segment.length].tolist()
            assert tokens.count(BERT.gmask) == tokens.count(BERT.sop) == 1
            last = begin + segment.length - 1
            forms.add(int(row.targets[last]) == BERT.eop)
            begin += segment.length

    assert forms == {True, False}


def test_short_rows_are_several_texts_of_about_the_target_length() -> None:
    window = Window(text(480), False)
    counts = []
    rng = np.random.default_rng(1)
    for _ in range(2000):
        cut = cut_short(window, rng, BERT, most=6)
        openings = np.flatnonzero(cut.tokens == BERT.cls)
        sizes = np.diff([*openings, len(cut.tokens)])
        assert sizes.max() - sizes.min() <= 2
        kept = cut.tokens[cut.tokens != BERT.cls]
        assert (kept == window.tokens[1:]).all()
        counts.append(len(openings))

    assert min(counts) == 2
    assert max(counts) == 6
    # Targets from 240 on (half of those drawn) make two texts.
    assert np.mean(np.array(counts) == 2) == pytest.approx(240 / 448, abs=0.035)


def test_short_rows_fit_and_are_isolated() -> None:
    plain = spans(restart_positions=True)
    short = replace(plain, is_short=True)
    for seed in range(200):
        row = build(short, seed=seed)
        assert len(row.tokens) == ROW_LENGTH
        assert len(row.segments) > 1
        assert row.objective == "span"


@pytest.mark.parametrize("row_length", [16, 17, 18, 48])
def test_rows_too_short_for_a_short_text_are_refused_and_the_length_named_works(
    tmp_path: Path, row_length: int
) -> None:
    prefixes = {"text": write_corpus(tmp_path, "text", make_documents(40))}
    options: dict[str, Any] = {"short_share": 1.0, "shares": (0.2, 0.2, 0.6)}
    with pytest.raises(ConfigError, match=f"batch.row_length={row_length}") as caught:
        open_row_source(make_config(tmp_path, prefixes, row_length=row_length, **options))

    # 6 blanks of 2 tokens, 5 cuts and 32 tokens of text are 49; sentences may take one more.
    assert caught.value.fix == "batch.row_length=50"
    source = open_row_source(make_config(tmp_path, prefixes, row_length=50, **options))
    assert {len(source.row(index).tokens) for index in range(200)} == {50}


def test_a_row_length_without_short_texts_may_be_short(tmp_path: Path) -> None:
    prefixes = {"text": write_corpus(tmp_path, "text", make_documents(40))}
    source = open_row_source(make_config(tmp_path, prefixes, row_length=16))
    assert {len(source.row(index).tokens) for index in range(200)} == {16}


def test_positions_stay_inside_the_table() -> None:
    # Documents of one token: nothing may be hidden, and Part A is the whole window.
    infilling = replace(spans(), variations=Variations(max_position=100))
    tokens = np.tile([BERT.cls, 1000, BERT.eos], 200)[: infilling.window_length]
    row = infilling.build(Window(tokens, False), np.random.default_rng(0))

    assert row.prefix_length > 101
    assert row.positions.max() == 100
