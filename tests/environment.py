"""Surroundings of the processes that tests start. Imports nothing heavy."""

import signal

CPU_ONLY = {
    # Read when CUDA starts: a GPU machine then looks like one without.
    "CUDA_VISIBLE_DEVICES": "",
    # DeepSpeed chooses its accelerator by what is installed, and its launcher shows devices again.
    "DS_ACCELERATOR": "cpu",
    # Triton's kernels then run on CPU tensors, where a test asks for them.
    "TRITON_INTERPRET": "1",
}
"""Hides every GPU from a process that starts with it."""

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Many small processes share few cores."""

SEVERAL_RANKS_ON_ONE_GPU = {
    "NCCL_IB_DISABLE": "1",
    "NCCL_SOCKET_IFNAME": "lo",
    "NCCL_P2P_DISABLE": "1",
    "NCCL_SHM_DISABLE": "1",
    # fp32 products in fp32: they are compared with one process's.
    "NVIDIA_TF32_OVERRIDE": "0",
}
"""NCCL refuses two ranks on a GPU of one host; with a host id each, they meet over the loopback."""


def default_signals() -> None:
    """Give every stop signal its default action, as a program has it that a terminal starts.

    For ``preexec_fn``. A shell without job control lets what runs in the background ignore INT. And
    a child that is forked after a command has run in the test's process ignores them all, as data
    workers do.
    """
    for name in ("SIGINT", "SIGHUP", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        signal.signal(signal.Signals[name], signal.SIG_DFL)
