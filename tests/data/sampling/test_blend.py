"""Which corpus each row comes from."""

from pathlib import Path

import pytest

from glm_dist.data.row_source import open_row_source
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
