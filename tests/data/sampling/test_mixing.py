"""Turns in exact proportion to any weights, and which corpus each row comes from."""

import random
from fractions import Fraction
from pathlib import Path

import pytest

from glm_dist.data.corpus.statistics import blend_records
from glm_dist.data.identity import ROW_RULE, gives_same_rows
from glm_dist.data.row_source import open_row_source
from glm_dist.data.sampling.mixing import MOST_ROWS_OFF, Turns
from tests.data.corpora import make_config, open_source


def test_adding_a_corpus_leaves_the_rows_of_the_others_alone(folder: Path) -> None:
    alone = open_source(folder, "news")
    both = open_source(folder, "news", "verse", weights={"news": 1.0, "verse": 1.0})
    of_news = [row for index in range(40) if (row := both.row(index)).corpus == "news"]

    assert len(of_news) == 20
    for number, row in enumerate(of_news):
        assert (row.tokens == alone.row(number).tokens).all()


def test_blend_follows_weights_at_every_prefix(folder: Path) -> None:
    weights = {"news": 0.7, "verse": 0.25, "books": 0.05}
    source = open_source(folder, weights=weights)
    counts = dict.fromkeys(weights, 0)
    for index in range(2000):
        assert source.rows_before(index) == counts
        counts[source.address(index)[0]] += 1
        for name, weight in weights.items():
            assert abs(counts[name] - weight * (index + 1)) < 1


def test_without_weights_corpora_share_by_their_tokens(folder: Path) -> None:
    source = open_source(folder)
    shares = {part.corpus: part.share for part in source.blend()}
    tokens = {part.corpus: part.tokens for part in source.blend()}

    for name, share in shares.items():
        assert share == pytest.approx(tokens[name] / sum(tokens.values()), abs=1e-6)


def test_a_later_stage_changes_the_blend_and_no_earlier_row(folder: Path) -> None:
    first = {"news": 0.5, "verse": 0.5, "books": 0.0}
    config = make_config(folder, {name: str(folder / name) for name in first}, weights=first)
    plain = open_row_source(config)
    config.data.stage_starts = [100, 250]
    for name, weights in {"news": [0.2, 0.0], "verse": [0.3, 0.0], "books": [0.5, 1.0]}.items():
        config.data.corpora[name].stage_weights = weights
    staged = open_row_source(config)
    names = [staged.address(index)[0] for index in range(400)]

    for index in (0, 7, 99):
        assert (staged.row(index).tokens == plain.row(index).tokens).all()
    assert staged.rows_before(100) == {"news": 50, "verse": 50, "books": 0}
    # 150 rows in shares of 0.2, 0.3 and 0.5.
    assert staged.rows_before(250) == {"news": 80, "verse": 95, "books": 75}
    assert set(names[250:]) == {"books"}
    # A corpus goes on where its own rows ended.
    of_news = [index for index, name in enumerate(names) if name == "news"]
    alone = open_source(folder, "news")
    for number in (0, 49, 50, 79):
        assert (staged.row(of_news[number]).tokens == alone.row(number).tokens).all()


RANGES = {
    "tiny": ["1", "1e-7"],
    "three-tiny": ["7", "3", "1e-6"],
    "tokens": ["1e12", "1e5"],
    "with-zero": ["3", "0", "1", "0"],
    "equal": ["1"] * 16,
    "one": ["0.1"],
    "mixture": ["0.5", "0.3", "0.2"],
    "nine": [str(random.Random(number).randrange(10**9, 10**12)) for number in range(9)],
}


@pytest.mark.parametrize("weights", RANGES.values(), ids=RANGES.keys())
def test_each_turn_is_taken_by_the_one_whose_count_grows(weights: list[str]) -> None:
    turns = Turns([Fraction(weight) for weight in weights])
    for start in (0, 5_000_000 - 5, 10**15):
        counts = turns.counts_before(start)
        for turn in range(start, start + 300):
            assert sum(counts) == turn
            taker, rank = turns.locate(turn)
            assert rank == counts[taker]
            counts[taker] += 1
            assert turns.counts_before(turn + 1) == counts


def bounds(number: int) -> Fraction:
    """Half the sum of the reciprocals of 1, 1, 2, 3, 5, …: one term fewer than corpora."""
    fibonacci = [1, 1]
    while len(fibonacci) < number:
        fibonacci.append(fibonacci[-2] + fibonacci[-1])
    return sum((Fraction(1, 2 * term) for term in fibonacci[: number - 1]), Fraction(0))


@pytest.mark.parametrize("number", range(1, 17))
def test_counts_are_within_the_proven_bound_of_any_weights(number: int) -> None:
    rng = random.Random(number)
    worst = Fraction(0)
    for case in range(40):
        if case % 2:
            weights = [Fraction(rng.randrange(1, 1000)) for _ in range(number)]
        else:
            powers = [rng.randrange(-9, 9) for _ in range(number)]
            weights = [Fraction(f"{rng.randrange(1, 10)}e{power}") for power in powers]
        total = sum(weights)
        turns = Turns(weights)
        for _ in range(40):
            turn = rng.randrange(10 ** rng.randrange(1, 18))
            counts = turns.counts_before(turn)
            assert sum(counts) == turn
            worst = max(
                worst,
                *(abs(c - turn * w / total) for c, w in zip(counts, weights, strict=True)),
            )

    assert worst <= bounds(number) <= MOST_ROWS_OFF
    assert worst < 1.5


def test_weights_that_grow_like_fibonacci_numbers_come_close_to_the_bound() -> None:
    # The worst case of the proof: each pair is about as heavy as the next one to join it.
    rng = random.Random(1)
    ideal = [Fraction(1, 10**7), *map(Fraction, (1, 1, 1, 2, 3, 5, 8, 13, 21, 34))]
    weights = [weight * (1 + Fraction(rng.randrange(10**9), 10**13)) for weight in ideal]
    total = sum(weights)
    turns = Turns(weights)
    worst = Fraction(0)
    for _ in range(5000):
        turn = rng.randrange(10**18)
        for count, weight in zip(turns.counts_before(turn), weights, strict=True):
            worst = max(worst, abs(count - turn * weight / total))

    assert 1 < worst < MOST_ROWS_OFF


def test_a_rare_corpus_has_its_share_and_the_report_says_the_weights(folder: Path) -> None:
    source = open_source(folder, "news", "verse", weights={"news": 1.0, "verse": 1e-7})

    # A share of 1e-7 / (1 + 1e-7): the nearest whole number of rows becomes 1 at 5 000 000.5.
    assert source.rows_before(5_000_000) == {"news": 5_000_000, "verse": 0}
    assert source.rows_before(5_000_001) == {"news": 5_000_000, "verse": 1}
    assert source.address(5_000_000)[0] == "verse"
    assert source.rows_before(10**12)["verse"] == 100_000  # 99 999.99
    (news, verse) = blend_records(source, 1_000_000)
    assert (news.rows, verse.rows) == (1_000_000, 0)
    assert verse.wanted_rows == pytest.approx(0.1, rel=1e-6)


def test_a_corpus_without_weight_takes_no_turn() -> None:
    turns = Turns([Fraction(0), Fraction(2), Fraction(0), Fraction(1)])

    assert turns.counts_before(3 * 10**9) == [0, 2 * 10**9, 0, 10**9]
    assert {turns.locate(turn)[0] for turn in range(100)} == {1, 3}


def test_rows_of_the_older_rule_are_equal_only_where_nothing_takes_turns() -> None:
    assert gives_same_rows(1, 2, num_corpora=1, num_objectives=1)
    assert not gives_same_rows(1, 2, num_corpora=2, num_objectives=1)
    assert not gives_same_rows(1, 2, num_corpora=1, num_objectives=2)
    assert not gives_same_rows(2, 3, num_corpora=1, num_objectives=2)
    assert gives_same_rows(ROW_RULE, ROW_RULE, num_corpora=9, num_objectives=9)
    assert not gives_same_rows(ROW_RULE + 1, ROW_RULE, num_corpora=1, num_objectives=1)
