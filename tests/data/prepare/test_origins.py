"""Every document leads back to its file and line; shuffling moves documents and changes none."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from glm_dist.data.corpus.indexed import open_indexed
from glm_dist.data.corpus.manifest import read_manifest
from glm_dist.data.corpus.merge import merge_corpora
from glm_dist.data.corpus.origins import Origins, origins_path
from glm_dist.data.corpus.validate import validate_corpus
from glm_dist.data.prepare.readers import TextOptions, TextUnit
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec
from tests.data.preparations import read_output, run, texts

PARAGRAPHS = TextOptions(text_unit=TextUnit.paragraph)


def write_inputs(folder: Path) -> list[Path]:
    """Two files in which some lines hold no document; every document's first word is its own."""
    documents = [f"w{100 + n} {text}" for n, text in enumerate(texts(90))]
    lines = [json.dumps({"text": text}) for text in documents[:60]]
    lines[7], lines[20] = "no json", ""
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    paragraphs = [f"{text}\nw9 w8" for text in documents[60:]]
    (folder / "b.txt").write_text("\n\n".join(["", *paragraphs]))
    return [folder / "a.jsonl.gz", folder / "b.txt"]


def check_origins(prefix: Path, files: Sequence[Path], *, times: int = 1) -> None:
    """Look every document up in the lines of its file."""
    manifest = read_manifest(prefix)
    assert manifest is not None
    corpus, origins = open_indexed(prefix), Origins(prefix, manifest)
    lines = {
        str(file): (
            gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        ).split(b"\n")
        for file in files
    }
    found = set()
    for number in range(corpus.num_documents):
        origin = origins.of(number)
        assert origin.line is not None
        word = f"w{corpus.document(number)[1]} ".encode()
        assert word in lines[origin.file][origin.line - 1]
        found.add(str(origin))
    assert times * len(found) == corpus.num_documents


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("shuffle_seed", [None, 0, 2**64 - 1])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_documents_lead_back_to_file_and_line(
    tmp_path: Path, choice: TokenizerSpec, shuffle_seed: int | None, num_workers: int
) -> None:
    files = write_inputs(tmp_path)
    run(
        files,
        tmp_path / "corpus",
        choice,
        options=PARAGRAPHS,
        shuffle_seed=shuffle_seed,
        num_workers=num_workers,
    )

    check_origins(tmp_path / "corpus", files)
    assert validate_corpus(tmp_path / "corpus").is_sound


def test_shuffling_moves_documents_and_changes_none(tmp_path: Path, choice: TokenizerSpec) -> None:
    files = write_inputs(tmp_path)
    orders = []
    for seed in (None, 1, 2):
        prefix = tmp_path / f"seed{seed}"
        run(files, prefix, choice, options=PARAGRAPHS, shuffle_seed=seed)
        corpus = open_indexed(prefix)
        orders.append([tuple(corpus.document(n).tolist()) for n in range(corpus.num_documents)])
    run(files, tmp_path / "again", choice, options=PARAGRAPHS, shuffle_seed=1)

    assert len(set(map(tuple, orders))) == 3
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    moved = sum(a != b for a, b in zip(orders[0], orders[1], strict=True))
    assert moved > 0.9 * len(orders[0])
    assert read_output(tmp_path / "again")[:2] == read_output(tmp_path / "seed1")[:2]


def test_another_seed_is_another_corpus(tmp_path: Path, choice: TokenizerSpec) -> None:
    files = write_inputs(tmp_path)
    run(files, tmp_path / "corpus", choice, options=PARAGRAPHS)

    assert run(files, tmp_path / "corpus", choice, options=PARAGRAPHS).was_complete
    with pytest.raises(Exception, match="differs in shuffle"):
        run(files, tmp_path / "corpus", choice, options=PARAGRAPHS, shuffle_seed=1)


def test_merged_corpora_keep_their_origins(tmp_path: Path, choice: TokenizerSpec) -> None:
    files = write_inputs(tmp_path)
    for name, inputs in (("a", files), ("b", files[1:])):
        run(inputs, tmp_path / name, choice, options=PARAGRAPHS, shuffle_seed=3)
    merge_corpora([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "ab")
    manifest = read_manifest(tmp_path / "ab")
    assert manifest is not None
    origins = Origins(tmp_path / "ab", manifest)
    of_b = open_indexed(tmp_path / "b").num_documents

    assert [s["path"] for s in manifest.sources] == [str(f) for f in (*files, files[1])]
    assert {origins.of(n).file for n in range(manifest.documents)} == {str(f) for f in files}
    last = [origins.of(n) for n in range(manifest.documents - of_b, manifest.documents)]
    assert {origin.file for origin in last} == {str(files[1])}
    assert validate_corpus(tmp_path / "ab").is_sound


def test_an_origin_that_changed_is_damage_and_a_missing_one_is_said(
    tmp_path: Path, choice: TokenizerSpec
) -> None:
    run(write_inputs(tmp_path), tmp_path / "corpus", choice, options=PARAGRAPHS)
    manifest = read_manifest(tmp_path / "corpus")
    assert manifest is not None
    file = origins_path(tmp_path / "corpus")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"\1")
    assert validate_corpus(tmp_path / "corpus").problems == ("corpus.origins was changed",)
    file.unlink()

    assert validate_corpus(tmp_path / "corpus").is_sound
    assert str(Origins(tmp_path / "corpus", manifest).of(0)) == f"{file} is missing"
