#!/usr/bin/env bash
# One point of a sweep in each task of an array, by default on one GPU. `glm-dist sweep --slurm` submits it:
#
#   sbatch --array=0,2-5 [sbatch options] launchers/sweep.sh FOLDER     from the repository root
#   DRY_RUN=1 SLURM_ARRAY_TASK_ID=2 bash launchers/sweep.sh FOLDER      prints the command of a point
#
# FOLDER holds 0.txt, 1.txt and so on: the arguments of glm-dist for each point, one per line.
# A point that is resubmitted or requeued resumes from its newest checkpoint.

# Name in the queue and in the name of the log.
#SBATCH --job-name=sweep
# Resources of one point.
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
# One process per GPU.
#SBATCH --ntasks-per-node=1
# Cores of each process: one computes, the others load data and write checkpoints.
#SBATCH --cpus-per-task=8
# Longest time of one point; submit again to continue.
#SBATCH --time=24:00:00
# Every task gets USR1 five minutes before the limit, in time to write a checkpoint.
#SBATCH --signal=USR1@300
# Requeue the job after a node failure.
#SBATCH --requeue
# A requeued job appends to its log.
#SBATCH --open-mode=append
# One log for each point, where the array was submitted.
#SBATCH --output=slurm-%x-%A_%a.log

set -euo pipefail

# sbatch runs a copy of this script, so $0 does not locate the repository.
[[ -f launchers/common.sh ]] || cd "${SLURM_SUBMIT_DIR:-.}"
[[ -f launchers/common.sh ]] || { echo "launchers: no launchers/common.sh in $PWD: submit from the repository root" >&2; exit 2; }
# shellcheck source=launchers/common.sh
source launchers/common.sh

point=${1:-}/${SLURM_ARRAY_TASK_ID:-}.txt
[[ -f $point ]] || die "no point $point: submit with glm-dist sweep --slurm"
mapfile -t arguments <"$point"
launch_program -m glm_dist "${arguments[@]}"
