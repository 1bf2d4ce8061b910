"""Check that a run resumes as the same run: replay recorded steps and compare.

glm-dist resume-check runs/large_1                       one process
torchrun --nproc-per-node 8 -m glm_dist resume-check runs/large_1
torchrun --nproc-per-node 2 -m glm_dist resume-check runs/large_1 --tensor-parallel-size 2

Loads a checkpoint, trains its next steps with the run's own configuration, and compares losses and
gradient norms with metrics.jsonl, and the weights with a later checkpoint if one is kept. Nothing
is written to the run folder, and the run may be training meanwhile.

Exit status: 0 equal within the tolerance, 3 different, 2 the check could not be done.
"""

import argparse
import os
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from glm_dist.cli.arguments import whole_number
from glm_dist.cli.once import print_once
from glm_dist.cli.train import workload_of
from glm_dist.config.checks import check_config
from glm_dist.config.launch import (
    LaunchEnvironment,
    accelerator_is_visible,
    hide_gpus_if_asked,
    read_launch_environment,
)
from glm_dist.config.load import load_config_file
from glm_dist.config.schema import Dtype, RunConfig
from glm_dist.data.tokenizer.stored import TOKENIZER_FOLDER
from glm_dist.errors import GlmDistError
from glm_dist.files import is_dir
from glm_dist.observe.run_folder import CONFIG_FILE
from glm_dist.tasks.finetune import examples_of
from glm_dist.train.replay_plan import plan_for

if TYPE_CHECKING:
    from glm_dist.train.replay import Replay

EXIT_DIFFERS = 3
"""Exit status if the replay differs from what was recorded by more than the tolerance."""

TOLERANCE = {Dtype.fp32: 1e-5, Dtype.bf16: 1e-2, Dtype.fp16: 1e-2}
"""Largest relative difference that rounding explains. Another layout adds in another order."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    parser.add_argument("run", type=Path, help="folder of a run, such as runs/quickstart")
    parser.add_argument(
        "--step",
        type=whole_number(at_least=0),
        help="checkpoint to start from (default: the newest one with something to compare)",
    )
    parser.add_argument(
        "--steps",
        type=whole_number(at_least=1),
        default=10,
        help="most steps to replay (default: %(default)s)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest relative difference (default: 1e-5 in fp32, 1e-2 in bf16 and fp16)",
    )
    for name, what in (("tensor", "processes that share each layer"), ("pipeline", "stages")):
        parser.add_argument(
            f"--{name}-parallel-size",
            type=whole_number(at_least=1),
            metavar="N",
            help=f"{what} (default: the run's; 1 in a single process)",
        )


def run(arguments: argparse.Namespace) -> int:
    """Replay, print the table and the verdict.

    Returns:
        Exit status; see the module.

    Raises:
        LaunchError: The variables of the launcher contradict each other.
    """
    launch = read_launch_environment(os.environ, trains=False)
    hide_gpus_if_asked(os.environ)
    try:
        config = _in_this_layout(load_config_file(arguments.run / CONFIG_FILE), arguments, launch)
        check_config(
            config,
            world_size=launch.world_size,
            has_accelerator=accelerator_is_visible(os.environ),
        )
        plan_for(arguments.run, step=arguments.step, steps=arguments.steps)
    except GlmDistError as error:
        return print_once(error, launch, is_everywhere=True)
    stored = arguments.run / TOKENIZER_FOLDER
    if is_dir(stored):  # the run may have moved since
        config = replace(config, tokenizer=replace(config.tokenizer, path=str(stored)))
    try:
        data = examples_of(config)
    except GlmDistError as error:
        return print_once(error, launch, is_everywhere=False)
    tolerance = arguments.tolerance
    if tolerance is None:
        tolerance = TOLERANCE[config.precision.dtype]

    def report(replay: "Replay") -> int:
        text, is_equal = describe(replay, tolerance=tolerance, dtype=config.precision.dtype.name)
        sys.stdout.write(text)
        sys.stdout.flush()
        return 0 if is_equal else EXIT_DIFFERS

    # Loads torch, which neither help nor a mistake above needs.
    tool = import_module("glm_dist.train.replay")
    status: int = tool.run_replay(
        arguments.run,
        config,
        launch,
        step=arguments.step,
        steps=arguments.steps,
        report=report,
        workload=workload_of(data),
    )
    return status


def _in_this_layout(
    config: RunConfig, arguments: argparse.Namespace, launch: LaunchEnvironment
) -> RunConfig:
    """Return the run's configuration in the layout of this job."""
    parallel = config.parallel
    alone = launch.world_size == 1
    tensor = arguments.tensor_parallel_size or (1 if alone else parallel.tensor_parallel_size)
    stages = arguments.pipeline_parallel_size or (1 if alone else parallel.pipeline_parallel_size)
    same_stages = stages == parallel.pipeline_parallel_size
    layout = replace(
        parallel,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=stages,
        data_parallel_size=None,  # all that were started
        sequence_parallel=parallel.sequence_parallel and tensor > 1,
        virtual_stages=parallel.virtual_stages if same_stages else 1,
        stage_layers=parallel.stage_layers if same_stages else [],
    )
    stage = min(config.zero.stage, 1) if stages > 1 else config.zero.stage
    zero = replace(config.zero, stage=stage, overlap_comm=config.zero.overlap_comm and stage > 1)
    observe = replace(config.observe, profile_steps=[])  # whose ranks there may not be here
    return replace(config, parallel=layout, zero=zero, observe=observe)


def describe(replay: "Replay", *, tolerance: float, dtype: str) -> tuple[str, bool]:
    """Format a replay as a table with a verdict.

    Args:
        replay: The result.
        tolerance: Largest relative difference that counts as equal.
        dtype: Name of the run's precision.

    Returns:
        Text, and True if all is equal within the tolerance.
    """
    plan = replay.plan
    layout = "the layout that saved it" if replay.same_layout else "another layout"
    lines = [f"checkpoint of step {plan.start}, replayed to step {plan.until} in {layout}, {dtype}"]
    if replay.compared:
        lines.append(f"{'steps':>13} {'':<9} {'recorded':>14} {'replayed':>14} {'difference':>12}")
    for each in replay.compared:
        found = each.recorded
        steps = str(found.last) if found.first == found.last else f"{found.first}-{found.last}"
        lines.append(_line(steps, "loss", found.loss, each.loss))
        if found.grad_norm is not None:
            lines.append(_line(str(found.last), "grad norm", found.grad_norm, each.grad_norm))
    largest = max((each.difference for each in replay.compared), default=0.0)
    if not replay.compared:
        lines.append("metrics.jsonl has no record that lies within these steps")
    weights = replay.weights
    if weights is not None:
        largest = max(largest, weights.relative)
        lines.append(
            f"all {weights.tensors} tensors are bit-equal to the checkpoint of step {weights.step}"
            if weights.unequal == 0
            else f"{weights.unequal} of {weights.tensors} tensors differ from the checkpoint of"
            f" step {weights.step}; norm of the weights' difference: {weights.relative:.1e}"
            f" of their norm (most in {weights.name or 'moments only'})"
        )
    is_equal = largest <= tolerance
    verdict = "the run resumes as the same run" if is_equal else "DIFFERENT"
    lines.append(
        f"{verdict}: largest relative difference {largest:.1e}, tolerance {tolerance:.0e}"
        f" ({replay.seconds:.1f} s)"
    )
    return "".join(f"{line}\n" for line in lines), is_equal


def _line(steps: str, name: str, recorded: float, replayed: float) -> str:
    same = "equal" if recorded == replayed else f"{abs(replayed - recorded):.1e}"
    return f"{steps:>13} {name:<9} {recorded:>14.8f} {replayed:>14.8f} {same:>12}"
