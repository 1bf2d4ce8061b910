"""Which checkpoint a run's folder offers."""

from pathlib import Path

import pytest
import torch

from glm_dist.config.load import dump_config, load_config
from glm_dist.errors import CheckpointError
from glm_dist.generate.load import load_trained
from tests.train.jobs import make_files


@pytest.mark.parametrize(
    ("steps", "offered"), [((2, 4), "4, 2"), ((), "there is none")], ids=["some", "none"]
)
def test_a_step_without_a_checkpoint_is_answered_with_those_that_have_one(
    steps: tuple[int, ...], offered: str, tmp_path: Path
) -> None:
    config = load_config([*make_files(tmp_path), "run.name=a"])
    for step in steps:
        (config.run_dir / "checkpoints" / f"step_{step:07d}").mkdir(parents=True)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    (config.run_dir / "config.yaml").write_text(dump_config(config))

    with pytest.raises(CheckpointError, match="--step = 3") as caught:
        load_trained(config.run_dir, step=3, device=torch.device("cpu"))

    assert str(caught.value).splitlines()[0].endswith(f"{offered}.")
