"""Official weights and vocabularies in Hugging Face folders."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glm_dist.config.schema import Dtype, TokenizerKind
from glm_dist.convert.huggingface import read_huggingface, write_huggingface
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec, open_tokenizer
from glm_dist.parallel.layout import Layout
from tests.convert.folders import FORMS, build, load_transformers, model_of, random_state
from tests.golden.reference import (
    REFERENCE,
    heads_of,
    official_stage,
    reference_files,
    stage_batch,
    tensors_under,
    with_padded_vocabulary,
)
from tests.ranks import run_ranks

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def transformers() -> Any:
    """The library."""
    return load_transformers()


def _is_whole(file: Path | None) -> bool:
    return file is None or len(list(file.parent.glob("mp_rank_*"))) == 1


WHOLE = [
    each
    for each in reference_files("checkpoint/*/*/mp_rank_00_model_states.pt")
    if _is_whole(each.values[0])
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("file", WHOLE)
def test_official_weights_are_read_from_every_form(tmp_path: Path, file: Path, form: str) -> None:
    state = torch.load(file, weights_only=True)["module"]
    hidden_size = state["word_embeddings.weight"].shape[1]

    source = read_huggingface(build(tmp_path, state, form, heads=heads_of(file, hidden_size)))

    assert dict(source.tensors).keys() == state.keys()
    for name, tensor in state.items():
        assert source.tensors[name].dtype == tensor.dtype
        assert torch.equal(source.tensors[name], tensor)


def our_logits(file: Path) -> np.ndarray:
    """Logits [b, s, v] of our stage with the weights of a file."""
    arrays = dict(np.load(file))
    state, inputs = tensors_under(arrays, "w/"), tensors_under(arrays, "in/")
    heads = heads_of(file, state["word_embeddings.weight"].shape[1])
    stage = official_stage(state, num_attention_heads=heads, layout=Layout()).eval()
    batch = stage_batch(
        tokens=inputs["tokens"],
        position_ids=inputs["position_ids"],
        prefix_length=inputs["attention_mask"],
        targets=inputs["targets"],
        loss_mask=torch.ones_like(inputs["loss_mask"]),
    )
    b, s = batch.tokens.shape
    with torch.no_grad():
        logits: np.ndarray = stage.logits(batch).view(s, b, -1).transpose(0, 1).numpy()
    return logits.copy()


@pytest.mark.parametrize("file", reference_files("model/*.npz"))
def test_logits_in_transformers_are_the_official_ones(
    transformers: Any, tmp_path: Path, file: Path
) -> None:
    arrays = dict(np.load(file))
    state = with_padded_vocabulary(tensors_under(arrays, "w/"))
    heads = heads_of(file, state["word_embeddings.weight"].shape[1])
    model = model_of(state, heads)
    write_huggingface(tmp_path / "out", state, model=model, tokenizer=None, dtype=Dtype.fp32)
    inputs = tensors_under(arrays, "in/")

    automatic = transformers.AutoModelForSeq2SeqLM
    opened = automatic.from_pretrained(tmp_path / "out", trust_remote_code=True)
    with torch.no_grad():
        found = opened(
            inputs["tokens"].long(),
            position_ids=inputs["position_ids"].long(),
            attention_mask=inputs["attention_mask"].long(),
        ).logits.numpy()

    vocab_size = arrays["logits"].shape[-1]
    np.testing.assert_allclose(found[..., :vocab_size], arrays["logits"], atol=1e-5, rtol=0)
    (ours,) = run_ranks(our_logits, file, world_size=1)
    np.testing.assert_allclose(found[..., :vocab_size], ours, atol=1e-5, rtol=0)


def _strings(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from _strings(value)
    elif isinstance(content, list):
        for value in content:
            yield from _strings(value)


def _roberta(folder: Path) -> Path:
    """RoBERTa's vocabulary of GPT-2's: the same pieces and merges with other ids."""
    (file,), (merges,) = (sorted(REFERENCE.glob(f"tokenizers/*gpt2-{n}")) for n in NAMES)
    pieces = [piece for piece in json.loads(file.read_text()) if piece != "<|endoftext|>"]
    fillers = ["<|endoftext|>", "madeupword0000", "madeupword0001", "madeupword0002"]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *pieces, *fillers, "<mask>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({p: n for n, p in enumerate(pieces)}))
    (folder / "merges.txt").write_bytes(merges.read_bytes())
    return folder


NAMES = ("vocab.json", "merges.txt")
SPECS = {
    "bert": (TokenizerKind.bert, "*vocab.txt"),
    "gpt2": (TokenizerKind.gpt2, "*gpt2-vocab.json"),
    "roberta": (TokenizerKind.roberta, "*gpt2-vocab.json"),
    "chinese": (TokenizerKind.chinese_sentencepiece, "*.model"),
    "chinese 10b": (TokenizerKind.chinese_sentencepiece, "*.model"),
}


@pytest.mark.parametrize("name", SPECS)
def test_tokenizers_in_transformers_give_our_ids(
    transformers: Any, tmp_path: Path, name: str
) -> None:
    kind, pattern = SPECS[name]
    files = sorted(REFERENCE.glob(f"tokenizers/{pattern}"))
    if not files:
        pytest.skip(f"no tokenizers/{pattern} in GLM_REFERENCE_DIR ({REFERENCE})")
    place = _roberta(tmp_path / "words") if name == "roberta" else files[0]
    spec = TokenizerSpec(kind, str(place), fixed_task_masks=name != "chinese 10b")
    rows = -(-open_tokenizer(spec).vocab_size // 128) * 128
    state = random_state(rows=rows, hidden_size=4, num_layers=1)
    write_huggingface(tmp_path / "out", state, model=model_of(state, 2), tokenizer=spec)
    texts = [f"{text} [MASK] and [sMASK]。" for text in _texts()]

    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)

    # The export gives the mask of GLM-10B-Chinese an id of its own.
    ours = open_tokenizer(replace(spec, fixed_task_masks=True))
    special = ours.special
    expected = [[special.cls, *ours.encode(text), special.eos] for text in texts]
    assert theirs(texts)["input_ids"] == expected
    assert theirs.batch_decode(expected) == [ours.decode(ids) for ids in expected]
    assert theirs.gmask_token_id == special.gmask
    found = read_huggingface(tmp_path / "out").tokenizer
    assert found is not None
    assert open_tokenizer(found.spec).special == special


def _texts() -> list[str]:
    """Texts of the official tasks, and a few that are hard to encode."""
    files = [REFERENCE / "finetune/examples.json"]
    texts = [t for file in files if file.exists() for t in _strings(json.loads(file.read_text()))]
    return [*texts, "naïve CAFÉ\t ½ 凯旋门位于意大利米兰市古城堡旁。", "\u2028 \x85 🙂 don't"]
