"""Convert weights between runs, checkpoints of the official GLM code and Hugging Face folders.

glm-dist convert glm-large/ runs/large tokenizer=bert tokenizer.path=vocab.txt
glm-dist convert runs/large_1 large_official --to official --model-parallel-size 2
glm-dist convert runs/large_1 large_hub --to huggingface
glm-dist convert runs/rte_lora runs/rte_merged --to ours

TARGET appears when it is complete and computes the logits of SOURCE. No file can run code here.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Protocol

from glm_dist.cli.arguments import checkpoint_step, whole_number
from glm_dist.config.schema import Dtype
from glm_dist.convert.kinds import Kind, kind_of
from glm_dist.errors import ConfigError
from glm_dist.files import check_absent


class Account(Protocol):
    """Result of a conversion or a merge."""

    def lines(self) -> list[tuple[str, str]]:
        """Return titles and texts, for people."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="run folder, official checkpoint (its folder, a tag's folder or a file), or Hugging"
        " Face folder",
    )
    parser.add_argument(
        "target", type=Path, metavar="TARGET", help="new folder; nothing is ever replaced"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="configuration of imported weights: tokenizer.path=… always,"
        " model.num_attention_heads=… unless the model is a published one",
    )
    parser.add_argument(
        "--to",
        choices=[kind.value for kind in Kind],
        help="kind of TARGET (default: ours, unless SOURCE is a run); a run with model.lora_rank"
        " becomes one with merged weights by --to ours",
    )
    parser.add_argument(
        "--step",
        type=checkpoint_step,
        metavar="{N,best}",
        help="checkpoint of a run to export: its step, or best (default: the newest)",
    )
    parser.add_argument(
        "--model-parallel-size",
        type=whole_number(at_least=1),
        metavar="N",
        help="files of an official TARGET, one for each model-parallel rank (default: 1)",
    )
    parser.add_argument(
        "--dtype",
        choices=[dtype.value for dtype in Dtype],
        help="of the weights in an exported TARGET (default: fp16); imports keep the source's",
    )
    parser.add_argument("--config-dir", type=Path, help="folder used instead of conf/")


def run(arguments: argparse.Namespace) -> int:
    """Convert, and print the account.

    Returns:
        Exit status.

    Raises:
        GlmDistError: Source, configuration or target cannot be used. Nothing is left of TARGET.
    """
    check_absent(arguments.target, key="TARGET")
    source_kind = kind_of(arguments.source)
    target_kind = _target_kind(arguments, source_kind)
    _check_together(arguments, source_kind, target_kind)
    if source_kind is Kind.ours and target_kind is Kind.ours:
        merge = import_module("glm_dist.convert.merged_run")
        _print(merge.merge_run(arguments.source, arguments.target, step=arguments.step))
        return 0
    # Loads torch, which neither help nor a mistake above needs.
    conversion = import_module("glm_dist.convert.convert")
    account = conversion.convert(
        conversion.Request(
            source=arguments.source,
            target=arguments.target,
            source_kind=source_kind,
            target_kind=target_kind,
            overrides=tuple(arguments.overrides),
            config_dir=arguments.config_dir,
            step=arguments.step,
            parts=arguments.model_parallel_size or 1,
            dtype=Dtype(arguments.dtype or Dtype.fp16),
        )
    )
    _print(account)
    return 0


def _print(account: Account) -> None:
    sys.stdout.write("".join(f"{title:<12}{text}\n" for title, text in account.lines()))


def _target_kind(arguments: argparse.Namespace, source_kind: Kind) -> Kind:
    """Read --to, or find it from the source.

    Raises:
        ConfigError: A run can be exported in more than one way, or is to become a run.
    """
    if arguments.to is None and source_kind is Kind.ours:
        raise ConfigError(
            f"{arguments.source} is a run; what to make of it has to be said.\n"
            "  Add --to official or --to huggingface.",
            key="--to",
            value=None,
            fix="--to official",
        )
    return Kind.ours if arguments.to is None else Kind(arguments.to)


def _check_together(arguments: argparse.Namespace, source_kind: Kind, target_kind: Kind) -> None:
    """Refuse what has no meaning for these kinds.

    Raises:
        ConfigError: An option or override would be ignored.
    """
    is_run = source_kind is Kind.ours
    useless = (
        (
            "--model-parallel-size",
            arguments.model_parallel_size,
            target_kind is not Kind.official,
            "only an official TARGET has model-parallel files",
        ),
        ("--step", arguments.step, not is_run, "only a run has checkpoints of several steps"),
        ("--dtype", arguments.dtype, target_kind is Kind.ours, "imports keep the source's"),
        (
            "key=value",
            " ".join(arguments.overrides) or None,
            is_run,
            "a run has its configuration in its folder",
        ),
    )
    for option, value, has_no_meaning, reason in useless:
        if value is not None and has_no_meaning:
            typed = value if option == "key=value" else f"{option} {value}"
            raise ConfigError(
                f"{typed} has no meaning here: {reason}.\n  Leave it out.",
                key=option,
                value=value,
                fix="leave it out",
            )
