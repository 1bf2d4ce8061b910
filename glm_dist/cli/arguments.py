"""Arguments and help texts that several commands share."""

import argparse
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import glm_dist
from glm_dist.checkpoint.best import StepChoice
from glm_dist.config.load import config_groups, default_config_dir
from glm_dist.errors import ConfigError
from glm_dist.generate.sampling import BeamSearch, Cut, GenerationOptions, Sampling

if TYPE_CHECKING:
    from glm_dist.generate.load import TrainedModel

HELP_WIDTH = 90
"""Columns of a help's list of options."""


def options_of_groups() -> str:
    """Return a help's list of groups and their options, experiments first.

    Raises:
        ConfigError: There is no conf/.
    """
    groups = config_groups(default_config_dir())
    names = sorted(groups, key=lambda name: (name != "experiment", name))
    indent = 2 + max(map(len, names)) + 2
    lines = [
        textwrap.fill(
            ", ".join(groups[name]),
            HELP_WIDTH,
            initial_indent=f"  {name}".ljust(indent),
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
        )
        for name in names
    ]
    return "\n".join(["options of the groups (group=option):", *lines])


def whole_number(*, at_least: int, at_most: int = 2**63 - 1) -> Callable[[str], int]:
    """Make a ``type`` for argparse.

    Args:
        at_least: Smallest number that is taken.
        at_most: Largest number that is taken.
    """

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = at_least - 1
        if number < at_least or number > at_most:
            bound = f"of at least {at_least}" if number < at_least else f"of at most {at_most}"
            message = f"{text!r} is not a whole number {bound}"
            raise argparse.ArgumentTypeError(message)
        return number

    return read


def refuse_given(
    arguments: argparse.Namespace,
    names: Iterable[str],
    declare: Callable[[argparse.ArgumentParser], None],
    *,
    why: str,
) -> None:
    """Refuse options that would be ignored.

    Args:
        arguments: Of the command.
        names: Options without effect, as attributes.
        declare: Declares the command's options, for their defaults.
        why: Reason, as the end of a sentence that begins with the option.

    Raises:
        ConfigError: One of them was given.
    """
    parser = argparse.ArgumentParser()
    declare(parser)
    for name in names:
        value = getattr(arguments, name)
        if value != parser.get_default(name):
            option = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{option} {why}.\n  Leave {option} out.",
                key=option,
                value=value,
                fix=f"leave {option} out",
            )


def checkpoint_step(text: str) -> StepChoice:
    """Read a step, or ``best``; a ``type`` for argparse."""
    return "best" if text == "best" else whole_number(at_least=0)(text)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare overrides, and the folder of the configuration that they change."""
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--config-dir", type=Path, help="folder used instead of conf/")


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare overrides and the size of a job that is looked at before it is launched."""
    add_config_arguments(parser)
    parser.add_argument(
        "--processes",
        type=whole_number(at_least=1),
        help="processes of the job (default: one replica's)",
    )


def add_layout_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which checkpoint of a run is loaded, and over how many processes."""
    parser.add_argument(
        "--step",
        type=checkpoint_step,
        metavar="{N,best}",
        help="checkpoint to use: its step, or the best of a finetuned run (default: the newest)",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="files of its tokenizer (default: those in the run's folder)",
    )
    for name, what in (("tensor", "processes that share each layer"), ("pipeline", "stages")):
        parser.add_argument(
            f"--{name}-parallel-size",
            type=whole_number(at_least=1),
            default=1,
            metavar="N",
            help=f"{what} (%(default)s)",
        )


def load_for(arguments: argparse.Namespace) -> "TrainedModel":
    """Load the run of a command with ``add_layout_arguments``.

    Raises:
        GlmDistError: The run or its checkpoint cannot be used.
    """
    return glm_dist.load(
        arguments.run,
        step=arguments.step,
        tokenizer=arguments.tokenizer,
        tensor_parallel_size=arguments.tensor_parallel_size,
        pipeline_parallel_size=arguments.pipeline_parallel_size,
    )


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how answers are written; ``generation_options`` reads them."""
    plain = Sampling()
    parser.add_argument("--greedy", action="store_true", help="always take the likeliest token")
    parser.add_argument(
        "--temperature",
        type=float,
        default=plain.temperature,
        help="divides the logits (default: %(default)s)",
    )
    parser.add_argument(
        "--top-k",
        type=whole_number(at_least=0),
        default=plain.top_k,
        help="draw from the k likeliest; 0: all (%(default)s)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=plain.top_p,
        help="draw from the likeliest reaching p (%(default)s)",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=plain.repetition_penalty,
        help="above 1: tokens that were used are less likely (%(default)s)",
    )
    _add_beam_arguments(parser)
    parser.add_argument(
        "--max-tokens",
        type=whole_number(at_least=1),
        default=64,
        help="longest answer of a blank (%(default)s)",
    )
    parser.add_argument(
        "--min-tokens",
        type=whole_number(at_least=0),
        default=0,
        help="shortest answer of a blank (%(default)s)",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="text that ends an answer; may be given several times",
    )
    parser.add_argument(
        "--truncate",
        choices=[cut.value for cut in Cut],
        help="shorten texts that are too long at this end (default: they are errors)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (%(default)s)")


def _add_beam_arguments(parser: argparse.ArgumentParser) -> None:
    search = BeamSearch()
    parser.add_argument(
        "--beams",
        type=whole_number(at_least=1),
        metavar="K",
        help="beam search with K beams; draws nothing",
    )
    parser.add_argument(
        "--length-penalty",
        type=float,
        default=search.length_penalty,
        help="beams are compared by log-probability / tokens ^ penalty (%(default)s)",
    )
    parser.add_argument(
        "--no-repeat-ngram",
        type=whole_number(at_least=0),
        default=search.no_repeat_ngram,
        metavar="N",
        help="beams: no N tokens in a row twice in an answer",
    )


def generation_options(arguments: argparse.Namespace) -> GenerationOptions:
    """Collect the options of ``add_generation_arguments``.

    Raises:
        ConfigError: A number has no meaning.
    """
    sampling = Sampling(
        temperature=0.0 if arguments.greedy else arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        repetition_penalty=arguments.repetition_penalty,
    )
    search = None
    if arguments.beams is not None:
        search = BeamSearch(
            beams=arguments.beams,
            length_penalty=arguments.length_penalty,
            no_repeat_ngram=arguments.no_repeat_ngram,
        )
    return GenerationOptions(
        sampling=sampling,
        beam_search=search,
        max_tokens=arguments.max_tokens,
        min_tokens=arguments.min_tokens,
        stop=tuple(arguments.stop),
        truncate=None if arguments.truncate is None else Cut(arguments.truncate),
        seed=arguments.seed,
    )
