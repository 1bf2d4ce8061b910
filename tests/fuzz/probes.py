"""Probes: each draws one random case of an edge and checks what must hold whatever was drawn.

A probe computes what it demands by itself. An error of the kind that users get is an answer, too;
any other exception is a violation, as a failed assertion is.
"""

import json
import pickle
import shutil
from collections import Counter
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from random import Random

import numpy as np

from glm_dist.config.blend import check_corpora
from glm_dist.config.checks import check_config
from glm_dist.config.load import dump_config, load_config, load_config_file
from glm_dist.config.schema import (
    BatchConfig,
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
from glm_dist.data.corpus.validate import validate_corpus
from glm_dist.data.identity import describe_differences
from glm_dist.data.loader import StepRows
from glm_dist.data.prepare.inputs import expand_inputs
from glm_dist.data.row_source import RowSource, open_row_source
from glm_dist.data.rows import Row
from glm_dist.data.sampling.mixing import make_blend
from glm_dist.data.tokenizer.tokenizer import Tokenizer, open_tokenizer
from glm_dist.errors import DataError
from glm_dist.generate.infill import PartB
from glm_dist.generate.prompt import read_prompt
from tests.fuzz.lab import Lab, text

ROW_LENGTHS = (32, 64, 96, 160)
ENDINGS = (".jsonl", ".txt", ".JSONL", ".jsonl.gz", ".txt.GZ", ".jsonl.xz", ".txt.bz2")
MASK_NAMES = ("[MASK]", "[sMASK]", "[gMASK]")


def rows(rng: Random, lab: Lab, folder: Path) -> None:
    """Rows of random corpora, options and tokenizers: ids, positions, epochs, resume, held out."""
    base = load_config(["experiment=tiny"])
    tokenizer, config = _random_run(rng, lab, folder, base)
    check_config(config, world_size=None)
    source = open_row_source(config)
    for number in [*range(6), *(rng.randrange(10**6) for _ in range(4))]:
        _check_row(source.row(number), config, tokenizer)
    for name in source.validation.names() if config.data.validation_share else ():
        for objective in source.validation.objectives:
            _check_row(source.validation.row(objective, name, rng.randrange(99)), config, tokenizer)
    for corpus in source.blend():
        if corpus.rows_per_round <= 300 and corpus.share == 1:
            _check_round(source, corpus.rows_per_round, corpus.passes_per_round, config)
    _check_layout(rng, source)
    if config.data.validation_share:
        weights = {name: rng.random() + 0.1 for name in config.data.corpora}
        corpora = {n: replace(c, weight=weights[n]) for n, c in config.data.corpora.items()}
        again = open_row_source(
            replace(
                config,
                run=replace(config.run, seed=config.run.seed + 1),
                data=replace(config.data, corpora=corpora),
            )
        )
        for name in source.validation.names():
            objective = rng.choice(source.validation.objectives)
            one, two = (s.validation.row(objective, name, 3) for s in (source, again))
            assert (one.tokens == two.tokens).all(), "validation depends on seed or weights"


def _random_run(
    rng: Random, lab: Lab, folder: Path, base: RunConfig
) -> tuple[Tokenizer, RunConfig]:
    spec = rng.choice(lab.specs)
    tokenizer = open_tokenizer(spec)
    token_type = token_type_for(tokenizer.vocab_size)
    corpora = {}
    for name in rng.sample(["news", "verse", "2024_01", "books"], rng.randint(1, 3)):
        prefix = str(folder / name)
        count = rng.choice([1, 3, 9, 40])
        longest = rng.choice([3, 40, 200])
        texts = ["the people", *(text(rng, longest=longest) for _ in range(count))]
        stored = [tokenizer.store_document(each, token_type).tolist() for each in texts]
        write_documents(prefix, [document for document in stored if document], token_type)
        assert validate_corpus(prefix).is_sound
        corpora[name] = CorpusConfig(prefix=prefix)
    shares = rng.choice([(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.3, 0.2), (0.0, 0.5, 0.5)])

    has_pairs = spec.sentinel_pairs > 0
    tasks = [PretrainingTask.blank_infilling] * 3 + list(PretrainingTask)
    task = rng.choice([t for t in tasks if has_pairs or t is not PretrainingTask.span_corruption])
    sometimes = lambda value: value if rng.random() < 0.25 else 0.0  # noqa: E731
    corruption = replace(
        base.corruption,
        task=task,
        span_share=float(shares[0]),
        sentence_share=float(shares[1]),
        document_share=float(shares[2]),
        block_mask_prob=sometimes(0.5),
        single_span_share=sometimes(0.3),
        short_share=sometimes(0.5),
        **{
            name: rng.random() < 0.2 and (name != "sentinels" or has_pairs)
            for name in (
                "keep_span_order",
                "random_positions",
                "sentinels",
                "no_block_positions",
                "isolate_documents",
                "restart_positions",
            )
        },
    )
    length = rng.choice(ROW_LENGTHS)
    return tokenizer, replace(
        base,
        run=replace(base.run, seed=rng.randrange(2**63)),
        model=replace(base.model, max_position_embeddings=rng.choice([length, 1024])),
        tokenizer=TokenizerConfig(
            kind=spec.kind,
            path=spec.path,
            vocab_size=tokenizer.vocab_size,
            task_masks=spec.task_masks,
            fixed_task_masks=spec.fixed_task_masks,
            sentinel_pairs=spec.sentinel_pairs,
        ),
        data=replace(
            base.data,
            corpora=corpora,
            validation_share=rng.choice([0.0, 0.05, 0.3]),
            test_share=rng.choice([0.0, 0.1]),
        ),
        corruption=corruption,
        batch=BatchConfig(global_batch_size=8, micro_batch_size=2, row_length=length),
        evaluation=replace(base.evaluation, interval=0),
    )


def _check_row(row: Row, config: RunConfig, tokenizer: Tokenizer) -> None:
    """Ids that have a row in the table, targets that the head knows, positions in the tables."""
    size = config.tokenizer.vocab_size
    inputs, targets = row.tokens, row.targets[row.loss_mask]
    assert 0 <= inputs.min() <= inputs.max() < config.padded_vocab_size, "no embedding"
    assert ((inputs < size) | (inputs == tokenizer.special.block_mask)).all()
    assert not len(targets) or 0 <= targets.min() <= targets.max() < size, "no logit"
    most = config.model.max_position_embeddings
    assert 0 <= row.positions.min() <= row.positions.max() <= most, "no position"
    assert 0 <= row.block_positions.min() <= row.block_positions.max() <= most
    assert (
        0 <= row.prefix_length <= row.num_real_tokens <= len(row.tokens) == config.batch.row_length
    )
    assert not row.loss_mask[row.num_real_tokens :].any(), "padding is predicted"
    unseen = {tokenizer.special.mask, tokenizer.special.sop} - {tokenizer.special.eop}
    assert not unseen & set(targets.tolist()), "structure is predicted"


def _check_round(source: RowSource, num_rows: int, passes: int, config: RunConfig) -> None:
    """Every token as often as every other; every objective in its share."""
    (part,) = [corpus for corpus in source.blend() if corpus.share == 1]
    seen = np.zeros(part.tokens, np.int64)
    names: Counter[str] = Counter()
    for number in range(num_rows):
        _, address = source.address(number)
        index = (address.position + np.arange(address.length)) % part.tokens
        np.add.at(seen, index, 1)
        names[address.objective] += 1
    assert (seen == passes).all(), "a token is read more often than another"
    corruption = config.corruption
    if corruption.task is PretrainingTask.blank_infilling and not corruption.single_span_share:
        wanted = {
            "span": corruption.span_share,
            "sentence": corruption.sentence_share,
            "document": corruption.document_share,
        }
        for name, share in wanted.items():
            # Plain and short rows take turns apart from each other: twice the bound.
            assert abs(names[name] - share * num_rows) <= 3.4, "an objective has another share"
        assert num_rows >= 64 or sum(share > 0 for share in wanted.values()) == 1


def _check_layout(rng: Random, source: RowSource) -> None:
    """Any replicas, micro-batches and first step read the same rows; workers build the same."""
    replicas, micro, repeats = rng.choice([1, 2, 4]), rng.choice([1, 2, 3]), rng.choice([1, 2])
    batch = replicas * micro * repeats
    step = rng.randrange(1000)
    read: list[int] = []
    for replica in range(replicas):
        plan = StepRows(batch, micro, replica, replicas)
        per_step = plan.micro_batches_per_step
        for micro_batch in range(step * per_step, (step + 1) * per_step):
            read += plan.indices(micro_batch)
    assert sorted(read) == list(range(step * batch, (step + 1) * batch)), "rows of a step"
    copy: RowSource = pickle.loads(pickle.dumps(source))
    number = rng.choice(read)
    one, two = copy.row(number), source.row(number)
    for field in fields(Row):
        assert np.array_equal(getattr(one, field.name), getattr(two, field.name)), field.name


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
        assert part_b.sop(number) == (prompt.tokens[index] + 1 if sentinel else special.sop)


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


PROBES = (rows, rows, blends, documents, prompts, keys, identities, inputs, traces)
