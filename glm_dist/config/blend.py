"""Rules about corpora and the weights with which they are blended; no file is opened."""

import math
import re

from glm_dist.config.text import CorpusConfig, DataConfig
from glm_dist.errors import ConfigError


def check_corpora(data: DataConfig) -> None:
    """Check that corpora differ, and that each stage of the blend has something to draw from.

    Args:
        data: Typed section; each value alone is already in its range.

    Raises:
        ConfigError: A corpus or weight is wrong, or two of them contradict each other.
    """
    if not data.corpora:
        raise ConfigError(
            "data.corpora is empty, so there is nothing to train on.\n"
            "  Set data.corpora.<name>.prefix=<path without .bin>.",
            key="data.corpora",
            value="none",
            fix="data.corpora.<name>.prefix=<path without .bin>",
        )
    seen: dict[str, str] = {}
    for name, corpus in data.corpora.items():
        key = f"data.corpora.{name}"
        if not corpus.prefix.strip() or corpus.prefix.endswith((".bin", ".idx", "/")):
            raise ConfigError(
                f"{key}.prefix={corpus.prefix!r} is not the prefix of a corpus, its path without"
                " .bin or .idx.\n"
                f"  Set {key}.prefix=<folder>/<name> as given to `glm-dist prepare --output`.",
                key=f"{key}.prefix",
                value=corpus.prefix,
                fix=f"{key}.prefix=<folder>/<name>",
            )
        if corpus.prefix in seen:
            raise ConfigError(
                f"{key}.prefix={corpus.prefix} is the corpus of"
                f" data.corpora.{seen[corpus.prefix]} already.\n"
                f"  Remove one of them, e.g. with ~{key}; a larger weight repeats a corpus.",
                key=f"{key}.prefix",
                value=corpus.prefix,
                fix=f"~{key}",
            )
        seen[corpus.prefix] = name
        _check_weights(key, corpus)
    _check_stages(data)
    _check_kept(data, seen)
    _check_skipped(data.skip_rows)


def _check_weights(key: str, corpus: CorpusConfig) -> None:
    first, later = corpus.weight, corpus.stage_weights
    if first is not None and not _is_weight(first):
        raise ConfigError(
            f"{key}.weight={first:g}, but it must be a number of at least 0, or null to weigh the"
            " corpus by"
            " its tokens.\n"
            f"  Set {key}.weight=1, or remove the corpus with ~{key}.",
            key=f"{key}.weight",
            value=first,
            fix=f"{key}.weight=1",
        )
    wrong = [weight for weight in later if not _is_weight(weight)]
    if wrong:
        fixed = str([weight if _is_weight(weight) else 0.0 for weight in later]).replace(" ", "")
        raise ConfigError(
            f"{key}.stage_weights holds {wrong[0]:g}, but weights must be numbers of at least 0.\n"
            "  Write 0 for a stage without this corpus.",
            key=f"{key}.stage_weights",
            value=wrong[0],
            fix=f"{key}.stage_weights={fixed}",
        )


def _is_weight(number: float) -> bool:
    return math.isfinite(number) and number >= 0


def _check_stages(data: DataConfig) -> None:
    """Every stage of the blend has a weight for each corpus, and one above 0."""
    weighted = [name for name, corpus in data.corpora.items() if corpus.weight]
    unweighted = [name for name, corpus in data.corpora.items() if corpus.weight is None]
    if weighted and unweighted:
        raise ConfigError(
            f"data.corpora.{unweighted[0]} has no weight, but {weighted[0]} has one, and weights"
            " are"
            " relative to each other.\n"
            "  Set a weight for every corpus, or for none.",
            key=f"data.corpora.{unweighted[0]}.weight",
            value=None,
            fix=f"data.corpora.{unweighted[0]}.weight=1",
        )
    starts = data.stage_starts
    if sorted({0, *starts}) != [0, *starts]:
        raise ConfigError(
            f"data.stage_starts={starts} must be rising numbers of rows, all above 0.\n"
            "  List the first row of each later stage, e.g. 'data.stage_starts=[1000000]'.",
            key="data.stage_starts",
            value=starts,
            fix="data.stage_starts=[1000000]",
        )
    for name, corpus in data.corpora.items():
        key = f"data.corpora.{name}"
        _check_number_of_stages(f"{key}.stage_weights", corpus.stage_weights, starts)
        if corpus.weight == 0 and not any(corpus.stage_weights):
            raise ConfigError(
                f"{key}.weight=0 in every stage: the corpus is never used.\n"
                f"  Set {key}.weight=1, or remove it with ~{key}.",
                key=f"{key}.weight",
                value=corpus.weight,
                fix=f"{key}.weight=1",
            )
    stages = [] if unweighted else [[corpus.weight for corpus in data.corpora.values()]]
    stages += [[c.stage_weights[i] for c in data.corpora.values()] for i in range(len(starts))]
    empty = [
        number for number, stage in enumerate(stages, start=bool(unweighted)) if not any(stage)
    ]
    if empty:
        raise ConfigError(
            f"All corpora have weight 0 in stage {empty[0]}, so it has nothing to train on.\n"
            "  Raise one of data.corpora.*.weight or stage_weights.",
            key="data.corpora.*.weight",
            value=0,
            fix="",
        )


def _check_number_of_stages(key: str, weights: list[float], starts: list[int]) -> None:
    if len(weights) == len(starts):
        return
    if not starts:
        proposal = ",".join(str(1_000_000 * stage) for stage in range(1, len(weights) + 1))
        raise ConfigError(
            f"{key}={weights}, but there are no later stages: data.stage_starts is empty.\n"
            f"  Leave it out, or set e.g. 'data.stage_starts=[{proposal}]'.",
            key=key,
            value=weights,
            fix=f"data.stage_starts=[{proposal}]",
        )
    numbers = "1 number" if len(starts) == 1 else f"{len(starts)} numbers"
    raise ConfigError(
        f"{key}={weights} must have {numbers}, one for each of data.stage_starts={starts}.\n"
        "  Write 0 for a stage without this corpus.",
        key=key,
        value=weights,
        fix=f"{key}={[1.0] * len(starts)}".replace(" ", ""),
    )


def _check_kept(data: DataConfig, trained: dict[str, str]) -> None:
    """Corpora kept for validation have names and text of their own."""
    for name, prefix in data.validation_corpora.items():
        key = f"data.validation_corpora.{name}"
        if name in data.corpora or prefix in trained:
            other = name if name in data.corpora else trained[prefix]
            same = "name" if name in data.corpora else "corpus"
            raise ConfigError(
                f"{key}={prefix} has the {same} of data.corpora.{other}, which is trained on.\n"
                f"  {'Choose another name' if same == 'name' else 'Name another corpus'}, or remove"
                f" ~data.corpora.{other}.",
                key=key,
                value=prefix,
                fix=f"~data.corpora.{other}",
            )
        if not prefix.strip() or prefix.endswith((".bin", ".idx", "/")):
            raise ConfigError(
                f"{key}={prefix!r} is not the prefix of a corpus, its path without .bin or .idx.\n"
                f"  Set {key}=<folder>/<name> as given to `glm-dist prepare --output`.",
                key=key,
                value=prefix,
                fix=f"{key}=<folder>/<name>",
            )


def _check_skipped(written: list[str]) -> None:
    """Ranges of rows are first-last, rising, and do not touch the same row."""
    before = -1
    for text in written:
        found = re.fullmatch(r"(\d{1,18})-(\d{1,18})", text)
        first, last = map(int, found.groups()) if found else (0, -1)
        if not before < first <= last:
            raise ConfigError(
                f"data.skip_rows={written} must be ranges of rows, first-last, in rising order;"
                f" {text} is not.\n"
                "  Write for example 'data.skip_rows=[1000-1499,2000-2000]'.",
                key="data.skip_rows",
                value=text,
                fix="data.skip_rows=[1000-1499,2000-2000]",
            )
        before = last
