"""Where a value may have a default: in conf/, in code, never in both."""

import re
from dataclasses import MISSING, fields, is_dataclass

from glm_dist.config.keys import field_types
from glm_dist.config.load import default_config_dir, load_config
from glm_dist.config.schema import (
    Activation,
    InitWith,
    PositionEncoding,
    PromptEncoder,
    Residual,
    RunConfig,
)
from glm_dist.data.objectives.span import SpanHiding
from glm_dist.data.tokenizer.special_tokens import SpecialTokens

CONF = default_config_dir()

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
"""Sections that say what is computed and where; the others only say how a run goes."""

PLAIN_OPTIONS = {
    "task": "none",
    "parallel": "dp",
    "zero": "stage0",
    "recompute": "none",
    "compile": "eager",
    "evaluation": "none",
    "checkpoint": "none",
    "watchdog": "none",
    "stability": "stop",
    "observe": "console",
    "compare": "none",
}
"""The option of each other section that its defaults in code spell out."""


def defaults_in_code(section: type, prefix: str = "") -> dict[str, object]:
    """Fields by full key that have a value without YAML."""
    found: dict[str, object] = {}
    for name, kind in field_types(section).items():
        if is_dataclass(kind) and isinstance(kind, type):
            found |= defaults_in_code(kind, f"{prefix}{name}.")
    for declared in fields(section):
        if declared.default not in ("???", MISSING):
            found[f"{prefix}{declared.name}"] = declared.default
    return found


def test_what_decides_the_result_has_a_default_in_code_only_where_it_means_off() -> None:
    defaults = {
        key: value
        for key, value in defaults_in_code(RunConfig).items()
        if key.startswith(tuple(f"{section}." for section in COMPUTING))
    }
    assert defaults == {
        "run.max_minutes": 0.0,
        "run.init_from": None,
        "run.init_with": InitWith.weights,
        "tokenizer.fixed_task_masks": True,
        "tokenizer.sentinel_pairs": 0,
        "model.ffn_hidden_size": None,
        "model.activation": Activation.gelu,
        "model.position_encoding": PositionEncoding.learned,
        "model.embedding_gradient_share": 1.0,
        "model.residual": Residual.pre_norm,
        "model.num_classes": 0,
        "model.lora_rank": 0,
        "model.lora_alpha": 16.0,  # without meaning, as are the next two, while there is no update
        "model.lora_dropout": 0.0,
        "model.prompt_tokens": 0,
        "model.prompt_encoder": PromptEncoder.lstm,  # and this one while there is no prompt
        "corruption.block_mask_prob": 0.0,
        "corruption.short_share": 0.0,
        "corruption.single_span_share": 0.0,
        "corruption.keep_span_order": False,
        "corruption.random_positions": False,
        "corruption.sentinels": False,
        "corruption.no_block_positions": False,
        "corruption.isolate_documents": False,
        "corruption.restart_positions": False,
    }


def test_what_decides_how_a_run_goes_can_be_left_out() -> None:
    sections = field_types(RunConfig)
    assert {*COMPUTING, *PLAIN_OPTIONS} == {*sections} - {"config_version"}
    config = load_config(
        [
            "run.name=a",
            "run.steps=1",
            *(f"{group}={option}" for group, option in PLAIN_OPTIONS.items()),
        ]
    )
    for name in PLAIN_OPTIONS:
        section = sections[name]
        assert isinstance(section, type)
        assert getattr(config, name) == section(), name


def test_no_option_repeats_a_default_of_the_code() -> None:
    for key, default in defaults_in_code(RunConfig).items():
        section, _, name = key.rpartition(".")
        value = "null" if default is None else str(getattr(default, "name", default)).lower()
        for file in (CONF / section).glob("*.yaml") if section else ():
            written = re.findall(rf"(?m)^{name}: (\S+)", file.read_text())
            assert [text.replace("_", "").strip('"') for text in written] != [value], file


def test_only_paths_read_the_environment() -> None:
    readers = {file.parent.name for file in CONF.rglob("*.yaml") if "oc.env" in file.read_text()}
    assert readers == {"paths"}


def test_windows_of_span_rows_fit_the_position_tables() -> None:
    # The largest index of Part A is that of the last source token, if nothing before it is masked.
    special = SpecialTokens(*range(11))
    for experiment in ("glm_base", "glm_large", "glm_roberta"):
        config = load_config([f"experiment={experiment}"])
        span = SpanHiding.create(
            special,
            row_length=config.batch.row_length,
            mask_ratio=config.corruption.span_mask_ratio,
            mean_length=config.corruption.span_mean_length,
        )
        window_length = config.batch.row_length - 2 * span.max_blanks
        assert window_length == 512  # the official sequence length
        assert window_length - 1 <= config.model.max_position_embeddings
