"""A rank that cannot fit its GPU is refused before it allocates anything."""

import logging

import pytest
import torch

from glm_dist.config.load import load_config
from glm_dist.errors import LaunchError
from glm_dist.parallel.layout import Layout
from glm_dist.plan.memory import rank_memory
from glm_dist.train import launch_memory
from glm_dist.train.dry_run import fake_rank
from glm_dist.train.launch_memory import check_device_memory


def test_state_beyond_the_device_is_refused_and_the_rest_only_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(["experiment=glm_2b"])
    memory = rank_memory(config, Layout(), 0)
    device = torch.device("cuda:0")

    def check(total: int) -> str:
        caplog.clear()
        monkeypatch.setattr(launch_memory, "total_memory", lambda _: total)
        with caplog.at_level(logging.WARNING), fake_rank(Layout(), 0) as groups:
            check_device_memory(config, groups, device)
        return caplog.text

    assert check(memory.total) == ""
    assert "rank 0 may run out of memory" in check(memory.total - 1)
    assert "rank 0 may run out of memory" in check(memory.state)
    with pytest.raises(LaunchError, match="for weights, gradients and optimizer, and its GPU"):
        check(memory.state - 1)
