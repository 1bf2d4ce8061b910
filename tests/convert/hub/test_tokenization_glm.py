"""Exported tokenizers give our ids and our texts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glm_dist.config.schema import TokenizerKind
from glm_dist.convert.huggingface import write_huggingface
from glm_dist.data.tokenizer.tokenizer import Tokenizer, TokenizerSpec, open_tokenizer
from tests.convert.folders import load_transformers, model_of, random_state, vocabulary

TEXTS = [
    "The cat sat  on a mat.",
    "the [MASK] sat, [sMASK]  and [gMASK]",
    " a  [MASK]a cat [MASK] \n",
    "naïve Ünïcode 凯旋门 𝛂\t<s></s><mask>",
    "[CLS][SEP] a <|endoftext|><|startofpiece|>cat<|endofpiece|>[UNK][PAD][dBLOCK]",
    "[mask] [MASK ] [MASK1]",
    "",
    "   ",
]


@pytest.fixture(scope="module")
def transformers() -> Any:
    """The library."""
    return load_transformers()


def export(folder: Path, spec: TokenizerSpec) -> Path:
    """A model around a tokenizer."""
    rows = -(-open_tokenizer(spec).vocab_size // 128) * 128
    state = random_state(rows=rows, hidden_size=4, num_layers=1)
    write_huggingface(folder, state, model=model_of(state, 2), tokenizer=spec)
    return folder


def check_same(theirs: Any, ours: Tokenizer, texts: list[str]) -> None:
    """Compare ids, decoded texts, and the forms in which texts can be passed."""
    special = ours.special
    whole = []
    for text in texts:
        ids = ours.encode(text)
        ends = [] if ids[-1:] == [special.gmask] else [special.eos]
        whole.append([special.cls, *ids, *ends])
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(whole[-1]) == ours.decode(whole[-1])
        plain = theirs(text, add_special_tokens=False, split_special_tokens=True)
        assert plain["input_ids"] == ours.encode_document(text)
    assert theirs(texts)["input_ids"] == whole
    longest = max(map(len, whole))
    padded = theirs(texts, padding=True)
    for ids, mask, row in zip(padded["input_ids"], padded["attention_mask"], whole, strict=True):
        assert ids == row + [special.pad] * (longest - len(row))
        assert mask == [1] * len(row) + [0] * (longest - len(row))


@pytest.mark.parametrize("task_masks", [True, False])
@pytest.mark.parametrize("kind", TokenizerKind, ids=lambda kind: kind.value)
def test_ids_and_texts_are_ours(
    transformers: Any, tmp_path: Path, kind: TokenizerKind, task_masks: bool
) -> None:
    spec = replace(vocabulary(tmp_path / "words", kind), task_masks=task_masks)
    ours, special = open_tokenizer(spec), open_tokenizer(spec).special
    folder = export(tmp_path / "out", spec)

    theirs = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

    check_same(theirs, ours, TEXTS)
    assert len(theirs) <= ours.vocab_size
    assert (theirs.pad_token_id, theirs.eos_token_id) == (special.pad, special.eos)
    assert (theirs.cls_token_id, theirs.sep_token_id) == (special.cls, special.sep)
    assert (theirs.sop_token_id, theirs.eop_token_id) == (special.sop, special.eop)
    assert set(theirs.mask_token_ids) == special.masks
    if task_masks:
        assert (theirs.gmask_token_id, theirs.smask_token_id) == (special.gmask, special.smask)
    else:
        with pytest.raises(NotImplementedError, match=r"write \[MASK\]"):
            _ = theirs.gmask_token_id
    everything = [special.cls, *ours.encode("the cat [MASK]"), special.sop, special.eop]
    assert theirs.decode(everything, skip_special_tokens=True).strip() == ours.decode(
        ours.encode("the cat")
    )
    cut = theirs("the cat sat on a mat", truncation=True, max_length=4)["input_ids"]
    assert cut == [special.cls, *ours.encode("the cat sat on a mat")[-2:], special.eos]


def test_pairs_have_a_separator_and_added_tokens_stay_whole(
    transformers: Any, tmp_path: Path
) -> None:
    spec = vocabulary(tmp_path / "words", TokenizerKind.gpt2)
    ours, special = open_tokenizer(spec), open_tokenizer(spec).special
    folder = export(tmp_path / "out", spec)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

    pair = theirs("a cat", " at")["input_ids"]
    theirs.add_tokens(["<new>"])

    a, b = ours.encode("a cat"), ours.encode(" at")
    assert pair == [special.cls, *a, special.sep, *b, special.eos]
    assert theirs("a cat<new> at", add_special_tokens=False)["input_ids"] == [
        *a,
        ours.vocab_size,
        *b,
    ]
