"""Rows by index: every token once an epoch, no layout anywhere, validation, identity."""

import hashlib
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from glm_dist.data.corpus.indexed import bin_path, idx_path, open_indexed, write_documents
from glm_dist.data.corpus.manifest import Manifest, write_manifest
from glm_dist.data.identity import describe_differences
from glm_dist.data.loader import training_batches
from glm_dist.data.row_source import RowSource, open_row_source
from glm_dist.errors import DataError
from tests.data.corpora import (
    CLS,
    EOS,
    FULL_STOP,
    GMASK,
    MASK,
    SMASK,
    VOCAB_SIZE,
    make_config,
    make_documents,
    open_source,
    write_corpus,
)
from tests.data.restore import restored

U16 = np.dtype(np.uint16)

SHARES = {
    "span": (1.0, 0.0, 0.0),
    "sentence": (0.0, 1.0, 0.0),
    "document": (0.0, 0.0, 1.0),
    "mixed": (0.5, 0.3, 0.2),
}


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES.keys())
@pytest.mark.parametrize("name", ["news", "verse", "books"])
def test_an_epoch_holds_every_token_exactly_once(
    folder: Path, name: str, shares: tuple[float, float, float]
) -> None:
    source = open_source(
        folder, name, shares=shares, validation_share=0.0, test_share=0.0, row_length=288
    )
    corpus = open_indexed(folder / name)
    rows = [source.row(index) for index in range(source.blend()[0].rows_per_round)]
    text: Counter[int] = Counter()
    for index, row in enumerate(rows):
        tokens = restored(row)
        _, address = source.address(index)
        assert len(tokens) in (address.length, address.length + 1)
        text.update(tokens[-address.length :])  # without the [CLS] put in front

    assert text == Counter(corpus.tokens.tolist())


def test_windows_are_consecutive_text(folder: Path) -> None:
    source = open_source(folder, "books", validation_share=0.0, test_share=0.0)
    stream = open_indexed(folder / "books").tokens.tolist()
    ring = stream + stream
    for index in range(40):
        _, address = source.address(index)
        tokens = restored(source.row(index))
        wanted = ring[address.position : address.position + address.length]
        assert tokens == (wanted if wanted[0] == CLS else [CLS, *wanted])


def test_held_out_documents_never_appear_in_training(folder: Path) -> None:
    # Documents of one word each, so that a token tells its document.
    write_documents(
        folder / "marked",
        [[CLS, *[10 + number] * 40, EOS] for number in range(400)],
        np.dtype(np.uint16),
    )
    source = open_source(
        folder, "marked", validation_share=0.1, test_share=0.05, shares=SHARES["span"]
    )
    special = {CLS, EOS}
    seen_in_training: set[int] = set()
    for index in range(3 * source.blend()[0].rows_per_round):
        seen_in_training |= set(restored(source.row(index))) - special
    held_out: list[set[int]] = []
    for part in (source.validation, source.test):
        rows = [part.row("span", "marked", index) for index in range(30)]
        held_out.append({token for row in rows for token in restored(row)} - special)

    # 400 documents: 40 for validation, 20 for testing.
    assert [len(seen_in_training), *map(len, held_out)] == [340, 40, 20]
    assert not seen_in_training & held_out[0]
    assert not (seen_in_training | held_out[0]) & held_out[1]


def test_epochs_differ_in_order_in_cuts_and_in_blanks(folder: Path) -> None:
    source = open_source(folder, "news")
    epoch = source.blend()[0].rows_per_round
    first = [source.address(index)[1] for index in range(epoch)]
    second = [source.address(epoch + index)[1] for index in range(epoch)]

    assert [address.epoch for address in (first[0], second[0])] == [0, 1]
    assert {a.slot for a in first} == {a.slot for a in second} == set(range(epoch))
    assert [a.slot for a in first] != [a.slot for a in second]
    assert {a.position for a in first} != {a.position for a in second}


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES.keys())
@pytest.mark.parametrize("row_length", [128, 576, 1152])
def test_rows_carry_at_most_two_percent_padding(
    folder: Path, row_length: int, shares: tuple[float, float, float]
) -> None:
    source = open_source(folder, row_length=row_length, shares=shares)
    rows = [source.row(index) for index in range(300)]
    real = sum(row.num_real_tokens for row in rows)

    assert all(len(row.tokens) == row_length for row in rows)
    assert real / (300 * row_length) >= 0.98


def test_shares_of_objectives_are_exact_over_an_epoch(folder: Path) -> None:
    source = open_source(folder, "news")
    epoch = source.blend()[0].rows_per_round
    counts = Counter(source.row(index).objective for index in range(epoch))

    assert abs(counts["span"] - 0.5 * epoch) < 1
    assert abs(counts["sentence"] - 0.3 * epoch) < 1
    assert abs(counts["document"] - 0.2 * epoch) < 1


def test_each_objective_uses_its_mask(folder: Path) -> None:
    source = open_source(folder)
    masks = {"span": MASK, "sentence": SMASK, "document": GMASK}
    for index in range(100):
        row = source.row(index)
        found = set(row.tokens.tolist()) & set(masks.values())
        assert found == {masks[row.objective]}


def test_every_row_has_something_to_predict(folder: Path) -> None:
    source = open_source(folder, row_length=128)

    assert all(source.row(index).loss_mask.any() for index in range(500))


def digest(source: RowSource, count: int) -> str:
    total = hashlib.sha256()
    for index in range(count):
        _update(total, source.row(index).tokens, source.row(index).targets)
    return total.hexdigest()


def _update(total: "hashlib._Hash", *arrays: np.ndarray) -> None:
    for array in arrays:
        total.update(np.ascontiguousarray(array, np.int64).tobytes())


@pytest.mark.parametrize("num_replicas", [1, 2, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_rows_do_not_depend_on_the_layout(
    folder: Path, num_replicas: int, micro_batch_size: int, num_workers: int
) -> None:
    source = open_source(folder, row_length=128)
    steps, batch = 6, 16
    readers = [
        training_batches(
            source,
            start_step=0,
            global_batch_size=batch,
            micro_batch_size=micro_batch_size,
            replica=replica,
            num_replicas=num_replicas,
            num_workers=num_workers,
            prefetch=2,
        )
        for replica in range(num_replicas)
    ]
    total = hashlib.sha256()
    for _ in range(steps):
        for reader in readers:
            for micro_batch in next(reader):
                for tokens, targets in zip(micro_batch.tokens, micro_batch.targets, strict=True):
                    _update(total, tokens.numpy(), targets.numpy())
    for reader in readers:
        reader.close()

    assert total.hexdigest() == digest(source, steps * batch)


@pytest.mark.parametrize("start_step", [1, 2, 5, 11, 17, 40, 63])
def test_resumed_and_longer_runs_read_the_same_rows(folder: Path, start_step: int) -> None:
    config = make_config(folder, {"news": str(folder / "news")}, row_length=128)
    through = open_row_source(config)
    config.run.steps *= 2
    resumed = training_batches(
        open_row_source(config),
        start_step=start_step,
        global_batch_size=4,
        micro_batch_size=2,
        replica=0,
        num_replicas=1,
        num_workers=0,
        prefetch=1,
    )
    read = np.concatenate([micro_batch.tokens.numpy() for micro_batch in next(resumed)])
    wanted = [through.row(4 * start_step + number).tokens for number in range(4)]

    assert (read == np.stack(wanted)).all()


@pytest.mark.slow
@pytest.mark.parametrize("num_replicas", [1, 2, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_two_thousand_rows_survive_seven_resumes_of_a_longer_run(
    folder: Path, num_replicas: int, micro_batch_size: int, num_workers: int
) -> None:
    config = make_config(folder, {n: str(folder / n) for n in ("news", "books")}, row_length=128)
    wanted = digest(open_row_source(config), 2000)
    config.run.steps *= 2
    seed = 100 * num_replicas + 10 * micro_batch_size + num_workers
    cuts = np.random.default_rng(seed).choice(np.arange(1, 125), 7, replace=False)
    total = hashlib.sha256()
    for start, end in pairwise([0, *sorted(int(cut) for cut in cuts), 125]):
        source = open_row_source(config)
        readers = [
            training_batches(
                source,
                start_step=start,
                global_batch_size=16,
                micro_batch_size=micro_batch_size,
                replica=replica,
                num_replicas=num_replicas,
                num_workers=num_workers,
                prefetch=2,
            )
            for replica in range(num_replicas)
        ]
        for _ in range(start, end):
            for micro_batch in (m for reader in readers for m in next(reader)):
                for tokens, targets in zip(micro_batch.tokens, micro_batch.targets, strict=True):
                    _update(total, tokens.numpy(), targets.numpy())
        for reader in readers:
            reader.close()

    assert total.hexdigest() == wanted


def test_seeds_differ_and_the_same_seed_agrees(folder: Path) -> None:
    first = digest(open_source(folder, seed=1), 20)

    assert digest(open_source(folder, seed=1), 20) == first
    assert digest(open_source(folder, seed=2), 20) != first


def test_the_last_slot_of_an_epoch_may_be_short(folder: Path) -> None:
    source = open_source(folder, "news", shares=SHARES["document"], row_length=128)
    epoch = source.blend()[0].rows_per_round
    lengths = Counter(source.address(index)[1].length for index in range(epoch))

    # A document row of 128 has 126 tokens of text, [CLS] among them.
    tokens = source.blend()[0].tokens
    assert lengths[125] == tokens // 125
    assert sum(lengths.values()) - lengths[125] == (1 if tokens % 125 else 0)


def test_ids_the_tokenizer_does_not_know_are_refused(folder: Path) -> None:
    write_documents(folder / "foreign", [[CLS, *[60_000] * 50, EOS]] * 30, np.dtype(np.uint16))

    with pytest.raises(
        DataError, match=f"token id 60000, but the tokenizer has only {VOCAB_SIZE} ids"
    ):
        open_source(folder, "foreign")


def test_a_corpus_of_another_tokenizer_is_refused(folder: Path) -> None:
    for suffix, path in ((".bin", bin_path), (".idx", idx_path)):
        Path(f"{folder / 'other'}{suffix}").write_bytes(path(folder / "news").read_bytes())
    news = open_indexed(folder / "news")
    write_manifest(
        folder / "other", Manifest("gpt2 sha256=0", 50_265, news.num_documents, news.num_tokens)
    )

    with pytest.raises(DataError, match="gpt2 sha256=0"):
        open_source(folder, "other")


def test_a_corpus_prepared_elsewhere_needs_no_manifest_and_no_opening_tokens(
    folder: Path,
) -> None:
    # Megatron-LM's own preparation stores no [CLS]: every window is opened here.
    documents = [document[1:] for document in make_documents(50, mean_length=400, seed=5)]
    write_documents(folder / "megatron", documents, np.dtype(np.uint16))
    source = open_source(folder, "megatron", validation_share=0.0, test_share=0.0)
    row = source.row(0)

    assert row.tokens[0] == CLS
    assert restored(row)[0] == CLS
    assert CLS not in restored(row)[1:]


def test_fingerprint_tells_what_changed(folder: Path) -> None:
    write_corpus(folder, "twin", make_documents(300, mean_length=300))
    before = open_source(folder, "twin").fingerprint()
    same = open_source(folder, "twin").fingerprint()
    documents = make_documents(300, mean_length=300)
    documents[0][5] = FULL_STOP + 1
    write_corpus(folder, "twin", documents)
    after = open_source(folder, "twin", validation_share=0.1).fingerprint()
    differences = describe_differences(before, after)

    assert describe_differences(before, same) == []
    assert len(differences) == 2
    assert differences[0].startswith("corpora.twin.sample_sha256: ")
    assert differences[1] == "validation_share: 0.05 in the checkpoint, 0.1 now"


def test_a_row_of_short_documents_hides_nothing_of_their_borders(folder: Path) -> None:
    source = open_source(folder, "verse", shares=SHARES["span"])
    for index in range(100):
        row = source.row(index)
        hidden = set(row.targets[row.loss_mask].tolist())
        assert not hidden & {CLS, EOS}


def test_skipped_rows_are_never_read_and_the_others_are_those_of_before(folder: Path) -> None:
    plain = open_source(folder, "news", "verse", weights={"news": 2.0, "verse": 1.0})
    config = make_config(
        folder,
        {name: str(folder / name) for name in ("news", "verse")},
        weights={"news": 2.0, "verse": 1.0},
    )
    data = replace(config.data, skip_rows=["3-5", "9-9"])
    source = open_row_source(replace(config, data=data))

    kept = [0, 1, 2, 6, 7, 8, 10, 11, 12]
    for number, index in enumerate(kept):
        row, other = source.row(number), plain.row(index)
        assert row.index == index
        assert row.corpus == other.corpus
        assert (row.tokens == other.tokens).all()
        assert source.address(number) == plain.address(index)
    corpora = Counter(plain.row(index).corpus for index in kept)
    assert source.rows_before(len(kept)) == corpora
    assert sum(source.wanted_rows_before(len(kept)).values()) == pytest.approx(len(kept))


def test_a_corpus_that_enters_later_changes_no_earlier_row(folder: Path) -> None:
    def source(*names: str, **changes: object) -> RowSource:
        config = make_config(folder, {name: str(folder / name) for name in names})
        data = replace(config.data, **changes)  # type: ignore[arg-type]
        if "books" in names:
            corpora = {
                name: replace(corpus, weight=0.0 if name == "books" else None, stage_weights=[1.0])
                for name, corpus in data.corpora.items()
            }
            data = replace(data, corpora=corpora)
        return open_row_source(replace(config, data=data))

    before = source("news", "verse")  # by their tokens
    after = source("books", "news", "verse", stage_starts=[40])

    assert digest(before, 40) == digest(after, 40)
    later = Counter(after.row(number).corpus for number in range(40, 100))
    assert later == {"books": 20, "news": 20, "verse": 20}


def test_a_row_is_traced_back_to_its_documents(folder: Path) -> None:
    documents = [[CLS, *[10 + number] * (5 + number % 90), EOS] for number in range(400)]
    write_documents(folder / "marked", documents, U16)
    source = open_source(folder, "marked", validation_share=0.1, test_share=0.05, row_length=96)

    for number in range(source.blend()[0].rows_per_round):
        corpus, found = source.documents(number)
        assert corpus == "marked"
        marks = {token - 10 for token in restored(source.row(number))} - {CLS - 10, EOS - 10}
        assert marks <= set(found)
        # A row may hold no more of its first and last document than [CLS] or the end.
        assert set(found) - marks <= {found[0], found[-1]}
