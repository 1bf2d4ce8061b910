"""``glm-dist generate``: many texts, some of which cannot be used."""

import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from glm_dist.cli.main import main
from glm_dist.config.load import dump_config, load_config
from glm_dist.errors import DataError
from glm_dist.generate.complete import Answer, Completion
from glm_dist.generate.sampling import GenerationOptions


class LoadedModel:
    """Answers each blank with a star, and takes 14 characters."""

    batches: ClassVar[list[int]] = []
    """Texts of each call of ``fill``."""
    groups = SimpleNamespace(rank=0)

    def check(self, text: str, *, truncate: object) -> None:
        if len(text) > 14:
            raise DataError("The text is too long.", key="text")

    def fill(self, texts: list[str], options: GenerationOptions) -> list[Completion]:
        self.batches.append(len(texts))
        return [
            Completion(text.replace("[MASK]", "[*]"), ["*"] * text.count("[MASK]"))
            for text in texts
        ]

    def stream(self, text: str, options: GenerationOptions) -> Iterator[str]:
        return iter(text.replace("[MASK]", "[*]"))

    def from_first_rank(self, value: object) -> object:
        return value

    def over_replicas(self, items: list[Any], work: Callable[[list[Any]], list[str]]) -> list[str]:
        return list(work(items)) if items else []

    def answers(
        self, text: str, *, count: int, max_tokens: int, truncate: object
    ) -> list[list[Answer]]:
        assert max_tokens == 64
        blank = [Answer("é\n", 0.5), Answer("", 0.25)]
        return [blank[:count]] * text.count("[MASK]")


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run's folder, whose weights need not be loaded."""
    (tmp_path / "config.yaml").write_text(dump_config(load_config(["experiment=tiny"])))
    monkeypatch.setattr("glm_dist.load", lambda *arguments, **options: LoadedModel())
    return str(tmp_path)


def type_lines(lines: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put lines on standard input, in a locale that is not UTF-8."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="ascii"))


def test_lines_that_cannot_be_used_are_named_and_the_others_filled(
    run_folder: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    type_lines("é [MASK]\na\xa0too long text\r\n".encode() + b"\xff\nb [MASK]\r\n", monkeypatch)

    status = main(["generate", run_folder])

    out, err = capfdbinary.readouterr()
    assert (status, out.decode()) == (2, "é [*]\nb [*]\n")
    assert err.decode().splitlines()[0] == "<stdin>:2: The text is too long."
    assert err.decode().splitlines()[1] == r"<stdin>:3: The text '\xff' is not UTF-8."
    assert err.decode().splitlines()[-1] == "2 texts were left out"


def test_records_come_back_with_their_answers(
    run_folder: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    records = [{"id": 7, "text": "é [MASK]"}, {"txt": "a"}, ["a"], {"text": 5}]
    lines = "\n".join([*map(json.dumps, records), "{"])
    type_lines(lines.encode(), monkeypatch)

    status = main(["generate", run_folder, "--jsonl"])

    out, err = capfdbinary.readouterr()
    assert status == 2
    assert [json.loads(line) for line in out.splitlines()] == [
        {"id": 7, "text": "é [MASK]", "filled": "é [*]", "answers": ["*"]}
    ]
    assert err.decode().startswith('<stdin>:2: The line has no "text" with a string.')
    assert err.decode().count("Write one object a line") == 4
    assert "<stdin>:5: The line is not JSON: Expecting property name" in err.decode()


def test_candidates_are_shown_with_their_probabilities(
    run_folder: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["generate", run_folder, "--candidates", "3", "[MASK][MASK]"]) == 0
    shown = "[MASK][MASK]\n    é\\n 50.0%   (nothing) 25.0%\n    é\\n 50.0%   (nothing) 25.0%\n"
    assert capfdbinary.readouterr().out.decode() == shown

    type_lines(b'{"text": "[MASK]", "id": 1}\n', monkeypatch)
    assert main(["generate", run_folder, "--candidates", "1", "--jsonl"]) == 0
    found = [[{"text": "é\n", "probability": 0.5}]]
    expected = {"text": "[MASK]", "id": 1, "candidates": found}
    assert json.loads(capfdbinary.readouterr().out) == expected


def test_texts_may_be_arguments(run_folder: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["generate", run_folder, "a [MASK]", "far too long a text"]) == 2

    out, err = capfdbinary.readouterr()
    assert (out, err.splitlines()[0]) == (b"a [*]\n", b"text 2: The text is too long.")


def test_waiting_lines_are_filled_side_by_side(
    run_folder: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    LoadedModel.batches.clear()
    type_lines(b"".join(b"%d [MASK]\n" % n for n in range(40)), monkeypatch)
    assert main(["generate", run_folder, "--batch-size", "16"]) == 0

    assert capfdbinary.readouterr().out == b"".join(b"%d [*]\n" % n for n in range(40))
    assert sum(LoadedModel.batches) == 40
    assert max(LoadedModel.batches) == 16


def test_records_that_utf_8_cannot_spell_come_back_in_escapes(
    run_folder: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    lines = rb'{"text": "[MASK]", "z": "\ud800"}' + b"\n" + b"[" * 100_000 + b"\n"
    type_lines(lines, monkeypatch)
    assert main(["generate", run_folder, "--jsonl"]) == 2

    out, err = capfdbinary.readouterr()
    assert json.loads(out)["z"] == "\ud800"
    assert err.startswith(b"<stdin>:2: The line is not JSON")


def test_numbers_beyond_floats_are_refused_rather_than_rewritten(
    run_folder: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    type_lines(b'{"text": "[MASK]", "z": -1e400}\n{"text": "[MASK]", "z": 1e300}\n', monkeypatch)
    assert main(["generate", run_folder, "--jsonl"]) == 2

    out, err = capfdbinary.readouterr()
    assert json.loads(out)["z"] == 1e300
    assert err.startswith(b"<stdin>:1: The line holds -1e400, which is beyond")


def test_an_interrupt_while_lines_are_awaited_ends_without_a_crash(tmp_path: Path) -> None:
    program = (
        "import signal, sys\n"
        # Shells start background jobs with this signal ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from glm_dist.cli.lines import batches_of_lines\n"
        "try:\n"
        "    for batch in batches_of_lines([], 16):\n"
        "        print([line.content for line in batch], flush=True)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"a\r\nb" + b"b" * 100_000 + b"\n")
        process.stdin.flush()
        found = b"".join(process.stdout.readline() for _ in range(1))
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)

    assert found.startswith(b"[b'a'")
    assert (process.returncode, err) == (130, b"")


def test_streamed_answers_are_plain_text(
    run_folder: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["generate", run_folder, "--stream", "a [MASK]", "b [MASK]"]) == 0
    assert capfdbinary.readouterr().out == b"a [*]\nb [*]\n"
    for options in (["--jsonl"], ["--candidates", "2"], ["--beams", "2"]):
        assert main(["generate", run_folder, "--stream", *options, "a [MASK]"]) == 2


@pytest.mark.parametrize(
    "options",
    [
        ["--min-tokens", "9", "--max-tokens", "8"],
        ["--stop", ""],
        ["--repetition-penalty", "0"],
        ["--beams", "2", "--length-penalty", "nan"],
        ["--beams", "2", "--length-penalty", "1e9"],
        ["--greedy", "--top-p", "0.5"],
        ["--greedy", "--length-penalty", "2"],
        ["--candidates", "2", "--seed", "2"],
    ],
    ids=" ".join,
)
def test_options_without_a_meaning_are_refused(
    run_folder: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", run_folder, *options, "a [MASK]"]) == 2
    last = next(option for option in options[-2:] if option.startswith("--"))
    assert re.search(f"ConfigError: ({last}|{options[0]})", capsys.readouterr().err)


def test_a_run_of_another_task_is_refused_before_its_weights_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(["experiment=tiny", "corruption.task=masked_lm"])
    (tmp_path / "config.yaml").write_text(dump_config(config))

    assert main(["generate", str(tmp_path), "a [MASK]"]) == 2
    assert "corruption.task=masked_lm, which neither fills blanks" in capsys.readouterr().err
