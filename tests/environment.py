"""Environment variables of the processes that tests start. Imports nothing heavy."""

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
