"""Files that cannot be used are named; no rank, no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from glm_dist.config.load import dump_config, load_config
from glm_dist.config.schema import RunConfig
from glm_dist.data.corpus.indexed import open_indexed, write_documents
from glm_dist.data.corpus.manifest import Manifest, write_manifest
from glm_dist.errors import GlmDistError
from glm_dist.train.preflight import check_files, check_run_folder
from tests.data.corpora import MASK, make_documents, write_corpus, write_vocabulary
from tests.messages import Says


def overrides_for(folder: Path, *more: str) -> list[str]:
    """A run over one corpus of 20 documents; its files are written on the first call."""
    if not (folder / "text.bin").exists():
        write_vocabulary(folder)
        write_corpus(folder, "text", make_documents(20))
    return [
        "experiment=tiny",
        "tokenizer=bert",
        f"tokenizer.path={folder}/vocab.txt",
        "tokenizer.vocab_size=1004",
        "tokenizer.task_masks=true",
        "data=single",
        f"data.corpora.text.prefix={folder}/text",
        f"paths.data={folder}",
        f"paths.runs={folder}/runs",
        *more,
    ]


def config_for(folder: Path, *more: str) -> RunConfig:
    return load_config(overrides_for(folder, *more))


def write_run(folder: Path, *more: str, steps: tuple[int, ...] = (10,)) -> None:
    """A run folder as an earlier job leaves it."""
    run = folder / "runs" / "tiny"
    run.mkdir(parents=True)
    for step in steps:
        (run / "checkpoints" / f"step_{step:07d}").mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(config_for(folder, *more)))


def test_good_files_are_described(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    found = check_files(config)
    (corpus,) = found.corpora
    held_out = round(20 * config.data.validation_share) + (config.data.test_share > 0)
    assert (corpus.name, corpus.documents) == ("text", 20 - held_out)
    rows = config.run.steps * config.batch.global_batch_size
    text_of_a_row = config.batch.row_length * 0.9  # the rest is for blanks
    assert corpus.epochs == pytest.approx(rows * text_of_a_row / corpus.tokens, rel=0.1)
    assert found.warnings == ()
    assert found.newest_step is None
    assert not (tmp_path / "runs").exists()  # looking leaves nothing behind


def test_newest_checkpoint_is_found(tmp_path: Path) -> None:
    write_run(tmp_path, steps=(10, 200, 30))
    assert check_files(config_for(tmp_path)).newest_step == 200


def no_change(folder: Path) -> None:
    pass


def no_tokenizer(folder: Path) -> None:
    (folder / "vocab.txt").unlink()


def no_index(folder: Path) -> None:
    (folder / "text.idx").unlink()


def no_tokens(folder: Path) -> None:
    (folder / "text.bin").unlink()


def cut_tokens(folder: Path) -> None:
    file = folder / "text.bin"
    file.write_bytes(file.read_bytes()[:1000])


def cut_index(folder: Path) -> None:
    file = folder / "text.idx"
    file.write_bytes(file.read_bytes()[:100])


def foreign_index(folder: Path) -> None:
    (folder / "text.idx").write_bytes(b"PK\x03\x04" + bytes(60))


def other_tokenizer(folder: Path) -> None:
    corpus = open_indexed(folder / "text")
    write_manifest(
        folder / "text",
        Manifest("another", 1004, documents=corpus.num_documents, tokens=corpus.num_tokens),
    )


def two_documents(folder: Path) -> None:
    write_corpus(folder, "text", make_documents(2))


def runs_is_a_file(folder: Path) -> None:
    (folder / "runs").write_text("")


def checkpoints_is_a_file(folder: Path) -> None:
    write_run(folder, steps=())
    (folder / "runs" / "tiny" / "checkpoints").write_text("")


def earlier_run(folder: Path) -> None:
    write_run(folder)


def only_set_aside(folder: Path) -> None:
    write_run(folder, steps=())
    (folder / "runs" / "tiny" / "checkpoints" / ".bad-step_0000010").mkdir(parents=True)


def run_with_other_rate(folder: Path) -> None:
    write_run(folder, "optimizer.learning_rate=0.001", "model.num_layers=2")


@dataclass(frozen=True)
class Case:
    """A fault in good files, the overrides, and the names in the expected error."""

    name: str
    spoil: Callable[[Path], None]
    key: str
    more: tuple[str, ...] = ()
    facts: str = ""
    """Numbers that the message gives."""


CASES = [
    Case("tokenizer missing", no_tokenizer, "{folder}/vocab.txt"),
    Case(
        "vocabulary size of another tokenizer",
        no_change,
        "tokenizer.vocab_size",
        more=("tokenizer.vocab_size=30524",),
        facts="1004 ids",
    ),
    Case(
        "task masks that the size does not count",
        no_change,
        "tokenizer.vocab_size",
        more=("tokenizer.task_masks=false",),
    ),
    Case("index missing", no_index, "{folder}/text.idx"),
    Case("tokens missing", no_tokens, "{folder}/text.bin"),
    Case(
        "tokens cut short",
        cut_tokens,
        "{folder}/text.bin",
        facts="inside sequence {sequence}, not the {bytes} of",
    ),
    Case(
        "index cut short",
        cut_index,
        # 34 bytes of header, 12 for each of 20 sequences, 8 for each of 21 document starts.
        "{folder}/text.idx",
        facts="100 bytes, not the 442 of",
    ),
    Case("index of another format", foreign_index, "{folder}/text.idx"),
    Case("corpus of another tokenizer", other_tokenizer, "data.corpora.text.prefix"),
    Case("too few documents to hold any out", two_documents, "data.corpora.text"),
    Case("checkpoints that cannot be written", checkpoints_is_a_file, "paths.runs"),
    Case("run folder below a file", runs_is_a_file, "paths.runs"),
    Case("nothing to resume", no_change, "checkpoint.resume", more=("checkpoint.resume=must",)),
    Case(
        "a run that must not be continued",
        earlier_run,
        "checkpoint.resume",
        more=("checkpoint.resume=never",),
    ),
    Case(
        "nothing left but checkpoints set aside", only_set_aside, "{folder}/runs/tiny/checkpoints"
    ),
    Case(
        "a step to go back to that is not there",
        earlier_run,
        "checkpoint.step",
        more=("checkpoint.step=7",),
        facts="there are: 10",
    ),
    Case(
        "run folder of another configuration",
        run_with_other_rate,
        "model.num_layers, optimizer.learning_rate",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_spoilt_file_is_named(case: Case, tmp_path: Path, says: Says) -> None:
    config = config_for(tmp_path, *case.more)
    lengths = [len(document) for document in make_documents(20)]
    # 1000 bytes hold 500 tokens of two bytes: they end inside the first sequence beyond them.
    inside = next(i for i in range(20) if sum(lengths[: i + 1]) > 500)
    case.spoil(tmp_path)
    with pytest.raises(GlmDistError) as caught:
        check_files(config)
    assert caught.value.key == case.key.format(folder=tmp_path)
    assert case.facts.format(sequence=inside, bytes=2 * sum(lengths)) in str(caught.value)
    says(caught.value)


def test_file_system_that_refuses_to_write_is_named() -> None:
    # /proc refuses even root.
    folder = "/proc/glm_dist_runs"
    with pytest.raises(GlmDistError, match=rf"^Cannot write to {folder}/tiny: ") as caught:
        check_run_folder(load_config(["experiment=tiny", f"paths.runs={folder}"]))
    assert "Make it writable, or choose another paths.runs." in str(caught.value)


@pytest.mark.parametrize(
    "changed",
    [
        ("parallel=tp2", "zero=stage0"),
        ("batch.micro_batch_size=2",),
        ("run.steps=40", "lr_schedule.decay_steps=20"),
        ("data.num_workers=0", "data.prefetch=1"),
        ("evaluation=none", "checkpoint.keep_last=9", "observe.log_interval=7"),
        # 10 steps of 8 rows have been read; a stage from row 80 on is still to come.
        ("data.stage_starts=[80]", "data.corpora.text.stage_weights=[2]"),
        # A corpus that has had no row yet.
        (
            "data.corpora.more.prefix={folder}/more",
            "data.corpora.more.weight=0",
            "data.stage_starts=[80]",
            "data.corpora.more.stage_weights=[1]",
            "data.corpora.text.stage_weights=[2]",
        ),
        ("data.skip_rows=[80-99,200-200]",),
        ("data.validation_corpora.more={folder}/more",),
    ],
    ids=[
        "layout",
        "micro-batch",
        "length",
        "workers",
        "reports",
        "future stage",
        "new corpus",
        "future rows",
        "validation",
    ],
)
def test_run_may_continue_with_what_does_not_change_results(
    changed: tuple[str, ...], tmp_path: Path
) -> None:
    write_run(tmp_path)
    write_corpus(tmp_path, "more", make_documents(20))
    changed = tuple(each.format(folder=tmp_path) for each in changed)
    assert check_files(config_for(tmp_path, *changed)).newest_step == 10


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        (("run.seed=1",), "run.seed"),
        (("precision=bf16",), "precision.dtype"),
        (("corruption=glm_doc",), "corruption."),
        (("batch.global_batch_size=16",), "batch.global_batch_size"),
        (("run.steps=40",), "lr_schedule.decay_steps"),
        (("data.corpora.text.weight=2",), "data.corpora.text.weight"),
        (("data.corpora.more.prefix={folder}/more",), "data.corpora.more."),
        (("loss=micro_batch", "batch.micro_batch_size=2"), "batch.micro_batch_size"),
        (
            ("data.stage_starts=[79]", "data.corpora.text.stage_weights=[2]"),
            "data.stage_starts",
        ),
        (
            (
                "data.corpora.more.prefix={folder}/more",
                "data.corpora.more.weight=0",
                "data.stage_starts=[79]",
                "data.corpora.more.stage_weights=[1]",
                "data.corpora.text.stage_weights=[2]",
            ),
            "data.corpora.more.",
        ),
        (("data.skip_rows=[79-79]",), "data.skip_rows"),
    ],
    ids=[
        "seed",
        "precision",
        "objective",
        "batch",
        "decay",
        "weight",
        "corpus",
        "official mean",
        "past stage",
        "new corpus in the past",
        "past rows",
    ],
)
def test_run_may_not_continue_with_what_changes_results(
    changed: tuple[str, ...], key: str, tmp_path: Path
) -> None:
    write_run(tmp_path)
    write_corpus(tmp_path, "more", make_documents(5))
    config = config_for(tmp_path, *(each.format(folder=tmp_path) for each in changed))
    with pytest.raises(GlmDistError) as caught:
        check_files(config)
    assert key in caught.value.key
    assert str(caught.value).startswith("The run resumes from step_0000010, but ")


def test_more_steps_for_a_run_are_refused_with_the_override_that_allows_them(
    tmp_path: Path,
) -> None:
    write_run(tmp_path, "run.steps=10")
    more = ["run.steps=20", "lr_schedule.decay_steps=${run.steps}"]
    with pytest.raises(GlmDistError, match=r"Set lr_schedule\.decay_steps=\d+, or ") as caught:
        check_run_folder(config_for(tmp_path, *more))
    assert check_run_folder(config_for(tmp_path, *more, *caught.value.fix.split())) == 10


def test_what_is_likely_not_meant_is_said(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    # As Megatron's tools write them without --append-eod, and with a mask in the text.
    write_documents(tmp_path / "text", [[20 + n, MASK, 21] for n in range(20)], np.dtype(np.uint16))

    warnings = check_files(config).warnings

    assert [text.partition(";")[0] for text in warnings] == [
        "data.corpora.text: 20 of 20 documents looked at do not end with the end token (id 0), so"
        " rows run over their borders",
        "data.corpora.text: 20 of 20 documents looked at hold control tokens as text",
        "data.corpora.text: rows are 57% padding, as all its text is shorter than one row",
    ]
