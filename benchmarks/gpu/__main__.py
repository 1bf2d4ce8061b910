"""Training speed on one GPU in bf16: GLM with each option, and megatron-core's GPTModel.

Every contestant runs whole steps of four micro-batches through the trainer's engine, in its own
process: rows to the device, forward, backward, update of fp32 master weights. GPTModel has the same
layers and width, predicts every position under a causal mask, and has the same optimizer.

The most important rows come first, and ``--minutes`` ends the benchmark. Without a GPU,
``--dry-run`` runs the same code on the smallest shapes. ``--table FILE`` prints the short table of
a result.
"""

import json
import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.contestants import MICRO_BATCHES, ROWS_OF, Job, chosen, dry_jobs, jobs
from benchmarks.gpu.processes import Budget, command_of, results
from benchmarks.gpu.table import GpuReport, short_table, table_of
from benchmarks.harness import machine, options, parse

CORES_TO_START_AHEAD = 4


def run(parsed: Namespace, listed: Sequence[Job]) -> GpuReport:
    """Measure the jobs; save the tables after every row."""
    name = "gpu_dry_run" if parsed.dry_run else "gpu"
    report = GpuReport(name, "Training on one device, bf16", machine())
    report.notes.append(
        f"{MICRO_BATCHES} micro-batches a step; medians of {parsed.rounds} steps after a warm-up. "
        "MFU by 6 N + 12 l h s, useful MFU without masked pairs, padding and logits of no target. "
        "Idle is the time of a step less that of the union of its kernels, by the profiler; the "
        "host's time is that of queueing a step, waits for a full queue included."
    )
    parsed.output.mkdir(parents=True, exist_ok=True)
    kernels: list[dict[str, Any]] = []
    found = results(
        listed,
        Budget(60 * parsed.minutes),
        limit=parsed.limit,
        log=parsed.output / f"{name}.log",
        command=partial(command_of, output=parsed.output),
        ahead=(os.cpu_count() or 1) >= CORES_TO_START_AHEAD,
    )
    for job, figures in found:
        problem, contestant = job.problem, job.contestant
        names = figures.pop("kernels", None)
        if names is not None:
            kernels.append({"what": str(job), "kernels": names})
            (parsed.output / f"{name}_kernels.json").write_text(json.dumps(kernels, indent=1))
        report.rows.append(
            {
                "size": problem.size,
                "positions": problem.row_length,
                "dropout": problem.dropout,
                "what": contestant.name,
                "mathematics": contestant.mathematics,
                **figures,
            }
        )
        print(f"{job}: {summary(figures)}", flush=True)
        report.save(parsed.output, prints=False)
    print(report.markdown())
    return report


def summary(figures: dict[str, Any]) -> str:
    """Return the most telling figures of a row on one line."""
    names = ("ms a step", "useful MFU", "GPU busy, ms", "peak GiB", "layer products, TFLOP/s")
    shown = [
        f"{name} {figures[name]:.4g}" for name in names if isinstance(figures.get(name), float)
    ]
    return ", ".join([*shown, *([figures["note"]] if "note" in figures else [])])


def parser() -> ArgumentParser:
    declared = options(__doc__, rounds=5)
    sizes = [name for name in ROWS_OF if name != "tiny"]
    declared.add_argument("--minutes", type=float, default=6.0, help="for all (%(default)s)")
    declared.add_argument("--limit", type=float, default=120.0, help="seconds of one (%(default)s)")
    declared.add_argument("--sizes", nargs="*", default=sizes, choices=sizes)
    declared.add_argument("--dropout", type=float, help="only this rate, such as 0 or 0.1")
    declared.add_argument("--only", default="", help="contestants with this in their name")
    declared.add_argument("--no-attention", action="store_true", help="no table of attention alone")
    declared.add_argument("--dry-run", action="store_true", help="smallest shapes, any device")
    declared.add_argument("--table", type=Path, metavar="FILE", help="print a result's short table")
    return declared


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parse(parser(), arguments)
    if parsed.table is not None:
        print(table_of(parsed.table), end="")
        return
    if not (parsed.dry_run or torch.cuda.is_available()):
        print("no GPU here; --dry-run checks the script")
        return
    has_te = find_spec("transformer_engine") is not None
    listed = dry_jobs() if parsed.dry_run else jobs(has_te=has_te, steps=parsed.rounds)
    listed = chosen(
        listed,
        sizes=["tiny", *parsed.sizes],
        dropout=parsed.dropout,
        only=parsed.only,
        attention=not parsed.no_attention,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit("stopped"))  # and so do the processes
    report = run(parsed, listed)
    print(short_table(report.rows))


if __name__ == "__main__":
    main()
