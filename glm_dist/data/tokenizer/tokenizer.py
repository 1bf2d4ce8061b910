"""Text to token ids and back, with GLM's special tokens, for every kind of vocabulary.

Special tokens stand behind the ordinary ids in the order of the official code, so that published
weights can be used; BERT, GPT-2 and RoBERTa keep those they already have. A special token's name
written in a text ("[MASK]") becomes its id in ``encode`` and stays ordinary text in
``encode_document``: a web page about BERT must not put control tokens into a corpus.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_dist.config.schema import TokenizerConfig, TokenizerKind
from glm_dist.data.tokenizer.control_pieces import find_control_pieces
from glm_dist.data.tokenizer.long_text import encode_long
from glm_dist.data.tokenizer.special_tokens import NamedToken, SpecialTokens
from glm_dist.data.tokenizer.vocabularies import (
    Codec,
    SentencePieceCodec,
    bert_codec,
    byte_level_codec,
    find_file,
    hash_files,
    huggingface_codec,
)
from glm_dist.errors import DataError
from glm_dist.files import is_file

SENTENCE_END_MARKS = ".?!;:\n。？！；…"
"""A token whose text holds one of these ends a sentence; official list, Chinese marks included."""
MORE_END_MARKS = SENTENCE_END_MARKS + "।॥؟۔؛։።፧။။។៕᠃"
"""And those of scripts that the official list leaves out, such as Devanagari and Arabic."""

MASK_NAMES = ("[MASK]", "[gMASK]", "[sMASK]")


@dataclass(frozen=True)
class Specials:
    """Special tokens of one vocabulary, and how its text shows them."""

    ids: SpecialTokens
    names: dict[int, str]
    """Name of each special id, as written in a text."""
    count: int
    """Ids in all, ordinary and special."""
    masks_eat_space: bool
    """True if white space before a mask's name belongs to the mask ("a [MASK]" = "a[MASK]")."""


class Tokenizer:
    """One vocabulary with GLM's special tokens."""

    def __init__(self, codec: Codec, specials: Specials, fingerprint: str) -> None:
        """Join a codec and special tokens.

        Args:
            codec: Ordinary text to ids.
            specials: What stands beside the ordinary ids.
            fingerprint: Changes whenever a corpus might be encoded otherwise.
        """
        self._codec = codec
        self._specials = specials
        self._is_control = np.zeros(specials.count + 1, np.bool_)
        self._is_control[[n for n in specials.names if n != specials.ids.unk]] = True
        self.fingerprint = fingerprint
        self._ids_by_name = {name: number for number, name in specials.names.items()}
        alternatives = [
            (r"\s*" if specials.masks_eat_space and name in MASK_NAMES else "") + re.escape(name)
            for name in sorted(self._ids_by_name, key=len, reverse=True)
        ]
        self._name_pattern = re.compile(f"({'|'.join(alternatives)})")

    @property
    def special(self) -> SpecialTokens:
        """Ids of the special tokens."""
        return self._specials.ids

    @property
    def vocab_size(self) -> int:
        """Ids including special tokens, before padding to a multiple of 128."""
        return self._specials.count

    def encode(self, text: str) -> list[int]:
        """Encode a text in which special tokens may be named; nothing is added around it."""
        ids: list[int] = []
        for part in self._name_pattern.split(text):
            named = self._ids_by_name.get(part.strip())
            if named is not None and self._name_pattern.fullmatch(part):
                ids.append(named)
            elif part.strip():
                ids.extend(self._codec.encode(part))
        return ids

    def named_tokens(self, text: str) -> Iterator[NamedToken]:
        """Find the special tokens that a text names, as ``encode`` does."""
        for match in self._name_pattern.finditer(text):
            name = match.group().strip()
            end = match.start() + len(match.group().rstrip())
            yield NamedToken(self._ids_by_name[name], end - len(name), end)

    def encode_document(self, text: str) -> list[int]:
        """Encode corpus text, where the names of special tokens are ordinary words."""
        return self._codec.encode(text) if text.strip() else []

    def store_document(
        self, text: str, token_type: "np.dtype[np.integer[Any]]"
    ) -> NDArray[np.integer[Any]]:
        """Encode corpus text as it is stored, opened by [CLS] and closed; empty for no text.

        Args:
            text: A document.
            token_type: Type of the stored ids.

        Raises:
            DataError: The vocabulary encodes ordinary text to a control token.
        """
        body = encode_long(self._codec.encode_array, text if text.strip() else "")
        if len(body) == 0:
            return np.zeros(0, token_type)
        if self._is_control[body].any():
            raise self._no_text(text, body)
        ids = np.empty(len(body) + 2, token_type)
        ids[0], ids[1:-1], ids[-1] = self.special.cls, body, self.special.eos
        return ids

    def _no_text(self, text: str, body: NDArray[np.int32]) -> DataError:
        token = int(body[self._is_control[body]][0])
        return DataError(
            f"The tokenizer encodes text to its control token {self._specials.names[token]} (id"
            f" {token}); training would take it for structure. The text: {text[:60]!r}.\n"
            "  Choose a tokenizer whose control tokens are no pieces of text.",
            key="tokenizer.path",
            value=self._specials.names[token],
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Decode; special ids print their names, ids beyond the vocabulary ``<|number|>``."""
        pieces: list[str] = []
        run: list[int] = []
        for number in [*ids, None]:
            if number is not None and self._is_ordinary(number):
                run.append(number)
                continue
            if run:
                pieces.append(self._codec.decode(run, continues=bool(pieces)))
                run = []
            if number is not None:
                pieces.append(self._specials.names.get(number, f"<|{number}|>"))
        # WordPiece has no tokens for spaces; everything stands apart.
        return ("" if self._specials.masks_eat_space else " ").join(pieces)

    def _is_ordinary(self, number: int) -> bool:
        return number not in self._specials.names and 0 <= number < self._codec.size

    def sentence_ends(self, *lists: str) -> list[NDArray[np.bool_]]:
        """Tell for each list of marks which of the ``v`` ids hold one, and so end a sentence."""
        texts = self._codec.texts()
        tables = []
        for marks in map(frozenset, lists):
            ends = np.zeros(self.vocab_size, np.bool_)
            ends[: self._codec.size] = [not marks.isdisjoint(text) for text in texts]
            ends[list(self._specials.names)] = False
            tables.append(ends)
        return tables


@dataclass(frozen=True)
class TokenizerSpec:
    """Vocabulary to open, and the special tokens that follow it."""

    kind: TokenizerKind
    """Family of the vocabulary."""
    path: str
    """Model file, or folder with the vocabulary files."""
    task_masks: bool = True
    """True if [gMASK] and [sMASK] exist."""
    fixed_task_masks: bool = True
    """Chinese kind only; see ``TokenizerConfig``."""
    sentinel_pairs: int = 0
    """Pairs of a mask and a start of piece of their own."""

    @staticmethod
    def of(config: TokenizerConfig) -> "TokenizerSpec":
        """Take from a configuration what opens its tokenizer."""
        return TokenizerSpec(
            kind=config.kind,
            path=config.path,
            task_masks=config.task_masks,
            fixed_task_masks=config.fixed_task_masks,
            sentinel_pairs=config.sentinel_pairs,
        )


def load_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Load the tokenizer a configuration names.

    Raises:
        DataError: Files are missing or of another kind, or ``vocab_size`` is not what they give.
    """
    tokenizer = open_tokenizer(TokenizerSpec.of(config))
    if tokenizer.vocab_size != config.vocab_size:
        raise DataError(
            f"tokenizer.vocab_size={config.vocab_size}, but {config.path} has"
            f" {tokenizer.vocab_size} ids with its special tokens.\n"
            f"  Set tokenizer.vocab_size={tokenizer.vocab_size}, or choose another tokenizer.path.",
            key="tokenizer.vocab_size",
            value=config.vocab_size,
            fix=f"tokenizer.vocab_size={tokenizer.vocab_size}",
        )
    return tokenizer


def open_tokenizer(spec: TokenizerSpec) -> Tokenizer:
    """Load a tokenizer whose number of ids is not known beforehand.

    Raises:
        DataError: Files are missing or of another kind.
    """
    files = list(tokenizer_files(spec).values())
    codec, specials = _load(spec, files)
    # Task masks never occur in a corpus, so they are no part of the fingerprint.
    borders = f"cls={specials.ids.cls} eos={specials.ids.eos}"
    return Tokenizer(codec, specials, f"{spec.kind.value} {borders} sha256={hash_files(files)}")


def tokenizer_files(spec: TokenizerSpec) -> dict[str, Path]:
    """Find the files of a tokenizer.

    Returns:
        Files by the name under which a folder may hold them for ``TokenizerSpec.path``.

    Raises:
        DataError: They are missing, or several fit.
    """
    path = Path(spec.path)
    match spec.kind:
        case TokenizerKind.sentencepiece | TokenizerKind.chinese_sentencepiece:
            return {"tokenizer.model": find_file(path, "*.model")}
        case TokenizerKind.bert:
            return {"vocab.txt": find_file(path, "vocab.txt", "*vocab.txt")}
        case TokenizerKind.gpt2 | TokenizerKind.roberta:
            vocabulary, merges = _byte_level_files(path)
            return {"vocab.json": vocabulary, "merges.txt": merges}
        case TokenizerKind.huggingface:
            return {"tokenizer.json": find_file(path, "tokenizer.json", "*.json")}


def _load(spec: TokenizerSpec, files: Sequence[Path]) -> tuple[Codec, Specials]:
    codec: Codec
    match spec.kind:
        case TokenizerKind.sentencepiece:
            codec = pieces = SentencePieceCodec(files[0])
            specials = _append_specials(pieces, _SENTENCEPIECE_ORDER, spec, {"unk": pieces.unk})
        case TokenizerKind.chinese_sentencepiece:
            codec = SentencePieceCodec(files[0])
            specials = _chinese_specials(codec, spec)
        case TokenizerKind.bert:
            codec = bert_codec(files[0])
            own = {role: f"[{role.upper()}]" for role in ("pad", "cls", "sep", "mask", "unk")}
            specials = _append_specials(codec, (), spec, _find(codec, own | {"eos": "[PAD]"}))
        case TokenizerKind.gpt2:
            codec = byte_level_codec(*files)
            own = {"pad": "<|endoftext|>", "eos": "<|endoftext|>"}
            specials = _append_specials(codec, _GPT2_ORDER, spec, _find(codec, own))
        case TokenizerKind.roberta:
            codec = byte_level_codec(*files)
            own = {"pad": "</s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>"}
            found = _find(codec, own | {"mask": "<mask>"})
            specials = _append_specials(codec, (), spec, found)
        case TokenizerKind.huggingface:
            codec = library = huggingface_codec(files[0])
            found = find_control_pieces(codec.id_of)
            specials = _append_specials(codec, _ANY_ORDER, spec, found)
            control = {number for role, number in found.items() if role != "unk"}
            if control:
                library.hide([p for p, number in library.pieces().items() if number in control])
    return codec, specials


_NAMES = {
    "pad": "<|endoftext|>",
    "eos": "<|endoftext|>",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
    "unk": "[UNK]",
    "sop": "<|startofpiece|>",
    "eop": "<|endofpiece|>",
    "gmask": "[gMASK]",
    "smask": "[sMASK]",
    "block_mask": "[dBLOCK]",
}

# Which roles get new ids, in the official order; sop, eop and the task masks follow by themselves
# where a tuple does not name them.
_SENTENCEPIECE_ORDER = ("eos", "cls", "sep", "mask", "sop", "eop")
_GPT2_ORDER = ("sop", "eop", "cls", "mask", "sep", "unk")
_ANY_ORDER = ("eos", "cls", "sep", "mask", "unk", "sop", "eop")


def _append_specials(
    codec: Codec, order: tuple[str, ...], spec: TokenizerSpec, own: dict[str, int]
) -> Specials:
    """Number the special tokens that a vocabulary lacks, from its size upwards."""
    ids = dict(own)
    roles = order if "sop" in order else (*order, "sop", "eop")
    if spec.task_masks:
        roles = (*roles, "gmask", "smask")
    next_id = codec.size
    for role in roles:
        if role not in ids:
            ids[role] = next_id
            next_id += 1
    named = {role: number for role, number in ids.items() if number >= codec.size or role in own}
    ids.setdefault("pad", ids["eos"])
    return _finish(codec, ids, named, count=next_id, spec=spec)


def _chinese_specials(codec: Codec, spec: TokenizerSpec) -> Specials:
    """Number as the official Chinese tokenizer does.

    The unfixed scheme, with which GLM-10B-Chinese was trained, gives [gMASK] the id of eop; the
    model then tells them apart by their place only.
    """
    size = codec.size
    ids = {"pad": size, "eos": size, "sep": size + 1, "cls": size + 2, "mask": size + 3}
    ids |= {"unk": size + 4, "sop": size + 6, "eop": size + 7}
    if spec.task_masks:
        ids |= {"gmask": size + 9 if spec.fixed_task_masks else size + 7, "smask": size + 8}
    return _finish(codec, ids, ids, count=max(ids.values()) + 1, spec=spec)


def _finish(
    codec: Codec,
    ids: dict[str, int],
    named: dict[str, int],
    *,
    count: int,
    spec: TokenizerSpec,
) -> Specials:
    first_sentinel = count if spec.sentinel_pairs else -1
    count += 2 * spec.sentinel_pairs
    ids = {"gmask": ids["mask"], "smask": ids["mask"], "block_mask": count} | ids
    names: dict[int, str] = {}
    for field in fields(SpecialTokens):
        if field.name in named:
            # [gMASK] comes after eop and takes the shared id's name, as in the official code.
            names[named[field.name]] = _NAMES[field.name]
    if spec.kind == TokenizerKind.bert:
        names[ids["pad"]] = "[PAD]"
    for pair in range(spec.sentinel_pairs):
        names[first_sentinel + 2 * pair] = f"[MASK{pair + 1}]"
        names[first_sentinel + 2 * pair + 1] = f"<|startofpiece{pair + 1}|>"
    special = SpecialTokens(
        **ids, first_sentinel=first_sentinel, sentinel_pairs=spec.sentinel_pairs
    )
    return Specials(
        ids=special,
        names=names,
        count=count,
        masks_eat_space=spec.kind != TokenizerKind.bert,
    )


def _byte_level_files(path: Path) -> tuple[Path, Path]:
    """Find vocab.json and merges.txt; a file that is named has the other one of its name."""
    if not is_file(path):
        return (
            find_file(path, "vocab.json", "*vocab.json"),
            find_file(path, "merges.txt", "*merges.txt"),
        )
    folder, name = path.parent, path.name
    if name.endswith("merges.txt"):
        name = name.removesuffix("merges.txt") + "vocab.json"
        return find_file(folder, name, "vocab.json", "*vocab.json"), path
    name = name.removesuffix("vocab.json") + "merges.txt"
    return path, find_file(folder, name, "merges.txt", "*merges.txt")


def _find(codec: Codec, pieces: dict[str, str]) -> dict[str, int]:
    """Find the ids of special tokens that a kind of vocabulary must already have."""
    ids = {}
    for role, piece in pieces.items():
        found = codec.id_of(piece)
        if found is None:
            raise DataError(
                f"The vocabulary has no {piece}, so it is not of the kind that was chosen.\n"
                "  Check tokenizer.kind (--kind) and tokenizer.path (--tokenizer).",
                key="tokenizer.kind",
                value=piece,
                fix="tokenizer.kind=…",
            )
        ids[role] = found
    return ids
