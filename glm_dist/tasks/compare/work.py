"""Work through the jobs of a comparison, in one process or several side by side.

What is finished is skipped, so a comparison goes on where it was stopped. Each process takes the
first job that nobody has begun and whose pretraining is done; a lock of the job's file tells who
works on it, and goes with its process.
"""

import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO

from glm_dist.config.checks import check_config
from glm_dist.config.load import load_config
from glm_dist.config.schema import CompareConfig, RunConfig
from glm_dist.errors import EXIT_FINISHED, EXIT_STOPPED
from glm_dist.files import LockedError, lock_file
from glm_dist.generate.load import load_trained
from glm_dist.parallel.errors import Ranks
from glm_dist.tasks import finetune
from glm_dist.tasks.compare.cost import Cost, add_cost
from glm_dist.tasks.compare.last_words import read_last_words, write_scores
from glm_dist.tasks.compare.plan import LAST_WORDS_FILE, Comparison, Job
from glm_dist.tasks.compare.word_scores import score_words
from glm_dist.tasks.task_data import TaskData
from glm_dist.tasks.workload import open_with
from glm_dist.train.job import train_run
from glm_dist.train.member import Member
from glm_dist.train.preflight import check_files
from glm_dist.train.workload import OpenWorkload

log = logging.getLogger(__name__)

LOCKS = "locks"
"""Folder of the jobs' locks in the folder of a comparison."""

NONE_YET = -1
"""Number of no job, where the other processes are at work on all that are left."""

WAIT_SECONDS = 1.0
"""Interval between two looks at what the other processes have finished."""


def work_through(comparison: Comparison, member: Member) -> int:
    """Do all jobs that are not finished. Collective over all ranks.

    Args:
        comparison: The plan.
        member: This process.

    Returns:
        Exit status: 0 if all jobs are finished, otherwise that of the job that was stopped.
    """
    worker = _Worker(comparison, member)
    while True:
        status = worker.next_job()
        if status is not None:
            return status


class _Worker:
    """One process, or the ranks of one job, that work together."""

    def __init__(self, comparison: Comparison, member: Member) -> None:
        self._comparison = comparison
        self._member = member
        self._jobs = comparison.jobs()
        self._by_name = comparison.named()
        self._examples: dict[tuple[str, str], TaskData] = {}
        (comparison.folder / LOCKS).mkdir(parents=True, exist_ok=True)

    def next_job(self) -> int | None:
        """Do one job, or wait for one; return the exit status once there is nothing more to do."""
        folder = str(self._comparison.folder)
        number, lock = None, None

        def choose() -> int | None:
            nonlocal lock
            chosen, lock = self._choose()
            return chosen

        try:
            number = Ranks(None).on_first("choose the next job", folder, choose)
            if number is None:
                return EXIT_FINISHED
            if number == NONE_YET:
                self._member.listener.wait(WAIT_SECONDS)
                return EXIT_STOPPED if self._stops() else None
            status = self._do(self._jobs[number])
        finally:
            if lock is not None:
                lock.close()
        return None if status == EXIT_FINISHED else status

    def _choose(self) -> tuple[int | None, IO[str] | None]:
        """Lock the next job and return its number; None once all of them are finished."""
        waiting = [n for n, job in enumerate(self._jobs) if not job.is_finished]
        for number in waiting:
            job = self._jobs[number]
            if job.needs and not self._by_name[job.needs].is_finished:
                continue
            try:
                lock = lock_file(self._comparison.folder / LOCKS / f"{job.name}-{job.result}")
            except LockedError:
                continue
            if not job.is_finished:
                return number, lock
            if lock is not None:  # another process has just finished it
                lock.close()
        return (NONE_YET if waiting else None), None

    def _do(self, job: Job) -> int:
        left = sum(not each.is_finished for each in self._jobs)
        log.info("comparison: %s, %d of %d jobs left", job.name, left, len(self._jobs))
        began, cpu = time.monotonic(), time.process_time()
        if job.result == LAST_WORDS_FILE:
            return self._measure(job)
        config, workload = self._opened(job)
        command = ["glm-dist", "finetune" if job.task else "train", *job.overrides]
        status = train_run(config, self._member, workload=workload, command=command)
        ranks = Ranks(None)
        cores = sum(ranks.gather(time.process_time() - cpu))
        cost = Cost(time.monotonic() - began, cores)
        ranks.on_first("write the cost of a run", job.name, lambda: add_cost(job.folder, cost))
        return status

    def _opened(self, job: Job) -> tuple[RunConfig, OpenWorkload]:
        """Compose and check a run."""
        ranks = Ranks(None)
        config_dir = self._comparison.config_dir
        with ranks.raise_on_all_ranks("prepare a run", job.name):
            config = load_config(job.overrides, config_dir=config_dir)
            check_config(config, world_size=self._member.launch.world_size)
            known = self._examples.get((job.task, job.needs))
            prepared = finetune.complete(config, job.overrides, config_dir=config_dir, known=known)
            # A run is the same whatever it is compared with.
            config = replace(prepared.config, compare=CompareConfig())
            check_files(config, asks_store=ranks.rank == 0, read_data=prepared.facts)
        if prepared.data is not None:
            self._examples[job.task, job.needs] = prepared.data
        return config, open_with(prepared.data)

    def _measure(self, job: Job) -> int:
        """Measure a pretrained run by the last words of texts."""
        file = Path(str(self._comparison.settings.last_words))
        with Ranks(None).raise_on_all_ranks("read last words", str(file)):
            words = read_last_words(file)
        self._member.process.progress.begin_run()
        model = load_trained(job.folder)
        scores = score_words(model, words, stops=self._stops)
        if scores is None:
            return EXIT_STOPPED
        write = partial(write_scores, scores, job.folder / LAST_WORDS_FILE)
        Ranks(None).on_first("write last words", str(job.folder), write)
        log.info("last words run=%s nats_per_word=%.3f", job.name, scores.nats)
        return EXIT_FINISHED

    def _stops(self) -> bool:
        """Vote on a stop; nobody hangs meanwhile, so the watchdog's deadline begins again."""
        self._member.process.progress.restart()
        return any(Ranks(None).gather(self._member.listener.code))
