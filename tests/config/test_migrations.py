"""Saved configurations: yesterday's, damaged ones, and those of later versions."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from glm_dist.config.load import load_config, load_config_file
from glm_dist.config.migrations import upgrade
from glm_dist.errors import ConfigError
from tests.old_runs.restore import overrides_of, restore

WRITER = "It was written by glm_dist 0.1.0 (commit d055011deb41e7a6db4ac360cec51fca0179ea54)."
COMPUTING = (
    "run",
    "model",
    "tokenizer",
    "data",
    "corruption",
    "batch",
    "precision",
    "optimizer",
    "lr_schedule",
    "loss",
    "paths",
)
"""Sections without which nobody knows what a run computes, or where it is."""

OFF = {
    "parallel": {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "virtual_stages": 1},
    "zero": {"stage": 0},
    "recompute": {"mode": "none"},
    "compile": {"enabled": False},
    "evaluation": {"interval": 0},
    "checkpoint": {"interval": 0, "resume": "never"},
    "stability": {"on_non_finite": "stop", "on_spike": "off"},
    "observe": {"wandb_mode": "off"},
}
"""The other sections, and what a file without them means."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as version 1 left it."""
    return restore("v1", tmp_path) / "spans"


def change(run: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """Edit the run's saved configuration; its file."""
    file = run / "config.yaml"
    content = yaml.safe_load(file.read_text())
    edit(content)
    file.write_text(yaml.safe_dump(content))
    return file


def message_for(file: Path) -> str:
    """What the user reads about a saved configuration that is refused."""
    with pytest.raises(ConfigError) as caught:
        load_config_file(file)
    return str(caught.value)


@pytest.mark.parametrize("name", ["spans", "mixed"])
def test_a_configuration_of_version_1_opens_as_it_was_typed(name: str, tmp_path: Path) -> None:
    # Every key added since has a default that means what was done before: nothing to migrate. Where
    # today's options do more, `stability=stop` is what was done.
    run = restore("v1", tmp_path) / name
    as_before = [
        *("checkpoint.background=false", "checkpoint.timeout_minutes=0"),
        *("watchdog=none", "stability=stop"),
    ]
    typed = load_config([*overrides_of(run), *as_before])
    assert load_config_file(run / "config.yaml") == typed


@pytest.mark.parametrize("section", OFF)
def test_a_section_about_how_a_run_goes_may_be_missing(section: str, run: Path) -> None:
    config = load_config_file(change(run, lambda content: content.pop(section, None)))
    for name, value in OFF[section].items():
        found = getattr(getattr(config, section), name)
        assert getattr(found, "name", found) == value


@pytest.mark.parametrize("section", COMPUTING)
def test_a_section_that_decides_the_result_must_be_there(section: str, run: Path) -> None:
    file = change(run, lambda content: content.pop(section))
    assert message_for(file) == (
        f"{file} lacks {section}, which every saved configuration has and which decides what the "
        f"run computes: the file is damaged.\n  Put it back: {run}/overrides.txt has what was "
        "typed, and `glm-dist config <what was typed>` prints the whole file."
    )


def test_single_keys_that_are_missing_are_named(run: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        del content["optimizer"]["beta2"], content["data"]["corpora"]["text"]["prefix"]
        del content["observe"]["log_interval"]

    message = message_for(change(run, edit))
    assert " lacks data.corpora.text.prefix, optimizer.beta2, which" in message


def test_a_key_of_a_later_version_is_refused_with_its_writer(run: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["optimizer"]["learning_rates"] = 3

    file = change(run, edit)
    assert message_for(file) == (
        f"{file} has optimizer.learning_rates, which this glm_dist (0.1.0) does not know and which "
        "may change what the run computes. The nearest key there is: optimizer.learning_rate. "
        f"{WRITER}\n  Use the version of glm_dist that wrote it. If somebody edited the file, "
        "correct or remove that line."
    )


def test_unknown_sections_and_corpus_keys_are_refused_together(run: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["router"] = {"experts": 8}
        content["data"]["corpora"]["text"]["language"] = "en"

    message = message_for(change(run, edit))
    assert " has data.corpora.text.language, router, which " in message
    assert message.endswith("correct or remove those lines.")


@pytest.mark.parametrize(
    ("provenance", "writer"),
    [
        (None, WRITER),
        ("{", "Nothing readable beside it (provenance.json) says which version wrote it."),
        (
            json.dumps({"attempts": [{"versions": {"glm_dist": "3.0"}, "commit": None}]}),
            "It was written by glm_dist 3.0.",
        ),
    ],
    ids=["with commit", "damaged", "installed"],
)
def test_a_later_version_is_refused_with_its_writer(
    provenance: str | None, writer: str, run: Path
) -> None:
    if provenance is not None:
        (run / "provenance.json").write_text(provenance)
    file = change(run, lambda content: content.update(config_version=9, router={}))
    assert message_for(file) == (
        f"{file} has config_version 9, but this glm_dist (0.1.0) reads versions up to 1. {writer}\n"
        "  Use the version of glm_dist that wrote it, or a later one."
    )


@pytest.mark.parametrize(
    ("section", "key", "value", "mistake"),
    [
        ("model", "num_layers", "many", r"model\.num_layers=many"),
        ("model", "num_layers", 0, r"model\.num_layers=0"),
        ("model", "hidden_size", 9, r"model\.hidden_size=9"),
    ],
    ids=["wrong type", "out of range", "contradiction"],
)
def test_a_wrong_value_is_named_with_its_file(
    section: str, key: str, value: object, mistake: str, run: Path
) -> None:
    file = change(run, lambda content: content[section].update({key: value}))
    message = message_for(file)
    assert re.match(f"{file} was changed after a run saved it: {mistake}", message)
    assert message.endswith(f"\n  Put the value back; {run}/overrides.txt has what was typed.")


def test_migrations_are_applied_one_after_the_other(run: Path) -> None:
    # Version 2 called the learning rate "rate" and version 3 counted it in thousandths.
    def from_1(saved: dict[str, Any]) -> dict[str, Any]:
        optimizer = dict(saved["optimizer"])
        return saved | {"optimizer": optimizer | {"rate": optimizer.pop("learning_rate")}}

    def from_2(saved: dict[str, Any]) -> dict[str, Any]:
        optimizer = dict(saved["optimizer"])
        rate = 1000 * optimizer.pop("rate")
        return saved | {"optimizer": optimizer | {"learning_rate": rate}}

    file = run / "config.yaml"
    saved = yaml.safe_load(file.read_text())
    before = json.dumps(saved)
    found = upgrade(saved, file, migrations={1: from_1, 2: from_2}, version=3)
    assert found["optimizer"]["learning_rate"] == 1000 * saved["optimizer"]["learning_rate"] == 10.0
    assert found["config_version"] == 3
    assert json.dumps(saved) == before
