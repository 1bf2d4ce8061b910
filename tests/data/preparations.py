"""Texts to prepare, and calls of prepare."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from glm_dist.data.prepare.prepare import Prepared, Progress, prepare
from glm_dist.data.prepare.readers import TextOptions
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec


def texts(count: int, *, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 60, count)
    return [" ".join(f"w{word}" for word in rng.integers(10, 900, length)) for length in lengths]


def write_jsonl(file: Path, documents: list[str]) -> Path:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return file


def run(
    inputs: list[Path],
    output: Path,
    choice: TokenizerSpec,
    *,
    options: TextOptions | None = None,
    num_workers: int = 1,
    max_bad_lines: int = 100,
    shuffle_seed: int | None = None,
    overwrite: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Prepared:
    return prepare(
        [str(path) for path in inputs],
        output,
        tokenizer=choice,
        options=options or TextOptions(),
        num_workers=num_workers,
        max_bad_lines=max_bad_lines,
        shuffle_seed=shuffle_seed,
        overwrite=overwrite,
        report=report,
    )


def read_output(prefix: Path) -> tuple[bytes, bytes, object]:
    manifest = json.loads(Path(f"{prefix}.json").read_text())
    return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes(), manifest
