"""Blocks of text to blocks of token ids, by several processes, in the order of the text."""

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context, parent_process

import numpy as np

from glm_dist.data.corpus.indexed import token_type_for
from glm_dist.data.prepare.bad_lines import BadLine
from glm_dist.data.prepare.readers import Block, TextOptions, documents_of
from glm_dist.data.tokenizer.tokenizer import Tokenizer, TokenizerSpec, open_tokenizer
from glm_dist.errors import DataError

BLOCKS_AHEAD_PER_WORKER = 3
"""Blocks that are read before they are needed; bounds the memory."""


@dataclass(frozen=True)
class TokenBlock:
    """Tokens of one block of text."""

    ids: bytes
    """Token ids of all documents, opened by [CLS] and closed by the end of text."""
    lengths: bytes
    """Tokens of each document, int32."""
    lines: bytes
    """Number of the first line of each document, int64."""
    num_documents: int
    num_tokens: int
    num_blank: int
    """Documents without any token, which are left out."""
    bad_lines: tuple[BadLine, ...]


def tokenise_in_order(
    blocks: Iterable[Block], spec: TokenizerSpec, options: TextOptions, *, num_workers: int
) -> Iterator[tuple[Block, TokenBlock]]:
    """Tokenise blocks.

    Args:
        blocks: Blocks of text; read a few ahead.
        spec: Tokenizer, which each process loads once.
        options: How documents are taken out of a block.
        num_workers: Processes; 1 works in this one.

    Raises:
        DataError: A worker died.
    """
    if num_workers <= 1:
        tokenizer = open_tokenizer(spec)
        for block in blocks:
            yield block, tokenise_block(block, tokenizer, options)
        return
    # spawn: a fork would copy whatever threads and locks the caller has.
    context = get_context("spawn")
    executor = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_end_with_parent)
    waiting: deque[tuple[Block, Future[TokenBlock]]] = deque()
    try:
        for block in blocks:
            waiting.append((block, executor.submit(_tokenise_in_worker, block, spec, options)))
            if len(waiting) >= BLOCKS_AHEAD_PER_WORKER * num_workers:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "A tokenizer worker died, possibly because memory ran out.\n"
            f"  Type the command again with fewer workers than --workers {num_workers}; finished"
            " files are not read again.",
            key="--workers",
            value=num_workers,
            fix=f"--workers {max(1, num_workers // 2)}",
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def tokenise_block(block: Block, tokenizer: Tokenizer, options: TextOptions) -> TokenBlock:
    """Tokenise the documents of one block.

    Args:
        block: Whole documents.
        tokenizer: Vocabulary.
        options: How documents are taken out.
    """
    token_type = token_type_for(tokenizer.vocab_size)
    ids: list[bytes] = []
    lengths: list[int] = []
    lines: list[int] = []
    bad_lines = []
    blank = 0
    for document in documents_of(block, options):
        if isinstance(document, BadLine):
            bad_lines.append(document)
            continue
        stored = tokenizer.store_document(document.text, token_type)
        if len(stored):
            ids.append(stored.tobytes())
            lengths.append(len(stored))
            lines.append(document.line)
        else:
            blank += 1
    return TokenBlock(
        ids=b"".join(ids),
        lengths=np.array(lengths, np.int32).tobytes(),
        lines=np.array(lines, np.int64).tobytes(),
        num_documents=len(lengths),
        num_tokens=sum(lengths),
        num_blank=blank,
        bad_lines=tuple(bad_lines),
    )


@lru_cache(maxsize=1)
def _tokenizer_of_worker(spec: TokenizerSpec) -> Tokenizer:
    """Load the tokenizer once in each worker process."""
    return open_tokenizer(spec)


def _tokenise_in_worker(block: Block, spec: TokenizerSpec, options: TextOptions) -> TokenBlock:
    return tokenise_block(block, _tokenizer_of_worker(spec), options)


def _end_with_parent() -> None:
    """End this worker when its parent is killed; it would wait for work forever."""
    parent = parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
