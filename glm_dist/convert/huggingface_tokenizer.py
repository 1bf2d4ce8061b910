"""Tokenizer files of a Hugging Face GLM folder, and our tokenizers."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from glm_dist.config.schema import TokenizerKind
from glm_dist.convert.weight_files import read_json
from glm_dist.data.tokenizer.special_tokens import SpecialTokens
from glm_dist.data.tokenizer.tokenizer import (
    Tokenizer,
    TokenizerSpec,
    open_tokenizer,
    tokenizer_files,
)
from glm_dist.data.tokenizer.vocabularies import read_vocabulary
from glm_dist.errors import DataError
from glm_dist.files import is_file

ADDED_TOKENS_FILE = "added_tokens.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CLASSES = {
    TokenizerKind.bert: "GLMBertTokenizer",
    TokenizerKind.gpt2: "GLMGPT2Tokenizer",
    TokenizerKind.roberta: "GLMRobertaTokenizer",
    TokenizerKind.chinese_sentencepiece: "GLMChineseTokenizer",
    TokenizerKind.sentencepiece: "GLMSentencePieceTokenizer",
    TokenizerKind.huggingface: "GLMJsonTokenizer",
}
"""Class of each kind; the first four have the names of the Hub."""
SENTENCEPIECE_KINDS = (TokenizerKind.chinese_sentencepiece, TokenizerKind.sentencepiece)
CHINESE_FILE = "cog-pretrain.model"
OWN_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"


@dataclass(frozen=True)
class FoundTokenizer:
    """The tokenizer of a folder."""

    spec: TokenizerSpec
    files: tuple[Path, ...]
    """Its vocabulary files."""


def find_tokenizer(folder: Path, padded_vocab_size: int) -> FoundTokenizer | None:
    """Find the vocabulary of a model folder and tell its kind.

    Args:
        folder: Of a model.
        padded_vocab_size: Rows of the model's word table.

    Returns:
        The tokenizer; None if the folder has no vocabulary.

    Raises:
        DataError: The files contradict each other or the model.
        CheckpointError: A JSON file is damaged.
    """
    settings = _json_if_present(folder / TOKENIZER_CONFIG_FILE)
    added = _added_tokens(folder, settings)
    found = _kind(folder, settings.get("tokenizer_class"), added)
    if found is None:
        return None
    kind, path = found
    # The first models of these two kinds have [MASK] only; all others have the task masks.
    by_default = kind not in (TokenizerKind.bert, TokenizerKind.roberta)
    spec = TokenizerSpec(
        kind,
        str(path),
        task_masks={"[gMASK]", "[sMASK]"} <= set(added) if added else by_default,
        sentinel_pairs=len([name for name in added if name.startswith("<|startofpiece")]) - 1
        if "[MASK1]" in added
        else 0,
    )
    tokenizer = open_tokenizer(spec)
    ours = special_ids(tokenizer)
    for name, number in added.items():
        if ours.get(name, number) != number:
            raise DataError(
                f"{folder} gives {name} the id {number}, GLM's tokenizers of kind {kind.value} give"
                f" it {ours[name]}: the folder's vocabulary does not belong to its weights.\n"
                "  Fetch the folder again.",
                key=name,
                value=number,
            )
    check_room(tokenizer, padded_vocab_size)
    return FoundTokenizer(spec, tuple(tokenizer_files(spec).values()))


def check_room(tokenizer: Tokenizer, padded_vocab_size: int) -> None:
    """Refuse a tokenizer with more ids than a model has rows for.

    Raises:
        DataError: It has.
    """
    if tokenizer.vocab_size > padded_vocab_size:
        raise DataError(
            f"The tokenizer has {tokenizer.vocab_size} ids, the model's word table"
            f" {padded_vocab_size} rows, so they do not belong together.\n"
            "  Name the tokenizer that the model was trained with.",
            key="vocab_size",
            value=tokenizer.vocab_size,
        )


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """List the special tokens of a tokenizer: id by the name that a text may have for it."""
    special = tokenizer.special
    roles = [field.name for field in fields(SpecialTokens)]
    numbers = [getattr(special, role) for role in roles[: roles.index("block_mask")]]
    first = special.first_sentinel
    numbers += range(first, first + 2 * special.sentinel_pairs)
    named = {tokenizer.decode([number]): number for number in numbers}
    return {
        name: number
        for name, number in named.items()
        if [found.token for found in tokenizer.named_tokens(name)] == [number]
    }


def shares_mask(spec: TokenizerSpec) -> bool:
    """Tell if [gMASK] has the id of the end of a piece."""
    is_chinese = spec.kind is TokenizerKind.chinese_sentencepiece
    return is_chinese and spec.task_masks and not spec.fixed_task_masks


def tokenizer_content(
    spec: TokenizerSpec, *, max_position: int
) -> tuple[dict[str, Path], dict[str, dict[str, object]]]:
    """Build the tokenizer's part of a folder.

    Args:
        spec: Tokenizer to export.
        max_position: Largest position of the model.

    Returns:
        Files to copy, and content of JSON files, by name in the folder.

    Raises:
        DataError: Files are missing.
    """
    tokenizer = open_tokenizer(spec)
    special, ids = tokenizer.special, special_ids(tokenizer)
    names = {number: name for name, number in ids.items()}
    main = {
        role: names[getattr(special, role)]
        for role in ("pad", "eos", "cls", "sep", "mask", "unk")
        if getattr(special, role) in names
    }
    name = CLASSES[spec.kind]
    files = tokenizer_files(spec)
    if spec.kind is TokenizerKind.chinese_sentencepiece:
        files = {CHINESE_FILE: files[OWN_FILE]}
    settings: dict[str, object] = {
        "added_tokens_decoder": {str(n): _added_token(names[n]) for n in sorted(names)},
        "additional_special_tokens": sorted(set(ids) - set(main.values())),
        "auto_map": {"AutoTokenizer": [f"tokenization_glm.{name}", None]},
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_position,
        "padding_side": "right",
        "special_ids": ids,
        "tokenizer_class": name,
        "truncation_side": "left",
    } | {f"{role}_token": token for role, token in main.items()}
    is_sentencepiece = spec.kind in SENTENCEPIECE_KINDS
    first_added = special.eos if is_sentencepiece else special.sop
    added: dict[str, object] = {name: n for name, n in ids.items() if n >= first_added}
    return files, {ADDED_TOKENS_FILE: added, TOKENIZER_CONFIG_FILE: settings}


def _added_token(name: str) -> dict[str, object]:
    """Describe a special token to transformers."""
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": name, **flags, "special": True}


def _json_if_present(file: Path) -> dict[str, object]:
    return read_json(file) if is_file(file) else {}


def _added_tokens(folder: Path, settings: Mapping[str, object]) -> dict[str, int]:
    """Special tokens that a folder lists: in tokenizer_config.json or added_tokens.json."""
    added = _json_if_present(folder / ADDED_TOKENS_FILE)
    decoder, own = settings.get("added_tokens_decoder"), settings.get("special_ids")
    if isinstance(decoder, Mapping):
        for number, token in decoder.items():
            name = token.get("content") if isinstance(token, Mapping) else token
            if isinstance(name, str) and str(number).isdecimal():
                added.setdefault(name, int(number))
    if isinstance(own, Mapping):
        added |= own
    return {name: number for name, number in added.items() if type(number) is int}


def _kind(
    folder: Path, class_name: object, added: Mapping[str, int]
) -> tuple[TokenizerKind, Path] | None:
    """Kind and file of a folder's vocabulary."""
    by_class = {name: kind for kind, name in CLASSES.items()}
    named = by_class.get(class_name) if isinstance(class_name, str) else None
    files = {path.name: path for path in folder.iterdir() if is_file(path)}
    if CHINESE_FILE in files and named in (None, TokenizerKind.chinese_sentencepiece):
        return TokenizerKind.chinese_sentencepiece, files[CHINESE_FILE]
    if OWN_FILE in files and named in (None, TokenizerKind.sentencepiece):
        return TokenizerKind.sentencepiece, files[OWN_FILE]
    if "vocab.txt" in files and named in (None, TokenizerKind.bert):
        return TokenizerKind.bert, files["vocab.txt"]
    has_bpe = {"vocab.json", "merges.txt"} <= set(files)
    if JSON_FILE in files and (named is TokenizerKind.huggingface or not has_bpe):
        return TokenizerKind.huggingface, files[JSON_FILE]
    if not has_bpe:
        return None
    path = files["vocab.json"]
    if named in (TokenizerKind.gpt2, TokenizerKind.roberta):
        return named, path
    if "[CLS]" in added:  # RoBERTa has its <s> for it
        return TokenizerKind.gpt2, path
    has_mask = "<mask>" in read_vocabulary(path)
    return TokenizerKind.roberta if has_mask else TokenizerKind.gpt2, path
