#!/usr/bin/env bash
# GLM-Base, 110M parameters, on 64 GPUs.
#
#   sbatch [sbatch options] launchers/glm_base.sh [key=value ...]     from the repository root
#   DRY_RUN=1 bash launchers/glm_base.sh [key=value ...]              prints the command
#
# Options of sbatch given on its command line win over the ones below, e.g. --partition, --nodes.
# Submitted again, or requeued after a failure, the job continues from its newest checkpoint.

# Name in the queue and in the log's name.
#SBATCH --job-name=glm_base
# 64 GPUs, as published; any number that divides 1024 rows works.
#SBATCH --nodes=8
# All GPUs of a node; every task sees all of them and takes the one of its local rank.
#SBATCH --gpus-per-node=8
# One process per GPU.
#SBATCH --ntasks-per-node=8
# Cores of each process: one computes, the others load data and write checkpoints.
#SBATCH --cpus-per-task=8
# All memory of the node.
#SBATCH --mem=0
# No other job beside this one: a neighbour would slow every rank.
#SBATCH --exclusive
# A slice of the run; submit again for the next one.
#SBATCH --time=24:00:00
# Five minutes before the end every task hears USR1: time to write a checkpoint.
#SBATCH --signal=USR1@300
# After a node failure the job goes back into the queue.
#SBATCH --requeue
# A requeued job adds to its log instead of emptying it.
#SBATCH --open-mode=append
# One log for all ranks, where the job was submitted.
#SBATCH --output=slurm-%x-%j.log

set -euo pipefail

# sbatch runs a copy of this script, so $0 says nothing about where the repository is.
cd "${SLURM_SUBMIT_DIR:-.}"
if [[ ! -f launchers/common.sh ]]; then
  echo "launchers: no launchers/common.sh in $PWD: submit from the repository root" >&2
  exit 2
fi
# shellcheck source=launchers/common.sh
source launchers/common.sh

launch glm_base "$@"
