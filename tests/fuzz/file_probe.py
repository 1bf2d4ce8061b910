"""Files in random encodings to corpora and back to lines; corpora and tokenizers of others."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np

from glm_dist.config.schema import TokenizerConfig, TokenizerKind
from glm_dist.data.corpus.borders import sampled_warnings
from glm_dist.data.corpus.indexed import open_indexed, token_type_for, write_documents
from glm_dist.data.corpus.manifest import read_manifest
from glm_dist.data.corpus.merge import merge_corpora
from glm_dist.data.corpus.origins import Origins
from glm_dist.data.prepare.prepare import prepare
from glm_dist.data.prepare.readers import TextOptions
from glm_dist.data.tokenizer.stored import TOKENIZER_FOLDER, load_stored_tokenizer
from glm_dist.data.tokenizer.tokenizer import open_tokenizer
from glm_dist.errors import DataError
from tests.fuzz.lab import Lab, text

ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")


def preparations(rng: Random, lab: Lab, folder: Path) -> None:
    """Texts are stored as typed, each once, and lead back to their line; no other encoding is."""
    place = folder / "prepared"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    spec = rng.choice(lab.specs)
    tokenizer = open_tokenizer(spec)
    token_type = token_type_for(tokenizer.vocab_size)
    lines: dict[tuple[str, int], str] = {}
    encodings = [rng.choice(ENCODINGS) for _ in range(rng.randint(1, 3))]
    for number, encoding in enumerate(encodings):
        documents = [f"w{rng.random()} {text(rng, longest=9)}" for _ in range(rng.randint(1, 9))]
        is_json = rng.random() < 0.5
        spoilt = rng.randrange(20)
        file = place / f"f{number}{'.jsonl' if is_json else '.txt'}"
        written = []
        for line, document in enumerate(documents, 1):
            document = document.replace("\n", " ").strip()
            if line == spoilt:
                document = f"{document}\0"
            else:
                lines[str(file), line] = document
            written.append(json.dumps({"text": document}) if is_json else document)
        file.write_bytes("".join(f"{line}\n" for line in written).encode(encoding))
    files = [str(place / name) for name in sorted(p.name for p in place.iterdir())]
    seed = rng.choice([None, rng.randrange(2**64)])
    try:
        prepare(files, place / "c", tokenizer=spec, options=TextOptions(), shuffle_seed=seed)
    except DataError:
        is_utf_8 = all(each.startswith("utf-8") for each in encodings)
        assert not (is_utf_8 and lines), "texts in UTF-8 refused"
        return
    assert all(each.startswith("utf-8") for each in encodings), "another encoding was read as text"
    corpus, manifest = open_indexed(place / "c"), read_manifest(place / "c")
    assert manifest is not None
    origins, found = Origins(place / "c", manifest), set()
    for number in range(corpus.num_documents):
        origin = origins.of(number)
        assert origin.line is not None
        expected = tokenizer.store_document(lines[origin.file, origin.line], token_type)
        assert np.array_equal(corpus.document(number), expected), "another text is stored"
        found.add((origin.file, origin.line))
    assert len(found) == corpus.num_documents, "a line is stored twice"
    assert found == set(lines), "a text is lost"
    _merges(rng, lab, place, spec.kind)


def _merges(rng: Random, lab: Lab, place: Path, kind: TokenizerKind) -> None:
    """Corpora of two tokenizers are not merged."""
    other = rng.choice([spec for spec in lab.specs if spec.kind is not kind])
    (place / "o.txt").write_text("a b c\n")
    prepare([str(place / "o.txt")], place / "o", tokenizer=other, options=TextOptions())
    manifests = [read_manifest(place / name) for name in ("c", "o")]
    if manifests[0] is None or manifests[1] is None:
        return
    are_alike = manifests[0].tokenizer == manifests[1].tokenizer
    try:
        merge_corpora([str(place / "c"), str(place / "o")], place / "both")
    except DataError:
        assert not are_alike, "corpora of one tokenizer are refused"
        return
    assert are_alike, "corpora of two tokenizers are merged"


def foreign_corpora(rng: Random, lab: Lab, folder: Path) -> None:
    """Documents of another tool that do not end, or hold structure, are warned of."""
    special = open_tokenizer(rng.choice(lab.specs)).special
    bodies = [[rng.randrange(300, 310)] * rng.randint(1, 9) for _ in range(rng.randint(1, 40))]
    control = {special.cls, special.eos, special.mask, special.sop, special.eop}
    if control & set(range(300, 310)):
        return
    lacks_ends, holds_structure = rng.random() < 0.5, rng.random() < 0.5
    if holds_structure:
        rng.choice(bodies).insert(0, special.mask)
    documents = [[special.cls, *body, *([] if lacks_ends else [special.eos])] for body in bodies]
    write_documents(folder / "foreign", documents, np.dtype(np.int32))
    warnings = sampled_warnings("x", open_indexed(folder / "foreign"), special)
    assert any("do not end" in warning for warning in warnings) == lacks_ends
    assert any("hold control" in warning for warning in warnings) == holds_structure


def replaced_tokenizers(rng: Random, lab: Lab, folder: Path) -> None:
    """Another tokenizer of the same size in a run's folder is refused."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    (run / TOKENIZER_FOLDER).mkdir(parents=True)
    file = run / TOKENIZER_FOLDER / "vocab.txt"
    shutil.copy(lab.full.path, file)
    spec = replace(lab.full, path=str(file))
    tokenizer = open_tokenizer(spec)
    config = TokenizerConfig(
        kind=spec.kind,
        path=str(file),
        vocab_size=tokenizer.vocab_size,
        task_masks=spec.task_masks,
    )
    checkpoint = {"data": {"tokenizer": tokenizer.fingerprint}}
    pieces = file.read_text().split("\n")
    first, second = rng.sample(range(6, len(pieces) - 1), 2)
    is_changed = rng.random() < 0.7
    if is_changed:
        pieces[first], pieces[second] = pieces[second], pieces[first]
        file.write_text("\n".join(pieces))
    try:
        load_stored_tokenizer(config, run, checkpoint=checkpoint)
    except DataError:
        assert is_changed, "the run's own tokenizer is refused"
        return
    assert not is_changed, "another tokenizer was taken"
