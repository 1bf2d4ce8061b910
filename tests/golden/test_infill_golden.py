"""Greedy answers of the official interactive generation, and its beam search."""

import json
from pathlib import Path

import numpy as np
import pytest

from glm_dist.data.tokenizer.special_tokens import SpecialTokens
from glm_dist.generate.beam import beam_search
from glm_dist.generate.infill import Rules, fill_blanks
from glm_dist.generate.part_b import PartB
from glm_dist.generate.prompt import Prompt
from glm_dist.generate.sampling import BeamSearch, GenerationOptions
from glm_dist.parallel.layout import Layout
from tests.golden.reference import official_stage, reference_files, tensors_under
from tests.ranks import run_ranks

pytestmark = pytest.mark.golden

# The tiny model's ids, read off gen/context and gen/greedy: masks 5 6 7, sop 8, cls 4.
SPECIAL = SpecialTokens(
    pad=0, eos=0, cls=4, mask=5, gmask=6, smask=7, sop=8, eop=9, unk=1, sep=2, block_mask=3
)
NUM_HEADS = 4


def answers_of(file: Path) -> tuple[list[list[int]], list[list[int]]]:
    """Ours and the official answers, blank by blank."""
    arrays = dict(np.load(file))
    stage = official_stage(
        tensors_under(arrays, "w/"), num_attention_heads=NUM_HEADS, layout=Layout()
    )
    context, whole = arrays["gen/context"].tolist(), arrays["gen/greedy"][0].tolist()
    expected: list[list[int]] = []
    for token in whole[len(context) :]:
        if token == SPECIAL.sop:
            expected.append([])
        else:
            expected[-1].append(token)
    max_position = len(arrays["w/transformer.position_embeddings.weight"]) - 1
    masks = (SPECIAL.mask, SPECIAL.gmask, SPECIAL.smask)
    prompt = Prompt(context, [n for n, token in enumerate(context) if token in masks], [])
    rules = Rules(GenerationOptions(max_tokens=max(len(answer) for answer in expected)))
    part_b = PartB(SPECIAL, max_position)
    (found,) = fill_blanks(stage.eval(), [prompt], part_b=part_b, rules=rules)
    return found, expected


@pytest.mark.parametrize("file", reference_files("finetune/heads.npz"))
def test_greedy_infilling_of_several_blanks_equals_the_official_answers(file: Path) -> None:
    found, expected = run_ranks(answers_of, file, world_size=1)[0]
    assert found == expected


def beams_of(file: Path) -> list[tuple[list[list[int]], list[list[int]]]]:
    """Ours and the official answers of both searches."""
    arrays = dict(np.load(file))
    stage = official_stage(
        tensors_under(arrays, "w/"), num_attention_heads=NUM_HEADS, layout=Layout()
    )
    max_position = len(arrays["w/transformer.position_embeddings.weight"]) - 1
    inputs = zip(arrays["gen/beam_input"], arrays["gen/beam_position"], strict=True)
    prompts = [Prompt(ids[:-1].tolist(), [int(places[0][-1])], []) for ids, places in inputs]
    pairs = []
    for name, min_tokens, ngram in (("gen/beam", 0, 0), ("gen/beam_minlen_ngram", 6, 2)):
        expected = [json.loads(str(answer)) for answer in arrays[name]]
        options = GenerationOptions(max_tokens=max(map(len, expected)), min_tokens=min_tokens)
        found = beam_search(
            stage.eval(),
            prompts,
            part_b=PartB(SPECIAL, max_position),
            rules=Rules(options),
            search=BeamSearch(beams=3, no_repeat_ngram=ngram),
        )
        pairs.append(([answer for (answer,) in found], expected))
    return pairs


@pytest.mark.parametrize("file", reference_files("finetune/heads.npz"))
def test_beam_search_equals_the_official_answers(file: Path) -> None:
    for found, expected in run_ranks(beams_of, file, world_size=1)[0]:
        assert found == expected
