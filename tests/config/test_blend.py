"""Stages of the blend: what may be written, and what a continued run may change."""

import pytest

from glm_dist.config.load import load_config
from glm_dist.errors import ConfigError

TWO = ["experiment=tiny", "data.corpora.sotu.weight=1", "data.corpora.shakespeare.weight=1"]
STAGED = [
    *TWO,
    "data.stage_starts=[100,200]",
    "data.corpora.sotu.stage_weights=[1,0]",
    "data.corpora.shakespeare.stage_weights=[0,1]",
]


def test_stages_are_read_from_the_command_line() -> None:
    data = load_config(STAGED).data

    assert data.stage_starts == [100, 200]
    assert data.corpora["sotu"].stage_weights == [1.0, 0.0]


def test_the_past_is_what_began_before_a_row() -> None:
    data = load_config(STAGED).data

    assert data.stages_before(100) == []
    assert data.stages_before(101) == [(100, [0.0, 1.0])]  # shakespeare, sotu
    assert len(data.stages_before(201)) == 2


def test_a_corpus_may_join_later() -> None:
    config = load_config([*STAGED, "data.corpora.sotu.weight=0"])

    assert config.data.corpora["sotu"].weight == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.stage_starts=[200,100]"], r"data\.stage_starts = \[200, 100\]: expected rising"),
        (["data.stage_starts=[0,100]"], "above 0"),
        (["data.corpora.sotu.stage_weights=[1]"], "one weight for each of data.stage_starts"),
        (["data.corpora.sotu.stage_weights=[-1,1]"], r"sotu\.stage_weights = -1"),
        (["data.corpora.sotu.stage_weights=[0,0]"], "0 for every corpus"),
        (["data.corpora.sotu.weight=-1"], "weight = -1.0: expected a number of at least 0, or"),
        (["data.corpora.sotu.stage_weights=[nan,1]"], "= nan: expected numbers of at least 0"),
    ],
    ids=["falling", "zero", "too few", "negative", "empty stage", "negative weight", "no number"],
)
def test_wrong_stages_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config([*STAGED, *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.corpora.sotu.stage_weights=[1,0]"],
            "data.corpora.sotu.stage_weights = [1.0, 0.0]: expected none without "
            "data.stage_starts, the rows at which later stages begin.\n"
            "  Fix: leave it out, or set e.g. 'data.stage_starts=[1000000,2000000]'.",
        ),
        (
            ["data.stage_starts=[7]", "data.corpora.sotu.stage_weights=[1,0]"],
            "data.corpora.sotu.stage_weights = [1.0, 0.0]: expected one weight for each of "
            "data.stage_starts = [7].\n"
            "  Fix: set data.corpora.sotu.stage_weights to 1 number, 0 to leave the corpus out.",
        ),
    ],
    ids=["no stage", "one stage"],
)
def test_weights_of_stages_that_do_not_exist_are_refused(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([*TWO, *overrides])
    assert str(caught.value) == message
