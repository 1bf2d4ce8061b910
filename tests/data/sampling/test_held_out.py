"""Rows of text that is never trained on: the same in every run over a corpus."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from glm_dist.data.corpus.indexed import write_documents
from glm_dist.data.row_source import open_row_source
from glm_dist.errors import DataError
from tests.data.corpora import CLS, EOS, make_config, open_source
from tests.data.restore import restored
from tests.messages import Says


def test_validation_rows_depend_on_their_corpus_alone(folder: Path) -> None:
    config = make_config(folder, {name: str(folder / name) for name in ("verse", "news")})
    kept = replace(config.data, validation_corpora={"books": str(folder / "books")})
    sources = [
        open_source(folder, "news", "verse", seed=1),
        open_source(folder, "news", "books", seed=2, weights={"news": 0.1, "books": 3.0}),
        open_row_source(replace(config, data=kept)),
    ]

    assert [source.validation.names() for source in sources] == [
        ("news", "verse"),
        ("news", "books"),
        ("verse", "news", "books"),
    ]
    for objective in ("span", "sentence", "document"):
        for index in range(6):
            rows = [source.validation.row(objective, "news", index) for source in sources]
            assert all((row.tokens == rows[0].tokens).all() for row in rows)
            assert all((row.targets == rows[0].targets).all() for row in rows)
            assert {(row.objective, row.corpus) for row in rows} == {(objective, "news")}


def test_a_corpus_kept_for_validation_is_read_whole_and_never_trained_on(folder: Path) -> None:
    words = [[CLS, *[10 + number] * 40, EOS] for number in range(400)]
    prefix = str(folder / "kept")
    write_documents(prefix, words, np.dtype(np.uint16))
    config = make_config(folder, {"news": str(folder / "news")}, validation_share=0.0)
    data = replace(config.data, validation_corpora={"kept": prefix})
    source = open_row_source(replace(config, data=data))

    assert source.validation.names() == ("kept",)
    rows = [source.validation.row("span", "kept", index) for index in range(60)]
    assert {token for row in rows for token in restored(row)} >= set(range(10, 410))
    assert {source.row(index).corpus for index in range(50)} == {"news"}
    assert source.fingerprint() == open_row_source(config).fingerprint()


def test_validation_never_ends(folder: Path) -> None:
    source = open_source(folder, "news", validation_share=0.01)

    assert source.validation.row("span", "news", 10_000).loss_mask.any()


def test_validation_without_held_out_documents_is_refused(folder: Path, says: Says) -> None:
    with pytest.raises(DataError) as caught:
        open_source(folder, validation_share=0.0).validation.names()
    says(caught.value)
