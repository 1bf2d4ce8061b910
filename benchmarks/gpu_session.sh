#!/usr/bin/env bash
# Tests and benchmarks of one GPU in nine minutes, for a machine that has torch and is there for a
# short time. Each part has a limit of its own, so that one that hangs does not lose the others, and
# writes what it has as soon as it has it.
#
#   [WHEELS=folder] [OUT=folder] benchmarks/gpu_session.sh
#
# WHEELS  wheels of the libraries that the machine lacks; installed offline, outside its environment
# OUT     folder of the results (default: benchmarks/results); session.txt has the output of all
# MINUTES, TESTS_SECONDS, ATTENTION_SECONDS
#         limits of all and of two parts; the step benchmark gets what they leave (9, 180, 60)
# DRY_RUN=1
#         the same parts at toy sizes, on any machine
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
python=${PYTHON:-python3}
minutes=${MINUTES:-9}
tests_seconds=${TESTS_SECONDS:-180}
attention_seconds=${ATTENTION_SECONDS:-60}
out=${OUT:-benchmarks/results}
mkdir -p "$out" || exit
out=$(cd "$out" && pwd) || exit
log=$out/session.txt
: >"$log"
export PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore
failed=0

note() { echo "$*" | tee -a "$log"; }

left() { echo $((minutes * 60 - SECONDS)); }

# part NAME SECONDS COMMAND ...: run it, and go on whatever becomes of it.
part() {
  local name=$1 limit=$2 started=$SECONDS status before
  shift 2
  ((limit > $(left))) && limit=$(left)
  if ((limit < 1)); then
    note "== $name: not run, no time is left"
    failed=1
    return
  fi
  echo "== $name: $*" >>"$log"
  before=$(wc -c <"$log")
  # Interrupted, pytest still says what failed; nothing survives the signal that follows.
  timeout --signal=INT --kill-after=15 "$limit" "$@" >>"$log" 2>&1
  status=$?
  ((status == 0)) || failed=1
  tail -c "+$((before + 1))" "$log" | tail -n 12
  note "== $name: $((SECONDS - started)) of $limit s, exit status $status"
}

if [[ -n ${WHEELS:-} ]]; then
  site=$(mktemp -d)
  part install 60 "$python" -m pip install --quiet --no-index --find-links "$WHEELS" --no-deps \
    --no-compile --target "$site" "$WHEELS"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi

tests=(-m pytest -q --tb=short -p no:cacheprovider -o timeout=90 -m gpu tests/gpu)
step=(-m benchmarks.gpu --no-attention --output "$out")
attention=(-m benchmarks.attention --output "$out")
if [[ -n ${DRY_RUN:-} ]]; then
  step+=(--dry-run)
  attention+=(--rounds 1)
fi
part tests "$tests_seconds" "$python" "${tests[@]}"
seconds=$(($(left) - attention_seconds))
tenths=$(((seconds - 25) / 6)) # of a minute; Python starts and ends within the limit, too
part step "$seconds" "$python" "${step[@]}" --minutes "$((tenths / 10)).$((tenths % 10))"
part attention "$attention_seconds" "$python" "${attention[@]}"
note "== all: $SECONDS s, results in $out"
exit "$failed"
