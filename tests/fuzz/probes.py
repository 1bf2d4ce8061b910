"""Probes: each draws one random case of an edge and checks what must hold whatever was drawn.

A probe computes what it demands by itself. An error of the kind that users get is an answer, too,
but not for the probes of ``ALWAYS_VALID``. Any other exception is a violation.
"""

import json
import shutil
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from random import Random

import numpy as np

from glm_dist.config.blend import check_corpora
from glm_dist.config.load import dump_config, load_config, load_config_file
from glm_dist.config.schema import (
    CorpusConfig,
    CorruptionConfig,
    DataConfig,
    ModelConfig,
    PretrainingTask,
    RunConfig,
    TokenizerConfig,
    TokenizerKind,
)
from glm_dist.data.corpus.indexed import open_indexed, token_type_for, write_documents
from glm_dist.data.identity import describe_differences
from glm_dist.data.prepare.inputs import expand_inputs
from glm_dist.data.row_source import open_row_source
from glm_dist.data.sampling.mixing import make_blend
from glm_dist.data.tokenizer.tokenizer import open_tokenizer
from glm_dist.errors import DataError
from glm_dist.generate.infill import PartB
from glm_dist.generate.prompt import read_prompt
from tests.fuzz.file_probe import foreign_corpora, preparations, replaced_tokenizers
from tests.fuzz.lab import Lab, text
from tests.fuzz.row_probe import rows
from tests.fuzz.target_probe import empty_objectives, sentence_targets

ENDINGS = (".jsonl", ".txt", ".JSONL", ".jsonl.gz", ".txt.GZ", ".jsonl.xz", ".txt.bz2")
MASK_NAMES = ("[MASK]", "[sMASK]", "[gMASK]")


def blends(rng: Random, lab: Lab, folder: Path) -> None:
    """Weights over many orders of magnitude, stages, skipped rows and corpora that enter late."""
    names = [f"c{number}" for number in range(rng.randint(1, 7))]
    draw = lambda: rng.choice([0.0, 1.0, 2.0, 7.0, 10 ** rng.uniform(-9, 3)])  # noqa: E731
    starts = sorted(rng.sample(range(1, 3000), rng.randint(0, 3)))
    by_tokens = rng.random() < 0.3
    corpora = {
        name: CorpusConfig(
            prefix=name,
            weight=(0.0 if rng.random() < 0.3 else None) if by_tokens else draw(),
            stage_weights=[draw() for _ in starts],
        )
        for name in names
    }
    edges = sorted(rng.sample(range(4000), 4))
    skipped = [(edges[0], edges[1]), (edges[2], edges[3])][: rng.randint(0, 2)]
    data = DataConfig(
        corpora=corpora,
        validation_share=0.05,
        test_share=0.0,
        stage_starts=starts,
        skip_rows=[f"{first}-{last}" for first, last in skipped],
        num_workers=0,
        prefetch=1,
    )
    check_corpora(data)
    tokens = [int(10 ** rng.uniform(0, 12)) for _ in names]
    blend = make_blend(data, tokens)
    entries = list(corpora.values())
    by_size = zip(entries, tokens, strict=True)
    stages = [(0, [size if c.weight is None else c.weight for c, size in by_size])]
    stages += [(start, [c.stage_weights[i] for c in entries]) for i, start in enumerate(starts)]
    row = rng.randrange(5000)
    counts = blend.counts_before(row)
    assert sum(counts) == row
    for number in range(len(names)):
        wanted = Fraction(0)
        for (start, weights), end in zip(stages, [*starts, row], strict=True):
            share = Fraction(str(weights[number])) / sum(Fraction(str(w)) for w in weights)
            wanted += share * max(0, min(end, row) - start)
        assert abs(counts[number] - wanted) <= Fraction("1.68") * len(stages), "another share"
        assert wanted > 0 or counts[number] == 0
        assert abs(blend.wanted_before(row)[number] - wanted) == 0
    corpus, rank = blend.locate(row)
    after = blend.counts_before(row + 1)
    assert rank == counts[corpus] == after[corpus] - 1
    left_out = {index for first, last in skipped for index in range(first, last + 1)}
    kept = [index for index in range(6000) if index not in left_out]
    number = rng.randrange(len(kept) - 1)
    assert data.row_index(number) == kept[number]


def documents(rng: Random, lab: Lab, folder: Path) -> None:
    """A document is its text and nothing else: no control ids inside, and the text comes back."""

    spec = rng.choice(lab.specs)
    tokenizer = open_tokenizer(spec)
    written = text(rng)
    special = tokenizer.special
    stored = tokenizer.store_document(written, np.dtype(np.int64)).tolist()
    if not stored:
        return
    assert (stored[0], stored[-1]) == (special.cls, special.eos)
    control = {
        getattr(special, field.name)
        for field in fields(special)
        if field.name not in ("unk", "first_sentinel", "sentinel_pairs")
    }
    inside = stored[1:-1]
    assert not control & set(inside), "a control id inside a document"
    assert max(inside, default=0) < tokenizer.vocab_size
    if spec.kind in (TokenizerKind.gpt2, TokenizerKind.roberta) or "bytes" in spec.path:
        assert tokenizer.decode(inside) == written, "other text than was stored"


def prompts(rng: Random, lab: Lab, folder: Path) -> None:
    """Typed text comes back letter by letter; masks that were never trained are refused."""
    spec = rng.choice(lab.specs)
    tokenizer = open_tokenizer(spec)
    has_task_masks = tokenizer.special.has_task_masks
    names = MASK_NAMES if has_task_masks else MASK_NAMES[:1]
    masks = [rng.choice(names) for _ in range(rng.randint(0, 3))]
    parts = [_without_masks(text(rng, longest=8)) for _ in range(len(masks) + 1)]
    written = parts[0] + "".join(m + part for m, part in zip(masks, parts[1:], strict=True))
    shares = {name: rng.choice([0.0, 0.5]) for name in names}
    corruption = CorruptionConfig(
        task=PretrainingTask.blank_infilling,
        span_share=shares["[MASK]"],
        sentence_share=shares.get("[sMASK]", 0.5),
        document_share=shares.get("[gMASK]", 0.5),
        single_span_share=0.0,
        sentinels=spec.sentinel_pairs > 0 and rng.random() < 0.5,
        no_block_positions=rng.random() < 0.3,
    )
    used = set(masks) or {"[gMASK]" if has_task_masks else "[MASK]"}
    untrained = {name for name in used if has_task_masks and shares[name] == 0}
    try:
        prompt = read_prompt(written, tokenizer, corruption)
    except DataError:
        assert untrained, f"{used} refused, though trained"
        return
    assert not untrained, f"{untrained} accepted, though never trained"
    special = tokenizer.special
    answers = [f"<{number}>" for number in range(len(prompt.mask_indices))]
    if masks:
        filled = parts[0] + "".join(
            f"[{answer}]{part}" for answer, part in zip(answers, parts[1:], strict=True)
        )
        assert prompt.filled(answers) == filled, "other text comes back"
    assert prompt.tokens[0] == special.cls
    config = RunConfig(model=ModelConfig(max_position_embeddings=512), corruption=corruption)
    part_b = PartB.of(config, special)
    for number, index in enumerate(prompt.mask_indices):
        sentinel = corruption.sentinels and number > 0
        assert (prompt.tokens[index] >= special.first_sentinel) == sentinel or not sentinel
        assert part_b.first(prompt.tokens, number) == (
            prompt.tokens[index] + 1 if sentinel else special.sop
        )


def _without_masks(part: str) -> str:
    for name in (*MASK_NAMES, "[MASK1]", "<mask>", "<|endofpiece|>"):
        part = part.replace(name, "")
    return part


def keys(rng: Random, lab: Lab, folder: Path) -> None:
    """Text keys are what was typed, and a saved configuration is read back equal."""
    number = rng.choice(
        [
            f"{rng.random():.2f}0",
            f"{rng.randint(0, 999)}_{rng.randint(0, 99)}",
            f"{rng.randint(1, 9)}e{rng.randint(1, 9)}",
            f"+{rng.randint(0, 9)}",
            f"0{rng.randint(0, 99)}",
            rng.choice(["true", "False", "NO", "inf", "nan", "None", "y", "0x1F", "1."]),
        ]
    )
    config = load_config(
        ["experiment=tiny", f"run.name={number}", f"data.corpora.a.prefix={number}"]
    )
    assert config.run.name == number, "another name than was typed"
    assert Path(config.data.corpora["a"].prefix).name == number
    file = folder / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config_file(file) == config


def identities(rng: Random, lab: Lab, folder: Path) -> None:
    """Any change of data that changes rows is a difference; none is none."""
    tokenizer = open_tokenizer(lab.specs[0])
    token_type = token_type_for(tokenizer.vocab_size)
    stored = [tokenizer.store_document(text(rng) + " x", token_type).tolist() for _ in range(30)]
    config = load_config(["experiment=tiny", "evaluation=none"])

    def identity(
        documents: list[list[int]], names: list[str], **changes: object
    ) -> dict[str, object]:
        for name in names:
            write_documents(folder / name, documents, token_type)
        data = DataConfig(
            corpora={name: CorpusConfig(prefix=str(folder / name)) for name in names},
            validation_share=0.1,
            test_share=0.0,
            num_workers=0,
            prefetch=1,
        )
        tokens = TokenizerConfig(
            kind=lab.specs[0].kind,
            path=lab.specs[0].path,
            vocab_size=tokenizer.vocab_size,
            task_masks=lab.specs[0].task_masks,
            sentinel_pairs=lab.specs[0].sentinel_pairs,
        )
        changed = replace(config, data=replace(data, **changes), tokenizer=tokens)  # type: ignore[arg-type]
        found = open_row_source(changed).fingerprint()
        json.dumps(found)
        return found

    before = identity(stored, ["a", "b"])
    assert describe_differences(before, identity(stored, ["a", "b"])) == []
    spoilt = [list(document) for document in stored]
    document = rng.choice([each for each in spoilt if len(each) > 2])
    document[rng.randrange(1, len(document) - 1)] ^= 1
    assert describe_differences(before, identity(spoilt, ["a", "b"])), "another token"
    assert describe_differences(before, identity(stored, ["b", "a"])), "another order"
    other = identity(stored, ["a", "b"], validation_share=0.2)
    assert describe_differences(before, other), "another split"


def inputs(rng: Random, lab: Lab, folder: Path) -> None:
    """A folder's texts are taken each once, and nothing that is hidden."""
    top = folder / "in"
    shutil.rmtree(top, ignore_errors=True)
    top.mkdir()
    wanted = set()
    for number in range(rng.randint(1, 6)):
        ending = rng.choice(ENDINGS)
        place = top / rng.choice(["", "sub", ".hidden", "sub/.ipynb_checkpoints"])
        place.mkdir(exist_ok=True, parents=True)
        file = place / f"{rng.choice(['', '.'])}f{number}{ending}"
        file.write_text("{}")
        if not any(part.startswith(".") for part in file.relative_to(top).parts):
            wanted.add(file)
    if not wanted:
        (top / "a.txt").write_text("a")
        wanted.add(top / "a.txt")
    link = folder / "link"
    link.unlink(missing_ok=True)
    link.symlink_to(top)
    names = [str(top), str(link), *(str(file) for file in wanted if rng.random() < 0.3)]
    found = expand_inputs(names)
    assert {file.resolve() for file in found} == wanted, "other files than those to be seen"
    assert len(found) == len(wanted), "a file is read twice"


def traces(rng: Random, lab: Lab, folder: Path) -> None:
    """The documents that a row names hold its tokens."""
    words = [[1, *[10 + number] * rng.randint(1, 60), 0] for number in range(rng.randint(5, 60))]
    write_documents(folder / "marked", words, np.dtype(np.uint16))
    corpus = open_indexed(folder / "marked")
    token = rng.randrange(corpus.num_tokens)
    number = corpus.document_at(token)
    assert corpus.document_offset(number) <= token < corpus.document_offset(number + 1)


PROBES = (
    *(rows, rows, blends, documents, prompts, keys, identities, inputs, traces),
    *(preparations, foreign_corpora, replaced_tokenizers),
    *(sentence_targets, empty_objectives),
)
ALWAYS_VALID = (documents, keys, identities, inputs, traces, sentence_targets, empty_objectives)
"""Probes whose cases nothing may refuse."""
