"""Settings of a sweep compared: means over seeds, and paired differences to a baseline.

Settings that differ in their task or corpus are measured on different examples; each such group has
a table and a baseline of its own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glm_dist.errors import ConfigError
from glm_dist.sweep.outcomes import Measured, Outcome, check_metric, read_answers
from glm_dist.sweep.points import Point
from glm_dist.tasks.choice_metrics import OF_COUNTS, of_resamples
from glm_dist.tasks.intervals import Floats, Interval, Resamples, over_seeds, paired_difference

Setting = tuple[tuple[str, str], ...]
"""Keys and values."""

_CHOOSES_EXAMPLES = ("task", "data", "tokenizer")
"""Groups of options that decide on which examples or tokens a run is measured."""
_OF_EXAMPLES = ("task.data.", "data.corpora.", "data.validation_corpora.", "tokenizer.")


@dataclass(frozen=True)
class Run:
    """One point and what came of it."""

    point: Point
    seed: int
    status: str
    """finished, failed, stopped or not started."""
    outcome: Outcome | None
    """None unless it is finished."""


@dataclass(frozen=True)
class Row:
    """One setting."""

    setting: Setting
    """Without what its group shares."""
    runs: list[Run]
    """One for each seed."""
    value: Interval | None
    """Over seeds; over the examples of a single run; None if no run is finished."""
    test: Interval | None
    """The same on the test file, where there is one."""
    is_baseline: bool
    is_best: bool
    difference: Interval | None
    """To the baseline with the same seeds, on the test file if there is one."""
    pairs: int = 0
    """Seeds that both have."""

    @property
    def num_finished(self) -> int:
        """Runs that count."""
        return sum(run.outcome is not None for run in self.runs)


@dataclass(frozen=True)
class Group:
    """Settings measured on the same examples."""

    title: Setting
    metric: str
    higher_is_better: bool
    num_examples: int
    """Of the validation; 0 if unknown."""
    half_width: float
    """Of a single run's interval over those examples, the median; NaN if unknown."""
    num_test_examples: int
    rows: list[Row]


def check_baseline(points: Sequence[Point], baseline: Sequence[str]) -> None:
    """Refuse a baseline that names no setting, or several that would be compared with each other.

    Args:
        points: All of the sweep.
        baseline: Values as ``key=value``; empty: the first setting of each group.

    Raises:
        ConfigError: It names none in one of the groups, or several.
    """
    for title, members in _grouped(points).items():
        found = {point.setting for point in members if _matches(point, baseline)}
        if len(found) == 1 or not baseline:
            continue
        where = f" with {_typed(title)}" if title else ""
        count = f"{len(found)} settings" if found else "no setting"
        own = [f"{key}={value}" for key, value in members[0].setting if (key, value) not in title]
        fix = " ".join(f"--baseline {text}" for text in own)
        raise ConfigError(
            f"--baseline {' '.join(baseline)} names {count}{where}, but it must name one.\n"
            f"  {f'Write for example {fix}' if fix else 'Leave it out: only the seed varies'}.",
            key="--baseline",
            value=" ".join(baseline),
            fix=fix or "leave --baseline out",
        )


def compare(
    runs: Sequence[Run], *, metric: str | None = None, baseline: Sequence[str] = ()
) -> list[Group]:
    """Compare the settings of a sweep.

    Args:
        runs: All of its points.
        metric: Metric to compare; None: the one that chose the checkpoints.
        baseline: As ``check_baseline``.

    Raises:
        ConfigError: A run did not measure the metric.
        DataError: A file of predictions is damaged.
    """
    by_point = {run.point.name: run for run in runs}
    groups = _grouped([run.point for run in runs])
    return [
        _group(title, [by_point[point.name] for point in members], metric, baseline)
        for title, members in groups.items()
    ]


def _grouped(points: Sequence[Point]) -> dict[Setting, list[Point]]:
    groups: dict[Setting, list[Point]] = {}
    for point in points:
        title = tuple(pair for pair in point.setting if _chooses_examples(pair[0]))
        groups.setdefault(title, []).append(point)
    return groups


def _chooses_examples(key: str) -> bool:
    return key in _CHOOSES_EXAMPLES or key.startswith(_OF_EXAMPLES)


def _matches(point: Point, baseline: Sequence[str]) -> bool:
    typed = {f"{key}={value}" for key, value in point.settings.items()}
    return typed.issuperset(baseline)


def _typed(setting: Setting) -> str:
    return " ".join(f"{key}={value}" for key, value in setting)


def _group(
    title: Setting, runs: Sequence[Run], metric: str | None, baseline: Sequence[str]
) -> Group:
    settings: dict[Setting, list[Run]] = {}
    for run in runs:
        settings.setdefault(run.point.setting, []).append(run)
    outcomes = [run.outcome for run in runs if run.outcome is not None]
    first = next(iter(outcomes), None)
    metric = metric or (first.select if first else "")
    for outcome in outcomes:
        check_metric(metric, outcome)
    has_test = bool(outcomes) and all(outcome.test is not None for outcome in outcomes)
    higher = first is not None and _is_higher_better(metric, first)
    base = next(s for s in settings if any(_matches(r.point, baseline) for r in settings[s]))
    values = {setting: _mean(each, metric, test=False) for setting, each in settings.items()}
    best = _best(values, higher_is_better=higher)
    rows = []
    for setting, each in settings.items():
        pairs = _pairs(each, settings[base]) if setting != base else []
        rows.append(
            Row(
                setting=tuple(pair for pair in setting if pair not in title),
                runs=each,
                value=values[setting],
                test=_mean(each, metric, test=True) if has_test else None,
                is_baseline=setting == base,
                is_best=setting == best and len(settings) > 1,
                difference=_difference(pairs, metric, test=has_test),
                pairs=len(pairs),
            )
        )
    return Group(
        title=title,
        metric=metric,
        higher_is_better=higher,
        num_examples=first.valid.num_examples if first else 0,
        half_width=_half_width([outcome.valid.metrics[metric] for outcome in outcomes]),
        num_test_examples=first.test.num_examples if first and first.test and has_test else 0,
        rows=rows,
    )


def _is_higher_better(metric: str, outcome: Outcome) -> bool:
    """Losses and perplexities are the metrics of which less is better."""
    if metric == outcome.select:
        return outcome.higher_is_better
    return not ("loss" in metric or "perplexity" in metric)


def _mean(runs: Sequence[Run], metric: str, *, test: bool) -> Interval | None:
    found = [_measured(run.outcome, test=test).metrics[metric] for run in runs if run.outcome]
    if not found:
        return None
    return found[0] if len(found) == 1 else over_seeds([each.value for each in found])


def _best(values: dict[Setting, Interval | None], *, higher_is_better: bool) -> Setting | None:
    sign = 1 if higher_is_better else -1
    finished = {s: sign * each.value for s, each in values.items() if each and _is_number(each)}
    return max(finished, key=lambda setting: finished[setting]) if finished else None


def _half_width(found: Sequence[Interval]) -> float:
    widths = [each.half_width for each in found if not math.isnan(each.half_width)]
    return float(np.median(widths)) if widths else math.nan


def _is_number(found: Interval) -> bool:
    return not math.isnan(found.value)


def _pairs(runs: Sequence[Run], baseline: Sequence[Run]) -> list[tuple[Outcome, Outcome]]:
    """Results of both settings for each seed that both have."""
    by_seed = {run.seed: run.outcome for run in baseline if run.outcome}
    return [(run.outcome, by_seed[run.seed]) for run in runs if run.outcome and run.seed in by_seed]


def _measured(outcome: Outcome, *, test: bool) -> Measured:
    if not test:
        return outcome.valid
    assert outcome.test is not None  # the caller has looked
    return outcome.test


def _difference(
    pairs: Sequence[tuple[Outcome, Outcome]], metric: str, *, test: bool
) -> Interval | None:
    measured = [tuple(_measured(each, test=test) for each in pair) for pair in pairs]
    if not measured:
        return None
    statistics = [tuple(_statistic(each, metric) for each in pair) for pair in measured]
    known = [(ours, theirs) for ours, theirs in statistics if ours and theirs]
    sizes = {each.num_examples for pair in known for each in pair}
    if len(known) < len(measured) or len(sizes) > 1:
        ends = ((ours.metrics[metric], theirs.metrics[metric]) for ours, theirs in measured)
        return over_seeds([ours.value - theirs.value for ours, theirs in ends])

    def differences(chosen: Resamples) -> Floats:
        return np.stack([ours.of(chosen) - theirs.of(chosen) for ours, theirs in known], axis=1)

    return paired_difference(differences, sizes.pop())


@dataclass(frozen=True)
class _Statistic:
    """A metric of one run as a function of its examples."""

    num_examples: int
    of: Callable[[Resamples], Floats]
    """[r, n] -> [r]."""


def _statistic(measured: Measured, metric: str) -> _Statistic | None:
    """Read the answers to each example; None where only the metric's value is known."""
    if measured.answers is None:
        return None
    answers = read_answers(measured.answers)
    if metric in answers.values:
        values: NDArray[np.float64] = np.array(answers.values[metric], np.float64)
        return _Statistic(len(values), lambda chosen: values[chosen].mean(axis=1))
    is_choice = all(isinstance(each, int) for each in [*answers.labels, *answers.predictions])
    if metric not in OF_COUNTS or not answers.labels or not is_choice:
        return None
    return _Statistic(
        len(answers.labels), of_resamples(metric, answers.predictions, answers.labels)
    )
