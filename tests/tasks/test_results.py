"""Files of results in a run folder."""

from pathlib import Path

from glm_dist.tasks.intervals import Interval
from glm_dist.tasks.outcome import Outcome, Prediction
from glm_dist.tasks.readers.records import Split
from glm_dist.tasks.results import (
    PREDICTIONS,
    Measurement,
    Results,
    read_predictions,
    write_results,
)


def results_of(*splits: Split) -> Results:
    outcome = Outcome({"accuracy": Interval(1.0, 1.0, 1.0)}, [Prediction(0, 0)], loss=0.5)
    return Results(
        run="a",
        task="b",
        seed=1,
        select="accuracy",
        larger_is_better=True,
        files={split: split.value for split in Split},
        last=Measurement(2, dict.fromkeys(splits, outcome)),
    )


def test_predictions_are_those_of_the_results(tmp_path: Path) -> None:
    write_results(results_of(Split.valid, Split.test), tmp_path)
    assert all(len(read_predictions(tmp_path / name)) == 1 for name in PREDICTIONS.values())
    write_results(results_of(Split.valid), tmp_path)
    assert (tmp_path / PREDICTIONS[Split.valid]).is_file()
    assert not (tmp_path / PREDICTIONS[Split.test]).exists()
