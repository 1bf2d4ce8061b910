#!/usr/bin/env bash
# Arguments after the image's name:
#   experiment=glm_base key=value ...    one training process with this configuration
#   deepspeed ... | torchrun ... | bash  that program
#   prepare ... | generate ... | --help  glm-dist with these arguments
set -euo pipefail

first=${1:---help}
if [[ $first == *=* && $first != -* ]]; then
  exec python3 train.py "$@"
elif [[ $first != -* ]] && command -v -- "$first" >/dev/null; then
  exec "$@"
else
  exec glm-dist "${@:---help}"
fi
