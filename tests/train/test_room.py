"""A run whose checkpoints do not fit on the disk is refused before it begins."""

import re
from pathlib import Path

import pytest

from glm_dist.config.load import load_config
from glm_dist.config.parameter_specs import count_parameters
from glm_dist.config.schema import RunConfig
from glm_dist.errors import CheckpointError
from glm_dist.train.room import check_room

KEYS = ("checkpoint.interval=10", "run.steps=100")


def config(*overrides: str) -> RunConfig:
    return load_config(["experiment=tiny", *KEYS, *overrides])


def one(of: RunConfig) -> int:
    return 12 * count_parameters(of.model, of.padded_vocab_size)


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["checkpoint.keep_last=3"], 4),  # three stay while the fourth is written
        (["checkpoint.keep_last=1"], 3),  # two stay in any case
        (["checkpoint.keep_last=3", "checkpoint.url=memory://x"], 5),  # one is being uploaded
        (["checkpoint.keep_last=3", "run.steps=11"], 2),  # steps 10 and 11, and no more
    ],
)
def test_one_more_than_is_kept_must_fit(tmp_path: Path, overrides: list[str], count: int) -> None:
    chosen = config(*overrides)
    needed = count * one(chosen)
    check_room(chosen, tmp_path / "later", free=needed)
    with pytest.raises(CheckpointError, match=rf"^{count} checkpoints of .* need {needed} bytes"):
        check_room(chosen, tmp_path / "later", free=needed - 1)


def test_the_message_names_the_numbers_and_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_room(config("checkpoint.keep_last=2"), tmp_path, free=1000)
    assert caught.value.key == "checkpoint.keep_last"
    assert "and 1000 (0.0 GiB) are free" in str(caught.value)
    assert re.search(r"paths\.runs.*checkpoint\.keep_last", str(caught.value), re.DOTALL)


def test_checkpoints_that_are_there_already_need_no_room(tmp_path: Path) -> None:
    chosen = config("checkpoint.keep_last=2")
    (tmp_path / "step_0000010").mkdir()
    with (tmp_path / "step_0000010" / "__0_0.distcp").open("wb") as stream:
        stream.truncate(one(chosen))
    check_room(chosen, tmp_path, free=2 * one(chosen))


def test_a_model_larger_than_any_disk_is_refused_by_what_the_disk_says(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="do not fit on the file system"):
        check_room(config("model=130b", "model.num_layers=7000"), tmp_path)


def test_a_run_without_checkpoints_needs_none(tmp_path: Path) -> None:
    check_room(config("checkpoint=none", "checkpoint.interval=0"), tmp_path, free=0)
