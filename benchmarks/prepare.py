"""Overhead of preparation over the tokenizer alone, and speedup from a second worker.

The bare tokenizer encodes the same texts in one process, nothing else. Wall time, because workers
are other processes; needs two idle cores to say anything about two workers.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from glm_dist.config.choices import TokenizerKind
from glm_dist.data.prepare.prepare import prepare
from glm_dist.data.prepare.readers import TextOptions
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec
from glm_dist.data.tokenizer.training import train_sentencepiece

ROUNDS = 3
DOCUMENTS = 100_000


def texts() -> list[str]:
    """Generate sentences of made-up words with natural frequencies, about 240 MB."""
    rng = np.random.default_rng(0)
    letters, weights = list("etaoinshrdlucmfwypvbgk"), np.linspace(2, 0.2, 22)
    words = [
        "".join(rng.choice(letters, int(rng.integers(2, 10)), p=weights / weights.sum()))
        for _ in range(20_000)
    ]
    rank = np.arange(1, len(words) + 1)
    chance = (1 / rank) / (1 / rank).sum()
    found = []
    for _ in range(DOCUMENTS):
        chosen = rng.choice(len(words), int(rng.integers(100, 600)), p=chance)
        found.append(" ".join(words[number] for number in chosen) + ".")
    return found


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents = texts()
        file = folder / "text.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        model = folder / "tokenizer.model"
        train_sentencepiece(documents, model, vocab_size=8_000, max_sample_bytes=2_000_000)
        choice = TokenizerSpec(TokenizerKind.sentencepiece, str(model))
        tokenizer = choice.open()

        def run(num_workers: int) -> None:
            output = folder / f"out{num_workers}"
            prepare(
                [str(file)],
                output,
                tokenizer=choice,
                options=TextOptions(),
                num_workers=num_workers,
                overwrite=True,
            )

        taken: dict[str, list[float]] = {"bare tokenizer": [], "1 worker": [], "2 workers": []}
        for _ in range(ROUNDS):
            bare = seconds(lambda: [tokenizer.encode_document(text) for text in documents])
            taken["bare tokenizer"].append(bare)
            taken["1 worker"].append(seconds(lambda: run(1)))
            taken["2 workers"].append(seconds(lambda: run(2)))
        size = file.stat().st_size / 1e6
    medians = {what: statistics.median(times) for what, times in taken.items()}
    print(f"{os.cpu_count()} cores, {size:.1f} MB of JSON lines, median of {ROUNDS} rounds:")
    for what, median in medians.items():
        print(f"  {what:15s} {median:6.2f} s  {size / median:6.2f} MB/s")
    overhead = medians["1 worker"] / medians["bare tokenizer"] - 1
    print(f"one worker over the bare tokenizer: {overhead:+.1%}")
    print(f"two workers over one: {medians['1 worker'] / medians['2 workers']:.2f} x")


if __name__ == "__main__":
    main()
