"""Names of weights that a run takes over, draws or leaves: nothing without a word."""

from dataclasses import replace
from pathlib import Path

import pytest

from glm_dist.config.parameter_specs import Constant, ParameterSpec
from glm_dist.errors import CheckpointError
from glm_dist.train.fit import Fit, fit_weights

ORIGIN = Path("runs/a")
LAYER = ParameterSpec("decoder.layers.0.weight", (4, 4), Constant(0.0), decays=True)
TABLE = replace(LAYER, name="embedding.position_embeddings.weight", shape=(9, 4))
HEAD = replace(LAYER, name="classifier.output.weight", shape=(3, 4), is_added=True)
LORA = replace(LAYER, name="decoder.layers.0.lora_a", is_added=True)


def saved(*specs: ParameterSpec) -> dict[str, tuple[int, ...]]:
    return {spec.name: spec.shape for spec in specs}


def test_parts_that_finetuning_adds_are_new_and_the_head_of_another_task_is_unused() -> None:
    two_classes = replace(HEAD, shape=(2, 4))

    found = fit_weights(saved(LAYER, two_classes), [LAYER, LORA, HEAD], origin=ORIGIN)
    without = fit_weights(saved(LAYER, HEAD), [LAYER], origin=ORIGIN)

    assert found == Fit((LAYER.name,), (), (HEAD.name, LORA.name), (HEAD.name,))
    assert without == Fit((LAYER.name,), (), (), (HEAD.name,))


def test_a_head_of_the_same_shape_is_taken_over() -> None:
    names = (HEAD.name, LAYER.name)
    assert fit_weights(saved(LAYER, HEAD), [LAYER, HEAD], origin=ORIGIN) == Fit(names, (), (), ())


def test_position_tables_grow_but_never_shrink() -> None:
    longer = replace(TABLE, shape=(11, 4))

    found = fit_weights(saved(LAYER, TABLE), [LAYER, longer], origin=ORIGIN)

    assert found == Fit((LAYER.name, TABLE.name), (TABLE.name,), (), ())
    with pytest.raises(CheckpointError, match=r"\(11, 4\) saved, \(9, 4\) here"):
        fit_weights(saved(LAYER, longer), [LAYER, TABLE], origin=ORIGIN)


@pytest.mark.parametrize(
    ("there", "here", "words"),
    [
        ([LAYER], [LAYER, TABLE], "position_embeddings.weight: not saved"),
        ([LAYER, TABLE], [LAYER], "position_embeddings.weight: saved, but not in this model"),
        ([LAYER, LORA], [LAYER], r"lora_a: saved, but not in this model(.|\n)*glm-dist convert"),
        ([LAYER, LORA], [LAYER, replace(LORA, shape=(2, 4))], "lora_a: .4, 4. saved, .2, 4. here"),
    ],
    ids=["new", "unused", "an update that is not merged", "another rank"],
)
def test_every_other_difference_is_an_error(
    there: list[ParameterSpec], here: list[ParameterSpec], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        fit_weights(saved(*there), here, origin=ORIGIN)
