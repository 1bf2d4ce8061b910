"""A batch script for one planned layout, in the form of those in launchers/."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from glm_dist.config.finetuning import EXPERIMENT
from glm_dist.errors import ConfigError
from glm_dist.plan.search import Plan

TEMPLATE = Path(__file__).with_name("plan_script.sh")
"""A script with @names@ for what differs."""


def batch_script(
    plan: Plan, *, typed: Sequence[str], name: str, file: str, gpus_per_node: int
) -> str:
    """Write a script that runs one plan.

    Args:
        plan: The layout.
        typed: Overrides of the command line, with an experiment among them; options of
            ``train.py`` too.
        name: Of the job.
        file: Path of the script, for its usage.
        gpus_per_node: GPUs of a node; fewer if the job has fewer.

    Raises:
        ConfigError: There is no experiment, or the name or a value has a space.
    """
    experiments = [text.partition("=")[2] for text in typed if text.startswith("experiment=")]
    if not experiments and any(text.startswith("task=") for text in typed):
        experiments = [EXPERIMENT]
    if not experiments or experiments[-1] == "null":
        raise ConfigError(
            "--write: a batch script starts an experiment.\n  Add experiment=<name>.",
            key="--write",
            value=file,
            fix="experiment=<name>",
        )
    others = [text for text in typed if not text.startswith("experiment=")]
    words = [experiments[-1], *others, *plan.overrides]
    for word in (name, *words):
        if word.split() != [word]:
            raise ConfigError(
                f"--write: {word!r} has a space, which a batch script takes for two words.\n"
                "  Name the script without one; give such values to the script itself.",
                key="--write",
                value=word,
                fix="give it to the script",
            )
    gpus = plan.layout.world_size
    each = min(gpus_per_node, gpus)
    values = {
        "experiment": experiments[-1],
        "gpus": str(gpus),
        "gpu": plan.cluster.gpu.name,
        "file": file,
        "name": name,
        "nodes": str(-(-gpus // each)),
        "each": str(each),
        "words": shlex.quote(" ".join(words)),
    }
    script = TEMPLATE.read_text(encoding="utf-8")
    for key, value in values.items():
        script = script.replace(f"@{key}@", value)
    return script
