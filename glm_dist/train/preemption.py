"""Stopping on request: a signal to any rank ends the run after a checkpoint, on all ranks together.

Batch systems warn before they take a node away (SLURM: ``--signal=USR1@300``; TERM at the limit or
on preemption), and often warn some ranks earlier than others. A rank that left on its own would
leave the others in a collective, so ranks vote once a step.
"""

import logging
import signal
from types import FrameType

import torch
import torch.distributed as dist

from glm_dist.config.launch import STOP_SIGNALS

log = logging.getLogger(__name__)

EXIT_STOPPED = 75
"""Exit status of a run that was asked to stop and saved: start it again (EX_TEMPFAIL)."""

EXIT_UNSAVED = 130
"""Exit status of a run that was asked to stop and saves nothing: it would begin where it began.

A shell says the same of a program that Ctrl-C ended; no launcher starts such a one again.
"""


class StopRequest:
    """Remembers that this process was asked to stop, and asks the others."""

    def __init__(self) -> None:
        """Listen from now on; call after libraries that set handlers of their own."""
        self._received: str | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        # Nothing but remembering: a handler may interrupt any line, a save included.
        self._received = signal.Signals(number).name

    def agreed(self) -> bool:
        """Return True if any rank was asked to stop. Collective over all ranks, on the host."""
        vote = torch.tensor(int(self._received is not None))
        dist.all_reduce(vote, op=dist.ReduceOp.MAX)
        if self._received is not None:
            log.warning("received signal=%s; stopping after this step", self._received)
        if vote:
            # Nothing is left to ask for. The first rank that ends with EXIT_STOPPED makes srun send
            # TERM to the others, which must live to end with the same status; Python gives handlers
            # of its own back as it ends, but leaves an ignored signal ignored.
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
        return bool(vote)
