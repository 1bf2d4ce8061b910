"""A preparation that is killed goes on, and ends with the bytes of one that was not."""

import gzip
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from glm_dist.data.prepare.prepare import prepare
from glm_dist.data.prepare.readers import TextOptions
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec
from tests.data.preparations import KillError, read_output, run, stopped, texts, write_jsonl

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("after", [1, 2, 7, 19, 32])
def test_a_stopped_preparation_goes_on_where_it_was(
    tmp_path: Path, choice: TokenizerSpec, after: int
) -> None:
    files = [write_jsonl(tmp_path / f"{n}.jsonl", texts(120, seed=n)) for n in range(2)]
    packed = tmp_path / "c.jsonl.gz"
    packed.write_bytes(gzip.compress(write_jsonl(tmp_path / "c.jsonl", texts(90)).read_bytes()))
    table = pyarrow.table({"text": texts(90, seed=4)})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet", row_group_size=20)
    files += [packed, tmp_path / "d.parquet"]
    run(files, tmp_path / "whole", choice)
    names = [str(file) for file in files]
    arguments = {"tokenizer": choice, "options": TextOptions()}
    stopped(files, tmp_path / "cut", choice, after=after)
    # What was written after the last journal must not count.
    for name in ("tokens.bin", "lengths.bin"):
        with (tmp_path / "cut.partial" / name).open("ab") as stream:
            stream.write(b"left-over")
    seen: list[object] = []
    prepare(names, tmp_path / "cut", report=seen.append, **arguments)

    assert read_output(tmp_path / "cut") == read_output(tmp_path / "whole")
    total = len(seen) + after
    assert seen, "nothing was left to do"
    assert total <= 50  # about 20 kB in each of two files and 15 kB in two, in blocks of 2 kB
    assert not (tmp_path / "cut.partial").exists()


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_kill_while_files_are_moved_into_place(
    tmp_path: Path, choice: TokenizerSpec, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", texts(50))
    run([file], tmp_path / "whole", choice)
    calls = 0

    def replace(path: Path, target: Path) -> None:
        nonlocal calls
        if target.name in {"cut.bin", "cut.idx", "cut.json"}:
            calls += 1
            if calls > moved:
                raise KillError
        os.rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        patch.setattr(os, "replace", replace)
        with pytest.raises(KillError):
            run([file], tmp_path / "cut", choice)
    assert not Path(f"{tmp_path / 'cut'}.json").exists()
    run([file], tmp_path / "cut", choice)

    assert read_output(tmp_path / "cut") == read_output(tmp_path / "whole")


def _is_alive(process_group: int) -> bool:
    try:
        os.killpg(process_group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_killed_at_random_moments_the_output_is_the_same(
    tmp_path: Path, choice: TokenizerSpec, num_workers: int
) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", texts(300_000))
    run([file], tmp_path / "whole", choice)
    script = (
        "from glm_dist.data.prepare import journal, readers\n"
        "from glm_dist.cli.main import main\n"
        "if __name__ == '__main__':\n"
        "    readers.BLOCK_BYTES = 100_000\n"
        "    journal.JOURNAL_SECONDS = 0.05\n"
        f"    main(['prepare', {str(file)!r}, '--output', {str(tmp_path / 'cut')!r},"
        f" '--tokenizer', {choice.path!r}, '--workers', '{num_workers}'])\n"
    )
    (tmp_path / "command.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    rng = np.random.default_rng(num_workers)
    kills = 0
    while True:
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "command.py")],
            env=environment,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(timeout=float(rng.uniform(0.4, 1.8)) if kills < 20 else 600)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            # Its workers notice and end by themselves.
            deadline = time.monotonic() + 20
            while _is_alive(process.pid) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not _is_alive(process.pid)

    assert kills == 20
    bytes_cut, index_cut, _ = read_output(tmp_path / "cut")
    bytes_whole, index_whole, _ = read_output(tmp_path / "whole")
    assert bytes_cut == bytes_whole
    assert index_cut == index_whole
