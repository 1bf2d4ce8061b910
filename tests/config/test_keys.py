import pytest

from glm_dist.config.keys import describe_type, leaf_keys, nearest, type_of
from glm_dist.config.schema import CorpusConfig, Dtype, ModelConfig


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("model", ModelConfig),
        ("model.num_layers", int),
        ("precision.dtype", Dtype),
        ("data.corpora.anything", CorpusConfig),
        ("data.corpora.anything.prefix", str),
        ("model.num_layers.more", None),
        ("nothing", None),
        ("data.corpora.", None),
    ],
)
def test_type_of_a_key(key: str, kind: object) -> None:
    assert type_of(key) is kind


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number or null"),
        (bool, "true or false"),
        (Dtype, "one of fp32, bf16, fp16"),
        (dict[str, CorpusConfig], "a section with a corpus under each name"),
        (ModelConfig, "a section with keys of its own"),
    ],
    ids=["int", "optional float", "bool", "enum", "corpora", "section"],
)
def test_type_in_words(kind: object, words: str) -> None:
    assert describe_type(kind) == words


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("steps", "run.steps"),
        ("optimizer.learning_rat", "optimizer.learning_rate"),
        ("optimiser.weight_decay", "optimizer.weight_decay"),
        ("xyzzy", None),
    ],
)
def test_nearest_key(typed: str, meant: str | None) -> None:
    assert nearest(typed, leaf_keys()) == meant
