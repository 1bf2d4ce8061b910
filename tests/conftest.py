"""Surroundings of every test: the same on a laptop, a cluster's login node and CI."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from glm_dist.stop_signals import STOP_SIGNALS
from tests.environment import CPU_ONLY, ONE_THREAD

pytest_plugins = ["tests.messages"]

os.environ.update({**ONE_THREAD, **os.environ})
os.environ["HYDRA_FULL_ERROR"] = "1"
# A suite started inside a job must not believe it is one of the job's ranks.
for name in [n for n in os.environ if n.startswith(("SLURM_", "TORCHELASTIC_", "GLM_DATA"))]:
    del os.environ[name]
for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(name, None)

ROOT = Path(__file__).resolve().parents[1]

# Started with & by a shell without job control, the suite and its programs would ignore INT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

HANDLERS = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGTSTP)}
"""What signals did before any test."""


@pytest.fixture(scope="module", autouse=True)
def no_group_of_another_module() -> None:
    """Leave the process group that tests before this module have opened in this process."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def pytest_configure(config: pytest.Config) -> None:
    """Hide every GPU unless tests marked gpu were asked for: before any test imports torch."""
    if not _asks_for_gpus(config):
        os.environ.update(CPU_ONLY)


def pytest_report_header() -> str:
    """Say where the recorded results are, because their tests are skipped without them."""
    folder = Path(os.environ.get("GLM_REFERENCE_DIR", ROOT / "../shared/reference")).resolve()
    state = "found" if folder.is_dir() else "not found, golden tests are skipped"
    return f"reference: {folder} ({state})"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what lies in tests/golden and tests/gpu, so that no file can forget to."""
    for item in items:
        parts = item.path.relative_to(ROOT).parts
        if "golden" in parts:
            item.add_marker(pytest.mark.golden)
        if "gpu" in parts:
            item.add_marker(pytest.mark.gpu)
            if not (_asks_for_gpus(config) and _has_gpu()):
                reason = "no CUDA device that torch sees; `make test-gpu` hides none"
                item.add_marker(pytest.mark.skip(reason=reason))
    if hasattr(config, "workerinput"):
        # Files side by side: the long ones first, or the last of them runs alone.
        items.sort(key=lambda item: "train" not in item.path.relative_to(ROOT).parts)


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """Forget what a command that ran in this process did with signals.

    It ignores them at its end, and so would every program that a later test starts.
    """
    yield
    for number, handler in HANDLERS.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)
            signal.set_wakeup_fd(-1)


def _asks_for_gpus(config: pytest.Config) -> bool:
    return re.search(r"(?<!not )\bgpu\b", config.option.markexpr) is not None


@cache
def _has_gpu() -> bool:
    import torch  # not at the top: pytest_configure comes first

    return torch.cuda.is_available()
