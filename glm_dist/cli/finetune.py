"""Finetune the model of a run on a task: compose the configuration, read the examples, train.

glm-dist finetune task=rte run.init_from=runs/large run.name=rte_1
glm-dist finetune task=my_task.yaml run.init_from=runs/large run.name=mine model.lora_rank=8
glm-dist finetune experiment=finetune_large task=copa run.init_from=runs/large run.name=copa_1

A task is an option of conf/task or a YAML file of yours (docs/finetuning.md). Model, tokenizer and
objective are those of the run. `deepspeed train.py task=rte …`, torchrun and srun start several
processes; glm-dist check says before whether it would work.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from glm_dist.cli import train
from glm_dist.config.schema import RunConfig
from glm_dist.errors import ConfigError
from glm_dist.tasks import finetune
from glm_dist.train.preflight import check_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare overrides, as for training."""
    train.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check, then train.

    Returns:
        Exit status; see ``train.run``.

    Raises:
        ConfigError: No task is chosen.
        LaunchError: The variables of the launcher contradict each other.
    """
    chosen = [text for text in arguments.overrides if text.startswith(("task=", "experiment="))]
    if not chosen:
        raise ConfigError(
            "glm-dist finetune needs a task.\n"
            "  Set task=<option of conf/task> or task=<file>.yaml; see docs/finetuning.md.",
            key="task",
            value=None,
            fix="task=<file>.yaml",
        )
    return train.run(arguments)


def configure(overrides: Sequence[str], config_dir: Path | None) -> RunConfig:
    """Compose and check a finetuning without torch and without a GPU.

    Args:
        overrides: As typed.
        config_dir: Folder of the groups; None: conf/.

    Raises:
        GlmDistError: It would not work.
    """
    prepared = finetune.configure(overrides, config_dir=config_dir)
    check_files(prepared.config, read_data=prepared.facts)
    return prepared.config
