"""Build one rank's part of a job of any size, on this machine, without its memory.

The rank's stage and optimizer are made of tensors that have shapes and no numbers, and its process
groups do nothing; then the pipeline schedule runs a few micro-batches. What comes out is what the
rank would hold on a GPU, next to the plan's figures. No GPU is needed.

  glm-dist dryrun experiment=glm_130b --processes 768 --rank 400
"""

import argparse
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from glm_dist.cli.arguments import add_job_arguments, whole_number
from glm_dist.config.checks import check_config
from glm_dist.config.schema import RunConfig
from glm_dist.errors import LaunchError
from glm_dist.parallel.layout import Layout
from glm_dist.plan.memory import RankMemory, rank_memory
from glm_dist.plan.wording import gib
from glm_dist.plan.workload import in_rows
from glm_dist.tasks.finetune import configure

if TYPE_CHECKING:
    from glm_dist.train.dry_run import DryRank


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare overrides and options."""
    add_job_arguments(parser)
    parser.add_argument(
        "--rank", type=whole_number(at_least=0), default=0, help="rank to build (%(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Build the rank and print what it holds.

    Returns:
        Exit status.

    Raises:
        GlmDistError: The job would not work, or has no such rank.
    """
    prepared = configure(arguments.overrides, config_dir=arguments.config_dir)
    config = prepared.config
    world_size = arguments.processes or Layout.from_config(config).world_size
    check_config(config, world_size=world_size)
    if arguments.rank >= world_size:
        raise LaunchError(
            f"--rank {arguments.rank}: a job of {world_size} processes has ranks 0 to"
            f" {world_size - 1}.\n  Choose one of them, or a job of more --processes.",
            key="--rank",
            value=arguments.rank,
            fix=f"--rank {world_size - 1}",
        )
    if prepared.data is not None:
        config = in_rows(config, prepared.data.rows_per_example)
    layout = Layout.from_config(config, world_size)
    # Read when torch is loaded; meta tensors stand for the GPU's.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    found: DryRank = import_module("glm_dist.train.dry_run").build_rank(
        config, layout, arguments.rank
    )
    planned = rank_memory(config, layout, arguments.rank)
    lines = [
        *_describe(config, layout, arguments.rank, found),
        *_compare(found, planned),
    ]
    sys.stdout.write("".join(f"{title:<12}{text}\n" for title, text in lines))
    return 0


def _describe(
    config: RunConfig, layout: Layout, rank: int, found: "DryRank"
) -> list[tuple[str, str]]:
    at = layout.coordinates(rank)
    layers = ", ".join(f"{part.start} to {part.stop - 1}" for part in found.layers)
    shapes = [f"{count} x {name} {list(shape)}" for (name, shape), count in found.shapes.items()]
    return [
        (
            "rank",
            f"{rank} of {layout.world_size}: tensor {at.tensor} of {layout.tensor_parallel_size}, "
            f"stage {at.pipeline} of {layout.pipeline_parallel_size}, "
            f"replica {at.data} of {layout.data_parallel_size}",
        ),
        ("layers", f"{layers} of 0 to {config.model.num_layers - 1}"),
        (
            "parameters",
            f"{found.parameters:,} in {sum(found.shapes.values())} tensors,"
            f" {config.precision.dtype.name}",
        ),
        *(("shapes" if i == 0 else "", text) for i, text in enumerate(shapes)),
    ]


def _compare(found: "DryRank", planned: RankMemory) -> list[tuple[str, str]]:
    pairs = (
        ("weights", found.state.weights, planned.weights),
        ("gradients", found.state.gradients, planned.gradients),
        ("optimizer", found.state.optimizer, planned.optimizer),
        ("activations", found.activations, planned.activations),
    )
    return [
        *((title, f"{gib(built)}, planned {gib(plan)}") for title, built, plan in pairs),
        ("buffers", f"planned {gib(planned.buffers)}"),
        ("margin", f"planned {gib(planned.margin)}"),
        ("total", f"planned {gib(planned.total)}"),
        *([("host", f"planned {gib(planned.host)}")] if planned.host else []),
    ]
