"""Say before a launch whether it would work: layout, batch, model, files, and how to start it.

Neither torch nor an accelerator is needed; a login node will do.
"""

import argparse
import shlex
import sys
from pathlib import Path

from glm_dist.cli.arguments import add_job_arguments
from glm_dist.config.checks import check_config
from glm_dist.config.load import load_config
from glm_dist.config.parameter_specs import count_parameters
from glm_dist.config.schema import RunConfig
from glm_dist.config.task import TaskKind
from glm_dist.config.trainable import count_trainable
from glm_dist.errors import LaunchError
from glm_dist.parallel.layout import Layout
from glm_dist.plan.gpus import Gpu, gpu_named
from glm_dist.plan.verdict import check_fits, describe_parts, worst_rank
from glm_dist.plan.wording import gib
from glm_dist.tasks.examples import read_benchmarks
from glm_dist.tasks.finetune import complete
from glm_dist.tasks.task_data import TaskData
from glm_dist.train.preflight import Preflight, check_files

PROCESSES_PER_NODE = 8
"""GPUs of the usual node; only the proposed commands use it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare overrides and options."""
    add_job_arguments(parser)
    parser.add_argument(
        "--no-files", action="store_true", help="leave out tokenizer, data and run folder"
    )
    parser.add_argument(
        "--gpu", metavar="NAME", help="refuse a job that does not fit this GPU, such as h100"
    )
    parser.add_argument(
        "--force", action="store_true", help="only warn of a job that does not fit the GPU"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the verdict.

    Returns:
        Exit status.

    Raises:
        GlmDistError: The job would not work.
    """
    gpu = None if arguments.gpu is None else gpu_named(arguments.gpu)
    config = load_config(arguments.overrides, config_dir=arguments.config_dir)
    world_size = arguments.processes or Layout.from_config(config).world_size
    check_config(config, world_size=world_size)
    files = data = None
    if not arguments.no_files:
        prepared = complete(config, arguments.overrides, config_dir=arguments.config_dir)
        config, data = prepared.config, prepared.data
        check_config(config, world_size=world_size)
        files = check_files(config, read_data=prepared.facts)
        read_benchmarks(config)
    lines = [
        *_describe(config, world_size, data),
        *_describe_memory(config, world_size, data, gpu, forces=arguments.force),
        *_describe_files(config, files),
    ]
    typed = list(arguments.overrides)
    if arguments.config_dir is not None:
        typed += ["--config-dir", str(arguments.config_dir)]
    lines += _launch_commands(typed, world_size)
    sys.stdout.write("".join(f"{title:<12}{text}\n" for title, text in lines))
    return 0


def _describe(config: RunConfig, world_size: int, data: TaskData | None) -> list[tuple[str, str]]:
    model, batch = config.model, config.batch
    layout = Layout.from_config(config, world_size)
    micro_batches = config.num_micro_batches(world_size)
    parameters, trained = count_parameters(model, config.padded_vocab_size), count_trainable(config)
    frozen = [("trained", f"{trained:,} parameters; {parameters - trained:,} are frozen")]
    rows_per_item = 1 if data is None else data.rows_per_example
    rows = batch.global_batch_size * rows_per_item
    tokens = rows * batch.row_length
    return [
        *([] if data is None else _describe_task(data)),
        ("run", f"{config.run.name}, {config.run.steps:,} steps"),
        (
            "processes",
            f"{world_size} = tp {layout.tensor_parallel_size} "
            f"x pp {layout.pipeline_parallel_size} x dp {layout.data_parallel_size}, "
            f"ZeRO {config.zero.stage}, "
            f"{config.precision.dtype.name}",
        ),
        (
            "model",
            f"{parameters:,} parameters: "
            f"{model.num_layers} layers, hidden {model.hidden_size}, "
            f"{model.num_attention_heads} heads, vocabulary {config.tokenizer.vocab_size:,} "
            f"padded to {config.padded_vocab_size:,}",
        ),
        *(frozen if trained < parameters else []),
        (
            "step",
            f"{rows:,} rows x {batch.row_length} = {tokens:,} tokens; {micro_batches} micro-batches"
            f" of {batch.micro_batch_size * rows_per_item} rows on each replica",
        ),
        ("tokens", f"{tokens * config.run.steps:,} in all steps"),
    ]


def _describe_memory(
    config: RunConfig,
    world_size: int,
    data: TaskData | None,
    gpu: Gpu | None,
    *,
    forces: bool,
) -> list[tuple[str, str]]:
    """Return the memory of the rank that needs most, and the verdict for a GPU.

    Raises:
        LaunchError: It does not fit.
    """
    rows = 1 if data is None else data.rows_per_example
    worst = worst_rank(config, Layout.from_config(config, world_size), rows_per_item=rows)
    verdict = ""
    warnings = []
    if gpu is not None:
        verdict = f"; fits {gpu.name} with {gib(gpu.memory)}"
        try:
            check_fits(config, world_size, memory=gpu.memory, device=gpu.name, rows_per_item=rows)
        except LaunchError as error:
            if not forces:
                raise
            verdict = ""
            warnings = [("warning", str(error).splitlines()[0])]
    total = f"{gib(worst.memory.total)} on a GPU, {worst}{verdict}"
    return [("memory", total), ("", describe_parts(worst.memory)), *warnings]


def _describe_task(data: TaskData) -> list[tuple[str, str]]:
    task = data.config.task
    example = data.example(data.first)
    counts = ", ".join(f"{len(found):,} {split.value}" for split, found in data.records.items())
    return [
        ("task", f"{task.name}: {task.kind.name}, examples: {counts}"),
        ("pattern", task.prompt_pattern),
        ("prompt", data.tokenizer.decode(example.questions[0].prompt.tokens)),
        ("answers", " | ".join(data.shown_answers(example))),
        *(("warning", said) for said in data.repeated()),
    ]


def _describe_files(config: RunConfig, files: Preflight | None) -> list[tuple[str, str]]:
    if files is None and config.task.kind is not TaskKind.none:
        unknown = "steps, rows and memory are not those of the task: its examples were not read"
        return [("files", "not checked"), ("warning", unknown)]
    if files is None:
        return [("files", "not checked")]
    lines = [
        (
            "corpus",
            f"{each.name}: {each.tokens:,} training tokens in {each.documents:,} documents, read"
            f" {each.epochs:.3g} times",
        )
        for each in files.corpora
    ]
    lines += [("warning", text) for text in files.warnings]
    begins = (
        "starts at step 0" if files.newest_step is None else f"continues from {files.newest_step}"
    )
    if files.fetched_from is not None:
        begins += f", fetched from {files.fetched_from}"
    return [*lines, ("run folder", f"{config.run_dir} ({begins})")]


def _launch_commands(arguments: list[str], world_size: int) -> list[tuple[str, str]]:
    """Commands that start the job; the first title only, so that they read as one block."""
    typed = shlex.join(arguments)
    nodes = -(-world_size // PROCESSES_PER_NODE)
    each = world_size if nodes == 1 else PROCESSES_PER_NODE
    commands = [f"srun --nodes={nodes} --ntasks={world_size} python train.py {typed}"]
    for argument in arguments:
        script = Path("launchers", f"{argument.removeprefix('experiment=')}.sh")
        if nodes > 1 and argument.startswith("experiment=") and script.exists():
            rest = shlex.join(each for each in arguments if each != argument)
            tasks = f"--nodes={nodes} --ntasks-per-node={each}"
            commands.append(f"sbatch {tasks} {script} {rest}".rstrip())
    if nodes == 1:
        commands = [
            f"deepspeed --num_accelerators {each} train.py {typed}",
            f"torchrun --nproc-per-node {each} train.py {typed}",
            *commands,
        ]
    return [("start" if i == 0 else "", command) for i, command in enumerate(commands)]
