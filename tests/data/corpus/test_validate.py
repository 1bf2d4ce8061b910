"""Every kind of damage to a prepared corpus is found, and placed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from glm_dist.config.schema import TokenizerKind
from glm_dist.data.corpus import validate
from glm_dist.data.corpus.indexed import bin_path, idx_path, open_indexed, write_documents
from glm_dist.data.corpus.manifest import manifest_path, read_manifest, write_manifest
from glm_dist.data.prepare.prepare import prepare
from glm_dist.data.prepare.readers import TextOptions
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec
from glm_dist.files import block_hashes, sha256_of
from tests.data.corpora import CLS, EOS, write_vocabulary


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus of 200 documents, about 6 kB, hashed in blocks of 1 kB."""
    folder = tmp_path_factory.mktemp("sound")
    choice = TokenizerSpec(TokenizerKind.bert, str(write_vocabulary(folder)))
    lines = [json.dumps({"text": f"w{10 + n} w{20 + n} ."}) for n in range(200)]
    lines += [json.dumps({"text": " ".join(f"w{n}" for n in range(10, 700))})] * 3
    (folder / "a.jsonl").write_text("\n".join(lines))
    prepare([str(folder / "a.jsonl")], folder / "c", tokenizer=choice, options=TextOptions())
    manifest = read_manifest(folder / "c")
    assert manifest is not None
    hashes = block_hashes(bin_path(folder / "c"), 1024)
    write_manifest(folder / "c", replace(manifest, bin_sha256=hashes))
    return folder / "c"


def validate_corpus(prefix: Path) -> validate.Verdict:
    return validate.validate_corpus(prefix, block_bytes=1024)


@pytest.fixture
def corpus(sound: Path, tmp_path: Path) -> Path:
    for path_of in (bin_path, idx_path, manifest_path):
        shutil.copy(path_of(sound), path_of(tmp_path / "c"))
    return tmp_path / "c"


def test_a_sound_corpus_is_sound(corpus: Path) -> None:
    verdict = validate_corpus(corpus)

    assert verdict.is_sound
    assert verdict.has_manifest
    assert verdict.documents == 203


@pytest.mark.parametrize("path_of", [bin_path, idx_path, manifest_path], ids=["bin", "idx", "json"])
def test_any_flipped_bit_is_found(corpus: Path, path_of: "type[bin_path]") -> None:
    file = path_of(corpus)
    whole = file.read_bytes()
    rng = np.random.default_rng(len(whole))
    for place in [0, len(whole) - 1, *rng.integers(0, len(whole), 40).tolist()]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(bytes(damaged))
        assert not validate_corpus(corpus).is_sound, f"byte {place}"


@pytest.mark.parametrize("path_of", [bin_path, idx_path, manifest_path], ids=["bin", "idx", "json"])
def test_any_cut_is_found(corpus: Path, path_of: "type[bin_path]") -> None:
    file = path_of(corpus)
    whole = file.read_bytes()
    for size in (0, 1, 33, 34, 1024, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert not validate_corpus(corpus).is_sound, f"cut to {size}"
    file.unlink()
    verdict = validate_corpus(corpus)
    assert not verdict.is_sound or not verdict.has_manifest


def test_damage_is_placed(corpus: Path) -> None:
    data = bytearray(bin_path(corpus).read_bytes())
    data[2500] ^= 255
    bin_path(corpus).write_bytes(bytes(data))

    assert validate_corpus(corpus).problems[0] == "c.bin was changed between bytes 2048 and 3072"


def test_without_a_manifest_the_index_is_checked_against_itself(tmp_path: Path) -> None:
    write_documents(tmp_path / "m", [[1, 2, 3], [4, 5], [6]], np.dtype(np.uint16))
    assert validate_corpus(tmp_path / "m").is_sound
    data = bytearray(idx_path(tmp_path / "m").read_bytes())
    # 34 bytes of header and 3 lengths of 4 bytes; then the offsets 0, 6 and 10.
    data[34 + 12 + 8] = 5
    idx_path(tmp_path / "m").write_bytes(bytes(data))
    verdict = validate_corpus(tmp_path / "m")

    assert not verdict.has_manifest
    assert verdict.problems == ("sequence 1 does not begin where the one before it ends",)


def test_borders_of_documents_are_checked(corpus: Path, tmp_path: Path) -> None:
    manifest = read_manifest(corpus)
    assert manifest is not None
    whole = open_indexed(corpus)
    documents = [whole.document(number).tolist() for number in range(whole.num_documents)]
    documents[3][1] = CLS
    documents[3][2] = documents[7][1] = EOS
    documents[9][0] = 20
    documents[200][-1] = documents[201][-1] = 21
    write_documents(tmp_path / "spoilt", documents, whole.tokens.dtype)
    spoilt = tmp_path / "spoilt"
    hashes = block_hashes(bin_path(spoilt), 1024)
    index = sha256_of(idx_path(spoilt))
    write_manifest(spoilt, replace(manifest, bin_sha256=hashes, idx_sha256=index))

    assert validate_corpus(spoilt).problems == (
        "1 documents do not open with [CLS], the first is document 9",
        "2 documents do not close with the end token, the first is document 200",
        "2 documents hold [CLS] or the end token inside, the first is document 3",
    )
