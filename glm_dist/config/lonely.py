"""Refusal of a job that is smaller than its allocation: it would train alone, and nobody notice.

A wrong name of a hostfile, a forgotten ``srun`` or a launcher that every task starts for itself all
look like a good job of fewer processes.
"""

from collections.abc import Mapping

from glm_dist.errors import LaunchError

FIRST_SPECIAL_STEP = 0xFFFF_FFF0
"""SLURM numbers its own steps (batch, extern, interactive) from here; none is an srun of ours."""


def in_step(environ: Mapping[str, str]) -> bool:
    """Return True inside a step that an srun has made.

    Args:
        environ: Environment of the process.
    """
    step = environ.get("SLURM_STEP_ID", environ.get("SLURM_STEPID", ""))
    return step.isdecimal() and int(step) < FIRST_SPECIAL_STEP


def refuse_lonely_process(environ: Mapping[str, str]) -> None:
    """Refuse one process, without a launcher that we read, where several were reserved.

    Args:
        environ: Environment of the process.

    Raises:
        LaunchError: A SLURM job of several tasks, or mpirun.
    """
    tasks = _count(environ, "SLURM_NTASKS")
    if tasks > 1:
        raise LaunchError(
            f"SLURM_NTASKS={tasks} tasks are reserved, but this python was not started by srun"
            " and would"
            " train alone.\n"
            "  Start it as `srun python train.py ...`, or as `srun -n 1` for one process.",
            key="SLURM_NTASKS",
            value=str(tasks),
            fix="srun python train.py ...",
        )
    _refuse_unused_nodes(environ, "this python was not started by srun and")
    name = "OMPI_COMM_WORLD_SIZE" if "OMPI_COMM_WORLD_SIZE" in environ else "PMI_SIZE"
    ranks = _count(environ, name)
    if ranks > 1:
        raise LaunchError(
            f"mpirun started {ranks} processes ({name}), but exports no RANK: each would train"
            " alone.\n"
            "  Start with torchrun, deepspeed or srun.",
            key=name,
            value=str(ranks),
            fix="torchrun --nproc-per-node <processes> train.py ...",
        )


def refuse_lonely_host(
    environ: Mapping[str, str], *, launcher: str, world_size: int, local_world_size: int
) -> None:
    """Refuse a launcher's processes on one host where several hosts or tasks were reserved.

    Args:
        environ: Environment of the process.
        launcher: As ``LaunchEnvironment.launcher``.
        world_size: Processes of the job.
        local_world_size: Processes on this host.

    Raises:
        LaunchError: There are more nodes or tasks in the SLURM job, or step.
    """
    if world_size > local_world_size:
        return
    how = f"{launcher} started {world_size} process{'es' if world_size > 1 else ''} and"
    if in_step(environ):
        tasks = _count(environ, "SLURM_STEP_NUM_TASKS")
        if world_size == 1 and tasks > 1:
            raise LaunchError(
                f"srun started {tasks} tasks, but in each of them {launcher} started a job of one"
                " process.\n"
                "  Let srun start the processes (srun python train.py ...), or the launcher once"
                " on each node with --nnodes and --node_rank.",
                key="SLURM_STEP_NUM_TASKS",
                value=str(tasks),
                fix="srun python train.py ...",
            )
        return
    _refuse_unused_nodes(environ, how)
    tasks = _count(environ, "SLURM_NTASKS")
    if world_size == 1 and tasks > 1:
        raise LaunchError(
            f"SLURM_NTASKS={tasks} tasks are reserved, but {how} would train alone.\n"
            "  Start more processes, or with `srun -n 1` in front if one is meant.",
            key="SLURM_NTASKS",
            value=str(tasks),
            fix="srun python train.py ...",
        )


def _refuse_unused_nodes(environ: Mapping[str, str], how: str) -> None:
    name = "SLURM_JOB_NUM_NODES" if "SLURM_JOB_NUM_NODES" in environ else "SLURM_NNODES"
    nodes = _count(environ, name)
    if nodes > 1:
        raise LaunchError(
            f"The job has {name}={nodes} nodes, but {how} would train on this one alone.\n"
            "  Start with srun, or check the name of the hostfile (glm-dist hostfile writes one)"
            " and --nnodes; `srun -N 1 -n 1` in front says that one node is meant.",
            key=name,
            value=str(nodes),
            fix="srun python train.py ...",
        )


def _count(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "1")
    return int(text) if text.isdecimal() else 1
