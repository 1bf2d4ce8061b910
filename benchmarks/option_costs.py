"""Cost of each option on a CPU: a step with it against the same step without it, interleaved.

It runs the trainer's engine in one process. `memory` measures memory, `layouts` several processes.
"""

import multiprocessing
from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.harness import Report, Timing, machine, options, paired, parse
from benchmarks.problems import VOCAB_SIZE, device, one_process, span_micro_batches
from glm_dist.config.load import load_config
from glm_dist.config.schema import RunConfig
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.optim.state import Rates
from glm_dist.parallel.rng import seed_step
from glm_dist.train.job import build_engine
from glm_dist.train.step import train_step

BASELINE = ("zero=stage1", "precision=fp32")
NO_DROPOUT = ("model.hidden_dropout=0.0", "model.attention_dropout=0.0")
OPTIONS = {
    "zero=stage0": ("zero=stage0",),
    "zero=stage2": ("zero=stage2",),
    "zero=stage3": ("zero=stage3",),
    "zero.offload_optimizer=cpu": ("zero.offload_optimizer=cpu",),
    "recompute=selective": ("recompute=selective",),
    "recompute=full": ("recompute=full",),
    "compile=fused": ("compile=fused",),
    "precision=bf16": ("precision=bf16",),
    "dropout 0.1": ("model.hidden_dropout=0.1", "model.attention_dropout=0.1"),
}


def configure(
    model: str, overrides: Sequence[str], *, micro_batches: int, rows: int, row_length: int
) -> RunConfig:
    """Load the configuration of a step; later overrides win."""
    config = load_config(
        [
            "experiment=tiny",
            f"model={model}",
            f"model.max_position_embeddings={row_length}",
            f"batch.row_length={row_length}",
            f"batch.micro_batch_size={rows}",
            f"batch.global_batch_size={micro_batches * rows}",
            "run.name=benchmark",
            *BASELINE,
            *NO_DROPOUT,
            *overrides,
        ]
    )
    return replace(config, tokenizer=replace(config.tokenizer, vocab_size=VOCAB_SIZE))


def measure(
    configs: Sequence[RunConfig], micro_batches: Sequence[MicroBatch], threads: int, rounds: int
) -> tuple[Timing, Timing]:
    """Measure the step under two configurations."""
    torch.set_num_threads(threads)
    groups = one_process()
    seed_step(1, 0, coordinates=groups.coordinates)
    works = {}
    for name, config in zip(("without", "with"), configs, strict=True):
        engine = build_engine(config, groups, device=device(), world_size=1)

        def step(engine=engine, config=config) -> None:  # type: ignore[no-untyped-def]
            train_step(
                engine,
                micro_batches,
                rates=Rates.known(1e-4),
                normalize_by=config.loss.normalize_by,
                device=device(),
            )

        works[name] = step
    timings = paired(works, rounds=rounds, warmup=2)
    return timings["without"], timings["with"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__, rounds=4)
    parser.add_argument("--model", default="base", help="option of conf/model (%(default)s)")
    parser.add_argument("--rows", type=int, default=4, help="of a micro-batch (%(default)s)")
    parser.add_argument("--micro-batches", type=int, default=1, help="of a step (%(default)s)")
    parser.add_argument("--row-length", type=int, default=576, help="(%(default)s)")
    parser.add_argument("--only", nargs="*", default=list(OPTIONS), choices=list(OPTIONS))
    parsed = parse(parser, arguments)
    sizes = {
        "micro_batches": parsed.micro_batches,
        "rows": parsed.rows,
        "row_length": parsed.row_length,
    }
    micro_batches = span_micro_batches(
        parsed.micro_batches, rows=parsed.rows, row_length=parsed.row_length
    )
    report = Report(
        f"option_costs_{parsed.model}",
        f"A step of GLM-{parsed.model} with an option, {parsed.micro_batches} x {parsed.rows} rows"
        f" of {parsed.row_length}; without: {' '.join(BASELINE)}, no dropout",
        machine(),
    )
    for name in parsed.only:
        configs = [configure(parsed.model, each, **sizes) for each in ((), OPTIONS[name])]
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            without, with_it = pool.apply(
                measure, (configs, micro_batches, parsed.threads, parsed.rounds)
            )
        report.rows.append(
            {
                "option": name,
                "seconds without": without.median,
                "seconds with": with_it.median,
                "with / without": with_it.relative_to(without),
            }
        )
        report.save(parsed.output)


if __name__ == "__main__":
    main()
