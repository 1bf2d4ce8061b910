"""Filling blanks, against whole forward passes without a cache."""

from dataclasses import replace
from datetime import timedelta

import pytest
import torch

from glm_dist.config.schema import Dtype, ModelConfig
from glm_dist.data.tokenizer.special_tokens import SpecialTokens
from glm_dist.errors import DataError
from glm_dist.generate.candidates import find_candidates
from glm_dist.generate.infill import Blank, PartB, fill_blanks
from glm_dist.generate.sampling import GREEDY, Sampling
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


def model(options: dict[str, object] | None = None) -> GLMStage:
    """A random whole model in one process."""
    stage = GLMStage(
        replace(MODEL, **(options or {})),
        vocab_size=100,
        padded_vocab_size=128,
        dtype=Dtype.fp32,
        groups=build_groups(Layout(), timedelta(seconds=60)),
        device=rank_device(),
    )
    initialize(stage.shards(), seed=3)
    return stage.eval()


def fill(stage: GLMStage, sampling: Sampling = GREEDY, **changes: int) -> list[Blank]:
    """Fill CONTEXT with the defaults of this file."""
    arguments = {"max_tokens": 5, "max_position": 31, "seed": 0} | changes
    return fill_blanks(
        stage,
        CONTEXT,
        part_b=PartB(SPECIAL, arguments.pop("max_position")),
        mask_indices=MASK_INDICES,
        sampling=sampling,
        banned=sorted(STRUCTURE),
        **arguments,
    )


@torch.no_grad()
def log_probability(stage: GLMStage, answer: list[int]) -> float:
    """Log-probability of an answer of the second blank and its end, by one whole forward pass."""
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
    return float(scores[range(len(answer)), answer].sum() + scores[-1, stops].logsumexp(dim=0))


def check_candidates() -> None:
    stage = model()
    found = find_candidates(
        stage,
        CONTEXT,
        part_b=PartB(SPECIAL, 31),
        mask_indices=MASK_INDICES,
        blank=1,
        count=6,
        max_tokens=2,
        banned=sorted(STRUCTURE),
    )
    # With 100 tokens and 16 beams, all answers of up to one token are looked at.
    short = {(): log_probability(stage, [])}
    short |= {(t,): log_probability(stage, [t]) for t in range(100) if t not in STRUCTURE}
    for answer in found:
        expected = log_probability(stage, list(answer.tokens))
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
    assert [b.mask_index for b in blanks] == MASK_INDICES
    assert [b.tokens for b in blanks] == without_cache(stage)
    assert fill(stage) == blanks, "a second call must not see the first one's cache"


def check_draws() -> None:
    stage = model()
    sampling = Sampling(temperature=1.5, top_k=0)
    drawn = [fill(stage, sampling, seed=seed) for seed in range(20)]
    assert fill(stage, sampling, seed=4) == drawn[4]
    assert fill(stage, sampling, seed=2**64 + 4) == drawn[4]
    assert any(drawn[0] != other for other in drawn)
    for blanks in drawn:
        for blank in blanks:
            assert len(blank.tokens) <= 5
            assert not STRUCTURE & set(blank.tokens)
            assert max(blank.tokens, default=0) < 100


def check_length() -> None:
    with pytest.raises(DataError, match="8 tokens"):
        fill(model(), max_position=6)
    blanks = fill(model(), max_tokens=50, max_position=7)
    assert all(len(blank.tokens) <= 6 for blank in blanks), "block positions end at 7"


@pytest.mark.parametrize("architecture", [(), ("rotary_2d",), tuple(ARCHITECTURE)])
def test_cached_answers_equal_uncached_ones(architecture: tuple[str, ...]) -> None:
    options = {key: value for name in architecture for key, value in ARCHITECTURE[name].items()}
    run_ranks(check_cache, options, world_size=1)


def test_candidates_are_the_likeliest_answers_with_their_probabilities() -> None:
    run_ranks(check_candidates, world_size=1)


def test_draws_repeat_and_contain_text_only() -> None:
    run_ranks(check_draws, world_size=1)


def test_texts_and_answers_stay_within_the_positions() -> None:
    run_ranks(check_length, world_size=1)
