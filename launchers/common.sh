# shellcheck shell=bash
# Common part of the batch scripts: environment of the job, one srun task per GPU, and what follows its end.
#
#   launch "EXPERIMENT [key=value ...]" [key=value ...]
#   launch_program SCRIPT|-m MODULE [ARGUMENT ...]     any other program of this repository
#
# Settings, from the environment of sbatch:
#   PYTHON             interpreter; .venv/bin/python if there is one, else python
#   CONTAINER_IMAGE    run inside this image, with pyxis, apptainer, singularity or podman
#   CONTAINER_RUNTIME  which of them; otherwise the first one found
#   CONTAINER_MOUNTS   more folders the container sees, as /host:/inside,...; the repository, GLM_DATA and
#                      GLM_RUNS are mounted anyway
#   AUTO_REQUEUE=0     do not requeue before the time limit or after a crash
#   MAX_CRASHES        requeue after this many crashes or vain starts in a row at most; 3
#   CRASH_WAIT         seconds before the first of them, doubled for each; 60
#   GLM_DATA GLM_RUNS  folders of prepared data and of runs; ./data and ./runs otherwise
#   DRY_RUN=1          print what would run and check the configuration, instead of running it

EXIT_STOPPED=75      # glm_dist stopped on request and has lost nothing
RESEND_SECONDS=15    # a task that is still starting may miss the first signal
asked='' interrupted=0 srun_pid='' note=''
exported=()          # names that set_environment and choose_rendezvous have exported

die() {
  echo "launchers: $*" >&2
  exit 2
}

say() {
  echo "job=$SLURM_JOB_ID $*"
}

# USR1 for the batch shell (--signal=B:USR1@300), TERM and INT ask the tasks to stop. srun gets USR1 for
# each: it hands that on, and TERM would end it.
ask_to_stop() {
  interrupted=1
  [[ -n $asked && $1 == USR1 ]] || asked=$1 # scancel may follow a request
  [[ -z $note ]] || : >"$note.asked"
  [[ -z $srun_pid ]] || kill -USR1 "$srun_pid" 2>/dev/null || true
}

if [[ -n ${SLURM_JOB_ID:-} && ${DRY_RUN:-0} != 1 ]]; then
  trap 'ask_to_stop USR1' USR1
  trap 'ask_to_stop TERM' TERM
  trap 'ask_to_stop INT' INT
fi

export_variable() {
  export "$1=$2"
  exported+=("$1")
}

# The same address and port on every node. glm_dist can derive them from SLURM's variables; when exported,
# they are also in the log and inside containers.
choose_rendezvous() {
  local first
  read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST") ||
    die "scontrol could not expand SLURM_JOB_NODELIST = $SLURM_JOB_NODELIST"
  export_variable MASTER_ADDR "$first"
  export_variable MASTER_PORT $((20000 + SLURM_JOB_ID * 7 % 10000)) # below Linux' ephemeral ports
}

# srun sets the ranks. Variables of an interactive shell would override them on every task.
forget_other_launchers() {
  unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE LOCAL_SIZE GROUP_RANK TORCHELASTIC_RUN_ID
}

# Values that are already exported are kept.
set_environment() {
  [[ -z ${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-}} ]] || # else glm_dist divides the cores
    export_variable OMP_NUM_THREADS "${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"
  export_variable HYDRA_FULL_ERROR "${HYDRA_FULL_ERROR:-1}" # the whole traceback
  export_variable PYTHONUNBUFFERED 1                        # the last lines before a crash reach the log
  export_variable TOKENIZERS_PARALLELISM "${TOKENIZERS_PARALLELISM:-false}"
  export_variable NCCL_DEBUG "${NCCL_DEBUG:-WARN}"
  # Lets tensor-parallel collectives start before the matrix products queued after them (Megatron).
  export_variable CUDA_DEVICE_MAX_CONNECTIONS "${CUDA_DEVICE_MAX_CONNECTIONS:-1}"
  local name
  for name in GLM_DATA GLM_RUNS; do
    [[ -z ${!name:-} ]] || export_variable "$name" "${!name}"
  done
}

launch() {
  local words
  read -ra words <<<"$1"
  shift
  while [[ ${1:-} == -* ]]; do # sbatch's, for a dry run
    [[ ${DRY_RUN:-0} == 1 ]] || die "options of sbatch stand before the script: sbatch $1 ... (got $1 after it)"
    sbatch_options+=("$1")
    [[ $1 == *=* || $1 == --exclusive || $1 == -[Nnc]?* || $# -lt 2 ]] || { sbatch_options+=("$2") && shift; }
    shift
  done
  launch_program train.py "experiment=${words[0]}" "${words[@]:1}" "$@"
}
sbatch_options=()

launch_program() {
  [[ -f train.py ]] || die "no train.py in $PWD: submit from the repository root"
  [[ ${DRY_RUN:-0} != 1 ]] || read_directives "${BASH_SOURCE[-1]}"
  set_environment

  # Without --kill-on-bad-exit the other ranks wait for a dead one until their timeout. sbatch --export=NONE
  # would make srun drop all variables but SLURM's.
  command=(srun --export=ALL --kill-on-bad-exit=1)
  # srun does not take over --cpus-per-task from sbatch (SLURM 22.05 and later).
  [[ -z ${SLURM_CPUS_PER_TASK:-} ]] || command+=("--cpus-per-task=$SLURM_CPUS_PER_TASK")
  local python=${PYTHON:-}
  if [[ -n ${CONTAINER_IMAGE:-} ]]; then
    python=${python:-python3}
    enter_container
  else
    [[ -n $python || ! -x .venv/bin/python ]] || python=.venv/bin/python
    python=${python:-python}
    command -v -- "$python" >/dev/null || die "no $python here: run make setup, or set PYTHON"
  fi
  if [[ ${DRY_RUN:-0} == 1 ]]; then
    dry_run "$python" "$@"
    return
  fi
  command+=("$python" "$@")
  [[ -n ${SLURM_JOB_ID:-} ]] ||
    die "not inside a SLURM job: submit with sbatch, or see the command with DRY_RUN=1"
  choose_rendezvous
  forget_other_launchers
  say "attempt=${SLURM_RESTART_COUNT:-0} nodes=$SLURM_JOB_NODELIST" \
    "tasks=${SLURM_NTASKS:-?} master=$MASTER_ADDR:$MASTER_PORT"
  run_and_conclude
}

# --- containers

# Adds to `command` what starts a program inside CONTAINER_IMAGE.
enter_container() {
  local runtime=${CONTAINER_RUNTIME:-} name folder mounts=("$PWD:$PWD")
  for folder in "${GLM_DATA:-}" "${GLM_RUNS:-}"; do
    [[ $folder != /* ]] || mounts+=("$folder:$folder")
  done
  [[ -z ${CONTAINER_MOUNTS:-} ]] || mounts+=("$CONTAINER_MOUNTS")
  [[ -n $runtime ]] || ! srun --help 2>/dev/null | grep -q -- --container-image || runtime=pyxis
  for name in apptainer singularity podman; do
    [[ -n $runtime ]] || ! command -v "$name" >/dev/null || runtime=$name
  done
  mounts=("$(IFS=,; echo "${mounts[*]}")")
  case $runtime in
  pyxis)
    command+=("--container-image=$CONTAINER_IMAGE" "--container-mounts=${mounts[0]}" "--container-workdir=$PWD")
    ;;
  apptainer | singularity)
    command+=("$runtime" exec --nv --bind "${mounts[0]}" --pwd "$PWD" "$CONTAINER_IMAGE")
    ;;
  podman)
    command+=(podman run --rm "--network=host" "--ipc=host" "--uts=host" "--workdir=$PWD")
    # Files belong to who submitted the job, whoever the image's user is.
    command+=("--user=$(id -u):$(id -g)")
    ((EUID == 0)) || command+=("--userns=keep-id")
    [[ ! -e /etc/cdi/nvidia.yaml ]] || command+=(--device nvidia.com/gpu=all)
    for folder in /tmp:/tmp ${mounts[0]//,/ }; do command+=(--volume "$folder"); done
    for name in SLURM_ GLM_ MASTER_ OMP_ NCCL_ CUDA_ DS_ TORCH_ HYDRA_ PYTHONUNBUFFERED TOKENIZERS_ WANDB_ HOSTNAME; do
      command+=(--env "$name*")
    done
    command+=(--entrypoint '' "$CONTAINER_IMAGE")
    ;;
  '') die "CONTAINER_IMAGE is set, but srun has no --container-image (pyxis), and there is no apptainer," \
    "singularity or podman on $(hostname -s): load the module of one of them, or unset CONTAINER_IMAGE" ;;
  *) die "CONTAINER_RUNTIME=$runtime is none of pyxis, apptainer, singularity, podman" ;;
  esac
}

# --- dry run

# The size of the job: from the script's own directives, then from the options given to it.
read_directives() {
  local words option value
  nodes=1 tasks='' per_node=1
  mapfile -t words < <(sed -n 's/^#SBATCH *//p' "$1" | tr -s ' ' '\n')
  words+=("${sbatch_options[@]}")
  set -- "${words[@]}"
  while (($#)); do
    option=$1 value=''
    case $option in
    --*=*) value=${option#*=} option=${option%%=*} ;;
    -[Nnc]?*) value=${option:2} option=${option:0:2} ;;
    -[Nnc] | --nodes | --ntasks | --ntasks-per-node | --cpus-per-task) value=${2:-} && shift ;;
    esac
    case $option in
    -N | --nodes) nodes=${value%%-*} ;;
    -n | --ntasks) tasks=$value ;;
    --ntasks-per-node) per_node=$value ;;
    -c | --cpus-per-task) SLURM_CPUS_PER_TASK=$value ;;
    esac
    shift
  done
  tasks=${tasks:-$((nodes * per_node))}
}

# dry_run PYTHON ARGUMENT ...: prints exports and command, then checks the configuration for that many tasks.
dry_run() {
  local name python=$1 check=()
  shift
  echo "# $tasks tasks on $nodes nodes; in the job, MASTER_ADDR and MASTER_PORT are those of its first node"
  for name in "${exported[@]}"; do printf 'export %s=%q\n' "$name" "${!name}"; done
  printf '%q ' "${command[@]}" "$python" "$@" | sed 's/ $/\n/'
  case "$1 ${2:-} ${3:-}" in
  train.py*) check=("${@:2}") ;;
  "-m glm_dist train" | "-m glm_dist finetune") check=("${@:4}") ;;
  *) return 0 ;;
  esac
  if [[ -n ${CONTAINER_IMAGE:-} ]]; then # the image may not be here
    python=.venv/bin/python
    [[ -x $python ]] || python=python3
  fi
  "$python" -m glm_dist check "${check[@]}" --processes "$tasks" >&2 || exit 2
}

# --- what follows the end of the tasks

# Runs `command` in the background, so that traps run at once, and returns its true status.
run_step() {
  local status=0 last=0 resender
  "${command[@]}" &
  srun_pid=$!
  (while sleep "$RESEND_SECONDS"; do [[ ! -e $note.asked ]] || kill -USR1 "$srun_pid"; done) >/dev/null 2>&1 &
  resender=$!
  while :; do
    interrupted=0 last=$status status=0
    wait "$srun_pid" || status=$?
    ((interrupted)) || break
  done
  ((status != 127)) || status=$last # the signal came after the end
  srun_pid=''
  kill "$resender" 2>/dev/null || true
  rm -f "$note.asked"
  return "$status"
}

# The run folder decides, not srun's status: that is the largest of all tasks, so one that is killed while
# the others save hides their 75, and a lost node can make it 0. The program leaves the folder, its newest
# checkpoint and the number of the attempt in $note before it loads anything.
run_and_conclude() {
  local status=0 folder='' before='' attempt=1 part='' ending=crash
  note="$PWD/slurm-$SLURM_JOB_ID.run" count="$PWD/slurm-$SLURM_JOB_ID.crashes"
  rm -f "$note" "$note.asked" "$note.refused"
  export GLM_RUN_FOLDER_FILE=$note
  if [[ -z $asked ]]; then
    run_step || status=$?
  else
    status=$EXIT_STOPPED # asked before there was anything to stop
  fi
  if [[ -f $note ]]; then
    { read -r folder && read -r before && read -r attempt && read -r part; } <"$note" || true
  fi
  attempt=${attempt:-1}
  # A rank that was still starting when the others left makes it 143.
  [[ ! -f $note.refused ]] || status=2
  rm -f "$note" "$note.refused"
  judge
  case $ending in
  finished | final) rm -f "$count" ;;
  *) requeue_if_worth_it ;;
  esac
  exit "$status"
}

# Sets `ending` to finished, final, stopped, early (stopped before a checkpoint was possible), busy or crash,
# and corrects `status`.
judge() {
  local marked=''
  if [[ -n $folder && -z $part ]] && is_of_this_attempt "$folder/finished"; then
    ((status == 0)) || say "the run is finished; srun's status $status changes nothing"
    ending=finished status=0
    return
  fi
  if [[ -n $folder ]] && is_of_this_attempt "$folder/stopped"; then
    marked=$(sed -n 's/.*"status": *\([0-9]*\).*/\1/p' "$folder/stopped")
    status=${marked:-$status}
  fi
  case $status in
  0)
    ending=finished
    if [[ -n $folder && -z $part && ! -f $folder/finished ]]; then
      say "srun ended with 0, but $folder is not finished"
      ending=crash status=1
    fi
    ;;
  2 | 76 | 130) ending=final ;; # a restart would only repeat it, or start over
  "$EXIT_STOPPED")
    ending=stopped
    [[ -n $marked || -n $asked ]] || ending=busy # the folder is still an earlier attempt's
    ;;
  138) ending=early status=$EXIT_STOPPED ;; # USR1 ended a task that did not listen yet
  esac
}

is_of_this_attempt() {
  local number
  [[ -f $1 ]] || return 1
  number=$(sed -n 's/.*"attempt": *\([0-9]*\).*/\1/p' "$1")
  [[ -n $number ]] && ((number >= attempt))
}

# Name of the newest complete checkpoint.
newest_checkpoint() {
  local path newest=''
  for path in "$folder"/checkpoints/step_*; do
    [[ ! -f $path/manifest.json ]] || newest=$path
  done
  echo "${newest##*/}"
}

# True if a node of the job is down or does not answer (a star).
has_lost_a_node() {
  sinfo --noheader --Node --nodes "$SLURM_JOB_NODELIST" --format %T 2>/dev/null | grep -qE 'down|fail|[*]'
}

requeue_if_worth_it() {
  local newest='' crashes=0 progress=0
  [[ -z $folder ]] || newest=$(newest_checkpoint)
  [[ $newest != step_* || (-n $before && ! $newest > $before) ]] || progress=1
  if [[ $asked == TERM || $asked == INT ]]; then
    say "stopped by $asked with status $status; SLURM decides whether it is requeued"
    return
  fi
  [[ ${AUTO_REQUEUE:-1} == 1 ]] || return 0
  if [[ $ending == crash && $progress == 0 ]] && ! has_lost_a_node; then
    say "crashed with $status and no newer checkpoint; a restart would only repeat it"
    rm -f "$count"
    return
  fi
  if [[ $ending == stopped && $progress == 1 ]]; then
    rm -f "$count"
  else
    [[ ! -f $count ]] || crashes=$(<"$count")
    if ((crashes >= ${MAX_CRASHES:-3})); then
      say "$(describe_end), the last of $((crashes + 1)) starts in a row; not requeued again (MAX_CRASHES)"
      rm -f "$count"
      return
    fi
    echo $((crashes + 1)) >"$count"
  fi
  requeue $((${CRASH_WAIT:-60} * 2 ** crashes))
}

describe_end() {
  case $ending in
  stopped) echo "stopped on request${newest:+ at $newest}" ;;
  early) echo "asked to stop before it listened" ;;
  busy) echo "could not begin yet (status $status)" ;;
  *) echo "crashed with status $status${newest:+ after $newest}" ;;
  esac
}

# requeue SECONDS: those are waited after a crash, and for a run folder that is still locked.
requeue() {
  if scontrol show job "$SLURM_JOB_ID" --oneliner 2>/dev/null | grep -q ' Requeue=0'; then
    say "$(describe_end), and was submitted with --no-requeue: submit it again to continue"
    return
  fi
  say "$(describe_end); back into the queue"
  if [[ $ending == crash || $ending == busy ]]; then
    interrupted=0
    sleep "$1" &
    wait "$!" || true
    [[ $asked != TERM ]] || return 0
  fi
  scontrol requeue "$SLURM_JOB_ID" ||
    say "cannot be requeued: submit it again to continue"
}
