#!/usr/bin/env bash
# What the words after the image's name mean:
#   experiment=glm_base key=value ...    one training process with this configuration
#   deepspeed ... | torchrun ... | bash  that program
#   prepare ... | generate ... | --help  glm-dist with these words
set -euo pipefail

first=${1:---help}
if [[ $first == *=* && $first != -* ]]; then
  exec python3 train.py "$@"
elif [[ $first != -* ]] && command -v -- "$first" >/dev/null; then
  exec "$@"
else
  exec glm-dist "${@:---help}"
fi
