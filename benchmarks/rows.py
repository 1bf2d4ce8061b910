"""Finished rows per second and core, from the mapped file to tensors.

Windows of 512 tokens, 15 % of them in short spans: the official training setting. The yardstick in
the same run is such a row made the usual way: spans drawn one by one, tokens copied one by one into
Python lists, lists made into tensors.
"""

import json
import math
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from glm_dist.config.choices import PretrainingTask
from glm_dist.config.text import CorruptionConfig
from glm_dist.data.corpus.indexed import open_indexed, write_documents
from glm_dist.data.corpus.splits import TokenStream, split_documents
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.data.objectives.mixture import RowShape, Vocabulary, make_mixture
from glm_dist.data.row_source import RowSource
from glm_dist.data.sampling.epoch import CorpusRows, survey_windows
from glm_dist.data.sampling.mixing import Blend
from glm_dist.data.tokenizer.special_tokens import SpecialTokens

SPECIAL = SpecialTokens(
    pad=0, eos=0, cls=1, mask=3, sop=30_000, eop=30_001, gmask=30_002, smask=30_003,
    unk=4, sep=2, block_mask=30_004,
)  # fmt: skip
ROW_LENGTH = 564  # a window of 512 tokens and its 26 blanks
MICRO_BATCH = 16
WEIGHTS = [math.exp(-3) * 3**k / math.factorial(k) for k in range(1, 40)]
ROUNDS = 7
ROWS_A_ROUND = 2_000
MIXTURES = {
    "span": (1.0, 0.0, 0.0),
    "sentence": (0.0, 1.0, 0.0),
    "document": (0.0, 0.0, 1.0),
    "mixed": (0.5, 0.3, 0.2),
}


def write_corpus(prefix: Path) -> None:
    """Generate documents of 40 to 4000 tokens, with a full stop (id 5) about every 15."""
    rng = np.random.default_rng(0)
    documents = []
    for _ in range(4_000):
        body = rng.integers(10, 30_000, int(np.exp(rng.uniform(np.log(40), np.log(4000)))))
        body[rng.random(len(body)) < 1 / 15] = 5
        documents.append(np.concatenate(([SPECIAL.cls], body, [SPECIAL.eos])))
    write_documents(prefix, documents, np.dtype(np.uint16))


def source_of(prefix: Path, shares: tuple[float, float, float]) -> RowSource:
    corpus = open_indexed(prefix)
    split = split_documents(corpus.num_documents, validation_share=0.05, test_share=0.001)
    training = TokenStream(corpus, split.training)
    ends = np.zeros(30_005, np.bool_)
    ends[5] = True
    vocabulary = Vocabulary(SPECIAL, 30_005, ends, ends)
    corruption = CorruptionConfig(
        task=PretrainingTask.blank_infilling,
        span_share=shares[0],
        sentence_share=shares[1],
        document_share=shares[2],
        span_mask_ratio=0.15,
        span_mean_length=3.0,
        sentence_mask_ratio=0.15,
        document_min_ratio=0.25,
        document_suffix_share=0.5,
    )
    mixture = make_mixture(
        corruption,
        vocabulary,
        RowShape(ROW_LENGTH, 1024),
        survey=survey_windows(training, vocabulary, row_length=ROW_LENGTH),
    )
    rows = CorpusRows(
        "text",
        training=training,
        validation=TokenStream(corpus, split.validation),
        mixture=mixture,
        vocabulary=vocabulary,
        seed=1,
    )
    return RowSource([rows], blend=Blend([Fraction(1)], []), row_length=ROW_LENGTH, fingerprint={})


def usual_row(window: list[int], rng: random.Random) -> list[torch.Tensor]:
    """Build a span row the usual way: draw and lay out one token at a time, then make tensors."""
    lengths: list[int] = []
    while sum(lengths) < int(0.15 * len(window)):
        lengths += rng.choices(range(1, 40), weights=WEIGHTS)
    free = len(window) - 1 - sum(lengths) - len(lengths) + 1
    spans, begin, before = [], 1, 0
    for gap, length in zip(sorted(rng.randint(0, free) for _ in lengths), lengths, strict=True):
        begin += gap - before
        spans.append((begin, length))
        begin, before = begin + length + 1, gap
    starts = dict(spans)
    tokens: list[int] = []
    mask_index: dict[int, int] = {}
    index = 0
    while index < len(window):
        if index in starts:
            mask_index[index] = len(tokens)
            tokens.append(SPECIAL.mask)
            index += starts[index]
        else:
            tokens.append(window[index])
            index += 1
    targets, positions = list(tokens), list(range(len(tokens)))
    blocks, loss = [0] * len(tokens), [0] * len(tokens)
    rng.shuffle(spans)
    for start, length in spans:
        answer = window[start : start + length]
        tokens += [SPECIAL.sop, *answer]
        targets += [*answer, SPECIAL.eop]
        positions += [mask_index[start]] * (length + 1)
        blocks += range(1, length + 2)
        loss += [1] * (length + 1)
    room = [0] * max(0, ROW_LENGTH - len(tokens))
    return [torch.tensor(each + room) for each in (tokens, targets, positions, blocks, loss)]


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "text"
        write_corpus(prefix)
        sources = {name: source_of(prefix, shares) for name, shares in MIXTURES.items()}
        rng = random.Random(1)
        window = [SPECIAL.cls, *(rng.randrange(10, 30_000) for _ in range(511))]
        rounds: dict[str, list[float]] = {name: [] for name in [*MIXTURES, "usual"]}
        for number in range(ROUNDS):
            first = number * ROWS_A_ROUND

            def build(rows: RowSource, first: int = first) -> None:
                for begin in range(first, first + ROWS_A_ROUND, MICRO_BATCH):
                    batch = [rows.row(index) for index in range(begin, begin + MICRO_BATCH)]
                    MicroBatch.stack(batch)

            for name, rows in sources.items():
                rounds[name].append(seconds(lambda rows=rows: build(rows)) / ROWS_A_ROUND)
            usual = seconds(lambda: [usual_row(window, rng) for _ in range(ROWS_A_ROUND)])
            rounds["usual"].append(usual / ROWS_A_ROUND)
        results = {name: 1 / statistics.median(taken) for name, taken in rounds.items()}
    print(f"{platform.processor() or platform.machine()}, numpy {np.__version__}")
    print("finished rows of 564 tokens (windows of about 512) a second and core, median of rounds:")
    for name, rate in results.items():
        print(f"  {name:10s} {rate:7.0f}  {rate / results['usual']:5.2f} x usual span rows")
    print(json.dumps({name: round(rate) for name, rate in results.items()}))


if __name__ == "__main__":
    main()
