"""Overrides that name nothing, or have a value or form that a key does not take."""

import pytest

from tests.config.test_wrong_configurations import Case, check_case
from tests.messages import Says

CASES = [
    Case("unknown experiment", ["experiment=glm_lage"], key="experiment"),
    Case("unknown group option", ["experiment=tiny", "model=huge"], key="model"),
    Case("unknown group", ["mdel=large"], key="mdel"),
    Case(
        "unknown key in a section", ["experiment=tiny", "model.num_layer=3"], key="model.num_layer"
    ),
    Case(
        "unknown section",
        ["experiment=tiny", "optimiser.learning_rate=1"],
        key="optimiser.learning_rate",
    ),
    Case("key without its section", ["experiment=tiny", "steps=4"], key="steps"),
    Case(
        "unknown key of a corpus",
        ["experiment=tiny", "data.corpora.mine.prefics=x"],
        key="data.corpora.mine.prefics",
    ),
    Case(
        "text for a whole number",
        ["experiment=tiny", "model.num_layers=many"],
        key="model.num_layers",
    ),
    Case(
        "fraction for a whole number",
        ["experiment=tiny", "model.num_layers=2.5"],
        key="model.num_layers",
    ),
    Case(
        "text for a number",
        ["experiment=tiny", "optimizer.learning_rate=fast"],
        key="optimizer.learning_rate",
    ),
    Case(
        "number for a switch",
        ["experiment=tiny", "observe.progress_bar=maybe"],
        key="observe.progress_bar",
    ),
    Case(
        "unknown member of an enum",
        ["experiment=tiny", "precision.dtype=float16"],
        key="precision.dtype",
    ),
    Case(
        "mistyped member of an enum",
        ["experiment=tiny", "corruption.task=spann_corruption"],
        key="corruption.task",
    ),
    Case(
        "a number for a text inside braces",
        ["experiment=tiny", "data.corpora.mine={prefix: 1.10}"],
        key="data.corpora.mine.prefix",
    ),
    Case("null for a text", ["experiment=tiny", "run.name=null"], key="run.name"),
    Case(
        "a section for a number",
        ["experiment=tiny", "model.num_layers={a: 3}"],
        key="model.num_layers",
    ),
    Case("a text for a section", ["experiment=tiny", "data.corpora=mine"], key="data.corpora"),
    Case(
        "a number for a new corpus", ["experiment=tiny", "data.corpora.x=5"], key="data.corpora.x"
    ),
    Case(
        "a number for a known corpus",
        ["experiment=tiny", "data.corpora.sotu=5"],
        key="data.corpora.sotu",
    ),
    Case("a list for corpora", ["experiment=tiny", "data.corpora=[mine]"], key="data.corpora"),
    Case("no corpora in one go", ["experiment=tiny", "data.corpora={}"], key="data.corpora"),
    Case(
        "text in a list of numbers",
        ["experiment=tiny", "data.stage_starts=[a]"],
        key="data.stage_starts",
    ),
    Case(
        "a list in a list of numbers",
        ["experiment=tiny", "parallel.stage_layers=[[1]]"],
        key="parallel.stage_layers",
    ),
    Case(
        "text in a corpus's list",
        ["experiment=tiny", "data.corpora.sotu.stage_weights=[a]"],
        key="data.corpora.sotu.stage_weights",
    ),
    Case(
        "an unknown reference in a list",
        ["experiment=tiny", "data.stage_starts=[1,${run.stps}]"],
        key="data.stage_starts",
    ),
    Case("a reference to itself", ["experiment=tiny", "run.steps=${run.steps}"], key="run.steps"),
    Case(
        "removing a corpus that is not there",
        ["experiment=tiny", "~data.corpora.shakespear"],
        key="~data.corpora.shakespear",
    ),
    Case(
        "removing a corpus with a value",
        ["experiment=tiny", "~data.corpora.sotu=3"],
        key="command line",
    ),
    Case("nothing chosen", [], key="run.name, run.steps"),
    Case(
        "missing prefix of a new corpus",
        ["experiment=tiny", "data.corpora.mine.weight=2"],
        key="data.corpora.mine.prefix",
    ),
    Case("unset variable", ["experiment=tiny", "paths=cluster"], key="GLM_DATA"),
    Case(
        "reference to a key that does not exist",
        ["experiment=tiny", "lr_schedule.decay_steps=${run.stps}"],
        key="lr_schedule.decay_steps",
    ),
    Case("no override at all", ["quickstart"], key="command line"),
    Case("key without a value", ["experiment=tiny", "run.steps"], key="command line"),
    Case("list of texts", ["experiment=tiny", "compare.finetune=[a=b]"], key="command line"),
    Case("unbalanced quotes", ["experiment=tiny", 'run.name="a'], key="command line"),
    Case("a sweep", ["experiment=tiny", "run.steps=1,2"], key="command line"),
    Case("Hydra's own settings", ["experiment=tiny", "hydra.run.dir=x"], key="command line"),
    Case("a group without option", ["model=null"], key="model"),
    Case("a removed value", ["experiment=tiny", "~run.steps"], key="command line"),
    Case(
        "an override at another package", ["experiment=tiny", "model@run=large"], key="command line"
    ),
    Case("a degree that divides nothing", ["experiment=tiny", "parallel=tp3"], key="parallel"),
    Case("a degree without an option", ["experiment=glm_large", "parallel=tp16"], key="parallel"),
    Case("stages without an option", ["experiment=glm_large", "parallel=pp7"], key="parallel"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_override_is_answered_with_a_fix_that_works(
    case: Case, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_case(case, says, monkeypatch)
