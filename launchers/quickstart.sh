#!/usr/bin/env bash
# The quickstart's small GLM, which learns English in minutes: a first run on a cluster, with the corpus of
# `make train`.
#
#   sbatch [sbatch options] launchers/quickstart.sh [key=value ...]                from the repository root
#   DRY_RUN=1 bash launchers/quickstart.sh [sbatch options] [key=value ...]        prints what would run, and checks it

# Name in the queue and in the name of the log.
#SBATCH --job-name=quickstart
# 2 processes on each of 2 nodes: communication within a node and between nodes is tried.
#SBATCH --nodes=2
# GPUs of a node; every task sees all of them and takes the one of its local rank.
#SBATCH --gpus-per-node=2
# One process per GPU.
#SBATCH --ntasks-per-node=2
# Cores of each process: one computes, the others load data and write checkpoints.
#SBATCH --cpus-per-task=2
# More than it needs; the job requeues itself until the run is finished.
#SBATCH --time=01:00:00
# Every task gets USR1 five minutes before the limit, in time to write a checkpoint.
#SBATCH --signal=USR1@300
# Requeue the job after a node failure.
#SBATCH --requeue
# A requeued job appends to its log.
#SBATCH --open-mode=append
# One log for all ranks, where the job was submitted.
#SBATCH --output=slurm-%x-%j.log

set -euo pipefail

# sbatch runs a copy of this script, so $0 does not locate the repository.
[[ -f launchers/common.sh ]] || cd "${SLURM_SUBMIT_DIR:-.}"
[[ -f launchers/common.sh ]] || { echo "launchers: no launchers/common.sh in $PWD: submit from the repository root" >&2; exit 2; }
# shellcheck source=launchers/common.sh
source launchers/common.sh

launch "quickstart parallel=dp batch.micro_batch_size=8" "$@"
