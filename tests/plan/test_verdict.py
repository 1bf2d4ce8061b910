"""A run that does not fit is refused with its parts and with overrides that do fit."""

import random
import re
from dataclasses import replace
from functools import reduce

import pytest
import yaml

from glm_dist.cli.main import main
from glm_dist.config.checks import check_config
from glm_dist.config.load import load_config
from glm_dist.config.schema import RecomputeConfig, RecomputeMode, RunConfig
from glm_dist.errors import LaunchError
from glm_dist.parallel.layout import Layout
from glm_dist.plan.memory import rank_memory
from glm_dist.plan.verdict import check_fits

GIB = 1 << 30
SIZES = ("glm_large", "glm_2b")


def _applied(config: RunConfig, override: str) -> RunConfig:
    """The configuration with an override, without composing it again."""
    key, _, value = override.partition("=")
    if key == "recompute":
        return replace(config, recompute=RecomputeConfig(RecomputeMode[value]))
    if key == "zero":
        key, value = "zero.stage", value.removeprefix("stage")
    section, name = key.split(".")
    changed = replace(getattr(config, section), **{name: yaml.safe_load(value)})
    return replace(config, **{section: changed})


def _worst(config: RunConfig, world_size: int, memory: int) -> int:
    """Bytes of the rank that needs most, if it fits."""
    check_config(config, world_size=world_size)
    return check_fits(config, world_size, memory=memory, device="GPU").memory.total


def test_130b_on_8_gpus_of_80_gb_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    layout = ["parallel=tp8", "parallel.stage_layers=[]"]
    typed = ["check", "experiment=glm_130b", *layout, "--processes", "8", "--no-files"]
    assert main([*typed, "--gpu", "a100-80"]) == 2
    said = capsys.readouterr().err
    assert re.match(r"LaunchError: rank 0 needs 27\d\.\d\d GiB, and a100-80 has 79.15 GiB.\n", said)
    # 128,697,794,560 parameters of 2 bytes, with 4 of gradients and 12 of the optimizer.
    assert "Start at least 28 processes" in said
    assert "take 2157.46 GiB in all" in said
    assert main([*typed, "--gpu", "a100-80", "--force"]) == 0
    assert "warning     rank 0 needs 27" in capsys.readouterr().out


def test_without_a_gpu_there_is_a_figure_and_no_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    typed = ["check", "experiment=glm_130b", "--processes", "768", "--no-files"]
    assert main(typed) == 0
    said = capsys.readouterr().out
    assert re.search(r"^memory +[\d.]+ GiB on a GPU, rank 0, stage 0 of 8$", said, re.MULTILINE)
    assert main([*typed, "--gpu", "h100"]) == 0
    assert "fits h100 with 79.1" in capsys.readouterr().out
    assert main([*typed, "--gpu", "abacus"]) == 2
    assert "--gpu abacus is not in the table of GPUs" in capsys.readouterr().err


def test_a_job_on_cpus_is_not_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "experiment=quickstart", "--no-files"]) == 0
    assert "memory " in capsys.readouterr().out


def test_what_is_proposed_fits_and_what_is_accepted_fits_every_rank() -> None:
    rng = random.Random(7)
    bases = [load_config([f"experiment={name}", "precision=fp32"]) for name in SIZES]
    refused = accepted = 0
    for _ in range(60):
        world_size = rng.choice([1, 2, 4, 8, 16])
        config = rng.choice(bases)
        for override in (
            "batch.global_batch_size=256",
            f"batch.micro_batch_size={rng.choice([1, 4, 16])}",
            f"zero=stage{rng.choice([0, 1, 2, 3])}",
            f"recompute={rng.choice(['none', 'selective', 'full'])}",
        ):
            config = _applied(config, override)
        memory = rng.choice([8, 16, 40, 80]) * GIB
        try:
            worst = _worst(config, world_size, memory)
        except LaunchError as error:
            refused += 1
            (proposal,) = re.findall(r"  (?:Set (.*)|Start .*); --force", str(error))
            for way in filter(None, proposal.split(", or ")):
                _worst(reduce(_applied, way.split(), config), world_size, memory)  # or it raises
        else:
            accepted += 1
            layout = Layout.from_config(config, world_size)
            ranks = [rank_memory(config, layout, rank).total for rank in range(world_size)]
            assert max(ranks) == worst <= memory
    assert refused > 10
    assert accepted > 10
