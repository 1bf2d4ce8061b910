"""Text that looks like a number is kept letter by letter, or refused."""

import shutil
from pathlib import Path

import pytest

from glm_dist.config.load import default_config_dir, load_config
from glm_dist.errors import ConfigError
from tests.messages import Says

NUMBERS = "1.10 20261126_01 2026_11 +5 1e5 007 .5 true NO inf 0b1 1_000.50 -0".split()


@pytest.mark.parametrize("name", NUMBERS)
def test_text_is_what_was_typed(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(
        [
            "experiment=tiny",
            f"run.name={name}",
            f"paths.runs={name}",
            f"run.init_from={name}",
            f"data.corpora.mine.prefix={name}",
        ]
    )

    assert config.run.name == name
    assert config.paths.runs == config.run.init_from == str(tmp_path / name)
    assert config.data.corpora["mine"].prefix == str(tmp_path / name)


def test_a_key_that_may_be_empty_can_still_be_emptied() -> None:
    config = load_config(["experiment=tiny", "run.init_from=a", "run.init_from=null"])
    assert config.run.init_from is None


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("run:\n  name: 2026_11\n", "run.name"),
        ("run:\n  name: on\n", "run.name"),
        ("data:\n  corpora:\n    a:\n      prefix: 1.10\n", "data.corpora.a.prefix"),
        ("data:\n  corpora:\n    2024_01:\n      prefix: a\n", "data.corpora.2024_01"),
    ],
)
def test_unquoted_text_in_a_file_is_refused(
    text: str, key: str, tmp_path: Path, says: Says
) -> None:
    _write_experiment(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        load_config(["experiment=mine"], config_dir=tmp_path / "conf")

    assert caught.value.key == key
    says(caught.value)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("parallel: tp2\n", "parallel"),
        ("task:\n  answers: {a: {b: c}}\n", "task.answers.a"),
        ("task:\n  answers: [good, bad]\n", "task.answers"),
        ("task:\n  metrics: accuracy\n", "task.metrics"),
        ("run:\n  name: [a]\n", "run.name"),
    ],
)
def test_values_of_another_form_in_a_file_are_refused(
    text: str, key: str, tmp_path: Path, says: Says
) -> None:
    _write_experiment(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        load_config(["experiment=mine"], config_dir=tmp_path / "conf")

    assert caught.value.key == key
    says(caught.value)


def test_sections_typed_for_a_text_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["experiment=tiny", "task.answers={a:{b:c}}"])
    assert caught.value.key == "task.answers.a"


def test_quoted_text_in_a_file_is_kept(tmp_path: Path) -> None:
    _write_experiment(tmp_path, 'run:\n  name: "2026_11"\n  init_from: 20261126\n')

    run = load_config(["experiment=mine"], config_dir=tmp_path / "conf").run

    assert run.name == "2026_11"
    assert Path(run.init_from or "").name == "20261126"


def _write_experiment(folder: Path, text: str) -> None:
    shutil.copytree(default_config_dir(), folder / "conf")
    head = "# @package _global_\ndefaults: [tiny]\n"
    (folder / "conf" / "experiment" / "mine.yaml").write_text(head + text)
