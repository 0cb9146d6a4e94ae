#!/usr/bin/env bash
# Trains the built-in network for a given time on a CUDA device: crops of 192 pixels first, then of 256.
#
#   make train-gpu DATA=DUTS-TR VAL=DUTS-TE [MINUTES=8] [INIT=weights.safetensors] [RUN=runs/gpu]
#
# How many steps fit is measured by a short run first. Pictures and augmentation are on the device; DEVICE=cpu tries the
# script without one. RUN/weights.pth are the averaged weights in FP16, below 16 MB, and are written after each stage.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?give the training data, as in: make train-gpu DATA=DUTS-TR VAL=DUTS-TE}
val=${2:?give the validation data, as in: make train-gpu DATA=DUTS-TR VAL=DUTS-TE}
python=${PYTHON:-python3}
minutes=${MINUTES:-8} run=${RUN:-runs/gpu} device=${DEVICE:-cuda} batch=${BATCH:-32} sizes=${SIZES:-192 256}
export PYTHONPATH=${PYTHONPATH:-.:export:runtime:benchmarks}
common=(--data "$data" --val "$val" --device "$device" --batch "$batch" --augment strong --crop-scale 0.55 1.1
  --encoder-lr 0.3 --eval-size "${EVAL_SIZE:-256}" --ema 0.998)
start=(--encoder "${ENCODER:-efficientnet-lite0}")
if [ -n "${INIT:-}" ]; then start=(--init "$INIT"); fi
mkdir -p "$run"

seconds_a_step() {  # the last steps of a short run, after the device has warmed up
  "$python" - "$1/log.jsonl" <<'PY'
import json, statistics, sys
steps = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
print(statistics.median(step["seconds"] for step in steps[-10:] if step["kind"] == "step"))
PY
}

stages=$(wc -w <<<"$sizes")
for size in $sizes; do
  trial=$(mktemp -d)
  "$python" -m basnet_torch "${common[@]}" "${start[@]}" --size "$size" --run "$trial/run" --steps "${TRIAL_STEPS:-30}" \
    --eval-every 1000000 >/dev/null
  # A tenth of the time is for reading the data, validation and checkpoints.
  steps=$("$python" -c 'import sys; m, n, s = map(float, sys.argv[1:]); print(max(1, int(54 * m / n / s)))' \
    "$minutes" "$stages" "$(seconds_a_step "$trial/run")")
  rm -rf "$trial"
  echo "crops of $size: $steps steps"
  "$python" -m basnet_torch "${common[@]}" "${start[@]}" --size "$size" --run "$run/$size" --steps "$steps" \
    --lr 1e-3 --warmup "$((steps / 20 + 1))" --eval-every "$((steps / 3 + 1))"
  start=(--init "$run/$size/best.pth")
  "$python" - "$run/$size/best.pth" "$run/weights.pth" <<'PY'
import sys
from pathlib import Path
import torch
from basnet_torch.checkpoint import load_checkpoint, save_checkpoint
source, target = map(Path, sys.argv[1:])
save_checkpoint(target, load_checkpoint(source), dtype=torch.float16)
print(f"{target}: {target.stat().st_size:,} bytes, {load_checkpoint(target).metadata['scores']}")
PY
done
