#!/usr/bin/env bash
# Short training runs of one budget: BASNet beside its relatives, the paper's ablations, and widths. Needs DUTS-TR and DUTS-TE:
#   TRAIN=DUTS-TR VAL=DUTS-TE benchmarks/short_runs.sh runs/short
# Runs that are done are kept; a broken-off one goes on. Writes RUNS/short-runs.json and .md.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
runs=${1:?a folder for the runs}
steps=${STEPS:-200}
size=${SIZE:-96}

train() {
  local run=$runs/$1
  shift
  [ -f "$run/done" ] && return
  local resume=()
  [ -f "$run/last.pth" ] && resume=(--resume)
  "$python" -c 'from basnet_torch.cli import main; main()' --data "${TRAIN:?DUTS-TR}" --val "${VAL:?DUTS-TE}" --run "$run" \
    --width 16 --size "$size" --eval-size $((size * 4 / 3)) --store-size $((size * 4 / 3)) --batch 16 --steps "$steps" \
    --warmup $((steps / 10)) --schedule cosine --lr 1e-3 --ema 0.98 --eval-every "$steps" --save-every "$steps" --seed 1 \
    "$@" "${resume[@]}"
  touch "$run/done"
}

train basnet
train no-refinement --no-refine
train bce --loss bce
train bce-ssim --loss bce+ssim
train bce-iou --loss bce+iou
for arch in fcn segnet unet hed; do train "$arch" --arch "$arch"; done
for width in 24 32; do train "width-$width" --width "$width"; done
train lr-2e-3 --lr 2e-3
"$python" -c 'from basnet_benchmarks.cli import main; main()' runs "$runs"/*/ -o "$runs/short-runs.json" --overwrite
"$python" -c 'from basnet_benchmarks.cli import main; main()' report "$runs/short-runs.json" -o "$runs/short-runs.md" --overwrite
