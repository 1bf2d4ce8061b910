"""Waits for other ranks and for the device.

A thread inside a function of this file waits for others. The watchdog goes by that
(``parallel/stacks.py``): the call itself is C++, and leaves no frame of its own.
"""

import torch
import torch.distributed as dist


def wait_for(work: dist.Work) -> None:
    """Let what follows wait for an exchange: the device's queue on GPUs, this thread on CPUs."""
    work.wait()


def wait_for_device(event: torch.cuda.Event) -> None:
    """Wait until the device has reached an event, and so all exchanges queued before it."""
    event.synchronize()
