"""Choice of a tokenizer on the command line."""

import argparse
from pathlib import Path

from glm_dist.config.schema import TokenizerKind
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec
from glm_dist.data.tokenizer.vocabularies import read_vocabulary
from glm_dist.errors import DataError
from glm_dist.files import exists, is_file


def add_tokenizer_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --tokenizer and what goes with it."""
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="PATH",
        help="model file, vocab.txt, tokenizer.json, or folder with vocab.json and merges.txt",
    )
    parser.add_argument(
        "--kind",
        choices=[kind.value for kind in TokenizerKind],
        help="family of the tokenizer (default: found from the file)",
    )
    parser.add_argument(
        "--no-task-masks", action="store_true", help="without [gMASK] and [sMASK], as GLM-Large"
    )
    parser.add_argument(
        "--unfixed",
        action="store_true",
        help="Chinese kind: the ids of GLM-10B-Chinese, where [gMASK] equals eop",
    )


def choose_tokenizer(arguments: argparse.Namespace) -> TokenizerSpec:
    """Read the arguments.

    Raises:
        DataError: The file's name does not tell its kind.
    """
    kind = TokenizerKind(arguments.kind) if arguments.kind else guess_kind(arguments.tokenizer)
    return TokenizerSpec(
        kind=kind,
        path=arguments.tokenizer,
        task_masks=not arguments.no_task_masks,
        fixed_task_masks=not arguments.unfixed,
    )


def guess_kind(path: str, *, typed: str = "--tokenizer ", other: str = "--kind …") -> TokenizerKind:
    """Tell the family of a tokenizer by its file.

    The official Chinese model looks like any other SentencePiece model, but for its name.

    Args:
        path: Model file, or folder with the vocabulary files.
        typed: Option or key before the path, for messages.
        other: Option or key that names the family, for messages.

    Raises:
        DataError: Nothing there is known, or vocab.json is damaged.
    """
    place = Path(path)
    files = [place] if is_file(place) else sorted(place.glob("*"))
    names = {file.name for file in files}
    if "tokenizer.json" in names:
        return TokenizerKind.huggingface
    models = [name for name in names if name.endswith(".model")]
    if models:
        is_official = "cog-pretrain.model" in models
        return TokenizerKind.chinese_sentencepiece if is_official else TokenizerKind.sentencepiece
    if any(name.endswith("vocab.txt") for name in names):
        return TokenizerKind.bert
    for file in files:
        if file.name.endswith("vocab.json"):
            has_mask = "<mask>" in read_vocabulary(file)
            return TokenizerKind.roberta if has_mask else TokenizerKind.gpt2
    problem = "has no known vocabulary" if exists(place) else "does not exist"
    raise DataError(
        f"{typed}{path} {problem}; known are *.model, vocab.txt, tokenizer.json, and"
        " vocab.json with merges.txt.\n"
        f"  Check the path, or name the family with {other}.",
        key=typed.strip(" ="),
        value=path,
        fix=other,
    )
