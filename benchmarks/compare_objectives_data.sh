#!/usr/bin/env bash
# Data of experiment=compare_objectives: a vocabulary of 8000 pieces and a corpus from one file of
# text, and the folders of tasks, each with train.jsonl and valid.jsonl.
#
#   benchmarks/compare_objectives_data.sh TEXT.jsonl EVALS
#
# Writes below GLM_DATA (default: data): english/tokenizer.model, english/train.*, evals -> EVALS.
set -euo pipefail

text=${1:?the file of text, JSON lines with the field text}
evals=$(cd "${2:?the folder with a folder for each task}" && pwd)
data=${GLM_DATA:-data}
glm_dist="${PYTHON:-python} -m glm_dist"

mkdir -p "$data/english"
if [[ ! -f $data/english/tokenizer.model ]]; then
  $glm_dist tokenizer train "$text" --vocab-size 8000 --output "$data/english/tokenizer.model"
fi
$glm_dist prepare "$text" --output "$data/english/train" \
  --tokenizer "$data/english/tokenizer.model" --shuffle 1
ln -sfn "$evals" "$data/evals"
