"""Probe of rows: random corpora, options, tokenizers and layouts."""

import pickle
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from random import Random

import numpy as np

from glm_dist.config.checks import check_config
from glm_dist.config.load import load_config
from glm_dist.config.schema import (
    BatchConfig,
    CorpusConfig,
    PretrainingTask,
    RunConfig,
    TokenizerConfig,
)
from glm_dist.data.corpus.indexed import token_type_for, write_documents
from glm_dist.data.corpus.validate import validate_corpus
from glm_dist.data.loader import StepRows
from glm_dist.data.row_source import RowSource, open_row_source
from glm_dist.data.rows import Row
from glm_dist.data.tokenizer.tokenizer import Tokenizer, open_tokenizer
from tests.fuzz.lab import Lab, text

ROW_LENGTHS = (32, 64, 96, 160)
ROW_LENGTHS = (32, 64, 96, 160)


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
    spec = lab.full if rng.random() < 0.2 else rng.choice(lab.specs)
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
