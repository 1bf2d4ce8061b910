"""``glm-dist generate``: fill every blank of the texts given, with a trained run."""

import argparse
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from glm_dist.cli.arguments import whole_number
from glm_dist.config.launch import read_launch_environment
from glm_dist.data.tokenizer.special_tokens import SpecialTokens
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.errors import DataError, LaunchError
from glm_dist.generate.infill import Blank, fill_blanks
from glm_dist.generate.load import TrainedModel, load_trained
from glm_dist.generate.sampling import GREEDY, Sampling
from glm_dist.parallel.process import start_process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    parser.add_argument("run", type=Path, help="folder of a run, such as runs/quickstart")
    parser.add_argument(
        "text",
        nargs="*",
        help="texts with [MASK], [sMASK] or [gMASK] where the model shall write; "
        "without any, lines of standard input",
    )
    parser.add_argument(
        "--step", type=whole_number(at_least=0), help="checkpoint to use (default: the newest)"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="files of its tokenizer (default: those in the run's folder)",
    )
    parser.add_argument("--greedy", action="store_true", help="always take the likeliest token")
    parser.add_argument(
        "--temperature", type=float, default=0.9, help="divides the logits (default: %(default)s)"
    )
    parser.add_argument(
        "--top-k",
        type=whole_number(at_least=0),
        default=40,
        help="draw from the k likeliest; 0: all (%(default)s)",
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="draw from the likeliest reaching p (%(default)s)"
    )
    parser.add_argument(
        "--max-tokens",
        type=whole_number(at_least=1),
        default=64,
        help="longest answer of a blank (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Print every text with its blanks filled.

    Returns:
        Exit status.

    Raises:
        GlmDistError: The run, its checkpoint or a text cannot be used.
    """
    sampling = (
        GREEDY
        if arguments.greedy
        else Sampling(
            temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p
        )
    )
    launch = read_launch_environment(os.environ)
    if launch.world_size > 1:
        raise LaunchError(
            key="world size",
            found=launch.world_size,
            expected="one process, which holds the whole model",
            fix="start glm-dist generate without a launcher",
        )
    device = start_process(launch, timedelta(minutes=10)).device
    trained = load_trained(
        arguments.run, step=arguments.step, device=device, tokenizer=arguments.tokenizer
    )
    for text in arguments.text or lines_of_input():
        sys.stdout.write(
            complete(
                trained,
                text,
                sampling=sampling,
                max_tokens=arguments.max_tokens,
                seed=arguments.seed,
            )
            + "\n"
        )
        sys.stdout.flush()
    return 0


def lines_of_input() -> Iterator[str]:
    """Lines of standard input.

    Raises:
        DataError: They are not in the encoding of the locale.
    """
    try:
        for line in sys.stdin:
            yield line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise _undecodable(str(error)) from error


def _undecodable(found: str) -> DataError:
    return DataError(
        key="text",
        found=found,
        expected="text in UTF-8",
        fix="convert it, for example with iconv -t UTF-8",
    )


def complete(
    trained: TrainedModel, text: str, *, sampling: Sampling, max_tokens: int, seed: int
) -> str:
    """A text with every blank filled, answers in square brackets.

    A text without a mask token is continued, as the official script does.

    Args:
        trained: Model and tokenizer.
        text: May contain [MASK], [sMASK] and [gMASK].
        sampling: How tokens are drawn.
        max_tokens: Longest answer of a blank.
        seed: Of the draws.

    Raises:
        DataError: The text names a mask that the tokenizer does not have, or is too long.
    """
    special = trained.tokenizer.special
    context = context_of(trained.tokenizer, text)
    blanks = fill_blanks(
        trained.stage,
        context,
        special=special,
        sampling=sampling,
        max_tokens=max_tokens,
        max_position=trained.config.model.max_position_embeddings,
        banned=not_text(special, trained.config.tokenizer.vocab_size),
        seed=seed,
    )
    return render(trained.tokenizer, context, blanks)


def not_text(special: SpecialTokens, vocab_size: int) -> list[int]:
    """Ids of tokens that structure a row and have no place in an answer.

    Args:
        special: Ids of special tokens; those beyond the vocabulary do not exist.
        vocab_size: Tokens that exist.
    """
    ids = {
        special.pad,
        special.cls,
        special.sep,
        special.unk,
        special.sop,
        special.mask,
        special.gmask,
        special.smask,
        special.block_mask,
    }
    return sorted(token for token in ids if 0 <= token < vocab_size)


def context_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """Part A of a text: [CLS], its tokens, and the end token unless it ends in an open tail."""
    special = tokenizer.special
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _undecodable(ascii(text))  # bytes that Python could not decode
    if not special.has_task_masks:
        for name in ("[gMASK]", "[sMASK]"):
            if name in text:
                raise DataError(
                    key="text",
                    found=name,
                    expected="[MASK], the only mask token of this run's tokenizer",
                    fix=f"write [MASK] instead of {name}",
                )
    tokens = tokenizer.encode(text)
    if not {special.mask, special.gmask, special.smask} & set(tokens):
        tokens.append(special.gmask)
    ends_open = tokens[-1] == special.gmask
    return [special.cls, *tokens, *([] if ends_open else [special.eos])]


def render(tokenizer: Tokenizer, context: list[int], blanks: list[Blank]) -> str:
    """The context with each mask replaced by its answer in brackets, without special tokens."""
    hidden = {tokenizer.special.cls, tokenizer.special.eos}
    pieces, start = [], 0
    for blank in blanks:
        before = [token for token in context[start : blank.mask_index] if token not in hidden]
        pieces += [tokenizer.decode(before), f"[{tokenizer.decode(blank.tokens).strip()}]"]
        start = blank.mask_index + 1
    pieces.append(tokenizer.decode([t for t in context[start:] if t not in hidden]))
    return " ".join(piece.strip() for piece in pieces if piece.strip())
