"""Tokenizers of every kind over vocabularies that hold what users' vocabularies hold, and texts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from glm_dist.config.schema import TokenizerKind
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec
from glm_dist.data.tokenizer.training import train_sentencepiece

NAMES = (
    "[MASK] [gMASK] [sMASK] [CLS] [SEP] [PAD] [UNK] <|endoftext|> <|startofpiece|> <|endofpiece|>"
    " <s> </s> <unk> <pad> <mask> [dBLOCK] [MASK1] <eop> <sop>"
).split()
"""Names of special tokens of some vocabulary, which are ordinary words in a document."""
WORDS = (
    "the people of United States have chosen my lord good night naïve Ünïcode 東京 北京。 नमस्ते।"
    " مرحبا؟ emoji 👍 re-elect 1.10 2026_11 don't \u2581under tab\tstop new\nline  double e\u0301"
    " ＡＢＣ ﬁ \u00a0 <br> & % \\ \" '"
).split(" ")
SPACES = (" ", " ", " ", " ", "  ", "\n", "\t", "", ". ", "! ", "。", "؟ ", "; ")


def text(rng: Random, *, longest: int = 40) -> str:
    """Words and names, some of them of special tokens, with all sorts of spaces."""
    words = [
        rng.choice(NAMES if rng.random() < 0.08 else WORDS) for _ in range(rng.randint(0, longest))
    ]
    return "".join(word + rng.choice(SPACES) for word in words)


@dataclass(frozen=True)
class Lab:
    """Tokenizers to try."""

    specs: tuple[TokenizerSpec, ...]
    full: TokenizerSpec
    """One whose ids fill the rows of the embedding table."""


def build_lab(folder: Path) -> Lab:
    """Write the files of every kind of tokenizer.

    Args:
        folder: Gets the files.
    """
    rng = Random(0)
    sample = [text(rng) for _ in range(300)]
    pieces = folder / "pieces.model"
    train_sentencepiece(sample, pieces, vocab_size=420)
    words = sorted({part for each in sample for part in each.split()})
    bert, full = folder / "vocab.txt", folder / "full.txt"
    own = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *words]
    bert.write_text("\n".join(own) + "\n")
    # With [sop], [eop] and two task masks this one fills its rows of the embedding table.
    filled = [*own, *(f"filler{n}" for n in range(-(len(own) + 4) % 128))]
    full.write_text("\n".join(filled) + "\n")
    gpt2 = folder / "gpt2"
    gpt2.mkdir()
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa"]
    _write_byte_level(gpt2, [*letters, "<|endoftext|>"])
    roberta = folder / "roberta"
    roberta.mkdir()
    _write_byte_level(roberta, ["<s>", "<pad>", "</s>", "<unk>", *letters, "<mask>"])
    kinds = [
        (TokenizerKind.sentencepiece, pieces),
        (TokenizerKind.chinese_sentencepiece, pieces),
        (TokenizerKind.bert, bert),
        (TokenizerKind.gpt2, gpt2),
        (TokenizerKind.roberta, roberta),
        *((TokenizerKind.huggingface, file) for file in _libraries(folder, sample)),
    ]
    specs = [
        TokenizerSpec(
            kind,
            str(file),
            task_masks=task_masks,
            sentinel_pairs=pairs,
            fixed_task_masks=fixed,
        )
        for kind, file in kinds
        for task_masks, pairs in ((True, 0), (True, 40), (False, 0))
        for fixed in ((True, False) if kind is TokenizerKind.chinese_sentencepiece else (True,))
    ]
    return Lab(tuple(specs), full=TokenizerSpec(TokenizerKind.bert, str(full)))


def _write_byte_level(folder: Path, pieces: Sequence[str]) -> None:
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nĠ a\n")


def _libraries(folder: Path, sample: list[str]) -> list[Path]:
    """Files of the tokenizers library, with names of special tokens as pieces or added tokens."""
    words = sorted({part for each in sample for part in each.split()} | set(NAMES))
    plain = tokenizers.Tokenizer(
        models.WordLevel({piece: i for i, piece in enumerate(["<unk>", *words])}, unk_token="<unk>")
    )
    plain.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    scored = [("<unk>", 0.0), *((name, -1.0) for name in NAMES), *((w, -9.0) for w in words)]
    letters = sorted({letter for each in [*sample, *NAMES] for letter in each} | {"\u2581"})
    unigram = tokenizers.Tokenizer(
        models.Unigram([*dict(scored).items(), *((x, -12.0) for x in letters)], unk_id=0)
    )
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    bytes_ = tokenizers.Tokenizer(models.BPE())
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    bytes_.train_from_iterator(sample, trainer)
    bytes_.add_tokens([AddedToken(name, special=False) for name in NAMES[:9]])
    bytes_.add_special_tokens(["<|endoftext|>"])
    files = []
    for name, each in (("words", plain), ("unigram", unigram), ("bytes", bytes_)):
        (folder / name).mkdir()
        files.append(folder / name / "tokenizer.json")
        each.save(str(files[-1]))
    return files
