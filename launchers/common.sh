# shellcheck shell=bash
# Common part of the batch scripts: environment of the job, then one srun task per GPU.
#
#   launch EXPERIMENT [key=value ...]
#   launch_program SCRIPT|-m MODULE [ARGUMENT ...]     any other program of this repository
#
# Settings, from the environment of sbatch:
#   PYTHON            interpreter; .venv/bin/python if there is one, else python
#   CONTAINER_IMAGE   run inside this image, on clusters with pyxis (enroot)
#   CONTAINER_MOUNTS  folders the container sees besides the repository, as /host:/inside,...
#   AUTO_REQUEUE=0    do not requeue before the time limit or after a crash
#   MAX_CRASHES       requeue after this many crashes in a row at most; 3
#   CRASH_WAIT        seconds before the first of them, doubled for each; 60
#   GLM_DATA GLM_RUNS folders of prepared data and of runs; ./data and ./runs otherwise
#   DRY_RUN=1         print the command instead of running it

die() {
  echo "launchers: $*" >&2
  exit 2
}

# The same address and port on every node. glm_dist can derive them from SLURM's variables; when exported,
# they are also in the log and inside containers.
choose_rendezvous() {
  read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST") ||
    die "scontrol could not expand SLURM_JOB_NODELIST = $SLURM_JOB_NODELIST"
  MASTER_PORT=$((20000 + SLURM_JOB_ID * 7 % 10000)) # below Linux' ephemeral ports
  export MASTER_ADDR MASTER_PORT
}

# srun sets the ranks. Variables of an interactive shell would override them on every task.
forget_other_launchers() {
  unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE LOCAL_SIZE GROUP_RANK TORCHELASTIC_RUN_ID
}

# Variables that do not affect results. Values that are already exported are kept.
set_environment() {
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
  export HYDRA_FULL_ERROR=${HYDRA_FULL_ERROR:-1} # the whole traceback
  export PYTHONUNBUFFERED=1                      # the last lines before a crash reach the log
  export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
  export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
  # Lets tensor-parallel collectives start before the matrix products queued after them (Megatron).
  export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
}

launch() {
  local experiment=$1
  shift
  launch_program train.py "experiment=$experiment" "$@"
}

launch_program() {
  local python=${PYTHON:-}
  [[ -f train.py ]] || die "no train.py in $PWD: submit from the repository root"

  # Without --kill-on-bad-exit the other ranks wait for a dead one until their timeout.
  local -a command=(srun --kill-on-bad-exit=1)
  # srun does not take over --cpus-per-task from sbatch (SLURM 22.05 and later).
  [[ -z ${SLURM_CPUS_PER_TASK:-} ]] || command+=("--cpus-per-task=$SLURM_CPUS_PER_TASK")
  if [[ -n ${CONTAINER_IMAGE:-} ]]; then
    command+=(
      "--container-image=$CONTAINER_IMAGE"
      "--container-mounts=$PWD:$PWD${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}"
      "--container-workdir=$PWD"
    )
    python=${python:-python}
  elif [[ -z $python ]]; then
    python=python
    [[ ! -x .venv/bin/python ]] || python=.venv/bin/python
    command -v "$python" >/dev/null || die "no python here: run make setup, or set PYTHON"
  fi
  command+=("$python" "$@")

  if [[ ${DRY_RUN:-0} == 1 ]]; then
    printf '%q ' "${command[@]}" | sed 's/ $/\n/'
    return
  fi
  [[ -n ${SLURM_JOB_ID:-} ]] ||
    die "not inside a SLURM job: submit with sbatch, or see the command with DRY_RUN=1"
  choose_rendezvous
  forget_other_launchers
  set_environment
  echo "job=$SLURM_JOB_ID attempt=${SLURM_RESTART_COUNT:-0} nodes=$SLURM_JOB_NODELIST" \
    "tasks=${SLURM_NTASKS:-?} master=$MASTER_ADDR:$MASTER_PORT"
  run_and_requeue "${command[@]}"
}

# On USR1, before the time limit, the tasks save and exit with 75: the run is not finished, so the job is
# requeued. TERM comes from a person or from SLURM (scancel, preemption, requeue): the tasks save as well,
# and SLURM decides what happens next. Statuses that a restart would only repeat are final: 0 finished,
# 2 a mistake known before training, 76 one in training, 130 stopped without saving (checkpoint=none).
# Any other status is a crash, of a node for example.
run_and_requeue() {
  local status=0 terminated=0 note="$PWD/slurm-$SLURM_JOB_ID.run"
  trap 'terminated=1' TERM # and wait for srun, instead of leaving the tasks behind
  rm -f "$note"
  # The program writes its run folder there, and the newest checkpoint at the start: a line each.
  GLM_RUN_FOLDER_FILE=$note "$@" || status=$?
  if [[ $terminated == 0 && ${AUTO_REQUEUE:-1} == 1 ]]; then
    case $status in
    0 | 2 | 76 | 130) rm -f "${note%.run}.crashes" ;;
    *) requeue_if_worth_it "$status" "$note" ;;
    esac
  fi
  rm -f "$note"
  exit "$status"
}

requeue_if_worth_it() {
  local status=$1 note=$2 folder='' before='' newest='' crashes=0 count="$PWD/slurm-$SLURM_JOB_ID.crashes"
  [[ ! -f $note ]] || { read -r folder && read -r before; } <"$note" || true
  # torchrun turns 75 into 1; the program's marker has the true status.
  if [[ $status != 75 && -n $folder && -f $folder/stopped ]]; then
    grep -q '"status": 75' "$folder/stopped" || return 0
    status=75
  fi
  if [[ $status == 75 ]]; then
    rm -f "$count"
    echo "job=$SLURM_JOB_ID stopped on request; back into the queue"
  else
    # A crash that left a newer checkpoint than there was at the start got further than the last one.
    newest=$(cd "$folder/checkpoints" 2>/dev/null && printf '%s\n' step_* | sort | tail -n 1) || true
    [[ -n $folder && $newest == step_[0-9]* && $newest > $before ]] || return 0
    [[ ! -f $count ]] || crashes=$(<"$count")
    ((crashes < ${MAX_CRASHES:-3})) || return 0
    echo $((crashes + 1)) >"$count"
    echo "job=$SLURM_JOB_ID crashed with $status after $newest; back into the queue"
    sleep $((${CRASH_WAIT:-60} * 2 ** crashes))
  fi
  scontrol requeue "$SLURM_JOB_ID" || die "job $SLURM_JOB_ID cannot be requeued; submit it again"
}
