"""Ranks of tests: what they start with, and that a failure comes back and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.environment import CPU_ONLY
from tests.ranks import ROOT, exit_codes, run_ranks

GPU_MACHINE = """
import importlib.util, os, sys

class Torch:
    def find_spec(self, name, path, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        load = spec.loader.exec_module
        def exec_module(module):
            hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
            load(module)
            module.cuda.is_available = lambda: not hidden
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Torch())
"""
"""A torch that sees a GPU unless none is visible when it is imported. Python runs it at start."""


def start() -> tuple[bool, str, str | None]:
    """Return whether the libraries are loaded, the package's path, and a variable of the caller."""
    is_there = "deepspeed" in sys.modules
    return is_there, sys.modules["glm_dist"].__file__ or "", os.environ.get("GLM_TEST_VARIABLE")


def test_ranks_start_with_this_checkout_loaded_and_their_callers_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = str(ROOT / "glm_dist" / "__init__.py")
    assert run_ranks(start, world_size=1) == [(True, package, None)]

    monkeypatch.setenv("GLM_TEST_VARIABLE", "x")

    assert run_ranks(start, world_size=1) == [(True, package, "x")]


def threads_of_the_server() -> int:
    return len(list(Path(f"/proc/{os.getppid()}/task").iterdir()))


def test_the_server_that_is_forked_has_one_thread() -> None:
    assert run_ranks(threads_of_the_server, world_size=1) == [1]


def fail_on_the_second(pids: str) -> None:
    """One rank fails; the other never ends by itself."""
    (Path(pids) / str(os.getpid())).touch()
    dist.barrier()
    if dist.get_rank() == 1:
        raise ValueError("of this rank")
    time.sleep(1000)


def test_a_rank_that_raises_is_reported_with_its_traceback_and_the_others_end(
    tmp_path: Path,
) -> None:
    with pytest.raises(AssertionError, match=r"(?s)rank 1 failed.*fail_on_the_second.*of this"):
        run_ranks(fail_on_the_second, str(tmp_path), world_size=2)

    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


SLEEPING_RANKS = """
import sys
from tests.ranks import run_ranks
from tests.test_ranks import note_and_sleep
run_ranks(note_and_sleep, sys.argv[1], world_size=2)
"""


def note_and_sleep(pids: str) -> None:
    (Path(pids) / str(os.getpid())).touch()
    time.sleep(1000)


@pytest.mark.slow
def test_ranks_end_when_their_tests_are_killed(tmp_path: Path) -> None:
    tests = subprocess.Popen([sys.executable, "-c", SLEEPING_RANKS, str(tmp_path)], cwd=ROOT)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    tests.kill()
    tests.wait()

    pids = [int(path.name) for path in tmp_path.iterdir()]
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kill_the_second() -> None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def test_a_rank_that_is_killed_is_named() -> None:
    with pytest.raises(AssertionError, match="rank 1 with -9"):
        run_ranks(kill_the_second, world_size=2)
    assert exit_codes(kill_the_second, world_size=2) == [1, -signal.SIGKILL]


def sees_cuda() -> bool:
    return torch.cuda.is_available()


BESIDE_A_GPU = """
import torch
from tests.ranks import run_ranks
from tests.test_ranks import sees_cuda
print(torch.cuda.is_available(), run_ranks(sees_cuda, world_size=2))
"""


def test_tests_run_on_the_cpu_of_a_machine_with_gpus(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(GPU_MACHINE)
    kept = {name: value for name, value in os.environ.items() if name not in CPU_ONLY}
    machine = kept | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    # It calls enable_cpu in pytest's own process, and that refuses beside a GPU.
    test = "tests/parallel/test_rng.py::test_a_step_draws_the_same_whatever_happened_before"

    ranks, suite = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=machine,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in (["-c", BESIDE_A_GPU], ["-m", "pytest", "-p", "no:cacheprovider", test])
    ]

    assert ranks.communicate()[0].endswith("True [False, False]\n")
    assert suite.wait() == 0, suite.communicate()[0]
