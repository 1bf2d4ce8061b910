"""The whole job from the command line, under every launcher."""

import json
import socket
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from glm_dist.checkpoint.load import load_tensors, read_checkpoint
from glm_dist.config.launch import LaunchEnvironment, read_launch_environment
from glm_dist.config.load import load_config
from glm_dist.data.row_source import RowSource, open_row_source
from glm_dist.errors import DataError, LaunchError
from glm_dist.observe.metrics_file import final_records, read_records
from glm_dist.train import job as training_job
from glm_dist.train import member as training_member
from tests.train.jobs import make_files, with_deepspeed, with_python, with_srun, with_torchrun

PROCESSES = 2


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Run folder's parent, and the overrides of the tiny job."""
    folder = tmp_path_factory.mktemp("job")
    return folder / "runs", make_files(folder)


def weights_of(run: Path, step: int = 4) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint: master weights and moments."""
    info = read_checkpoint(run / "checkpoints" / f"step_{step:07d}")
    tensors = {name: torch.empty(record.shape) for name, record in info.manifest.tensors.items()}
    load_tensors(info, tensors)
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def losses_of(run: Path) -> dict[int, float]:
    """Training loss by step."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {r["step"]: r["train/loss"] for r in records if "train/loss" in r}


@pytest.fixture(scope="module")
def serial(job: tuple[Path, list[str]]) -> dict[str, np.ndarray]:
    """Weights that one process reaches, started with plain python."""
    runs, overrides = job
    result = with_python([*overrides, "run.name=python"])
    assert result.returncode == 0, result.stderr
    return weights_of(runs / "python")


@pytest.mark.parametrize(
    "launcher",
    # torchrun trains by default in test_preemption.py.
    ["deepspeed", "srun", pytest.param("torchrun", marks=pytest.mark.slow)],
)
def test_every_launcher_trains_the_same_weights(
    launcher: str, job: tuple[Path, list[str]], serial: dict[str, np.ndarray]
) -> None:
    runs, overrides = job
    arguments = [*overrides, f"run.name={launcher}", "parallel=tp2"]

    if launcher == "srun":
        results = with_srun(arguments, PROCESSES)
    else:
        start = {"torchrun": with_torchrun, "deepspeed": with_deepspeed}[launcher]
        results = [start(arguments, PROCESSES)]

    assert all(r.returncode == 0 for r in results), results[0].stderr
    found = weights_of(runs / launcher)
    assert found.keys() == serial.keys()
    for name, expected in serial.items():
        np.testing.assert_allclose(found[name], expected, atol=1e-5, rtol=0, err_msg=name)
    provenance = json.loads((runs / launcher / "provenance.json").read_text())
    assert provenance["attempts"][0]["launcher"] == launcher
    assert provenance["attempts"][0]["world_size"] == PROCESSES


def test_processes_wait_as_long_as_the_configuration_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[timedelta] = []

    def start(launch: LaunchEnvironment, timeout: timedelta, **others: object) -> None:
        asked.append(timeout)
        raise LaunchError("no process starts here", key="none")

    monkeypatch.setattr(training_member, "start_process", start)
    for overrides in ([], ["parallel.timeout_minutes=90"]):
        config = load_config(["experiment=tiny", *overrides])
        with pytest.raises(LaunchError):
            training_job.run(config, read_launch_environment({}))

    assert asked == [timedelta(minutes=30), timedelta(minutes=90)]


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    job: tuple[Path, list[str]], serial: dict[str, np.ndarray]
) -> None:
    runs, overrides = job
    assert with_python([*overrides, "run.name=stopped", "run.steps=2"]).returncode == 0

    result = with_python([*overrides, "run.name=stopped"])

    assert result.returncode == 0, result.stderr
    for name, found in weights_of(runs / "stopped").items():
        assert np.array_equal(found, serial[name]), name
    records = final_records(read_records(runs / "stopped" / "metrics.jsonl"))
    assert [r["step"] for r in records if "train/loss" in r] == [1, 2, 3, 4]
    assert losses_of(runs / "stopped") == losses_of(runs / "python")


def test_a_finished_run_is_left_as_it_is(
    job: tuple[Path, list[str]], serial: dict[str, np.ndarray]
) -> None:
    runs, overrides = job
    before = {p: p.stat().st_mtime_ns for p in (runs / "python" / "checkpoints").rglob("*")}

    result = with_python([*overrides, "run.name=python"])

    assert result.returncode == 0, result.stderr
    assert "is finished: 4 steps" in result.stderr
    assert {p: p.stat().st_mtime_ns for p in (runs / "python" / "checkpoints").rglob("*")} == before


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(tmp_path: Path) -> None:
    overrides = make_files(tmp_path)
    folder = tmp_path / "runs" / "lost" / "checkpoints"
    (folder / "step_0000010").mkdir(parents=True)

    results = with_srun([*overrides, "run.name=lost", "parallel=tp2"], PROCESSES)

    assert [result.returncode for result in results] == [76, 76], results[0].stderr
    said = f"CheckpointError: All checkpoints in {folder} are damaged (step_0000010)"
    assert "".join(result.stderr for result in results).count(said) == 1
    assert "skipped damaged checkpoint" in results[0].stderr
    assert [path.name for path in folder.iterdir()] == ["step_0000010"]
    # Refused, so it is no attempt, and a configuration of the run would still be the last one's.
    assert not (folder.parent / "config.yaml").exists()
    assert not (folder.parent / "provenance.json").exists()


def test_other_data_under_a_checkpoint_is_refused(
    job: tuple[Path, list[str]], serial: dict[str, np.ndarray], tmp_path: Path
) -> None:
    _, overrides = job
    other = [o for o in make_files(tmp_path) if o.startswith("data.corpora.text.prefix")]
    corpus = Path(other[0].partition("=")[2])
    tokens = bytearray(corpus.with_suffix(".bin").read_bytes())
    tokens[1000:1040] = bytes(40)
    corpus.with_suffix(".bin").write_bytes(tokens)

    result = with_python([*overrides, *other, "run.name=python", "run.steps=6"])

    assert result.returncode == 2
    assert "CheckpointError" in result.stderr
    assert "other data" in result.stderr
    assert "Traceback" not in result.stderr


def spoil_a_row_of_the_second_replica(overrides: list[str]) -> None:
    """Write an unknown id where, of the first two steps' rows, only the last replica's read it."""
    config = load_config([*overrides, "run.name=spoiled"])
    prefix = next(iter(config.data.corpora.values())).prefix
    tokens = np.memmap(f"{prefix}.bin", dtype=np.uint16, mode="r+")
    for index in range(0, len(tokens), 20):
        kept, tokens[index] = tokens[index], 60_000
        try:
            source = open_row_source(config)
        except DataError:  # a window that is looked at when the corpus is opened
            tokens[index] = kept
            continue
        spoiled = [index for index in range(8) if not is_readable(source, index)]
        if spoiled and set(spoiled) <= {6, 7}:
            return
        tokens[index] = kept
    raise AssertionError("no such token")


def is_readable(source: RowSource, index: int) -> bool:
    """Return True if a row can be built."""
    try:
        source.row(index)
    except DataError:
        return False
    return True


def test_a_replica_that_cannot_read_its_rows_says_so(tmp_path: Path) -> None:
    overrides = make_files(tmp_path)
    spoil_a_row_of_the_second_replica(overrides)

    results = with_srun([*overrides, "run.name=spoiled"], PROCESSES)

    assert [result.returncode for result in results] == [76, 76]
    said = f"rank 1 on {socket.gethostname()}: DataError: data.corpora.text holds token id 60000"
    assert said in results[1].stderr
    assert "rank 1 on" in results[0].stderr
    assert "Traceback" not in results[0].stderr + results[1].stderr
    # torchrun hides the status, and rank 0, which writes the marker, is not the one that failed.
    marker = json.loads((tmp_path / "runs" / "spoiled" / "stopped").read_text())
    assert (marker["status"], marker["saved"]) == (76, False)
    assert "token id 60000" in marker["reason"]
