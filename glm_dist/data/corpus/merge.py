"""Several corpora of one tokenizer into one, in bounded memory."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from glm_dist.data.corpus.indexed import (
    BLOCK,
    IndexedTokens,
    bin_path,
    idx_path,
    open_indexed,
    write_index,
)
from glm_dist.data.corpus.manifest import Manifest, manifest_path, read_manifest, write_manifest
from glm_dist.data.corpus.origins import move_sources, origins_path
from glm_dist.data.prepare.output import check_prefix, refuse_existing, writing
from glm_dist.errors import DataError
from glm_dist.files import block_hashes, ensure_writable, is_file, replacing, sha256_of


def merge_corpora(prefixes: Sequence[str], output: str | Path) -> Manifest | None:
    """Write the documents of several corpora, one after the other, as one corpus.

    Args:
        prefixes: Corpora, in order.
        output: Prefix to write; must not exist.

    Returns:
        The manifest; None if one of the corpora has none, as those of Megatron-LM.

    Raises:
        DataError: The corpora were made with different tokenizers, ``output`` is no prefix or
            exists, or the disk is full.
    """
    check_prefix(output)
    corpora = [open_indexed(prefix) for prefix in prefixes]
    manifests = [manifest for prefix in prefixes if (manifest := read_manifest(prefix))]
    _check_alike(corpora, manifests)
    refuse_existing(
        [bin_path(output), idx_path(output), origins_path(output), manifest_path(output)],
        why="",
        fix="Choose another --output, or remove it.",
    )
    ensure_writable(Path(output).parent, key="--output", create=True)
    with writing(output):
        paths = [bin_path(output), idx_path(output)]
        has_manifests = len(manifests) == len(corpora)
        if has_manifests and all(map(is_file, map(origins_path, prefixes))):
            paths.append(origins_path(output))
        with replacing(*paths) as (tokens, index, *origins):
            _join(corpora, tokens, index)
            for file in origins:
                _join_origins(prefixes, manifests, file)
            merged = _merged(manifests, tokens, index, *origins) if has_manifests else None
        if merged is not None:
            write_manifest(output, merged)
    return merged


def _join(corpora: Sequence[IndexedTokens], tokens: Path, index: Path) -> None:
    """Write the two files of the joined corpus."""
    with tokens.open("wb") as target:
        for corpus in corpora:
            with bin_path(corpus.prefix).open("rb") as source:
                shutil.copyfileobj(source, target, BLOCK)
    with tempfile.NamedTemporaryFile(dir=index.parent, prefix=".glm-dist-lengths-") as lengths:
        for corpus in corpora:
            for begin in range(0, corpus.num_documents, BLOCK):
                end = min(begin + BLOCK, corpus.num_documents)
                found = np.diff(corpus.document_offsets(begin, end))  # several sequences or one
                lengths.write(found.astype(np.int32).tobytes())
        lengths.flush()
        all_lengths = np.memmap(lengths.name, mode="r", dtype=np.int32)
        write_index(index, corpora[0].tokens.dtype, all_lengths)


def _join_origins(prefixes: Sequence[str], manifests: Sequence[Manifest], file: Path) -> None:
    """Write the origins of the joined corpus, whose sources are those of all corpora in order."""
    num_sources = 0
    with file.open("wb") as target:
        for prefix, manifest in zip(prefixes, manifests, strict=True):
            packed = np.memmap(origins_path(prefix), mode="r", dtype="<i8")
            for begin in range(0, len(packed), BLOCK):
                target.write(move_sources(packed[begin : begin + BLOCK], num_sources).tobytes())
            num_sources += len(manifest.sources)


def _check_alike(corpora: Sequence[IndexedTokens], manifests: Sequence[Manifest]) -> None:
    types = {corpus.tokens.dtype.name for corpus in corpora}
    tokenizers = {manifest.tokenizer for manifest in manifests}
    if len(types) > 1 or len(tokenizers) > 1:
        raise DataError(
            "Corpora of different tokenizers cannot be merged: "
            + " and ".join(sorted(tokenizers if len(tokenizers) > 1 else types))
            + ".\n  Prepare them again with one tokenizer. A run may read several corpora without a"
            " merge: set data.corpora.<name>.prefix for each.",
            key="prefixes",
            value=" ".join(corpus.prefix for corpus in corpora),
            fix="glm-dist prepare",
        )


def _merged(
    manifests: Sequence[Manifest], tokens: Path, index: Path, origins: Path | None = None
) -> Manifest:
    return Manifest(
        tokenizer=manifests[0].tokenizer,
        vocab_size=manifests[0].vocab_size,
        documents=sum(manifest.documents for manifest in manifests),
        tokens=sum(manifest.tokens for manifest in manifests),
        sources=[source for manifest in manifests for source in manifest.sources],
        options={"merged": [manifest.options for manifest in manifests]},
        bin_sha256=block_hashes(tokens),
        idx_sha256=sha256_of(index),
        origins_sha256="" if origins is None else sha256_of(origins),
    )
