#!/usr/bin/env bash
# What one GPU has to show, in ten minutes and without a network: tests, bytes and times of steps beside their plan,
# a sweep on a shared device, packed points, latency, real rows. Results are in the folder from the first one on.
#
#   make gpu-bundle                           here: what a machine without a network lacks, into gpu-bundle/
#   tests/gpu/prove.sh --out FOLDER           there: results.jsonl, records.jsonl, gpu.md and prove.log
#   tests/gpu/prove.sh --resume FOLDER --out FOLDER       goes on from what came back from an earlier start
#   tests/gpu/prove.sh --dry-run              the same on the CPU at tiny sizes
#
# Further: --seconds N (the time for all, 570), --steps tests,costs,time,sweep,packed,latency,glue, --bundle FOLDER.
# Without --out the results go into $OUT, or into gpu-results/. PYTHON names the interpreter.
set -u
began=$(date +%s)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

bundle=$root/gpu-bundle
arguments=("$@")
for ((i = 0; i < ${#arguments[@]}; i++)); do
    [ "${arguments[i]}" = --bundle ] && bundle=${arguments[i + 1]:-}
done

export PYTHONPATH="$root:$root/tests/support:$root/tests/gpu" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# Every step is a process of its own: what the first one compiles the others need not.
unset PYTHONDONTWRITEBYTECODE
# Whether packages lack is told without importing them.
if ! "$python" -c 'import importlib.util as u, sys
sys.exit(any(u.find_spec(n) is None for n in ("hydra", "omegaconf", "bitsandbytes", "datasets", "evaluate", "pebble", "xxhash")))'; then
    if ! compgen -G "$bundle/wheels/*.whl" >/dev/null; then
        echo "$python lacks packages of the harness, and $bundle/wheels has none: make gpu-bundle" >&2
        exit 2
    fi
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$work/site" "$bundle"/wheels/*.whl || exit 2
    export PYTHONPATH="$PYTHONPATH:$work/site"
fi

"$python" "$root/tests/gpu/prove.py" --began "$began" --work "$work" --bundle "$bundle" "$@" &
child=$!
trap 'kill -TERM "$child" 2>/dev/null' TERM INT
wait "$child"
status=$?
# A signal ends the wait, not the child, which still writes its page.
while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    status=$?
done
exit "$status"
