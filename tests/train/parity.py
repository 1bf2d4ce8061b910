"""Measure the layout grid and print it as a document: ``make parity`` writes docs/parity.md."""

import os
import platform
from importlib.metadata import version

from tests.train.grid import GLOBAL_BATCH, MODEL, ROW_LENGTH, STEPS, VOCAB_SIZE
from tests.train.test_layout_grid import TOLERANCE, cases_of, format_table, run_grid
from tests.train.test_layout_options import OPTIONS

WORLD_SIZES = (1, 2, 4)

TEXT = """# Every layout trains the same model

Written by `make parity` from the cases of
[test_layout_grid.py](../tests/train/test_layout_grid.py) and
[test_layout_options.py](../tests/train/test_layout_options.py). Each line is a job of real
processes over gloo that trains {steps} steps in fp32: {layers} layers of {hidden}, {batch} rows
of {length} tokens a step with different numbers of targets, {vocab} words (prime, so that no
tensor-parallel size divides them). Its loss, gradient norm and all weights after the last step
are compared with one process that takes the whole batch at once, and that process with GLM and
AdamW written out in plain torch. The columns are the largest absolute differences over all steps
and all weights; the tests allow {tolerance:.0e}.

{versions}

{table}
"""


def versions() -> str:
    """Return the measured versions in one line."""
    libraries = ("torch", "megatron-core", "deepspeed")
    named = ", ".join(f"{name} {version(name)}" for name in libraries)
    return f"Python {platform.python_version()}, {named}, {os.cpu_count()} cores."


def main() -> None:
    """Run every case and print the document."""
    rows = []
    for world_size in WORLD_SIZES:
        rows += run_grid(world_size, cases_of(world_size))
        rows += run_grid(world_size, OPTIONS.get(world_size, []))
    print(
        TEXT.format(
            steps=STEPS,
            layers=MODEL.num_layers,
            hidden=MODEL.hidden_size,
            batch=GLOBAL_BATCH,
            length=ROW_LENGTH,
            vocab=VOCAB_SIZE,
            tolerance=TOLERANCE,
            versions=versions(),
            table=format_table(rows),
        ),
        end="",
    )


if __name__ == "__main__":
    main()
