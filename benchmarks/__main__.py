"""All benchmarks, or those named: ``python -m benchmarks [name …]``, each in its own process."""

import subprocess
import sys

import torch

CPU = (
    "rows",
    "prepare",
    "attention",
    "step",
    "memory",
    "layouts",
    "option_costs",
    "checkpoint_stall",
)
GPU = ("gpu",)
"""Runs ``attention``, too."""


def main(names: list[str]) -> int:
    """Run benchmarks one after another; return the number of failures."""
    failed = 0
    for name in names or (GPU if torch.cuda.is_available() else CPU):
        print(f"== {name}", flush=True)
        failed += subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
