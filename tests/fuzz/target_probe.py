"""Probes of what rows predict: sentences in any script, and losses where nothing is predicted."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from glm_dist.config.load import load_config
from glm_dist.config.schema import BatchConfig, CorpusConfig, RunConfig, TokenizerConfig
from glm_dist.data.corpus.indexed import token_type_for, write_documents
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.data.row_source import RowSource, open_row_source
from glm_dist.data.tokenizer.tokenizer import Tokenizer, open_tokenizer
from glm_dist.parallel.layout import Layout
from glm_dist.train.evaluate import validation_losses
from tests.fuzz.lab import Lab

END_MARKS = ("", "", ".", "नमस्ते।", "مرحبا؟")
"""Words of the lab's BERT vocabulary that end a sentence; two draws in five have no sentences."""


def sentence_targets(rng: Random, lab: Lab, folder: Path) -> None:
    """Sentence rows predict about their share in every script, and in text without end marks."""
    tokenizer = open_tokenizer(lab.full)
    mark = rng.choice(END_MARKS)
    longest = rng.choice([5, 12])
    documents = []
    for _ in range(rng.choice([60, 200])):
        body: list[int] = []
        for _ in range(rng.randint(3, 9) if mark else 1):
            body += [_plain_word(rng, lab) for _ in range(rng.randint(3, longest))]
            body += [_ids(lab.full.path)[mark]] if mark else []
        documents.append([tokenizer.special.cls, *body, tokenizer.special.eos])
    length = rng.choice([96, 160])
    source = _source(rng, lab, folder, tokenizer, documents, shares=(0, 1, 0), length=length)
    rows = [source.row(number) for number in range(16)]
    share = sum(row.loss_mask.sum() for row in rows) / sum(row.num_real_tokens for row in rows)
    assert 0.07 <= share <= 0.25, f"sentence rows predict {share:.3f}, end mark {mark!r}"
    if mark:
        targets = np.concatenate([row.targets[row.loss_mask] for row in rows])
        last = targets[:-1][targets[1:] == tokenizer.special.eop]
        whole = (last == _ids(lab.full.path)[mark]).mean()  # the window's end cuts off some
        assert whole >= 0.5, f"{whole:.2f} of the blanks are sentences, end mark {mark!r}"


def empty_objectives(rng: Random, lab: Lab, folder: Path) -> None:
    """Validation leaves out whatever has no target; every loss it reports is a number."""
    tokenizer = open_tokenizer(lab.full)
    special = tokenizer.special
    empty_share = rng.choice([1.0, 1.0, 0.9, 0.0])
    documents = [
        [special.cls, special.eos]
        if rng.random() < empty_share
        else [special.cls, *(_plain_word(rng, lab) for _ in range(20)), special.eos]
        for _ in range(60)
    ]
    training = [[special.cls, *(_plain_word(rng, lab) for _ in range(40)), special.eos]] * 40
    source = _source(
        rng,
        lab,
        folder,
        tokenizer,
        training,
        shares=rng.choice([(1, 0, 0), (0.5, 0.3, 0.2)]),
        length=64,
        held_out=documents,
    )
    rows, num_rows = source.validation, rng.choice([1, 4])
    wanted = {
        objective
        for objective in rows.objectives
        for corpus in rows.names()
        for number in range(-(-num_rows // len(rows.names())))
        if rows.row(objective, corpus, number).loss_mask.any()
    }
    found = _losses(rows, num_rows)
    assert all(math.isfinite(loss) for loss in found.values()), f"a loss is no number: {found}"
    assert {name for name in found if "/" not in name} == wanted, "another objective is left out"


@cache
def _ids(file: str) -> dict[str, int]:
    return {word: number for number, word in enumerate(Path(file).read_text().split("\n"))}


def _plain_word(rng: Random, lab: Lab) -> int:
    words = ("the", "people", "of", "States", "have", "chosen", "good", "night")
    return _ids(lab.full.path)[rng.choice(words)]


def _source(
    rng: Random,
    lab: Lab,
    folder: Path,
    tokenizer: Tokenizer,
    documents: list[list[int]],
    *,
    shares: tuple[float, float, float],
    length: int,
    held_out: list[list[int]] | None = None,
) -> RowSource:
    """Open rows over documents, and over held-out ones of their own if there are any."""
    base: RunConfig = load_config(["experiment=tiny"])
    token_type = token_type_for(tokenizer.vocab_size)
    prefixes = {"training": documents} | ({"held_out": held_out} if held_out else {})
    for name, each in prefixes.items():
        write_documents(folder / name, each, token_type)
    own = {"held_out": str(folder / "held_out")} if held_out else {}
    return open_row_source(
        replace(
            base,
            run=replace(base.run, seed=rng.randrange(2**63)),
            model=replace(base.model, max_position_embeddings=1024),
            tokenizer=TokenizerConfig(
                kind=lab.full.kind,
                path=lab.full.path,
                vocab_size=tokenizer.vocab_size,
                task_masks=lab.full.task_masks,
                sentinel_pairs=lab.full.sentinel_pairs,
            ),
            data=replace(
                base.data,
                corpora={"training": CorpusConfig(prefix=str(folder / "training"))},
                validation_corpora=own,
                validation_share=0.0,
                test_share=0.0,
            ),
            corruption=replace(
                base.corruption,
                span_share=float(shares[0]),
                sentence_share=float(shares[1]),
                document_share=float(shares[2]),
            ),
            batch=BatchConfig(global_batch_size=8, micro_batch_size=2, row_length=length),
        )
    )


class _Uniform:
    """Model of one rank whose loss is 1 nat for each target."""

    def __init__(self) -> None:
        self.groups = SimpleNamespace(
            layout=Layout(1, 1, 1),
            coordinates=SimpleNamespace(data=0),
            reports_loss=True,
            world=None,
        )
        self.task = SimpleNamespace(batch=lambda batch, device: batch, weight=self._weight)

    @staticmethod
    def _weight(batch: MicroBatch) -> float:
        return float(np.asarray(batch.loss_mask).sum())

    def evaluate(self, batches: Sequence[MicroBatch]) -> list[SimpleNamespace]:
        """Return the sums of the losses."""
        return [SimpleNamespace(total=torch.tensor(self._weight(batch))) for batch in batches]


def _losses(rows: Any, num_rows: int) -> dict[str, float]:
    if dist.is_initialized():  # by an earlier test of this process
        dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model: Any = _Uniform()
        return validation_losses(
            model, rows, num_rows=num_rows, micro_batch_size=1, device=torch.device("cpu")
        )
    finally:
        dist.destroy_process_group()
