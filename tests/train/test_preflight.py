"""Files that cannot be used, and the exact message of each; no rank, no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from glm_dist.config.load import dump_config, load_config
from glm_dist.config.schema import RunConfig
from glm_dist.data.corpus.indexed import open_indexed
from glm_dist.data.corpus.manifest import Manifest, write_manifest
from glm_dist.data.tokenizer.tokenizer import load_tokenizer
from glm_dist.errors import GlmDistError
from glm_dist.train.preflight import CorpusFacts, check_files, check_run_folder
from tests.data.corpora import make_documents, write_corpus, write_vocabulary


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
    tokens = sum(len(document) for document in make_documents(20))
    found = check_files(config)
    assert found.corpora == (CorpusFacts("text", 20, tokens),)
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


def run_with_other_rate(folder: Path) -> None:
    write_run(folder, "optimizer.learning_rate=0.001", "model.num_layers=2")


@dataclass(frozen=True)
class Case:
    """What is done to good files, what is typed, and what the user reads."""

    name: str
    spoil: Callable[[Path], None]
    message: str
    more: tuple[str, ...] = ()


CASES = [
    Case(
        "tokenizer missing",
        no_tokenizer,
        "DataError: {folder}/vocab.txt does not exist; it should be a vocabulary, or a folder with "
        "vocab.txt or *vocab.txt.\n"
        "  Check tokenizer.path, or make a new tokenizer with glm-dist tokenizer train.",
    ),
    Case(
        "vocabulary size of another tokenizer",
        no_change,
        "DataError: tokenizer.vocab_size=30524, but {folder}/vocab.txt has 1004 ids with its "
        "special tokens.\n"
        "  Set tokenizer.vocab_size=1004, or choose another tokenizer.path.",
        ("tokenizer.vocab_size=30524",),
    ),
    Case(
        "task masks that the size does not count",
        no_change,
        "DataError: tokenizer.vocab_size=1004, but {folder}/vocab.txt has 1002 ids with its "
        "special tokens.\n"
        "  Set tokenizer.vocab_size=1002, or choose another tokenizer.path.",
        ("tokenizer.task_masks=false",),
    ),
    Case(
        "index missing",
        no_index,
        "DataError: {folder}/text.idx is missing; a prepared corpus has two files, <prefix>.bin "
        "and <prefix>.idx.\n"
        "  Check data.corpora.*.prefix, or run glm-dist prepare first.",
    ),
    Case(
        "tokens missing",
        no_tokens,
        "DataError: {folder}/text.bin is missing; a prepared corpus has two files, <prefix>.bin "
        "and <prefix>.idx.\n"
        "  Check data.corpora.*.prefix, or run glm-dist prepare first.",
    ),
    Case(
        "tokens cut short",
        cut_tokens,
        "DataError: {folder}/text.bin was cut short: it has 1000 bytes, which end inside sequence "
        "{sequence}, not the {bytes} of the 20 sequences in text.idx.\n"
        "  Prepare the corpus again with glm-dist prepare --overwrite.",
    ),
    Case(
        "index cut short",
        cut_index,
        # 34 bytes of header, 12 for each of 20 sequences, 8 for each of 21 document starts.
        "DataError: {folder}/text.idx was cut short or overwritten: it has 100 bytes, not the 442 "
        "of 20 sequences in 20 documents.\n"
        "  Prepare the corpus again with glm-dist prepare --overwrite.",
    ),
    Case(
        "index of another format",
        foreign_index,
        "DataError: {folder}/text.idx is no index of a corpus: it begins with "
        "b'PK\\x03\\x04\\x00\\x00\\x00\\x00\\x00', not with b'MMIDIDX\\x00\\x00'.\n"
        "  Prepare the corpus again with glm-dist prepare --overwrite.",
    ),
    Case(
        "corpus of another tokenizer",
        other_tokenizer,
        "DataError: {folder}/text was prepared with another tokenizer than the run's.\n"
        "  corpus: another\n"
        "  run:    {tokenizer}\n"
        "  Set tokenizer.path to that of the corpus, or prepare data.corpora.text again with "
        "glm-dist prepare.",
    ),
    Case(
        "too few documents to hold any out",
        two_documents,
        "DataError: Nothing is left to train on: data.corpora.text has 2 document(s), of which 1 "
        "are held out for validation and 1 for testing.\n"
        "  Cut the text into more documents, or set data.validation_share=0 data.test_share=0 "
        "evaluation=none.",
    ),
    Case(
        "checkpoints that cannot be written",
        checkpoints_is_a_file,
        "FileError: Cannot write to {folder}/runs/tiny/checkpoints: Not a directory.\n"
        "  Make it writable, or choose another paths.runs.",
    ),
    Case(
        "run folder below a file",
        runs_is_a_file,
        "FileError: Cannot write to {folder}/runs/tiny: Not a directory.\n"
        "  Make it writable, or choose another paths.runs.",
    ),
    Case(
        "nothing to resume",
        no_change,
        "CheckpointError: checkpoint.resume = must: expected a checkpoint in "
        "{folder}/runs/tiny/checkpoints, where there is none.\n"
        "  Fix: check run.name and paths.runs, or begin with checkpoint.resume=auto.",
        ("checkpoint.resume=must",),
    ),
    Case(
        "a run that must not be continued",
        earlier_run,
        "CheckpointError: checkpoint.resume = never: expected no checkpoint in "
        "{folder}/runs/tiny/checkpoints, where step_0000010 is the newest.\n"
        "  Fix: choose another run.name, or continue with checkpoint.resume=auto.",
        ("checkpoint.resume=never",),
    ),
    Case(
        "run folder of another configuration",
        run_with_other_rate,
        "ConfigError: model.num_layers, optimizer.learning_rate = 4, 0.0004: expected 2, 0.001 as "
        "in {folder}/runs/tiny/config.yaml, because the run continues from step_0000010.\n"
        "  Fix: set them back, or begin another run with another run.name.",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_spoilt_file_is_answered_with_one_exact_message(case: Case, tmp_path: Path) -> None:
    config = config_for(tmp_path, *case.more)
    fingerprint = load_tokenizer(config_for(tmp_path).tokenizer).fingerprint
    lengths = [len(document) for document in make_documents(20)]
    # 1000 bytes hold 500 tokens of two bytes: they end inside the first sequence beyond them.
    inside = next(i for i in range(20) if sum(lengths[: i + 1]) > 500)
    case.spoil(tmp_path)
    with pytest.raises(GlmDistError) as caught:
        check_files(config)
    expected = case.message.format(
        folder=tmp_path,
        sequence=inside,
        bytes=2 * sum(lengths),
        tokenizer=fingerprint,
    )
    assert f"{type(caught.value).__name__}: {caught.value}" == expected


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
    ],
    ids=["layout", "micro-batch", "length", "workers", "reports", "future stage"],
)
def test_run_may_continue_with_what_does_not_change_results(
    changed: tuple[str, ...], tmp_path: Path
) -> None:
    write_run(tmp_path)
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
    assert "because the run continues from step_0000010" in str(caught.value)
