"""Exported folders in transformers: weights, answers and scores are those of our stage."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from glm_dist.config.schema import Dtype
from glm_dist.convert.huggingface import read_huggingface, write_huggingface
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec, open_tokenizer
from glm_dist.generate.complete import not_text
from glm_dist.generate.infill import PartB, Rules, fill_blanks
from glm_dist.generate.prompt import Prompt
from glm_dist.generate.sampling import GenerationOptions
from glm_dist.model.stage import GLMStage
from glm_dist.parallel.layout import Layout
from tests.convert.folders import bert_vocabulary, load_transformers, model_of, random_state
from tests.golden.reference import official_stage, stage_batch
from tests.ranks import run_ranks

HEADS = 4
TEXTS = [
    "the cat [MASK] on a mat .",
    "[sMASK] sat and saw w3 w4",
    "one red cat , the red w9 [MASK] w2 w5 w7 ? [MASK]",
    "w7 w8 [gMASK]",
]
CHOICES = [["sat", "w1 w2 w3", "saw ."], ["red", "the w4 one cats"]]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Weights, large enough for answers that vary."""
    return random_state(rows=128, std=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, state: dict[str, torch.Tensor]) -> Path:
    """Their export, with a tokenizer, in shards."""
    base = tmp_path_factory.mktemp("export")
    spec = bert_vocabulary(base, count=120)
    write_huggingface(
        base / "glm",
        state,
        model=model_of(state, HEADS),
        tokenizer=spec,
        dtype=Dtype.fp32,
        max_shard_bytes=20_000,
    )
    return base / "glm"


@pytest.fixture(scope="module")
def transformers() -> Any:
    """The library."""
    return load_transformers()


def stage_of(folder: Path) -> tuple[GLMStage, TokenizerSpec]:
    """Our model of a folder, in a rank."""
    source = read_huggingface(folder)
    stage = official_stage(dict(source.tensors), num_attention_heads=HEADS, layout=Layout())
    assert source.tokenizer is not None
    return stage.eval(), source.tokenizer.spec


def our_answers(folder: Path, texts: list[str], max_tokens: int) -> list[list[int]]:
    """Answer of the first blank of each text."""
    stage, spec = stage_of(folder)
    tokenizer = open_tokenizer(spec)
    special = tokenizer.special
    prompts = []
    for text in texts:
        body = tokenizer.encode(text)
        tokens = [special.cls, *body, *([] if body[-1] == special.gmask else [special.eos])]
        blank = next(n for n, token in enumerate(tokens) if token in special.masks)
        prompts.append(Prompt(tokens, [blank], []))
    padding = range(tokenizer.vocab_size, stage.vocab_size)  # a run's own stage has no such logits
    banned = [*not_text(special, tokenizer.vocab_size), *padding]
    rules = Rules(GenerationOptions(max_tokens=max_tokens), banned)
    part_b = PartB(special, read_huggingface(folder).model.max_position_embeddings)
    return [answer for (answer,) in fill_blanks(stage, prompts, part_b=part_b, rules=rules)]


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_answers_are_ours(transformers: Any, folder: Path, use_cache: bool) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    encoded = tokenizer(TEXTS, return_tensors="pt", padding=True)
    inputs = tokenizer.build_inputs_for_generation(encoded, max_gen_length=12)
    length = inputs["input_ids"].shape[1]

    written = model.generate(**inputs, max_new_tokens=10, use_cache=use_cache)

    answers = []
    for row in written[:, length:].tolist():
        stops = [n for n, token in enumerate(row) if token in model.generation_config.eos_token_id]
        answers.append(row[: stops[0]] if stops else row)
    (expected,) = run_ranks(our_answers, folder, TEXTS, 10, world_size=1)
    assert answers == expected
    assert len({token for answer in answers for token in answer}) > 8, "too plain a comparison"


def our_logits(folder: Path, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits at all inputs [b, s, v]."""
    stage, _ = stage_of(folder)
    everywhere = torch.ones_like(batch["tokens"])
    rows = stage_batch(**batch, targets=everywhere, loss_mask=everywhere)
    with torch.no_grad():
        logits = stage.logits(rows)
    b, s = batch["tokens"].shape
    return logits.view(s, b, -1).transpose(0, 1).contiguous()


def test_logits_are_those_of_our_stage(transformers: Any, folder: Path) -> None:
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    base = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
    tokens = torch.randint(124, (3, 14), generator=torch.Generator().manual_seed(2))
    prefix = torch.tensor([5, 9, 14])
    positions = torch.stack([torch.arange(14).clamp(max=6), (torch.arange(14) - 4).clamp(min=0)])
    batch = {"tokens": tokens, "position_ids": positions.expand(3, 2, 14), "prefix_length": prefix}

    with torch.no_grad():
        named = {"position_ids": batch["position_ids"], "attention_mask": prefix}
        found = model(tokens, **named).logits
        order = torch.arange(14)
        mask = (order <= order[:, None]) | (order < prefix[:, None, None])
        explicit = model(tokens, batch["position_ids"], mask[:, None].long()).logits
        hidden = base(tokens, **named).last_hidden_state
        row, places = tokens[:1], batch["position_ids"][:1]
        read = model(row[:, :5], places[..., :5], prefix[:1], use_cache=True)
        past = read.get("cache", read.get("past_key_values"))  # the name depends on the release
        rest = model(row[:, 5:], places[..., 5:], past_key_values=past).logits

    (expected,) = run_ranks(our_logits, folder, batch, world_size=1)
    assert (found[..., : expected.shape[-1]] - expected).abs().max() <= 1e-5
    assert torch.equal(explicit, found)
    assert (rest - found[:1, 5:]).abs().max() <= 1e-5
    assert (hidden @ model.glm.word_embeddings.weight.t() - found).abs().max() <= 1e-5


def our_scores(folder: Path, texts: list[str], choices: list[list[str]]) -> list[list[float]]:
    """Sum of log-probabilities of each candidate, in a row of its own."""
    stage, spec = stage_of(folder)
    tokenizer = open_tokenizer(spec)
    special = tokenizer.special
    scores = []
    for text, candidates in zip(texts, choices, strict=True):
        context = [special.cls, *tokenizer.encode(text), special.eos]
        place = context.index(special.mask)
        scores.append([])
        for candidate in candidates:
            answer = tokenizer.encode(candidate)
            k, n = len(answer), len(context)
            ids = torch.tensor([[*context, special.sop, *answer[:-1]]])
            first = torch.tensor([*range(n), *[place] * k])
            second = torch.tensor([*[0] * n, *range(1, k + 1)])
            batch = stage_batch(
                tokens=ids,
                position_ids=torch.stack([first, second])[None],
                prefix_length=torch.tensor([n]),
                targets=torch.tensor([[*[0] * n, *answer]]),
                loss_mask=torch.tensor([[*[0] * n, *[1] * k]]),
            )
            with torch.no_grad():
                probabilities = torch.softmax(stage.logits(batch), -1)
            scores[-1].append(float(sum(probabilities[i, t].log() for i, t in enumerate(answer))))
    return scores


def test_scores_of_choices_are_those_of_rows_of_their_own(transformers: Any, folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    automatic = transformers.AutoModelForMultipleChoice
    model = automatic.from_pretrained(folder, trust_remote_code=True)
    texts = [TEXTS[0], TEXTS[2]]
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    inputs = tokenizer.build_inputs_for_multiple_choice(encoded, CHOICES)

    with torch.no_grad():
        output = model(**inputs, labels=torch.tensor([2, 1]))

    (expected,) = run_ranks(our_scores, folder, texts, CHOICES, world_size=1)
    for row, scores in zip(output.logits, expected, strict=True):
        assert row[: len(scores)].tolist() == pytest.approx(scores, abs=1e-4)
    assert output.logits[1, 2] == float("-inf")
    picked = [torch.tensor(s).log_softmax(-1)[n] for s, n in zip(expected, [2, 1], strict=True)]
    assert float(output.loss) == pytest.approx(-float(sum(picked)) / 2, abs=1e-4)


def test_targets_are_learned_behind_the_first_blank(transformers: Any, folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    sop, eop = tokenizer.sop_token_id, tokenizer.eop_token_id
    encoded = tokenizer(["the [MASK] sat", "[MASK]"], return_tensors="pt", padding=True)
    the, cat, sat = (tokenizer.convert_tokens_to_ids(word) for word in ("the", "cat", "sat"))
    targets = ["cat", "the cat sat cat cat"]

    inputs = tokenizer.build_inputs_for_generation(encoded, targets=targets, max_gen_length=4)

    # [CLS] the [MASK] sat [PAD] | sop cat 0 0, and [CLS] [MASK] [PAD] 0 0 | sop the cat sat
    assert inputs["input_ids"].tolist() == [
        [2, the, 4, sat, 0, sop, cat, 0, 0],
        [2, 4, 0, 0, 0, sop, the, cat, sat],
    ]
    assert inputs["labels"].tolist() == [
        [*[-100] * 5, cat, eop, -100, -100],
        [*[-100] * 5, the, cat, sat, cat],
    ]
    assert inputs["position_ids"].tolist() == [
        [[0, 1, 2, 3, 4, 2, 2, 2, 2], [0, 0, 0, 0, 0, 1, 2, 3, 4]],
        [[0, 1, 2, 3, 4, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 2, 3, 4]],
    ]
    # the second text's padding is hidden, its end token is not; Part A does not see the answer
    assert inputs["attention_mask"][1, 0].tolist() == [
        *[[1, 1, 1, 0, 0, 0, 0, 0, 0]] * 5,
        *([1, 1, 1, 0, 0, *[1] * n, *[0] * (4 - n)] for n in (1, 2, 3, 4)),
    ]
    output = model(**inputs)
    kept = inputs["labels"] != -100
    log_p = output.logits.log_softmax(-1)[kept]
    expected = -log_p[torch.arange(len(log_p)), inputs["labels"][kept]].mean()
    assert float(output.loss) == pytest.approx(float(expected), rel=1e-6)
    whole = tokenizer.build_inputs_for_generation(
        encoded, targets=["cat", "cat"], max_gen_length=6, padding=True
    )
    assert whole["input_ids"].shape == (2, 5 + 6)


def test_what_transformers_saves_is_read_again(
    transformers: Any, folder: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")

    source = read_huggingface(tmp_path / "again")
    opened = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path / "again", trust_remote_code=True
    )
    reopened = transformers.AutoTokenizer.from_pretrained(
        tmp_path / "again", trust_remote_code=True
    )

    assert all(torch.equal(source.tensors[name], state[name]) for name in state)
    assert source.tokenizer is not None
    assert source.tokenizer.spec.task_masks
    assert opened.generation_config.suppress_tokens == model.generation_config.suppress_tokens
    assert [reopened(text)["input_ids"] for text in TEXTS] == [
        tokenizer(text)["input_ids"] for text in TEXTS
    ]


def test_beams_and_training_work(transformers: Any, folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    encoded = tokenizer(TEXTS, return_tensors="pt", padding=True)
    inputs = tokenizer.build_inputs_for_generation(encoded, max_gen_length=8)
    cached, whole = (
        model.generate(**inputs, max_new_tokens=6, num_beams=3, use_cache=use)
        for use in (True, False)
    )
    assert torch.equal(cached, whole)

    targets = tokenizer.build_inputs_for_generation(encoded, targets=["cat"] * 4)
    model.gradient_checkpointing_enable()
    model.train()
    model(**targets).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_wrong_inputs_are_named(transformers: Any, folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    encoded = tokenizer(["the cat", "[MASK]"], return_tensors="pt", padding=True)
    with pytest.raises(ValueError, match="no mask token"):
        tokenizer.build_inputs_for_generation(encoded)
    masked = tokenizer(["[MASK]"], return_tensors="pt")
    with pytest.raises(ValueError, match="build_inputs_for_generation"):
        model.generate(**masked, max_new_tokens=2)
    inputs = tokenizer.build_inputs_for_generation(masked, max_gen_length=3)
    with pytest.raises(ValueError, match="larger max_gen_length"):
        model.generate(**inputs, max_new_tokens=5, eos_token_id=None)
    with pytest.raises(ValueError, match="no tokens"):
        tokenizer.build_inputs_for_multiple_choice(masked, ["cat", ""])


def test_the_config_says_which_activation_and_what_ends_an_answer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())

    assert config["hidden_act"] == "gelu_pytorch_tanh"
    assert generation["eos_token_id"] == [0, 121]  # [PAD], which is eos, and eop
    # [UNK] [CLS] [SEP] [MASK], sop, [gMASK] [sMASK], and rows behind the vocabulary of 124
    assert generation["suppress_tokens"] == [1, 2, 3, 4, 120, 122, 123, 124, 125, 126, 127]
