"""Stages of the blend: what may be written, and what a continued run may change."""

import pytest

from glm_dist.config.load import load_config
from glm_dist.errors import ConfigError
from tests.messages import Says

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

    first = {0: {"sotu": 1.0, "shakespeare": 1.0}}
    assert data.read_before(100).weights == first
    assert data.read_before(101).weights == first | {100: {"sotu": 1.0}}  # without weights of 0
    assert len(data.read_before(201).weights) == 3


def test_a_corpus_may_join_later() -> None:
    config = load_config([*STAGED, "data.corpora.sotu.weight=0"])

    assert config.data.corpora["sotu"].weight == 0


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["data.stage_starts=[200,100]"], "data.stage_starts"),
        (["data.stage_starts=[0,100]"], "data.stage_starts"),
        (["data.corpora.sotu.stage_weights=[1]"], "data.corpora.sotu.stage_weights"),
        (["data.corpora.sotu.stage_weights=[-1,1]"], "data.corpora.sotu.stage_weights"),
        (["data.corpora.sotu.stage_weights=[0,0]"], "data.corpora.*.weight"),
        (["data.corpora.sotu.weight=-1"], "data.corpora.sotu.weight"),
        (["data.corpora.sotu.stage_weights=[nan,1]"], "data.corpora.sotu.stage_weights"),
    ],
    ids=["falling", "zero", "too few", "negative", "empty stage", "negative weight", "no number"],
)
def test_wrong_stages_are_refused(overrides: list[str], key: str, says: Says) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([*STAGED, *overrides])
    assert caught.value.key == key
    says(caught.value)


@pytest.mark.parametrize(
    ("overrides", "fix"),
    [
        ([], "data.stage_starts=[1000000,2000000]"),
        (["data.stage_starts=[7]"], "data.corpora.sotu.stage_weights=[1.0]"),
    ],
    ids=["no stage", "one stage"],
)
def test_weights_of_stages_that_do_not_exist_are_refused(
    overrides: list[str], fix: str, says: Says
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([*TWO, *overrides, "data.corpora.sotu.stage_weights=[1,0]"])
    assert (caught.value.key, caught.value.fix) == ("data.corpora.sotu.stage_weights", fix)
    says(caught.value)
