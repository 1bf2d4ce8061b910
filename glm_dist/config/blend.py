"""Rules about corpora and the weights with which they are blended; no file is opened."""

import math

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
            key="data.corpora",
            found="none",
            expected="at least one prepared corpus",
            fix="set data.corpora.<name>.prefix=<path without .bin>",
        )
    seen: dict[str, str] = {}
    for name, corpus in data.corpora.items():
        key = f"data.corpora.{name}"
        if not corpus.prefix.strip() or corpus.prefix.endswith((".bin", ".idx", "/")):
            raise ConfigError(
                key=f"{key}.prefix",
                found=repr(corpus.prefix),
                expected="the path of a prepared corpus without .bin or .idx",
                fix=f"set {key}.prefix=<folder>/<name> as `glm-dist prepare` wrote it",
            )
        if corpus.prefix in seen:
            raise ConfigError(
                key=f"{key}.prefix",
                found=corpus.prefix,
                expected=f"another corpus than data.corpora.{seen[corpus.prefix]} has",
                fix=f"remove one, e.g. ~{key}, and set weights to repeat a corpus",
            )
        seen[corpus.prefix] = name
        _check_weights(key, corpus)
    _check_stages(data)


def _check_weights(key: str, corpus: CorpusConfig) -> None:
    first, later = corpus.weight, corpus.stage_weights
    if first is not None and not _is_weight(first):
        raise ConfigError(
            key=f"{key}.weight",
            found=first,
            expected="a number of at least 0, or null for a share in proportion to its tokens",
            fix=f"set {key}.weight=1, or remove the corpus with ~{key}",
        )
    wrong = [weight for weight in later if not _is_weight(weight)]
    if wrong:
        raise ConfigError(
            key=f"{key}.stage_weights",
            found=wrong[0],
            expected="numbers of at least 0",
            fix="write 0 for a stage without the corpus",
        )


def _is_weight(number: float) -> bool:
    return math.isfinite(number) and number >= 0


def _check_stages(data: DataConfig) -> None:
    """Every stage of the blend has a weight for each corpus, and one above 0."""
    weighted = [name for name, corpus in data.corpora.items() if corpus.weight is not None]
    unweighted = [name for name in data.corpora if name not in weighted]
    if weighted and unweighted:
        raise ConfigError(
            key=f"data.corpora.{unweighted[0]}.weight",
            found="null",
            expected=f"a weight, because {', '.join(weighted)} has one and the others are relative",
            fix="set a weight for every corpus or for none",
        )
    starts = data.stage_starts
    if sorted({0, *starts}) != [0, *starts]:
        raise ConfigError(
            key="data.stage_starts",
            found=starts,
            expected="rising numbers of training rows, above 0",
            fix="list the first row of each later stage, e.g. 'data.stage_starts=[1000000]'",
        )
    for name, corpus in data.corpora.items():
        key = f"data.corpora.{name}"
        _check_number_of_stages(f"{key}.stage_weights", corpus.stage_weights, starts)
        if corpus.weight == 0 and not any(corpus.stage_weights):
            raise ConfigError(
                key=f"{key}.weight",
                found=corpus.weight,
                expected="a number above 0, or null for a share in proportion to its tokens",
                fix=f"set {key}.weight=1, or remove the corpus with ~{key}",
            )
    stages = [[corpus.weight for corpus in data.corpora.values()]] if weighted else []
    stages += [[c.stage_weights[i] for c in data.corpora.values()] for i in range(len(starts))]
    if any(not any(stage) for stage in stages):
        raise ConfigError(
            key="data.corpora.*.weight",
            found="0 for every corpus",
            expected="a weight above 0 in every stage",
            fix="raise a weight",
        )


def _check_number_of_stages(key: str, weights: list[float], starts: list[int]) -> None:
    if len(weights) == len(starts):
        return
    if not starts:
        proposal = ",".join(str(1_000_000 * stage) for stage in range(1, len(weights) + 1))
        raise ConfigError(
            key=key,
            found=weights,
            expected="none without data.stage_starts, the rows at which later stages begin",
            fix=f"leave it out, or set e.g. 'data.stage_starts=[{proposal}]'",
        )
    numbers = "1 number" if len(starts) == 1 else f"{len(starts)} numbers"
    raise ConfigError(
        key=key,
        found=weights,
        expected=f"one weight for each of data.stage_starts = {starts}",
        fix=f"set {key} to {numbers}, 0 to leave the corpus out",
    )
