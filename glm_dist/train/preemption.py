"""Graceful stop: a signal to any rank ends the run on all ranks after a checkpoint.

Batch systems send a signal before they reclaim a node (SLURM: ``--signal=USR1@300``; TERM at the
limit or on preemption), often to some ranks earlier than to others. A rank that exited by itself
would leave the others in a collective, so the ranks vote once per step.
"""

import logging
import signal
from types import FrameType

import torch
import torch.distributed as dist

from glm_dist.config.launch import STOP_SIGNALS

log = logging.getLogger(__name__)

EXIT_STOPPED = 75
"""Exit status of a run that stopped on request and saved; restart it (EX_TEMPFAIL)."""

EXIT_UNSAVED = 130
"""Exit status of a run that stopped on request without saving; a restart would start over.

A shell reports the same status after Ctrl-C, and no launcher restarts such a program.
"""


class StopRequest:
    """Stop request of this process, shared with the other ranks by a vote."""

    def __init__(self) -> None:
        """Install the signal handlers; call it after libraries that install their own."""
        self._received: str | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        # Only store the signal: a handler may interrupt any line, even in a save.
        self._received = signal.Signals(number).name

    def agreed(self) -> bool:
        """Return True if any rank was asked to stop. Collective over all ranks, on the host."""
        vote = torch.tensor(int(self._received is not None))
        dist.all_reduce(vote, op=dist.ReduceOp.MAX)
        if self._received is not None:
            log.warning("received signal=%s; stopping after this step", self._received)
        if vote:
            # Later signals change nothing. When the first rank exits with EXIT_STOPPED, srun sends
            # TERM to the others, which must survive to exit with the same status. Python removes
            # its handlers at exit, but ignored signals stay ignored.
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
        return bool(vote)
