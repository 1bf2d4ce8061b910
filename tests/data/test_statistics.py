"""Statistics of ten thousand rows, from nothing but their tokens, targets and positions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from glm_dist.data.corpus.statistics import row_statistics
from glm_dist.data.objectives.span import span_length_probabilities
from glm_dist.data.row_source import open_row_source
from glm_dist.data.rows import Row
from tests.data.corpora import CLS, EOP, EOS, SOP, make_config, make_documents, write_corpus
from tests.data.restore import restored

ROWS = 10_000


@dataclass(frozen=True)
class Measured:
    """What a reader sees of one row."""

    objective: str
    window: int
    hidden: int
    lengths: list[int]
    first_rank: float
    """Rank in the text of the first blank in Part B, 0 to 1."""
    is_tail: bool
    has_several_documents: bool


def measure(row: Row) -> Measured:
    part_b = slice(row.prefix_length, row.num_real_tokens)
    tokens, targets = row.tokens[part_b], row.targets[part_b]
    starts = np.flatnonzero(tokens == SOP)
    places = row.positions[part_b][starts]
    closes = np.diff([*starts, len(tokens)])
    ends_with_eop = targets[np.append(starts[1:], len(tokens)) - 1] == EOP
    lengths = closes - ends_with_eop
    several = (row.tokens[: row.prefix_length - 1] == EOS).any() or (targets[:-1] == EOS).any()
    return Measured(
        objective=row.objective,
        window=row.prefix_length + int((lengths - 1).sum()),
        hidden=int(lengths.sum()),
        lengths=lengths.tolist(),
        first_rank=float((places < places[0]).sum() / max(1, len(places) - 1)),
        is_tail=not ends_with_eop.all(),
        has_several_documents=bool(several),
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Rows of 564 tokens of long and short documents, over about two epochs."""
    folder = tmp_path_factory.mktemp("corpora")
    write_corpus(folder, "long", make_documents(1200, mean_length=1500))
    write_corpus(folder, "short", make_documents(6000, mean_length=100, seed=1))
    prefixes = {name: str(folder / name) for name in ("long", "short")}
    source = open_row_source(make_config(folder, prefixes, row_length=564))
    return [source.row(index) for index in range(ROWS)]


@pytest.fixture(scope="module")
def measured(rows: list[Row]) -> list[Measured]:
    return [measure(row) for row in rows]


def of(measured: list[Measured], objective: str) -> list[Measured]:
    return [row for row in measured if row.objective == objective]


def test_shares_of_the_objectives(measured: list[Measured]) -> None:
    # Random order within an epoch: at most the binomial standard deviation, 0.005.
    for objective, share in (("span", 0.5), ("sentence", 0.3), ("document", 0.2)):
        assert len(of(measured, objective)) / ROWS == pytest.approx(share, abs=0.015)


def test_span_rows_hide_fifteen_percent(measured: list[Measured]) -> None:
    rows = of(measured, "span")
    share = sum(row.hidden for row in rows) / sum(row.window for row in rows)

    # int(0.15 * 512) = 76 of 512 tokens is 0.1484; the limit on blanks takes the overshoot back.
    assert share == pytest.approx(0.1484, abs=0.001)


def test_span_lengths_are_the_truncated_poisson(measured: list[Measured]) -> None:
    lengths = np.concatenate([row.lengths for row in of(measured, "span")])
    counts = np.bincount(lengths, minlength=40)[1:40]
    expected = span_length_probabilities(3.0) * len(lengths)
    rare = expected < 20
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    chi_square = ((observed - wanted) ** 2 / wanted).sum()

    assert len(lengths) > 100_000
    # 99.9 % quantile of chi-square with at most 13 degrees of freedom is 34.5.
    assert len(wanted) <= 14
    assert chi_square < 34.5


@pytest.mark.parametrize("objective", ["span", "sentence"])
def test_order_of_blanks_is_uniform(measured: list[Measured], objective: str) -> None:
    ranks = [row.first_rank for row in of(measured, objective) if len(row.lengths) > 1]

    # A rank between 0 and 1 has standard deviation at most 0.5.
    assert np.mean(ranks) == pytest.approx(0.5, abs=4 * 0.5 / len(ranks) ** 0.5)


def test_sentence_rows_hide_about_their_share(measured: list[Measured]) -> None:
    rows = of(measured, "sentence")
    share = sum(row.hidden for row in rows) / sum(row.window for row in rows)

    assert share == pytest.approx(0.15, abs=0.01)


def test_document_rows_hide_a_uniform_share(measured: list[Measured]) -> None:
    shares = np.array([row.hidden / row.window for row in of(measured, "document")])

    assert shares.min() >= 0.245
    assert shares.max() <= 1
    # Uniform from 0.25 to 1: mean 0.625, standard deviation 0.2165.
    assert shares.mean() == pytest.approx(0.625, abs=0.015)
    assert shares.std() == pytest.approx(0.2165, abs=0.01)


def test_single_documents_are_continued_and_filled_alike(measured: list[Measured]) -> None:
    rows = of(measured, "document")
    single = [row for row in rows if not row.has_several_documents]

    assert len(single) > 300
    assert np.mean([row.is_tail for row in single]) == pytest.approx(0.5, abs=0.1)
    assert all(row.is_tail for row in rows if row.has_several_documents)


def test_every_part_b_token_is_predicted_once(rows: list[Row]) -> None:
    for row in rows[:1000]:
        hidden = row.loss_mask[row.prefix_length : row.num_real_tokens]
        targets = row.targets[row.prefix_length : row.num_real_tokens]
        assert (hidden | (targets == CLS)).all()
        assert not row.loss_mask[: row.prefix_length].any()
        assert not row.loss_mask[row.num_real_tokens :].any()
        text = restored(row)
        ends = int((targets == EOP).sum())
        visible = row.prefix_length - int((row.tokens == SOP).sum())
        assert len(text) == visible + len(targets) - ends


def test_rows_are_full(rows: list[Row]) -> None:
    assert sum(row.num_real_tokens for row in rows) / (ROWS * 564) >= 0.98


def test_row_statistics_agree_with_the_rows(tmp_path: Path) -> None:
    write_corpus(tmp_path, "news", make_documents(60))
    source = open_row_source(make_config(tmp_path, {"news": str(tmp_path / "news")}))
    rows = [source.row(index) for index in range(60)]
    found = {each.objective: each for each in row_statistics(source, range(60))}
    spans = [row for row in rows if row.objective == "span"]

    assert found["span"].rows == len(spans)
    assert found["span"].blanks == np.mean([(row.tokens == SOP).sum() for row in spans])
    assert found["span"].real == sum(row.num_real_tokens for row in spans) / (576 * len(spans))
