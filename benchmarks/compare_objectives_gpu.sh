#!/usr/bin/env bash
# GLM, BERT, GPT, T5 and UniLM on one GPU in about ten minutes, all runs in one process; the table
# goes to standard output and to runs/compare_objectives_gpu/table.md.
#
#   benchmarks/compare_objectives_data.sh TEXT.jsonl EVALS     once, before
#   benchmarks/compare_objectives_gpu.sh [key=value ...]
#
# Started again it does only what is missing. Smaller: run.steps=400 'compare.seeds=[1]'.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
started=$SECONDS
"${PYTHON:-python}" -m glm_dist compare "experiment=compare_objectives_gpu" "$@"
echo "seconds: $((SECONDS - started))" >&2
