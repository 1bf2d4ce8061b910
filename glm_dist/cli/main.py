"""The command line: ``train.py`` and ``glm-dist <command>``.

The one place that loads modules by name, so that a check on a login node never loads torch. A
mistake of the user ends the process with one message and status 2, without a traceback.
"""

import argparse
import importlib
import inspect
import os
import signal
import socket
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from glm_dist.config.launch import without_local_rank
from glm_dist.errors import EXIT_USER_ERROR, ConfigError, GlmDistError
from glm_dist.stop_signals import EXIT_INTERRUPTED, StopListener

EXIT_PIPE_CLOSED = 128 + signal.SIGPIPE
"""Exit status as a shell gives it to a program that a signal ends."""


class Command(Protocol):
    """A module that carries out a sub-command."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the sub-command's arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Carry the sub-command out and return the exit status."""


@dataclass(frozen=True)
class Entry:
    """One sub-command."""

    module: str
    summary: str


COMMANDS = {
    "sample-corpus": Entry("glm_dist.cli.sample_corpus", "write a real corpus out of packages"),
    "tokenizer": Entry("glm_dist.cli.tokenizer", "train, show or try a tokenizer"),
    "prepare": Entry("glm_dist.cli.prepare", "turn text files into token files"),
    "data": Entry("glm_dist.cli.data", "validate, measure, show or merge corpora"),
    "config": Entry("glm_dist.cli.config", "print the resolved configuration"),
    "plan": Entry("glm_dist.cli.plan", "rank layouts by speed; memory, time and cost of a run"),
    "check": Entry("glm_dist.cli.check", "say before a launch whether it would work"),
    "dryrun": Entry("glm_dist.cli.dryrun", "build any rank of a job without its memory"),
    "hostfile": Entry("glm_dist.cli.hostfile", "write DeepSpeed's list of hosts"),
    "train": Entry("glm_dist.cli.train", "pretrain, as train.py does"),
    "finetune": Entry("glm_dist.cli.finetune", "train the model of a run on a task"),
    "sweep": Entry("glm_dist.cli.sweep", "train or finetune with many settings, and compare"),
    "compare": Entry("glm_dist.cli.compare", "pretrain by several objectives, and compare"),
    "resume-check": Entry("glm_dist.cli.resume_check", "replay steps of a run and compare"),
    "report": Entry("glm_dist.cli.report", "show runs on one page, in a file or live"),
    "evaluate": Entry("glm_dist.cli.evaluate", "measure a run's losses on held-out text"),
    "generate": Entry("glm_dist.cli.generate", "fill the blanks of a text"),
    "convert": Entry("glm_dist.cli.convert", "import or export weights of other programs"),
}


LISTENING = ("train", "finetune", "sweep", "compare")
"""Commands that end by themselves after a stop request, when they have saved."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``glm-dist``.

    Args:
        arguments: Command line without the program's name; the process's own if None.

    Returns:
        Exit status: 0 done, 2 a mistake in the command, configuration, data or launch, 130
        interrupted; of ``train``, see ``train.job.run``.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="glm-dist",
        description="Pretrain GLM and everything around it.",
        epilog="`glm-dist <command> --help` explains a command.",
    )
    parser.add_argument(
        "--version", action=_ShowVersion, nargs=0, help="print version and commit, and exit"
    )
    commands = parser.add_subparsers(dest="command", metavar="<command>", required=True)
    for name, entry in COMMANDS.items():
        commands.add_parser(name, help=entry.summary, add_help=False)
    command = parser.parse_args(typed[:1]).command
    return run_command(command, typed[1:], prog=f"glm-dist {command}")


def main_train(listener: StopListener | None = None) -> int:
    """Run ``train.py`` with the process's own command line.

    Args:
        listener: Has listened for stop requests since the process began; None: begins now.

    Returns:
        Exit status, as ``main``.
    """
    return run_command("train", sys.argv[1:], prog="train.py", listener=listener)


def run_command(
    name: str, arguments: Sequence[str], *, prog: str, listener: StopListener | None = None
) -> int:
    """Load a sub-command's module and run it.

    Args:
        name: Key of ``COMMANDS``.
        arguments: What follows the name; a launcher may have put ``--local_rank=N`` first.
        prog: How the command is called in its help.
        listener: Of commands that a signal does not end; None: begins to listen now.
    """
    if name in LISTENING:
        listener = listener or StopListener()
    _open_closed_streams()
    try:
        command = _module(COMMANDS[name].module)
        parser = _CommandParser(
            prog=prog,
            description=inspect.getdoc(command),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.set_defaults(listener=listener)
        command.add_arguments(parser)
        status = command.run(_parse(parser, without_local_rank(arguments)))
        sys.stdout.flush()  # a full disk or a closed pipe shows here, not after the last line
    except BrokenPipeError:
        return _end_quietly()
    except GlmDistError as error:
        return _tell(error, f"{type(error).__name__}: {error}")
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _tell(None, f"{type(error).__name__}: {place}{error.strerror or error}")
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: interrupted\n")
        return EXIT_INTERRUPTED
    if listener is not None:
        listener.ignore()  # Python removes its handlers at exit, and a late request would kill it
    return status


class _ShowVersion(argparse.Action):
    """Option that asks git only when it is given."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the version and exit."""
        provenance = importlib.import_module("glm_dist.observe.provenance")
        sys.stdout.write(f"{provenance.version_line()}\n")
        parser.exit()


class _CommandParser(argparse.ArgumentParser):
    """Takes overrides and texts on both sides of options, in sub-commands as well."""

    _mixed = False

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Parse as ``ArgumentParser`` does, options and positional arguments in any order."""
        if self._mixed:
            return super().parse_known_args(args, namespace)
        self._mixed = True  # argparse's own way of mixing comes back to this method
        try:
            return self.parse_known_intermixed_args(args, namespace)
        except TypeError:  # how it says that this parser has sub-commands; those mix
            return super().parse_known_args(args, namespace)
        finally:
            self._mixed = False


def _open_closed_streams() -> None:
    """Open what a shell's ``>&-`` closed, before a checkpoint gets its number and prints go there.

    The lowest free number is given first, so each stream gets its own again.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def _module(name: str) -> Command:
    # Optional here as well; which norm and attention a run got is in its log.
    missing = "(Transformer Engine and )?Apex (is|are) not installed"
    warnings.filterwarnings("ignore", message=missing, category=UserWarning)
    return cast(Command, importlib.import_module(name))


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse what was typed.

    Raises:
        ConfigError: An option does not exist.
    """
    parsed, rest = parser.parse_known_args(arguments)
    if rest:
        raise ConfigError(
            f"{parser.prog} has no argument {' '.join(rest)}.\n"
            f"  See {parser.prog} --help; values are set without dashes, as key=value.",
            key="command line",
            value=" ".join(rest),
            fix=f"{parser.prog} --help",
        )
    return parsed


def _tell(error: GlmDistError | None, message: str) -> int:
    """Print a mistake of the user's, with rank and host where several processes may speak."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", ""))
    size = os.environ.get("WORLD_SIZE", os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    is_alone = not rank or size == "1"
    origin = "" if is_alone else f"rank {rank} on {socket.gethostname()}: "
    sys.stderr.write(f"{origin}{message}\n")
    return EXIT_USER_ERROR if error is None else error.status


def _end_quietly() -> int:
    """End as a program that SIGPIPE stopped: whoever read the output, such as head, has enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
    return EXIT_PIPE_CLOSED
