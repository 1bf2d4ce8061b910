"""Log lines reach the console of rank 0 and the file of every rank."""

import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from glm_dist.errors import ConfigError
from glm_dist.observe.log import setup_logging

log = logging.getLogger("glm_dist.some.module")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Logging belongs to the process; put everything back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with warnings.catch_warnings():
        yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, color_system=None, width=100)


def text(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


def test_rank_0_shows_info_with_its_rank(tmp_path: Path) -> None:
    shown = console()
    setup_logging(0, tmp_path, console=shown)
    log.info("resumed step=%d", 7)
    log.debug("not this")
    assert re.fullmatch(r"[-\d]{10} [:\d]{8} rank=0 INFO resumed step=7\n", text(shown))
    (line,) = (tmp_path / "log" / "rank_0000.log").read_text().splitlines()
    assert line.endswith(" rank=0 INFO glm_dist.some.module: resumed step=7")


def test_other_ranks_show_warnings_only_but_file_everything(tmp_path: Path) -> None:
    shown = console()
    setup_logging(3, tmp_path, console=shown)
    log.info("quiet")
    log.warning("loud")
    assert "quiet" not in text(shown)
    assert "rank=3 WARNING loud" in text(shown)
    assert "quiet" in (tmp_path / "log" / "rank_0003.log").read_text()


def test_a_terminal_gets_the_message_without_its_origin() -> None:
    shown = console(terminal=True)
    setup_logging(2, console=shown)
    log.warning("loud [1, 2]")
    assert "rank 2: loud" in text(shown)
    assert "glm_dist.some.module" not in text(shown)


def test_a_second_attempt_appends_to_the_file_and_shows_each_line_once(tmp_path: Path) -> None:
    first, second = console(), console()
    setup_logging(0, tmp_path, console=first)
    log.info("one")
    setup_logging(0, tmp_path, console=second)
    log.info("two")
    assert "two" not in text(first)
    assert text(second).count("two") == 1
    lines = (tmp_path / "log" / "rank_0000.log").read_text().splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["one", "two"]


def test_libraries_lose_their_info_lines_and_keep_their_errors() -> None:
    deepspeed = logging.getLogger("DeepSpeed")
    own = logging.StreamHandler(io.StringIO())
    deepspeed.addHandler(own)
    deepspeed.propagate = False
    shown = console()
    setup_logging(0, console=shown)
    deepspeed.info("chatter")
    deepspeed.error("real trouble")
    assert "chatter" not in text(shown)
    assert text(shown).count("ERROR DeepSpeed: real trouble") == 1
    assert own not in deepspeed.handlers


def test_warnings_are_logged_and_shown_on_rank_0_alone(tmp_path: Path) -> None:
    for rank, is_shown in ((0, True), (1, False)):
        shown = console()
        setup_logging(rank, tmp_path, console=shown)
        warnings.warn(f"odd number on {rank}", UserWarning, stacklevel=1)
        assert ("odd number" in text(shown)) is is_shown
        assert "odd number" in (tmp_path / "log" / f"rank_000{rank}.log").read_text()


def test_deprecations_inside_libraries_are_dropped_and_ours_are_not(tmp_path: Path) -> None:
    shown = console()
    setup_logging(0, console=shown)
    warnings.simplefilter("default", append=True)
    for module in ("torch.serialization", "glm_dist.model.stage"):
        warnings.warn_explicit(f"old in {module}", FutureWarning, f"{module}.py", 1, module=module)
    assert "old in torch" not in text(shown)
    assert "old in glm_dist.model.stage" in text(shown)


def test_a_log_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match=r"log/rank_0000\.log"):
        setup_logging(0, tmp_path, console=console())
