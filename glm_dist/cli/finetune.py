"""Finetune the model of a run on a task: compose the configuration, read the examples, train.

glm-dist finetune task=rte run.init_from=runs/large run.name=rte_1
glm-dist finetune task=my_task.yaml run.init_from=runs/large run.name=mine model.lora_rank=8
glm-dist finetune experiment=finetune_large task=copa run.init_from=runs/large run.name=copa_1

A task is an option of conf/task or a YAML file of yours (docs/finetuning.md). Model, tokenizer and
objective are those of the run. `deepspeed train.py task=rte …`, torchrun and srun start several
processes; glm-dist check says before whether it would work.
"""

import argparse

from glm_dist.cli import train


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
    if not any(text.startswith(("task=", "experiment=")) for text in arguments.overrides):
        raise train.no_task()  # else other keys that are missing would be named first
    return train.run(arguments, needs_task=True)
