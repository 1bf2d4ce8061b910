"""Prompts and answers of a task's examples, the same for training, evaluation and generation."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from glm_dist.config.patterns import MASKS, Mark, parse_field
from glm_dist.config.schema import RunConfig, TaskKind
from glm_dist.config.task import Pool
from glm_dist.config.task_checks import CHOICE
from glm_dist.data.prepare.fields import find_field
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.errors import ConfigError, DataError
from glm_dist.generate.part_b import PartB
from glm_dist.generate.prompt import Data, Frame, Part, Prompt, Room, learned_masks, make_prompt
from glm_dist.generate.sampling import Cut
from glm_dist.tasks.infilling import first_half, found_blanks, hide_words, parts_of
from glm_dist.tasks.labels import index_of_choice, index_of_label, references_of
from glm_dist.tasks.pattern import Pattern
from glm_dist.tasks.readers.lines import no_example
from glm_dist.tasks.readers.records import Record

UNBOUNDED = Room(1 << 40)


@dataclass(frozen=True)
class TaskQuestion:
    """A prompt and answers of its blanks: one row."""

    prompt: Prompt
    blanks: list[int]
    """Index in ``prompt.tokens`` of each mask that is answered. [n]"""
    answers: list[list[int]]
    """Tokens of each answer, its end included where that counts. [n]"""


@dataclass(frozen=True)
class TaskExample:
    """One example of a task."""

    where: str
    """File and line."""
    questions: list[TaskQuestion]
    """One for each answer to choose from; a single one where answers are compared by one token, are
    classes, or are written."""
    label: int = -1
    """Index of the right answer or class; -1 where answers are written."""
    choices: tuple[str, ...] = ()
    """Text of each answer to choose from."""
    references: tuple[str, ...] = ()
    """Right answers as text."""
    group: str = ""
    """See ``Record``."""
    is_right: bool = True
    """False: the example counts where another answer than the right one is chosen or written."""


class TaskPrompts:
    """Makes the prompts of one task."""

    def __init__(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        """Prepare the pattern and the fixed answers.

        Args:
            config: Of the run; its section ``task`` is already checked.
            tokenizer: The run's.

        Raises:
            ConfigError: ``single_token`` is true and an answer has several tokens, or two answers
                have the same ones.
        """
        self.task = config.task
        self._tokenizer = tokenizer
        self._corruption = config.corruption
        self._seed = config.run.seed
        self._part_b = PartB.of(config, tokenizer.special)
        pattern = self.task.prompt_pattern
        self._pattern = Pattern(pattern, shorten=self.task.shorten)
        self._target = Pattern(self.task.target) if self.task.target else None
        self._choices = parse_field(self.task.choices_field) if self.task.choices_field else None
        self._learned = learned_masks(config)
        self._frame = self._framed(config.prompt_slots)
        self.answer_ids: tuple[int, ...] = self._single_tokens()
        """Token of each answer where one token decides; else empty."""

    def num_questions(self, records: Sequence[Record]) -> int:
        """Return the questions of the example that has most.

        Args:
            records: All examples of a task.
        """
        is_single = self.answer_ids or self.task.kind not in (TaskKind.cloze, TaskKind.classify)
        if is_single or (self.task.kind is TaskKind.classify and self._choices is None):
            return 1
        if self._choices is None:
            return len(self.task.prompt_answers)
        return max(len(self._texts(record)) for record in records)

    def texts(self, record: Record) -> tuple[str, ...]:
        """Return the fields of an example that its prompts and its own answers are made of."""
        own = {self._choices.name} if self._choices else set()
        names = sorted(self._pattern.names | own)
        return tuple(str(find_field(record.fields, name)) for name in names)

    def check(self, record: Record) -> None:
        """Refuse an example that cannot be used, as far as its fields and its label tell.

        Args:
            record: The example as its file has it.

        Raises:
            DataError: A field or the label is missing, or the label is unknown.
        """
        fields = record.fields
        with _naming(record):
            if self.task.kind in (TaskKind.cloze, TaskKind.classify):
                choices = self._texts(record)
                self._label(record, choices, self._references(record))
                is_cloze = self.task.kind is TaskKind.cloze and not self.answer_ids
                has_choice = is_cloze or self._choices is not None
                self._parts(record, choices[0] if has_choice else "")
                return
            if self.task.kind is TaskKind.infill:
                self._hiding(record)
            else:
                self._pattern.parts(fields)
                self._targets(record)

    def example(self, record: Record, *, draw: int = 0) -> TaskExample:
        """Make the prompts of an example, with their answers.

        Args:
            record: The example as its file has it.
            draw: infill: number of the draw of its blanks, such as the epoch.

        Raises:
            DataError: A field or the label is missing, the label is unknown, or there is no room.
        """
        with _naming(record):
            match self.task.kind:
                case TaskKind.seq2seq:
                    return self._written(record)
                case TaskKind.infill:
                    return self._infilled(record, draw)
                case _:
                    return self._chosen(record)

    def _framed(self, slots: Sequence[int]) -> Frame:
        task = self.task
        ends_in_blank = task.prompt_pattern.endswith(MASKS)
        return Frame(
            opens=task.kind is not TaskKind.infill,
            closes=task.kind is not TaskKind.infill and (ends_in_blank or not task.pad_prompt),
            continues=False,
            slots=slots,
        )

    def _single_tokens(self) -> tuple[int, ...]:
        task = self.task
        if task.kind is not TaskKind.cloze or self._choices is not None:
            return ()
        answers = {text: self._answer(text) for text in task.prompt_answers.values()}
        _check_distinct(task.prompt_answers, answers, self._tokenizer)
        long = [text for text, ids in answers.items() if len(ids) != 1]
        if long and task.single_token:
            tokens = self._tokenizer.decode(answers[long[0]])
            raise ConfigError(
                f"task.single_token=true, and the answer {long[0]!r} has"
                f" {len(answers[long[0]])} tokens ({tokens!r}) with this run's tokenizer.\n"
                "  Choose answers of one token, or set task.single_token=false.",
                key="task.single_token",
                value=long[0],
                fix="task.single_token=false",
            )
        if long or task.single_token is False:
            return ()
        return tuple(answers[text][0] for text in task.prompt_answers.values())

    def _answer(self, text: str) -> list[int]:
        """Encode an answer as it stands in the pattern."""
        plain = self._pattern.text
        for mark in Mark:
            plain = plain.replace(mark.value, "")
        before = min((plain.partition(mask)[0] for mask in MASKS), key=len)
        return self._tokenizer.encode_document(spaced_answer(text, before))

    def _make(self, parts: Sequence[Part], room: int | None) -> Prompt:
        return make_prompt(
            parts,
            self._tokenizer,
            self._corruption,
            room=UNBOUNDED if room is None else Room(room, Cut.right),
            frame=self._frame,
            learned=self._learned,
        )

    def _texts(self, record: Record) -> list[str]:
        """Return the answers of an example as its file has them."""
        if self._choices is None:
            return list(self.task.prompt_answers.values())
        found = find_field(record.fields, self._choices.name)
        if not isinstance(found, list) or not all(isinstance(e, str | int | float) for e in found):
            raise no_example(
                record.where,
                f"has no list of answers in {self._choices.name!r} (task.answers.from)",
            )
        texts = [str(each) for each in found]
        if not texts or not all(text.strip() for text in texts):
            raise no_example(
                record.where, f"has an empty answer in {self._choices.name!r}, or none"
            )
        return texts

    def _chosen(self, record: Record) -> TaskExample:
        task = self.task
        raw = self._texts(record)
        filtered = raw if self._choices is None else [self._choices.filtered(each) for each in raw]
        references = self._references(record)
        label = self._label(record, raw, references)
        if self.answer_ids:
            prompt = self._make(self._pattern.parts(record.fields), task.max_length - 1)
            answer = [self.answer_ids[label]]
            questions = [TaskQuestion(prompt, prompt.mask_indices[-1:], [answer])]
        elif task.kind is TaskKind.cloze:
            questions = [self._cloze(record, *pair) for pair in zip(raw, filtered, strict=True)]
        else:
            room = task.max_length - (task.pool is Pool.start)
            given = raw if self._choices is not None else [""]
            prompts = [self._make(self._parts(record, each), room) for each in given]
            questions = [TaskQuestion(prompt, [], []) for prompt in prompts]
        return TaskExample(
            record.where,
            questions,
            label=label,
            choices=tuple(raw),
            references=references or (raw[label],),
            group=record.group,
            is_right=record.is_right,
        )

    def _references(self, record: Record) -> tuple[str, ...]:
        return references_of(record.fields, choices=self._choices.name if self._choices else "")

    def _parts(self, record: Record, choice: str) -> list[Part]:
        has_choice = choice and CHOICE in self._pattern.names
        return self._pattern.parts(
            {**record.fields, CHOICE: choice} if has_choice else record.fields
        )

    def _cloze(self, record: Record, choice: str, answer: str) -> TaskQuestion:
        parts = self._parts(record, choice)
        prompt = self._make(parts, None)
        ids = self._tokenizer.encode_document(prompt.answer(len(prompt.mask_indices) - 1, answer))
        if not ids:
            raise no_example(record.where, f"has the answer {choice!r}, which has no tokens")
        ids += [self._part_b.end]
        room = self.task.max_length - len(ids)
        if room < 1:
            raise DataError(
                f"An answer has {len(ids)} tokens and leaves no room for its prompt in"
                f" task.max_length={self.task.max_length}.\n"
                "  Raise task.max_length, or shorten the answer.",
                key="task.max_length",
                value=len(ids),
                fix=f"task.max_length={2 * len(ids)}",
            )
        if len(prompt.tokens) > room:
            prompt = self._make(parts, room)
        return TaskQuestion(prompt, prompt.mask_indices[-1:], [ids])

    def _label(self, record: Record, choices: Sequence[str], references: Sequence[str]) -> int:
        name = self.task.data.label
        value = find_field(record.fields, name)
        if self._choices is None:
            return index_of_label(value, list(self.task.prompt_answers), name, record.where)
        if value is None and references:
            return next((n for n, each in enumerate(choices) if each in references), 0)
        return index_of_choice(value, choices, name, record.where)

    def _written(self, record: Record) -> TaskExample:
        task = self.task
        prompt = self._make(self._pattern.parts(record.fields), task.source_length)
        if task.pad_prompt:
            missing = task.source_length - len(prompt.tokens)
            tokens = prompt.tokens + [self._tokenizer.special.pad] * missing
            prompt = replace(prompt, tokens=tokens)
        targets = self._targets(record)
        blank = prompt.mask_indices[0]
        ids = self._tokenizer.encode_document(prompt.answer(0, targets[0]))
        ids = [*ids, self._part_b.end][: task.target_length]
        references = self._references(record) or targets
        return TaskExample(
            record.where,
            [TaskQuestion(prompt, [blank], [ids])],
            references=tuple(each.strip() for each in references),
            group=record.group,
            is_right=record.is_right,
        )

    def _targets(self, record: Record) -> list[str]:
        assert self._target is not None, "the configuration was checked"
        found = self._target.texts(record.fields)
        if not found:
            raise no_example(record.where, f"has an empty list in {self.task.target!r}")
        return found

    def _infilled(self, record: Record, draw: int) -> TaskExample:
        task = self.task
        parts, number = self._hiding(record)
        prompt, hidden = self._with_blanks(record, parts, number, draw)
        answers: list[list[int]] = []
        room = task.row_length - task.source_length
        for words in hidden[: len(prompt.mask_indices)]:
            ids = [*self._tokenizer.encode_document(f" {words}"), self._part_b.end]
            if len(ids) > room and answers:
                break
            answers.append(ids[:room])  # a row without an answer would teach nothing
            room -= len(ids)
        blanks = prompt.mask_indices[: len(answers)]
        missing = task.source_length - len(prompt.tokens)
        tokens = prompt.tokens + [self._tokenizer.special.pad] * missing
        question = TaskQuestion(replace(prompt, tokens=tokens), blanks, answers)
        references = (str(parts[number]),)
        return TaskExample(record.where, [question], references=references, choices=tuple(hidden))

    def _hiding(self, record: Record) -> tuple[list[Part], int]:
        """Return the parts of a prompt, and the index of the one whose words are hidden."""
        parts = self._pattern.parts(record.fields)
        number = next((n for n, part in enumerate(parts) if isinstance(part, Data)), None)
        if number is None:
            raise no_example(record.where, "is not used: task.pattern names no field")
        if not str(parts[number]).split():
            raise no_example(record.where, "has no words to hide")
        return parts, number

    def _with_blanks(
        self, record: Record, parts: Sequence[Part], number: int, draw: int
    ) -> tuple[Prompt, list[str]]:
        """Hide words of one part; return the prompt, cut to its length, and all that is hidden.

        Raises:
            DataError: No blank is left in the prompt.
        """
        task, text = self.task, str(parts[number])
        blanked = record.fields.get("blanked")
        while text:
            if blanked is not None:
                pieces, hidden = found_blanks(blanked, text)
            else:
                pieces, hidden = hide_words(
                    text, share=task.blank_share, seed=self._seed, draw=draw
                )
            shown = parts_of(pieces)
            made = self._make([*parts[:number], *shown, *parts[number + 1 :]], None)
            prompt = _cut(made, task.source_length)
            if prompt.mask_indices:
                return prompt, hidden
            text = "" if blanked is not None else first_half(text)  # all blanks came too late
        raise no_example(record.where, "has no room for a blank in task.source_length")


def spaced_answer(text: str, before: str) -> str:
    """Return an answer as it continues the text before its blank."""
    return f" {text}" if before[-1:].isspace() and not text[:1].isspace() else text


@contextmanager
def _naming(record: Record) -> Iterator[None]:
    """Name the line of an example that cannot be used, unless the message does."""
    try:
        yield
    except DataError as error:
        where = record.where
        if error.key == where:
            raise
        message = f"{where}: {error}"
        raise DataError(message, key=where, value=error.value, fix=error.fix) from error


def _cut(prompt: Prompt, length: int) -> Prompt:
    kept = [index for index in prompt.mask_indices if index < length]
    return Prompt(prompt.tokens[:length], kept, prompt.pieces[: len(kept) + 1])


def _check_distinct(
    texts: Mapping[str, str], answers: Mapping[str, Sequence[int]], tokenizer: Tokenizer
) -> None:
    seen: dict[tuple[int, ...], str] = {}
    for label, text in texts.items():
        ids = answers[text]
        other = seen.setdefault(tuple(ids), label)
        if other != label or not ids:
            same = f"the same tokens as that of {other!r}: {tokenizer.decode(ids)!r}"
            raise ConfigError(
                f"The answer {text!r} of the label {label!r} has {same if ids else 'no tokens'}.\n"
                "  Choose answers that this run's tokenizer tells apart.",
                key=f"task.answers.{label}",
                value=text,
                fix=f"task.answers.{label}=<text>",
            )
