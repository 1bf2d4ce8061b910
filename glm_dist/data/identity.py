"""The identity of a run's rows: what must not change between a checkpoint and its continuation."""

import hashlib
from collections.abc import Mapping

import numpy as np

from glm_dist.config.schema import CorruptionConfig, PretrainingTask, RunConfig
from glm_dist.data.corpus.indexed import IndexedTokens
from glm_dist.data.corpus.manifest import Manifest, read_manifest
from glm_dist.data.tokenizer.tokenizer import Tokenizer

ROW_RULE = 3
"""Version of the rule that turns the index of a row into the row; it goes into every checkpoint.

Raised by every change after which the same index gives another row, so that a run never goes on
with other rows unnoticed. Checkpoints that name no rule follow rule 1.

1. Corpora and objectives take turns by a table of one period of their shares; shares whose period
   would be longer than 2**20 are rounded.
2. Corpora and objectives take turns by a closed form of their exact shares.
3. The objectives of a corpus of few rows take turns over several passes, and sentences end with the
   marks of any script, or with the document where there are no marks. A run without such a corpus
   keeps rule 2, whose rows are the same.
"""

LATER_ENTRIES = ("order", "content_sha256")
"""Entries that older identities lack, which then say nothing about them."""


def data_identity(
    config: RunConfig,
    tokenizer: Tokenizer,
    corpora: Mapping[str, IndexedTokens],
    *,
    needs_newest_rule: bool,
) -> dict[str, object]:
    """Identify the rows of a run.

    Args:
        config: Where the corpora are and how documents are held out.
        tokenizer: The run's.
        corpora: All of the run's, opened, by name.
        needs_newest_rule: True if the rows are others by the rule before the newest.

    Returns:
        Values that JSON can hold.

    Raises:
        DataError: The manifest of a corpus is damaged.
    """
    return {
        "corpora": {
            name: corpus_identity(corpus, read_manifest(config.data.corpora[name].prefix))
            for name, corpus in corpora.items()
        },
        "order": list(corpora),
        "tokenizer": tokenizer.fingerprint,
        "validation_share": config.data.validation_share,
        "test_share": config.data.test_share,
        "row_rule": ROW_RULE if needs_newest_rule else 2,
    }


def corpus_identity(corpus: IndexedTokens, manifest: Manifest | None = None) -> dict[str, object]:
    """Identify a corpus by its sizes, a sample spread over it and, with a manifest, every byte.

    Args:
        corpus: Opened.
        manifest: What ``glm-dist prepare`` noted about it; its hashes are believed.
    """
    digest = hashlib.sha256()
    blocks = 64
    for block in range(blocks):
        token = corpus.num_tokens * block // blocks
        digest.update(np.ascontiguousarray(corpus.tokens[token : token + 4096]).tobytes())
        entry = len(corpus.sequence_lengths) * block // blocks
        digest.update(corpus.sequence_lengths[entry : entry + 1024].tobytes())
    digest.update(np.ascontiguousarray(corpus.tokens[-4096:]).tobytes())
    identity: dict[str, object] = {
        "tokens": corpus.num_tokens,
        "documents": corpus.num_documents,
        "token_type": corpus.tokens.dtype.name,
        "sample_sha256": digest.hexdigest(),
    }
    if manifest is not None and manifest.bin_sha256:
        hashes = " ".join([*manifest.bin_sha256, manifest.idx_sha256])
        identity["content_sha256"] = hashlib.sha256(hashes.encode()).hexdigest()
    return identity


def describe_differences(
    saved: Mapping[str, object], current: Mapping[str, object], *, prefix: str = ""
) -> list[str]:
    """List how two identities differ, one line for each entry; empty if they agree.

    The row rule is left to ``keeps_rows``.

    Args:
        saved: Identity in a checkpoint.
        current: Identity of the data at hand.
        prefix: Path of the entries, for nested ones.
    """
    lines = []
    for key in sorted(saved.keys() | current.keys()):
        before, now = saved.get(key), current.get(key)
        if key == "row_rule" or (key in LATER_ENTRIES and None in (before, now)):
            continue
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            lines += describe_differences(before, now, prefix=f"{prefix}{key}.")
        elif before != now:
            lines.append(f"{prefix}{key}: {before} in the checkpoint, {now} now")
    return lines


def row_rule_of(identity: Mapping[str, object]) -> int:
    """Return the rule that an identity in a checkpoint follows."""
    rule = identity.get("row_rule", 1)
    return rule if isinstance(rule, int) else 1


def gives_same_rows(earlier: int, current: int, *, num_corpora: int, num_objectives: int) -> bool:
    """Return True if rows of an earlier rule are those of today's, so that a run may go on.

    Args:
        earlier: Rule of the run so far.
        current: Rule of the same run today.
        num_corpora: Corpora that have a weight above 0 in some stage.
        num_objectives: Objectives with a share above 0; a short form counts as one more.
    """
    # The rules 1 and 2 differ in nothing but the order of turns, and one has every turn.
    return earlier == current or (earlier < current == 2 and num_corpora == num_objectives == 1)


def keeps_rows(earlier: int, current: int, config: RunConfig) -> bool:
    """Return True if a run that was begun under an earlier rule has the same rows today.

    Args:
        earlier: See ``gives_same_rows``.
        current: See ``gives_same_rows``.
        config: The run's configuration.
    """
    return gives_same_rows(
        earlier,
        current,
        num_corpora=len(config.data.corpora),
        num_objectives=_num_objectives(config.corruption),
    )


def _num_objectives(corruption: CorruptionConfig) -> int:
    """Objectives that take turns in the rows of a corpus."""
    if corruption.task is PretrainingTask.unilm:
        return 4
    if corruption.task is not PretrainingTask.blank_infilling:
        return 1
    shares = (corruption.span_share, corruption.sentence_share, corruption.document_share)
    kinds = sum(share > 0 for share in shares)
    return kinds * (2 if corruption.short_share > 0 else 1) + (corruption.single_span_share > 0)
