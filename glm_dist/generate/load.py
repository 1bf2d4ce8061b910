"""A trained run, or one of its checkpoints, as a model that fills blanks and measures losses.

Any layout: one process by default, tensor and pipeline parallel ranks under a launcher.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from glm_dist.checkpoint.best import StepChoice
from glm_dist.checkpoint.fragments import Fragment
from glm_dist.checkpoint.load import WEIGHTS, choose_checkpoint, load_tensors
from glm_dist.config.launch import read_launch_environment
from glm_dist.config.load import load_config_file
from glm_dist.config.patterns import Mark
from glm_dist.config.schema import RunConfig
from glm_dist.data.tokenizer.stored import load_stored_tokenizer
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.errors import LaunchError
from glm_dist.generate.complete import (
    Answer,
    Completion,
    complete,
    list_answers,
    open_prompt,
    stream,
    write,
)
from glm_dist.generate.part_b import PartB
from glm_dist.generate.prompt import (
    Data,
    Frame,
    Part,
    Prompt,
    Room,
    learned_masks,
    make_prompt,
    read_run_prompt,
)
from glm_dist.generate.prompt_checks import check_writes
from glm_dist.generate.replicas import Item, Outcome, from_first_rank, over_replicas
from glm_dist.generate.sampling import Cut, GenerationOptions
from glm_dist.generate.score import Question, Score, check_question, score_answers
from glm_dist.model.batch import StageBatch
from glm_dist.model.stage import GLMShard, GLMStage, build_shard
from glm_dist.observe.run_folder import CHECKPOINTS, CONFIG_FILE
from glm_dist.parallel.gpus import refuse_shared_gpus
from glm_dist.parallel.groups import ParallelGroups, build_groups
from glm_dist.parallel.layout import Layout
from glm_dist.parallel.process import choose_device, start_process
from glm_dist.train.task import (
    Pretraining,
    ScoringTask,
    Task,
    TaskLoss,
    run_scores,
    run_task,
)

DEFAULT_OPTIONS = GenerationOptions()

TIMEOUT = timedelta(minutes=10)
"""Time after which a collective without an answer fails."""


@dataclass(frozen=True)
class TrainedModel:
    """A run's weights in this process's part of a layout, with all that reading texts needs."""

    model: GLMShard
    """This rank's part of the model, in evaluation mode."""
    tokenizer: Tokenizer
    config: RunConfig
    step: int
    """Optimizer steps that the weights have seen."""
    groups: ParallelGroups
    task: Task = field(default_factory=Pretraining)

    def complete(self, text: str, **options: Any) -> str:
        """Return a text with every blank replaced by its answer in brackets; see ``fill``.

        Args:
            text: May contain [MASK], [sMASK] and [gMASK]; without any it is continued.
            **options: Fields of ``GenerationOptions``.
        """
        return self.fill([text], GenerationOptions(**options))[0].text

    def fill(
        self, texts: Sequence[str], options: GenerationOptions = DEFAULT_OPTIONS
    ) -> list[Completion]:
        """Fill every blank of texts, side by side. Collective over a replica.

        Args:
            texts: May contain [MASK], [sMASK] and [gMASK]; without any a text is continued.
            options: How answers are written.

        Raises:
            ConfigError: The run was trained to do something else than to fill blanks.
            DataError: A text names a mask that the run never trained, is too long or is not UTF-8.
            TypeError: One text is given in the place of several.
        """
        if isinstance(texts, str):
            raise TypeError("fill takes a list of texts; complete takes one")
        self._check_task()
        return complete(self._stage, self.tokenizer, texts, config=self.config, options=options)

    def stream(self, text: str, options: GenerationOptions = DEFAULT_OPTIONS) -> Iterator[str]:
        """Fill the blanks of a text and yield it piece by piece as it grows; see ``fill``.

        Beam search cannot be streamed. Every rank of a replica must take all pieces.
        """
        self._check_task()
        return stream(self._stage, self.tokenizer, text, config=self.config, options=options)

    def check(self, text: str, *, truncate: Cut | None = None) -> None:
        """Refuse a text that cannot be filled, without the model.

        Raises:
            DataError: As for ``fill``.
        """
        open_prompt(text, self.tokenizer, self.config, cut=truncate)

    def read(self, parts: Sequence[Part], *, cut: Cut | None = None) -> Prompt:
        """Make a prompt of the parts of a pattern; see ``prompt.make_prompt``.

        Args:
            parts: Literal text, in which masks may be named, ``Data``, in which they may not, and
                marks.
            cut: End at which data that is too long is shortened; None: it is an error.

        Raises:
            DataError: As for ``fill``.
        """
        room = Room(self.config.model.max_position_embeddings + 1, cut)
        if len(parts) == 1 and not isinstance(parts[0], Data | Mark):
            return read_run_prompt(parts[0], self.tokenizer, self.config, room=room)
        learned = learned_masks(self.config)
        frame = Frame(slots=self.config.prompt_slots)
        return make_prompt(
            parts, self.tokenizer, self.config.corruption, room=room, frame=frame, learned=learned
        )

    def write(
        self, prompts: Sequence[Prompt], options: GenerationOptions = DEFAULT_OPTIONS
    ) -> list[list[str]]:
        """Write the answers of prompts, side by side. Collective over a replica."""
        self._check_task()
        return write(self._stage, self.tokenizer, prompts, config=self.config, options=options)

    def score(self, questions: Sequence[Question], *, batch_size: int = 16) -> list[list[Score]]:
        """Score answers in their contexts; see ``score.score_answers``.

        Args:
            questions: Contexts with their answers.
            batch_size: Answers scored side by side.

        Raises:
            ConfigError: As for ``fill``.
            DataError: A context or an answer is too long.
        """
        self._check_task()
        part_b = PartB.of(self.config, self.tokenizer.special)
        return score_answers(self._stage, questions, part_b=part_b, batch_size=batch_size)

    def check_question(self, question: Question) -> None:
        """Refuse a question that cannot be scored, without the model.

        Raises:
            DataError: The context or an answer is too long, or an answer is empty.
        """
        check_question(question, PartB.of(self.config, self.tokenizer.special))

    def from_first_rank(self, value: Item) -> Item:
        """Return the value of rank 0 on every rank. Collective over all ranks."""
        return from_first_rank(self.groups, value)

    def over_replicas(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], Iterable[Outcome]]
    ) -> list[Outcome]:
        """Work on a list, each replica on its share; see ``replicas.over_replicas``."""
        return over_replicas(self.groups, items, work)

    def answers(
        self, text: str, *, count: int = 3, max_tokens: int = 16, truncate: Cut | None = None
    ) -> list[list[Answer]]:
        """Find the likeliest answers of each blank, with probabilities. Collective over a replica.

        Args:
            text: May contain [MASK], [sMASK] and [gMASK]; without any its continuation is found.
            count: Answers of each blank.
            max_tokens: Longest answer.
            truncate: End at which a text that is too long is shortened; None: it is an error.

        Raises:
            ConfigError: As for ``fill``.
            DataError: As for ``fill``.
            ValueError: No answer is asked for.
        """
        if count < 1:
            raise ValueError(f"count={count}; ask for one answer or more")
        self._check_task()
        return list_answers(
            self._stage,
            self.tokenizer,
            text,
            config=self.config,
            count=count,
            max_tokens=max_tokens,
            cut=truncate,
        )

    def _check_task(self) -> None:
        check_writes(self.config.corruption, run=self.config.run.name)

    @property
    def _stage(self) -> GLMStage:
        (stage,) = self.model.chunks
        return stage

    @torch.no_grad()
    def evaluate(self, batches: Sequence[StageBatch]) -> list[TaskLoss]:
        """Compute losses without dropout and gradients. Collective over a replica.

        Args:
            batches: Micro-batches of one shape, the same on all ranks of a replica.

        Returns:
            Loss of each micro-batch on the last stage; empty elsewhere.
        """
        return run_task(self.model, self.task, batches, groups=self.groups)

    @torch.no_grad()
    def predict(self, batches: Sequence[StageBatch]) -> list[torch.Tensor]:
        """Rate the answers of examples; needs a ``ScoringTask``. Collective over a replica.

        Args:
            batches: As for ``evaluate``.

        Returns:
            Scores [e, c] of each micro-batch on the last stage; empty elsewhere.
        """
        task = cast(ScoringTask, self.task)
        return run_scores(self.model, task, batches, groups=self.groups)


def load_trained(
    run: str | Path,
    *,
    step: StepChoice = None,
    tokenizer: str | Path | None = None,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
) -> TrainedModel:
    """Load the weights of a run. Collective over all ranks of the job, if there is one.

    Joins the launcher's job, or makes a job of this process, unless torch.distributed has been
    initialised already. May be called again and again; models share nothing but their groups.

    Args:
        run: The run's folder.
        step: Which checkpoint; "best" is the one that checkpoint.keep_best kept, None the newest.
        tokenizer: Its tokenizer's files, if they are neither in the run's folder nor where they
            were during training.
        tensor_parallel_size: Ranks that share each layer.
        pipeline_parallel_size: Stages. Ranks beyond their product are further replicas.

    Raises:
        CheckpointError: The run has no such checkpoint, or it is damaged.
        ConfigError: The run's saved configuration cannot be read.
        DataError: Its tokenizer is gone, or is not the one it was trained with.
        LaunchError: The ranks do not divide into replicas of that size.
    """
    folder = Path(run)
    config = load_config_file(folder / CONFIG_FILE)
    device = _join()
    groups = _groups(_layout(tensor_parallel_size, pipeline_parallel_size), dist.group.WORLD)
    info = choose_checkpoint(folder / CHECKPOINTS, step)
    opened = load_stored_tokenizer(
        config.tokenizer,
        folder,
        checkpoint=info.manifest.extra,
        path=None if tokenizer is None else Path(tokenizer),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # libraries speak of optional kernels
        model = build_shard(config, groups=groups, device=device)
    fragments = {
        WEIGHTS + shard.name: Fragment(
            shard.parameter.data,
            global_shape=shard.global_shape,
            offset=shard.offset,
            rows=shard.rows or None,
        )
        for shard in model.shards()
    }
    load_tensors(info, fragments, prefixes=(WEIGHTS,))
    return TrainedModel(model.eval(), opened, config, info.manifest.step, groups)


def _join() -> torch.device:
    """Choose this process's device, and become a member of a job if it is not one yet."""
    if dist.is_initialized():
        return choose_device(int(os.environ.get("LOCAL_RANK", dist.get_rank())))
    device = start_process(read_launch_environment(os.environ, trains=False), TIMEOUT).device
    refuse_shared_gpus(device, os.environ)
    return device


def _layout(tensor_parallel_size: int, pipeline_parallel_size: int) -> Layout:
    """Fill the job with replicas of a size.

    Raises:
        LaunchError: They do not.
    """
    size, replica = dist.get_world_size(), tensor_parallel_size * pipeline_parallel_size
    if size % replica:
        raise LaunchError(
            f"{size} processes do not divide into replicas of tensor_parallel_size="
            f"{tensor_parallel_size} x pipeline_parallel_size={pipeline_parallel_size}.\n"
            f"Start {replica} processes, e.g. torchrun --nproc-per-node {replica} …",
            key="world size",
            value=size,
            fix=f"--nproc-per-node {replica}",
        )
    return Layout(tensor_parallel_size, pipeline_parallel_size, size // replica)


@lru_cache(maxsize=8)
def _groups(layout: Layout, world: dist.ProcessGroup) -> ParallelGroups:
    """Make a layout's groups once per job: every group keeps threads until it ends."""
    return build_groups(layout, TIMEOUT)
