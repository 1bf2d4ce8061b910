"""Filling blanks, against whole forward passes without a cache."""

from dataclasses import replace
from datetime import timedelta

import pytest
import torch

from glm_dist.config.schema import Dtype, ModelConfig
from glm_dist.data.tokenizer.special_tokens import SpecialTokens
from glm_dist.errors import DataError
from glm_dist.generate.beam import beam_search
from glm_dist.generate.candidates import find_candidates
from glm_dist.generate.infill import Rules, fill_blanks
from glm_dist.generate.part_b import LeftToRight, PartB
from glm_dist.generate.prompt import Prompt
from glm_dist.generate.sampling import GREEDY, BeamSearch, GenerationOptions, Sampling
from glm_dist.model.batch import StageBatch
from glm_dist.model.parameters import initialize
from glm_dist.model.stage import GLMStage
from glm_dist.parallel.groups import build_groups
from glm_dist.parallel.layout import Layout
from tests.ranks import run_ranks
from tests.train.grid import ARCHITECTURE, rank_device

SPECIAL = SpecialTokens(
    pad=0, eos=0, cls=1, mask=2, gmask=3, smask=4, sop=5, eop=6, unk=7, sep=8, block_mask=9
)
STRUCTURE = {0, 1, 2, 3, 4, 5}
MODEL = ModelConfig(
    num_layers=2,
    hidden_size=32,
    num_attention_heads=2,
    max_position_embeddings=31,
    hidden_dropout=0.1,
    attention_dropout=0.1,
    layernorm_epsilon=1e-5,
    init_std=0.5,  # large, so that the model has opinions
)
CONTEXT = [1, 20, 21, 2, 22, 3, 23, 4]
MASK_INDICES = [3, 5, 7]


def model(options: dict[str, object] | None = None, *, layout: Layout | None = None) -> GLMStage:
    """A random model; this rank's stage of it."""
    stage = GLMStage(
        replace(MODEL, **(options or {})),
        vocab_size=100,
        padded_vocab_size=128,
        dtype=Dtype.fp32,
        groups=build_groups(layout or Layout(), timedelta(seconds=60)),
        device=rank_device(),
    )
    initialize(stage.shards(), seed=3)
    return stage.eval()


PROMPT = Prompt(CONTEXT, MASK_INDICES, [])


def rules(sampling: Sampling = GREEDY, **options: object) -> Rules:
    """Answers of up to 5 tokens of text."""
    arguments = {"max_tokens": 5} | options
    return Rules(GenerationOptions(sampling=sampling, **arguments), sorted(STRUCTURE))


def fill(
    stage: GLMStage, sampling: Sampling = GREEDY, *, max_position: int = 31, **options: object
) -> list[list[int]]:
    """Fill CONTEXT with the defaults of this file."""
    part_b = PartB(SPECIAL, max_position)
    return fill_blanks(stage, [PROMPT], part_b=part_b, rules=rules(sampling, **options))[0]


@torch.no_grad()
def log_probability(stage: GLMStage, answer: list[int]) -> tuple[float, torch.Tensor]:
    """Log-probability of an answer of the second blank, and of either end, by one forward pass."""
    part_b = [SPECIAL.sop, *answer]
    tokens, count = [*CONTEXT, *part_b], len(part_b)
    with rank_device():
        batch = StageBatch(
            tokens=torch.tensor([tokens]),
            positions=torch.tensor([[*range(len(CONTEXT)), *[MASK_INDICES[1]] * count]]),
            block_positions=torch.tensor([[0] * len(CONTEXT) + list(range(1, count + 1))]),
            prefix_length=torch.tensor([len(CONTEXT)]),
            target_index=torch.arange(len(CONTEXT), len(tokens)),
            target_ids=torch.tensor([0] * count),
        )
    logits = stage.logits(batch)
    stops = [SPECIAL.eos, SPECIAL.eop]
    logits[:, [t for t in STRUCTURE if t not in stops]] = float("-inf")
    scores = logits.log_softmax(dim=1)
    return float(scores[range(len(answer)), answer].sum()), scores[-1, stops]


def check_candidates() -> None:
    stage = model()
    part_b = PartB(SPECIAL, 31)
    found = find_candidates(
        stage, PROMPT, part_b=part_b, rules=rules(max_tokens=2), blank=1, count=6
    )

    # With 100 tokens and 16 beams, all answers of up to one token are looked at.
    def whole(answer: tuple[int, ...]) -> float:
        score, ends = log_probability(stage, list(answer))
        return score + float(ends.logsumexp(dim=0))

    short = {(): whole(())} | {(t,): whole((t,)) for t in range(100) if t not in STRUCTURE}
    for answer in found:
        expected = whole(answer.tokens)
        assert answer.log_probability == pytest.approx(expected, abs=1e-4)
    in_order = [answer.log_probability for answer in found]
    assert in_order == sorted(in_order, reverse=True)
    assert len({answer.tokens for answer in found}) == len(found) == 6
    missed = [a for a in short if a not in {answer.tokens for answer in found}]
    assert max(short[answer] for answer in missed) < in_order[-1]
    assert any(len(answer.tokens) == 2 for answer in found)


@torch.no_grad()
def without_cache(stage: GLMStage) -> list[list[int]]:
    """Greedy answers where every token costs a whole forward pass."""
    tokens, positions, blocks = list(CONTEXT), list(range(len(CONTEXT))), [0] * len(CONTEXT)
    answers = []
    for place in MASK_INDICES:
        answer: list[int] = []
        last = SPECIAL.sop
        for block in range(1, 6):
            tokens, positions, blocks = [*tokens, last], [*positions, place], [*blocks, block]
            with rank_device():
                batch = StageBatch(
                    tokens=torch.tensor([tokens]),
                    positions=torch.tensor([positions]),
                    block_positions=torch.tensor([blocks]),
                    prefix_length=torch.tensor([len(CONTEXT)]),
                    target_index=torch.tensor([len(tokens) - 1]),
                    target_ids=torch.tensor([0]),
                )
            logits = stage.logits(batch)[0]
            logits[[t for t in STRUCTURE if t != SPECIAL.eos]] = float("-inf")
            last = int(logits.argmax())
            if last in (SPECIAL.eop, SPECIAL.eos):
                break
            answer.append(last)
        answers.append(answer)
    return answers


def check_cache(options: dict[str, object]) -> None:
    stage = model(options)
    blanks = fill(stage)
    assert blanks == without_cache(stage)
    assert fill(stage) == blanks, "a second call must not see the first one's cache"


def check_draws() -> None:
    stage = model()
    sampling = Sampling(temperature=1.5, top_k=0)
    drawn = [fill(stage, sampling, seed=seed) for seed in range(20)]
    assert fill(stage, sampling, seed=4) == drawn[4]
    assert fill(stage, sampling, seed=2**64 + 4) == drawn[4]
    assert any(drawn[0] != other for other in drawn)
    for blanks in drawn:
        for tokens in blanks:
            assert len(tokens) <= 5
            assert not STRUCTURE & set(tokens)
            assert max(tokens, default=0) < 100


def texts() -> list[Prompt]:
    """Texts of different lengths with up to four blanks, one without any."""
    generator = torch.Generator().manual_seed(0)
    prompts = []
    for number in range(16):
        length = int(torch.randint(1, 14, (1,), generator=generator))
        tokens = torch.randint(10, 100, (length,), generator=generator).tolist()
        masks = sorted({n for n in (0, 3, 7, 11) if n < length and number % 7})
        for mask in masks:
            tokens[mask] = SPECIAL.mask
        prompts.append(Prompt(tokens, masks, []))
    return prompts


def check_batches(options: dict[str, object]) -> None:
    stage, part_b = model(options), PartB(SPECIAL, 31)
    prompts = texts()
    for sampling in (GREEDY, Sampling(temperature=1.5, top_k=20, repetition_penalty=1.3)):
        together = fill_blanks(stage, prompts, part_b=part_b, rules=rules(sampling))
        alone = [
            fill_blanks(stage, [prompt], part_b=part_b, rules=rules(sampling))[0]
            for prompt in prompts
        ]
        assert together == alone
        assert [len(blanks) for blanks in together] == [len(p.mask_indices) for p in prompts]
    search = BeamSearch(beams=3, length_penalty=0.7, no_repeat_ngram=2)
    found = beam_search(stage, prompts, part_b=part_b, rules=rules(), search=search)
    assert found == [
        beam_search(stage, [prompt], part_b=part_b, rules=rules(), search=search)[0]
        for prompt in prompts
    ]
    narrow = BeamSearch(beams=1, length_penalty=0.0)
    greedy = fill_blanks(stage, prompts, part_b=part_b, rules=rules())
    assert beam_search(stage, prompts, part_b=part_b, rules=rules(), search=narrow) == greedy


@torch.no_grad()
def continued_by_whole_passes(stage: GLMStage, context: list[int], count: int) -> list[int]:
    """Greedy continuation of a causal model, a whole forward pass for each token."""
    tokens = list(context)
    for _ in range(count):
        batch = StageBatch(
            tokens=torch.tensor([tokens]),
            positions=torch.arange(len(tokens)).unsqueeze(0),
            block_positions=torch.zeros(1, len(tokens), dtype=torch.int64),
            prefix_length=torch.tensor([0]),
            target_index=torch.tensor([len(tokens) - 1]),
            target_ids=torch.tensor([0]),
        )
        logits = stage.logits(batch)[0]
        logits[[t for t in STRUCTURE if t != SPECIAL.eos]] = float("-inf")
        tokens.append(int(logits.argmax()))
        if tokens[-1] == SPECIAL.eos:
            tokens.pop()
            break
    return tokens[len(context) :]


def check_continuations() -> None:
    stage, part_b = model(), LeftToRight(SPECIAL, 31)
    contexts = [[1], [1, 20], [1, *range(30, 42)], [1, 50, 51, 52], [1, *range(60, 88)]]
    prompts = [Prompt(context, [len(context) - 1], []) for context in contexts]
    found = fill_blanks(stage, prompts, part_b=part_b, rules=rules(max_tokens=6))
    for context, (answer,) in zip(contexts, found, strict=True):
        count = min(6, 32 - len(context))
        assert answer == continued_by_whole_passes(stage, context, count)
    (longest,) = fill_blanks(
        stage, prompts[-1:], part_b=part_b, rules=rules(max_tokens=9, min_tokens=9)
    )[0]
    assert len(longest) == 3, "29 tokens of context leave 3 of the 32 positions"


def best_answers(stage: GLMStage, *, longest: int, penalty: float) -> list[tuple[int, ...]]:
    """All answers of the second blank by value, the best first."""
    tokens = [token for token in range(100) if token not in STRUCTURE]
    answers = [(a,) for a in tokens] + [(a, b) for a in tokens for b in tokens]
    values = {}
    for answer in [(), *answers]:
        is_cut = len(answer) == longest
        score, ends = log_probability(stage, list(answer))
        score += 0.0 if is_cut else float(ends.max())
        values[answer] = score / max(1, len(answer)) ** penalty
    return sorted(values, key=lambda answer: -values[answer])


def check_beams() -> None:
    stage, part_b = model(), PartB(SPECIAL, 31)
    prompt = Prompt(CONTEXT, MASK_INDICES[1:2], [])
    for penalty in (0.0, 1.0):
        # As many beams as tokens, and answers of at most two: nothing is missed.
        search = BeamSearch(beams=94, length_penalty=penalty)
        found = beam_search(
            stage, [prompt], part_b=part_b, rules=rules(max_tokens=2), search=search
        )
        assert tuple(found[0][0]) == best_answers(stage, longest=2, penalty=penalty)[0]
    search = BeamSearch(beams=4, no_repeat_ngram=1)
    (answer,) = beam_search(
        stage, [prompt], part_b=part_b, rules=rules(max_tokens=9, min_tokens=9), search=search
    )[0]
    assert len(answer) == 9 == len(set(answer))


def check_lengths_and_repetition() -> None:
    stage = model()
    assert [len(tokens) for tokens in fill(stage, min_tokens=5)] == [5, 5, 5]
    strict = Sampling(temperature=0.0, repetition_penalty=1e6)
    for tokens in fill(stage, strict, max_tokens=8, min_tokens=8):
        assert len(set(tokens)) == 8
        assert not set(tokens) & set(CONTEXT)


def check_length() -> None:
    with pytest.raises(DataError, match="8 tokens"):
        fill(model(), max_position=6)
    blanks = fill(model(), max_tokens=50, max_position=7)
    assert all(len(tokens) <= 6 for tokens in blanks), "block positions end at 7"


@pytest.mark.parametrize("architecture", [(), ("rotary_2d",), tuple(ARCHITECTURE)])
def test_cached_answers_equal_uncached_ones(architecture: tuple[str, ...]) -> None:
    options = {key: value for name in architecture for key, value in ARCHITECTURE[name].items()}
    run_ranks(check_cache, options, world_size=1)


@pytest.mark.parametrize("architecture", [(), ("rotary_2d",)])
def test_texts_side_by_side_get_the_answers_they_get_alone(architecture: tuple[str, ...]) -> None:
    options = {key: value for name in architecture for key, value in ARCHITECTURE[name].items()}
    run_ranks(check_batches, options, world_size=1)


@pytest.mark.slow
def test_enough_beams_find_the_best_of_all_answers() -> None:
    run_ranks(check_beams, world_size=1)


def test_a_causal_model_continues_texts_side_by_side() -> None:
    run_ranks(check_continuations, world_size=1)


def test_answers_keep_their_shortest_length_and_may_not_repeat() -> None:
    run_ranks(check_lengths_and_repetition, world_size=1)


def test_candidates_are_the_likeliest_answers_with_their_probabilities() -> None:
    run_ranks(check_candidates, world_size=1)


def test_draws_repeat_and_contain_text_only() -> None:
    run_ranks(check_draws, world_size=1)


def test_texts_and_answers_stay_within_the_positions() -> None:
    run_ranks(check_length, world_size=1)
