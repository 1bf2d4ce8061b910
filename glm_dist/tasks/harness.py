"""A model as lm-evaluation-harness sees it (package lm-eval).

The harness has no way to find models of other packages, so ``evaluate`` hands it one. Under a
launcher every rank runs the harness in step, with all requests; the model shares them out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from glm_dist.errors import ConfigError
from glm_dist.generate.load import TrainedModel
from glm_dist.generate.prompt import Data
from glm_dist.generate.sampling import Cut, GenerationOptions
from glm_dist.tasks.evaluate import Settings, choice_question, over_examples, text_score


@dataclass(frozen=True)
class Library:
    """The installed harness."""

    module: Any
    """``lm_eval``."""
    manager: Any
    """Its ``TaskManager``."""


def evaluate(
    model: TrainedModel,
    tasks: Sequence[str],
    settings: Settings,
    *,
    library: Library,
    limit: int | None = None,
) -> dict[str, dict[str, float]]:
    """Run tasks of the harness. Collective over all ranks.

    Args:
        model: The model.
        tasks: Names of tasks.
        settings: Batch size, and how texts are read.
        library: As ``open_library`` returned it for these tasks.
        limit: First examples of each task; None: all.

    Returns:
        Metrics of each task by name.
    """
    found = library.module.simple_evaluate(
        model=as_harness_model(model, settings),
        tasks=list(tasks),
        task_manager=library.manager,
        limit=limit,
        bootstrap_iters=0,
        log_samples=False,
        verbosity="ERROR",
    )
    results = {
        task: {name: value for name, value in metrics.items() if isinstance(value, float)}
        # Where the launcher's LOCAL_RANK is not 0, the harness computes and returns nothing.
        for task, metrics in (found or {"results": {}})["results"].items()
    }
    return model.from_first_rank(results)


def open_library(tasks: Sequence[str], include: Path | None) -> Library:
    """Import the harness, and check that it has all of these tasks.

    Args:
        tasks: Names of tasks.
        include: Folder with task files; None: those that come with the harness.

    Raises:
        ConfigError: The package is not installed, or a task does not exist.
    """
    try:
        library = import_module("lm_eval")
        manager = import_module("lm_eval.tasks").TaskManager(
            include_path=None if include is None else str(include),
            include_defaults=include is None,
        )
    except ImportError as error:
        raise ConfigError(
            "--harness needs lm-evaluation-harness, which is not installed.\n"
            '  Install it: pip install "glm-dist[harness]"',
            key="--harness",
            value=",".join(tasks),
            fix='pip install "glm-dist[harness]"',
        ) from error
    missing = [task for task in tasks if task not in manager.all_tasks]
    if missing:
        raise ConfigError(
            f"--harness names tasks that do not exist: {', '.join(missing)}.\n"
            "  Check their names, or name the folder of their files with --include.",
            key="--harness",
            value=",".join(missing),
            fix="--include <folder>",
        )
    return Library(library, manager)


def as_harness_model(model: TrainedModel, settings: Settings) -> Any:
    """Wrap a model in the harness's interface, ``lm_eval.api.model.LM``."""
    base: type = import_module("lm_eval.api.model").LM

    class HarnessModel(base):  # type: ignore[misc]
        """Requests of the harness, answered by the model."""

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            """Score continuations; the end of a context gives way where it is too long."""
            return scores(model, [request.args for request in requests], settings)

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            """Score whole texts."""

            def work(share: Sequence[str]) -> Iterator[float]:
                return (text_score(model, text, settings)[0] for text in share)

            return over_examples(model, [request.args[0] for request in requests], work)

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """Continue contexts up to a stop string."""

            def work(share: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[str]:
                for context, arguments in share:
                    prompt = model.read([Data(context)], cut=Cut.left)
                    ((answer,),) = model.write([prompt], _options(arguments, settings))
                    yield answer

            return over_examples(model, [request.args for request in requests], work)

    return HarnessModel()


def scores(
    model: TrainedModel, pairs: Sequence[tuple[str, str]], settings: Settings
) -> list[tuple[float, bool]]:
    """Score continuations of contexts, both of them data. Collective over all ranks.

    Args:
        model: The model.
        pairs: Contexts and continuations.
        settings: Batch size.

    Returns:
        Log-probability, and True if the continuation is the greedy one.
    """

    def work(share: Sequence[tuple[str, str]]) -> Iterator[tuple[float, bool]]:
        questions = []
        for context, continuation in share:
            prompt = model.read([Data(context)], cut=Cut.left)
            questions.append(choice_question(prompt, model, [continuation]))
        for (score,) in model.score(questions, batch_size=settings.batch_size):
            yield score.log_probability, score.is_greedy

    return over_examples(model, pairs, work)


def _options(arguments: dict[str, Any], settings: Settings) -> GenerationOptions:
    """Read what a task asks for; temperature and the like are left greedy."""
    until = arguments.get("until", [])
    stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    longest = int(arguments.get("max_gen_toks", settings.generation.max_tokens))
    return GenerationOptions(max_tokens=longest, stop=stop)
