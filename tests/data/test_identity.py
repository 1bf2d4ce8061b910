"""What identifies the rows of a run, and what older checkpoints do not say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from glm_dist.data.corpus.indexed import open_indexed
from glm_dist.data.corpus.manifest import Manifest
from glm_dist.data.identity import corpus_identity, describe_differences, row_rule_of
from tests.data.corpora import make_documents, open_source, write_corpus

MANIFEST = Manifest(
    tokenizer="t", vocab_size=9, documents=1, tokens=1, bin_sha256=["a", "b"], idx_sha256="c"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora without manifests."""
    folder = tmp_path_factory.mktemp("identity")
    for seed, name in enumerate(("one", "two")):
        write_corpus(folder, name, make_documents(200, seed=seed))
    return folder


def test_the_order_of_corpora_counts(folder: Path) -> None:
    saved = open_source(folder, "one", "two").fingerprint()
    current = open_source(folder, "two", "one").fingerprint()
    assert describe_differences(saved, current) == [
        "order: ['one', 'two'] in the checkpoint, ['two', 'one'] now"
    ]


def test_any_change_that_a_manifest_knows_of_counts(folder: Path) -> None:
    corpus = open_indexed(folder / "one")
    before = corpus_identity(corpus, MANIFEST)
    assert corpus_identity(corpus, replace(MANIFEST, vocab_size=10)) == before
    for changed in ({"bin_sha256": ["a", "d"]}, {"idx_sha256": "d"}):
        after = corpus_identity(corpus, replace(MANIFEST, **changed))
        (line,) = describe_differences(before, after)
        assert line.startswith("content_sha256: ")


def test_what_an_older_checkpoint_does_not_say_is_no_difference(folder: Path) -> None:
    current = open_source(folder, "one").fingerprint()
    older = json.loads(json.dumps(current))
    del older["order"], older["row_rule"]
    assert describe_differences(older, current) == []
    assert row_rule_of(older) == 1
    corpus = open_indexed(folder / "one")
    older, current = corpus_identity(corpus), corpus_identity(corpus, MANIFEST)
    assert describe_differences(older, current) == []
    assert describe_differences({**older, "tokens": 3}, current) == [
        f"tokens: 3 in the checkpoint, {corpus.num_tokens} now"
    ]
