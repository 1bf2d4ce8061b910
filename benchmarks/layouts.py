"""Two processes of one thread against one process of two: the overhead of each parallel axis.

All contestants share the same two processes and are interleaved; while one process uses both cores,
the other waits. The table also has the parts of each overhead: the same collectives without
computation, measured in the same rounds, and the calculated pipeline bubble.
"""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

from benchmarks.harness import Report, Timing, machine, options, parse, timed
from benchmarks.problems import (
    PADDED_VOCAB_SIZE,
    VOCAB_SIZE,
    glm,
    model_config,
    span_micro_batches,
)
from benchmarks.step import BareLoop, fused_adamw, run_config
from glm_dist.config.schema import Dtype, ModelConfig, RunConfig
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.model.stage import GLMShard, GLMStage
from glm_dist.observe.flops import weights_per_layer
from glm_dist.optim.state import Rates
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.groups import ParallelGroups, build_groups
from glm_dist.parallel.layout import Coordinates, Layout
from glm_dist.train.deepspeed_config import deepspeed_config
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.step import train_step
from glm_dist.train.task import Pretraining

CPU = torch.device("cpu")
TIMEOUT = timedelta(minutes=30)
LAYOUTS = {"tp2": Layout(2, 1, 1), "pp2": Layout(1, 2, 1), "dp2": Layout(1, 1, 2)}
ALONE = "1 process"

Work = Callable[[], object]


def single_process_groups() -> ParallelGroups:
    """Create the groups of a single process."""
    group = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    return ParallelGroups(
        layout=Layout(),
        rank=dist.get_rank(),
        coordinates=Coordinates(tensor=0, data=0, pipeline=0),
        tensor=group,
        data=group,
        pipeline=group,
        model=group,
        embedding=group,
        self_group=group,
        world=None,
    )


def shared_work(config: RunConfig, layout: Layout, micro_batches: Sequence[MicroBatch]) -> Work:
    """Build a step of this rank under a layout."""
    groups = build_groups(layout, TIMEOUT)
    sizes = replace(
        config.parallel,
        tensor_parallel_size=layout.tensor_parallel_size,
        pipeline_parallel_size=layout.pipeline_parallel_size,
    )
    stage = GLMStage(
        config.model,
        vocab_size=VOCAB_SIZE,
        padded_vocab_size=PADDED_VOCAB_SIZE,
        dtype=Dtype.fp32,
        groups=groups,
        device=CPU,
    )
    for parameter in stage.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    engine = TrainingEngine(
        GLMShard([stage]),
        Pretraining(),
        config.optimizer,
        deepspeed_config=deepspeed_config(replace(config, parallel=sizes), world_size=2),
        groups=groups,
    )
    share = len(micro_batches) // layout.data_parallel_size
    mine = micro_batches[groups.coordinates.data * share :][:share]
    return lambda: train_step(
        engine,
        mine,
        rates=Rates.known(1e-4),
        normalize_by=config.loss.normalize_by,
        device=CPU,
    )


def collectives(config: RunConfig, name: str, micro_batches: Sequence[MicroBatch]) -> Work:
    """Run a layout's collectives of one step, without the computation between them."""
    rows, row_length = micro_batches[0].tokens.shape
    model = config.model
    hidden = torch.zeros(row_length, rows, model.hidden_size)
    if name == "tp2":
        # Attention and MLP of each layer, forward and backward; the embedding and the head.
        count = (4 * model.num_layers + 2) * len(micro_batches)
        return lambda: [dist.all_reduce(hidden) for _ in range(count)]
    if name == "dp2":
        weights = model.num_layers * weights_per_layer(model)
        gradient = torch.zeros(weights + PADDED_VOCAB_SIZE * model.hidden_size)
        return lambda: dist.all_reduce(gradient)

    def pass_rows() -> None:
        for _ in range(2 * len(micro_batches)):  # hidden states forward, gradients backward
            if dist.get_rank() == 0:
                dist.send(hidden, 1)
            else:
                dist.recv(hidden, 0)

    return pass_rows


def measure_in_two_processes(
    config: RunConfig, micro: tuple[int, int, int], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of every contestant on rank 0, one value per round."""
    # Read when the ranks start CUDA and DeepSpeed: the comparison is between processes on CPUs.
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        # Ends both ranks as soon as one fails.
        multiprocessing.spawn(_rank, args=(Path(folder), config, micro, rounds), nprocs=2)
        seconds: dict[str, list[float]] = json.loads((Path(folder) / "seconds.json").read_text())
    return seconds


def _rank(
    rank: int, folder: Path, config: RunConfig, micro: tuple[int, int, int], rounds: int
) -> None:
    # DeepSpeed reads the first from a launcher's environment.
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2"}
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=TIMEOUT)
    seconds = measure(config, micro, rounds)
    if rank == 0:
        (folder / "seconds.json").write_text(json.dumps(seconds))
    dist.destroy_process_group()


def measure(config: RunConfig, micro: tuple[int, int, int], rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of every contestant on this rank, one value per round."""
    enable_cpu()
    count, rows, row_length = micro
    micro_batches = span_micro_batches(count, rows=rows, row_length=row_length)
    works: dict[str, Work] = {}
    for name, layout in LAYOUTS.items():
        works[name] = shared_work(config, layout, micro_batches)
        works[f"{name} collectives"] = collectives(config, name, micro_batches)
    groups = single_process_groups()
    works[ALONE] = lambda: None
    if dist.get_rank() == 0:
        stage = glm(config.model, groups, dtype=Dtype.fp32, device=CPU)
        bare = BareLoop(stage, fused_adamw(stage, config))
        works[ALONE] = lambda: bare(micro_batches)
    timings = {name: Timing() for name in works}
    for turn in range(-1, rounds):
        for name in works if turn % 2 == 0 else reversed(works):
            dist.barrier()
            torch.set_num_threads(2 if name == ALONE else 1)
            seconds = timed(works[name])
            if turn >= 0:
                timings[name].seconds.append(seconds)
    return {name: timing.seconds for name, timing in timings.items()}


def bubble(model: ModelConfig, micro_batches: Sequence[MicroBatch]) -> float:
    """Return the share of time in which one of two stages idles, by operation counts (1F1B)."""
    rows, row_length = micro_batches[0].tokens.shape
    layers = model.num_layers * weights_per_layer(model) * rows * row_length
    head = model.hidden_size * VOCAB_SIZE * int(micro_batches[0].loss_mask.sum())
    first, last, count = layers / 2, layers / 2 + head, len(micro_batches)
    return 1 - count * (first + last) / (2 * (count * last + first))


def table(
    seconds: dict[str, list[float]], model: ModelConfig, micro_batches: Sequence[MicroBatch]
) -> list[dict[str, Any]]:
    """Return a row for each layout: its throughput and overheads."""
    timings = {name: Timing(values) for name, values in seconds.items()}
    positions = sum(m.tokens.numel() for m in micro_batches)
    base = timings[ALONE]
    lines: list[dict[str, Any]] = [
        {
            "layout": f"{ALONE}, 2 threads",
            "seconds": base.median,
            "tokens/s": positions / base.median,
        }
    ]
    for name in LAYOUTS:
        timing = timings[name]
        lines.append(
            {
                "layout": f"{name}, 1 thread each",
                "seconds": timing.median,
                "tokens/s": positions / timing.median,
                "throughput / 1 process": base.relative_to(timing),
                "collectives alone, share": timings[f"{name} collectives"].relative_to(timing),
                "bubble, share": bubble(model, micro_batches) if name == "pp2" else None,
            }
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--model", default="base", help="option of conf/model (%(default)s)")
    parser.add_argument("--rows", type=int, default=2, help="of a micro-batch (%(default)s)")
    parser.add_argument("--micro-batches", type=int, default=8, help="of a step (%(default)s)")
    parser.add_argument("--row-length", type=int, default=576, help="(%(default)s)")
    parsed = parse(parser, arguments)
    state = machine()
    model = model_config(parsed.model, positions=parsed.row_length, dropout=0.0)
    config = run_config(
        model,
        steps=1,
        micro_batches=parsed.micro_batches,
        rows=parsed.rows,
        row_length=parsed.row_length,
    )
    micro = (parsed.micro_batches, parsed.rows, parsed.row_length)
    seconds = measure_in_two_processes(config, micro, parsed.rounds)
    micro_batches = span_micro_batches(micro[0], rows=micro[1], row_length=micro[2])
    report = Report(
        f"layouts_{parsed.model}",
        f"Two processes against one, GLM-{parsed.model}, {micro[0]} micro-batches of {micro[1]} "
        f"rows of {micro[2]}",
        state,
    )
    report.rows = table(seconds, model, micro_batches)
    report.notes.append(
        "Collectives alone: the same messages without computation between them, an upper bound."
    )
    report.save(parsed.output)


if __name__ == "__main__":
    main()
