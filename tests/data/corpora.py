"""Small corpora that tests make for themselves: a word tokenizer, documents, a configuration."""

from pathlib import Path
from typing import Any

import numpy as np

from glm_dist.config.schema import (
    BatchConfig,
    CorpusConfig,
    CorruptionConfig,
    DataConfig,
    ModelConfig,
    PretrainingTask,
    RunConfig,
    RunSection,
    TokenizerConfig,
    TokenizerKind,
)
from glm_dist.data.corpus.indexed import write_documents
from glm_dist.data.row_source import RowSource, open_row_source

WORDS = 1000
VOCAB_SIZE = WORDS + 4  # sop, eop, gMASK, sMASK
EOS, CLS, SEP, MASK, UNK, FULL_STOP = 0, 1, 2, 3, 4, 5
SOP, EOP, GMASK, SMASK = WORDS, WORDS + 1, WORDS + 2, WORDS + 3


def write_vocabulary(folder: Path) -> Path:
    """Write a BERT vocabulary of 1000 pieces: five special tokens, a full stop, and words."""
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "."]
    pieces += [f"w{number}" for number in range(len(pieces), WORDS)]
    file = folder / "vocab.txt"
    file.write_text("\n".join(pieces))
    return file


def make_documents(
    count: int, *, mean_length: int = 300, seed: int = 0, first_word: int = 10
) -> list[list[int]]:
    """Draw documents of random words with a full stop about every twelve tokens.

    Token ``first_word + i % 900`` stands at place ``i`` of the corpus (except for full stops), so
    that a test can tell where a token comes from.
    """
    rng = np.random.default_rng(seed)
    documents = []
    place = 0
    for _ in range(count):
        length = int(rng.integers(mean_length // 4, 2 * mean_length - mean_length // 4))
        body = [first_word + (place + i) % 900 for i in range(length)]
        for stop in np.flatnonzero(rng.random(length) < 1 / 12):
            body[stop] = FULL_STOP
        documents.append([CLS, *body, EOS])
        place += length
    return documents


def write_corpus(folder: Path, name: str, documents: list[list[int]]) -> str:
    """Write documents as a corpus. Returns the prefix."""
    prefix = str(folder / name)
    write_documents(prefix, documents, np.dtype(np.uint16))
    return prefix


def make_config(
    folder: Path,
    prefixes: dict[str, str],
    *,
    weights: dict[str, float] | None = None,
    shares: tuple[float, float, float] = (0.5, 0.3, 0.2),
    row_length: int = 576,
    seed: int = 1234,
    validation_share: float = 0.05,
    test_share: float = 0.001,
    max_position: int = 1024,
    task: PretrainingTask = PretrainingTask.blank_infilling,
    sentinel_pairs: int = 0,
    **corruption: Any,
) -> RunConfig:
    """Compose the sections that the data layer reads."""
    vocabulary = folder / "vocab.txt"
    if not vocabulary.exists():
        write_vocabulary(folder)
    return RunConfig(
        run=RunSection(name="test", seed=seed, steps=10),
        model=ModelConfig(max_position_embeddings=max_position),
        tokenizer=TokenizerConfig(
            kind=TokenizerKind.bert,
            path=str(vocabulary),
            vocab_size=VOCAB_SIZE + 2 * sentinel_pairs,
            task_masks=True,
            sentinel_pairs=sentinel_pairs,
        ),
        data=DataConfig(
            corpora={
                name: CorpusConfig(prefix=prefix, weight=(weights or {}).get(name))
                for name, prefix in prefixes.items()
            },
            validation_share=validation_share,
            test_share=test_share,
            num_workers=0,
            prefetch=2,
        ),
        corruption=CorruptionConfig(
            task=task,
            span_share=shares[0],
            sentence_share=shares[1],
            document_share=shares[2],
            span_mask_ratio=0.15,
            span_mean_length=3.0,
            sentence_mask_ratio=0.15,
            document_min_ratio=0.25,
            document_suffix_share=0.5,
            **corruption,
        ),
        batch=BatchConfig(global_batch_size=8, micro_batch_size=2, row_length=row_length),
    )


def open_source(folder: Path, *names: str, **changes: object) -> RowSource:
    prefixes = {name: str(folder / name) for name in names or ("news", "verse", "books")}
    return open_row_source(make_config(folder, prefixes, **changes))  # type: ignore[arg-type]
