"""A model on the examples of a benchmark: choices, answers, perplexity."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from glm_dist.errors import ConfigError, DataError
from glm_dist.generate.load import TrainedModel
from glm_dist.generate.part_b import PartB
from glm_dist.generate.prompt import Prompt
from glm_dist.generate.replicas import Item, Outcome
from glm_dist.generate.sampling import GenerationOptions, check_length_penalty
from glm_dist.generate.score import Question, Score
from glm_dist.generate.windows import perplexity_windows
from glm_dist.tasks.choice_metrics import of_resamples
from glm_dist.tasks.examples import Example, Examples, Kind, text_of
from glm_dist.tasks.intervals import (
    Interval,
    bootstrap,
    mean_over_examples,
    ratio_over_examples,
)
from glm_dist.tasks.metrics import PER_ANSWER, bleu

EXAMPLES_AT_A_TIME = 64

_SPACE = re.compile(r"\s+")  # words as lm-evaluation-harness counts them


@dataclass(frozen=True)
class Settings:
    """Options of an evaluation."""

    batch_size: int = 16
    """Answers scored or texts filled side by side."""
    length_penalty: float = 0.0
    """Choices are compared by log-probability / tokens ^ penalty."""
    unidirectional: bool = False
    """Texts are read from left to right only."""
    window: int | None = None
    """Tokens of a window of perplexity; None: as many as the model has positions."""
    stride: int | None = None
    """New tokens of each window; None: half of it."""
    metrics: tuple[str, ...] = ("em", "f1")
    """Of answers: em, f1, rouge_l, bleu."""
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    """Options of writing answers; too long prompts are cut on the left."""

    def __post_init__(self) -> None:
        """Refuse a power with which no lengths are compared."""
        check_length_penalty(self.length_penalty)


@dataclass(frozen=True)
class Result:
    """Outcome of one benchmark."""

    task: str
    kind: Kind
    num_examples: int
    metrics: dict[str, Interval]
    predictions: list[object]
    """Index of the choice, answer, or log-probability of each example."""


def evaluate(model: TrainedModel, examples: Examples, settings: Settings) -> Result:
    """Evaluate a benchmark. Collective over all ranks.

    Args:
        model: The model; each replica works on its share of the examples.
        examples: Of one kind.
        settings: Options.

    Returns:
        The result, equal on every rank.

    Raises:
        DataError: A prompt does not fit, or names a mask that the run never trained.
    """
    match examples.kind:
        case Kind.choice:
            metrics, predictions = _choices(model, examples.examples, settings)
        case Kind.answer:
            metrics, predictions = _answers(model, examples.examples, settings)
        case Kind.text:
            metrics, predictions = _texts(model, examples.examples, settings)
    return Result(examples.name, examples.kind, len(examples.examples), metrics, predictions)


def choice_question(prompt: Prompt, model: TrainedModel, choices: Sequence[str]) -> Question:
    """Ask for the last blank of a prompt with texts that may stand in it."""
    blank = len(prompt.mask_indices) - 1
    answers = [model.tokenizer.encode_document(prompt.answer(blank, text)) for text in choices]
    return Question(prompt.tokens, prompt.mask_indices[blank], answers, number=blank)


def _choices(
    model: TrainedModel, examples: Sequence[Example], settings: Settings
) -> tuple[dict[str, Interval], list[object]]:
    # Read by every rank before any of them computes, so that all of them refuse alike.
    questions = []
    for example in examples:
        with _naming(example):
            prompt = model.read(example.parts, cut=example.cut)
            questions.append(choice_question(prompt, model, example.choices))
            model.check_question(questions[-1])

    def work(share: Sequence[Question]) -> Iterator[int]:
        for scores in model.score(share, batch_size=settings.batch_size):
            values = [_value(score, settings.length_penalty) for score in scores]
            yield values.index(max(values))

    chosen = over_examples(model, questions, work)
    labels = [example.label for example in examples]
    right = [float(guess == label) for guess, label in zip(chosen, labels, strict=True)]
    return {
        "accuracy": mean_over_examples(right),
        "macro_f1": bootstrap(of_resamples("macro_f1", chosen, labels), len(labels)),
    }, list(chosen)


def _value(score: Score, penalty: float) -> float:
    return score.log_probability / float(score.num_tokens**penalty)


def _answers(
    model: TrainedModel, examples: Sequence[Example], settings: Settings
) -> tuple[dict[str, Interval], list[object]]:
    prompts = []
    for example in examples:
        with _naming(example):
            prompts.append(model.read(example.parts, cut=example.cut))

    def work(share: Sequence[Prompt]) -> Iterator[str]:
        for begin in range(0, len(share), settings.batch_size):
            batch = share[begin : begin + settings.batch_size]
            yield from (answers[-1] for answers in model.write(batch, settings.generation))

    answers = over_examples(model, prompts, work)
    targets = [example.targets for example in examples]
    found = {}
    for name in settings.metrics:
        if name == "bleu":
            found[name] = Interval.point(bleu(answers, targets))
            continue
        compare = PER_ANSWER[name]
        best = [
            max(compare(answer, target) for target in of_example)
            for answer, of_example in zip(answers, targets, strict=True)
        ]
        found[name] = mean_over_examples(best)
    return found, list(answers)


def _texts(
    model: TrainedModel, examples: Sequence[Example], settings: Settings
) -> tuple[dict[str, Interval], list[object]]:
    model.check("")  # a text is continued: refuses runs that never trained it

    def work(share: Sequence[Example]) -> list[tuple[float, int]]:
        return [text_score(model, text_of(example), settings) for example in share]

    scores = over_examples(model, examples, work)
    kept = [n for n, (_, count) in enumerate(scores) if count > 0]
    if not kept:
        raise DataError(
            "No text has two tokens, and the first token of a text has no perplexity.\n"
            "  Give longer texts.",
            key="text",
        )
    losses = [-scores[n][0] for n in kept]
    texts = [text_of(examples[n]) for n in kept]
    tokens = ratio_over_examples(losses, [float(scores[n][1]) for n in kept])
    words = ratio_over_examples(losses, [float(len(_SPACE.split(text))) for text in texts])
    sizes = ratio_over_examples(losses, [float(len(text.encode())) for text in texts])
    return {
        "perplexity": tokens.mapped(math.exp),
        "word_perplexity": words.mapped(math.exp),
        "bits_per_byte": sizes.mapped(lambda nats: nats / math.log(2)),
        "texts": Interval.point(len(kept)),
    }, [total if count else None for total, count in scores]


def text_score(model: TrainedModel, text: str, settings: Settings) -> tuple[float, int]:
    """Return the log-probability of a text and the number of its tokens that count.

    Those are all but the first, so a shorter text has none.

    Raises:
        ConfigError: The window is longer than the model's positions, or the stride than the window.
    """
    tokens = model.tokenizer.encode_document(text)
    if len(tokens) < 2:
        return 0.0, 0
    longest = model.config.model.max_position_embeddings - 1
    window = settings.window or longest
    if window > longest:
        raise ConfigError(
            f"--window {window} is longer than the {longest} tokens that the model has positions"
            " for.\n"
            f"  Set --window {longest} or less.",
            key="--window",
            value=window,
            fix=f"--window {longest}",
        )
    questions = perplexity_windows(
        tokens,
        PartB.of(model.config, model.tokenizer.special),
        window=window,
        stride=settings.stride or window // 2,
        unidirectional=settings.unidirectional,
    )
    found = [score for (score,) in model.score(questions, batch_size=settings.batch_size)]
    return sum(s.log_probability for s in found), sum(s.num_tokens for s in found)


@contextmanager
def _naming(example: Example) -> Iterator[None]:
    """Name the line of an example that cannot be used."""
    try:
        yield
    except DataError as error:
        raise DataError(
            f"{example.where}: {error}", key=example.where, value=error.value, fix=error.fix
        ) from error


def over_examples(
    model: TrainedModel,
    examples: Sequence[Item],
    work: Callable[[Sequence[Item]], Iterable[Outcome]],
) -> list[Outcome]:
    """Work on examples, a part at a time, each replica on its share. Collective over all ranks.

    Args:
        model: Its replicas work.
        examples: The same on all ranks. [n]
        work: Gives an outcome for each example, in order; collective over a replica.

    Returns:
        Outcomes of all examples, in order, on every rank. [n]
    """
    return [each for part in outcomes_by_part(model, examples, work) for each in part]


def outcomes_by_part(
    model: TrainedModel,
    examples: Sequence[Item],
    work: Callable[[Sequence[Item]], Iterable[Outcome]],
) -> Iterator[list[Outcome]]:
    """Yield what ``over_examples`` returns in parts, between which all ranks may vote on a stop."""
    for begin in range(0, len(examples), EXAMPLES_AT_A_TIME):
        yield model.over_replicas(examples[begin : begin + EXAMPLES_AT_A_TIME], work)
