"""A preparation that is killed goes on, and ends with the bytes of one that was not."""

import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from glm_dist.data.tokenizer.tokenizer import TokenizerSpec
from tests.data.preparations import read_output, run, texts, write_jsonl

ROOT = Path(__file__).resolve().parents[3]


COMMAND = """
import os, signal, sys
from glm_dist.cli.main import main
from glm_dist.data.prepare import readers, shards

readers.BLOCK_BYTES, shards.SHARD_BYTES = 2000, 8000

if __name__ == "__main__":
    ending, number, *arguments = sys.argv[1:]
    original, left = os.replace, int(number)

    def replace(source, target):
        global left
        left -= str(target).endswith(ending)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        original(source, target)

    os.replace = replace
    sys.exit(main(arguments))
"""


@pytest.mark.usefixtures("small_blocks")
def test_a_preparation_goes_on_after_any_number_of_kills(
    tmp_path: Path, choice: TokenizerSpec
) -> None:
    files = [write_jsonl(tmp_path / f"{n}.jsonl", texts(120, seed=n)) for n in range(2)]
    packed = tmp_path / "c.jsonl.gz"
    packed.write_bytes(gzip.compress(write_jsonl(tmp_path / "c.jsonl", texts(90)).read_bytes()))
    table = pyarrow.table({"text": texts(90, seed=4)})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet", row_group_size=20)
    files += [packed, tmp_path / "d.parquet"]
    reports: list[object] = []
    run(files, tmp_path / "whole", choice, report=reports.append)
    (tmp_path / "command.py").write_text(COMMAND)
    names = [str(file) for file in files]
    command = ["prepare", *names, "--output", str(tmp_path / "cut"), "--tokenizer", choice.path]
    shards = []
    # Before the name of the second shard; of the fourth after that one; of each file of the corpus.
    kills = (
        ("shard", 2, 1),
        ("shard", 4, 2),
        ("cut.bin", 1, 1),
        ("cut.idx", 1, 1),
        (".json", 1, 1),
    )
    for ending, number, num_workers in kills:
        script = [sys.executable, str(tmp_path / "command.py"), ending, str(number)]
        process = subprocess.Popen(
            [*script, *command, "--workers", str(num_workers)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        assert process.wait(timeout=60) == -signal.SIGKILL
        _wait_for_workers(process.pid)
        shards.append(len(list((tmp_path / "cut.partial").glob("*.shard"))))
        assert not (tmp_path / "cut.json").exists()
    rest: list[object] = []
    run(files, tmp_path / "cut", choice, report=rest.append)

    assert shards[:2] == [1, 4]
    assert len(set(shards[2:])) == 1
    assert not rest  # all shards were there
    assert read_output(tmp_path / "cut") == read_output(tmp_path / "whole")
    assert not (tmp_path / "cut.partial").exists()


def _wait_for_workers(process_group: int) -> None:
    """Workers notice that their parent is gone, and end by themselves."""
    deadline = time.monotonic() + 20
    while _is_alive(process_group) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _is_alive(process_group)


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
    file = write_jsonl(tmp_path / "a.jsonl", texts(120_000))
    run([file], tmp_path / "whole", choice)
    script = (
        "from glm_dist.data.prepare import readers, shards\n"
        "from glm_dist.cli.main import main\n"
        "if __name__ == '__main__':\n"
        "    readers.BLOCK_BYTES = 100_000\n"
        "    shards.SHARD_BYTES = 100_000\n"
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
            process.wait(timeout=float(rng.uniform(0.4, 1.8)) if kills < 8 else 300)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            _wait_for_workers(process.pid)

    assert kills == 8
    bytes_cut, index_cut, _ = read_output(tmp_path / "cut")
    bytes_whole, index_whole, _ = read_output(tmp_path / "whole")
    assert bytes_cut == bytes_whole
    assert index_cut == index_whole
