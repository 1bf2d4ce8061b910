"""Tokenizers of GLM for transformers 4.46 to 5.

Part of an exported model folder: transformers loads it there with trust_remote_code=True. The ids
of all special tokens are in ``special_ids`` of tokenizer_config.json; a special token's name in a
text becomes its id. [CLS] opens a text. The end token, which is also the padding token, closes it,
unless the text ends in the mask of an open tail ([gMASK], or [MASK] where there is no other).
"""

import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizer

from .inputs_glm import GLMInputs

MASKS = ("[MASK]", "[gMASK]", "[sMASK]")
SOP = "<|startofpiece|>"
EOP = "<|endofpiece|>"


class GLMTokenizer(GLMInputs, PreTrainedTokenizer):
    """Special tokens and input builders; subclasses read a vocabulary."""

    vocab_files_names = {"vocab_file": "vocab.txt"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "right"
    truncation_side = "left"
    masks_eat_space = True
    separator = ""

    def __init__(self, special_ids: dict[str, int], **kwargs: Any) -> None:
        """Keep the special tokens.

        Args:
            special_ids: Id by name.
            **kwargs: Of the base class, with the names of files.
        """
        self.special_ids = dict(special_ids)
        self._special_names = {number: name for name, number in special_ids.items()}
        self._files = [kwargs[key] for key in self.vocab_files_names]
        self._pieces = self._read(*map(Path, self._files))
        tokens = dict(enumerate(self._pieces)) | self._special_names
        self._vocabulary = {token: number for number, token in tokens.items()}
        super().__init__(special_ids=special_ids, **kwargs)

    def _read(self, *files: Path) -> list[str]:
        """Read the vocabulary. Returns its pieces by id."""
        raise NotImplementedError

    def _encode_ordinary(self, text: str) -> list[int]:
        """Encode text without special tokens."""
        raise NotImplementedError

    def _decode_ordinary(self, ids: list[int], *, continues: bool) -> str:
        """Decode ids that are no special tokens."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        """Ids, special tokens included, before the model's table is padded."""
        return max(len(self._pieces), *(number + 1 for number in self._special_names))

    def get_vocab(self) -> dict[str, int]:
        """Return the id of each token."""
        return self._vocabulary | self.get_added_vocab()

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Split a text into tokens; nothing is added around it.

        Args:
            text: Names of special tokens in it become those tokens.
            **kwargs: split_special_tokens=True takes such names for ordinary words.
        """
        if kwargs.get("split_special_tokens", False):
            return self._tokenize(text)
        names = sorted({*self.special_ids, *self.get_added_vocab()}, key=len, reverse=True)
        alternatives = [
            (r"\s*" if self.masks_eat_space and name in MASKS else "") + re.escape(name)
            for name in names
        ]
        tokens: list[str] = []
        for number, part in enumerate(re.split(f"({'|'.join(alternatives)})", text)):
            tokens.extend([part.strip()] if number % 2 else self._tokenize(part))
        return tokens

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        ids = self._encode_ordinary(text) if text.strip() else []
        return [self._convert_id_to_token(number) for number in ids]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self._vocabulary.get(token, self.special_ids.get("[UNK]"))

    def _convert_id_to_token(self, index: int) -> str:
        if index in self._special_names:
            return self._special_names[index]
        return self._pieces[index] if 0 <= index < len(self._pieces) else f"<|{index}|>"

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens to a text."""
        return self._decode(self.convert_tokens_to_ids(tokens))

    def _decode(
        self, token_ids: int | list[int], skip_special_tokens: bool = False, **kwargs: Any
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(map(int, token_ids))
        added = {number: name for name, number in self.get_added_vocab().items()}
        named = added | self._special_names
        parts: list[str] = []
        run: list[int] = []
        for number in [*ids, None]:
            if number is not None and number not in named and 0 <= number < len(self._pieces):
                run.append(number)
                continue
            if run:
                parts.append(self._decode_ordinary(run, continues=bool(parts)))
                run = []
            if number is not None and not (skip_special_tokens and number in named):
                parts.append(named.get(number, f"<|{number}|>"))
        return self.separator.join(parts)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Put [CLS] before a text and the end token behind it, [SEP] between two."""
        ids = list(token_ids_0)
        if token_ids_1 is not None:
            ids += [self.sep_token_id, *token_ids_1]
        is_open = bool(ids) and ids[-1] == self.special_ids.get("[gMASK]", self.mask_token_id)
        return [self.cls_token_id, *ids, *([] if is_open else [self.eos_token_id])]

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Return 1 for special tokens, 0 for the others."""
        ids = token_ids_0
        if not already_has_special_tokens:
            ids = self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        return [int(number in self._special_names) for number in ids]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return zeros: GLM has no token types."""
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Copy the vocabulary's files."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        copies = []
        for file, name in zip(self._files, self.vocab_files_names.values(), strict=True):
            copy = Path(save_directory) / (prefix + name)
            if copy.resolve() != Path(file).resolve():
                shutil.copyfile(file, copy)
            copies.append(str(copy))
        return tuple(copies)

    @property
    def sop_token(self) -> str:
        """First input of a blank."""
        return SOP

    @property
    def sop_token_id(self) -> int:
        """Id of ``sop_token``."""
        return self.special_ids[SOP]

    @property
    def eop_token(self) -> str:
        """End of a blank."""
        return EOP

    @property
    def eop_token_id(self) -> int:
        """Id of ``eop_token``."""
        return self.special_ids[EOP]

    @property
    def gmask_token_id(self) -> int:
        """Id of [gMASK], for long text at the end."""
        return self._task_mask("[gMASK]")

    @property
    def smask_token_id(self) -> int:
        """Id of [sMASK], for sentences."""
        return self._task_mask("[sMASK]")

    @property
    def mask_token_ids(self) -> list[int]:
        """Ids of all masks."""
        return [self.special_ids[name] for name in MASKS if name in self.special_ids]

    def _task_mask(self, name: str) -> int:
        if name not in self.special_ids:
            raise NotImplementedError(f"the model has no {name}; write [MASK]")
        return self.special_ids[name]


class _LibraryTokenizer(GLMTokenizer):
    """A vocabulary of the tokenizers library."""

    def _build(self, *files: Path) -> tokenizers.Tokenizer:
        raise NotImplementedError

    def _read(self, *files: Path) -> list[str]:
        self._codec = self._build(*files)
        by_id = {number: piece for piece, number in self._codec.get_vocab().items()}
        return [by_id.get(number, f"<|{number}|>") for number in range(max(by_id) + 1)]

    def _encode_ordinary(self, text: str) -> list[int]:
        return self._codec.encode(text, add_special_tokens=False).ids

    def _decode_ordinary(self, ids: list[int], *, continues: bool) -> str:
        return self._codec.decode(ids, skip_special_tokens=False)


class GLMBertTokenizer(_LibraryTokenizer):
    """Uncased WordPiece of BERT."""

    masks_eat_space = False
    separator = " "

    def _build(self, vocabulary: Path) -> tokenizers.Tokenizer:
        lines = vocabulary.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
        ids = {line.removesuffix("\r"): number for number, line in enumerate(lines)}
        codec = tokenizers.Tokenizer(
            models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100)
        )
        codec.normalizer = normalizers.BertNormalizer(lowercase=True)
        codec.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        codec.decoder = decoders.WordPiece()
        return codec


class GLMGPT2Tokenizer(_LibraryTokenizer):
    """Byte-level BPE of GPT-2."""

    vocab_files_names = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}  # noqa: RUF012

    def _build(self, vocabulary: Path, merges: Path) -> tokenizers.Tokenizer:
        codec = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
        codec.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        codec.decoder = decoders.ByteLevel()
        return codec


class GLMRobertaTokenizer(GLMGPT2Tokenizer):
    """Byte-level BPE with RoBERTa's ids; <s>, </s> and <mask> are called as in the other GLMs."""


class GLMJsonTokenizer(_LibraryTokenizer):
    """One's own tokenizer.json; text is never encoded to its control tokens."""

    vocab_files_names = {"vocab_file": "tokenizer.json"}  # noqa: RUF012

    def _build(self, definition: Path) -> tokenizers.Tokenizer:
        content = json.loads(definition.read_text(encoding="utf-8"))
        self._hide_control_tokens(content)
        codec = tokenizers.Tokenizer.from_str(json.dumps(content))
        codec.encode_special_tokens = True
        codec.no_padding()
        codec.no_truncation()
        return codec

    def _hide_control_tokens(self, content: dict[str, Any]) -> None:
        """Rename pieces to what no text holds, so that their names are ordinary text."""
        control = {number for name, number in self.special_ids.items() if name != "[UNK]"}
        added, model = content.get("added_tokens") or [], content["model"]
        vocabulary = model.get("vocab")
        is_list = isinstance(vocabulary, list)  # Unigram: pieces and scores by id
        pieces = dict(enumerate(p for p, _ in vocabulary)) if is_list else {}
        pieces |= {} if is_list else {number: piece for piece, number in vocabulary.items()}
        pieces |= {token["id"]: token["content"] for token in added}
        hidden = {piece for number, piece in pieces.items() if number in control}

        def renamed(piece: str) -> str:
            return f"\U0010ffff{piece}" if piece in hidden else piece

        for token in added:
            token["content"] = renamed(token["content"])
        content["post_processor"] = None
        if is_list:
            model["vocab"] = [[renamed(piece), score] for piece, score in vocabulary]
        else:
            model["vocab"] = {renamed(piece): number for piece, number in vocabulary.items()}
        if model.get("merges"):
            pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
            model["merges"] = [
                merge
                for merge, pair in zip(model["merges"], pairs, strict=True)
                if hidden.isdisjoint([*pair, "".join(pair)])
            ]


class GLMSentencePieceTokenizer(GLMTokenizer):
    """One's own SentencePiece model."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012

    def _read(self, model: Path) -> list[str]:
        # Not imported above: other GLMs need no such library.
        library = importlib.import_module("sentencepiece")
        self._codec = library.SentencePieceProcessor(model_file=str(model))
        return [self._codec.id_to_piece(n) for n in range(self._codec.get_piece_size())]

    def _encode_ordinary(self, text: str) -> list[int]:
        return self._codec.encode(text)

    def _decode_ordinary(self, ids: list[int], *, continues: bool) -> str:
        text = self._codec.decode(ids)
        # The model drops the first space of whatever it decodes.
        begins_word = self._pieces[ids[0]].startswith("▁")
        return f" {text}" if continues and begins_word and not text.startswith(" ") else text


class GLMChineseTokenizer(GLMSentencePieceTokenizer):
    """The SentencePiece model of the Chinese GLMs."""

    vocab_files_names = {"vocab_file": "cog-pretrain.model"}  # noqa: RUF012
