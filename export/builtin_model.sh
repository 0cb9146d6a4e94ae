#!/usr/bin/env bash
# Writes every file of the built-in model from one checkpoint: safetensors, FP32 and INT8 ONNX, their manifests.
#
#   make models CKPT=runs/lite/best.pth CALIBRATION=DUTS-TR [PICTURES=folder to prove parity on]
#   PYTHON=.venv/bin/python bash export/builtin_model.sh runs/lite/best.pth DUTS-TR [FOLDER]
#
# CALIBRATION is training data as basnet-train takes it, or a folder of pictures; 256 of them are drawn, the same ones
# every time. INT8=no leaves the INT8 file out, for a checkpoint that does not keep its contract; INT8_TARGET=cpu makes it
# for ONNX Runtime. The files are made in a folder of their own and moved together, so that none is left of another
# checkpoint.
set -euo pipefail
checkpoint=${1:?give the checkpoint, as in: make models CKPT=best.pth CALIBRATION=DUTS-TR}
calibration=${2:?give the calibration pictures, as in: make models CKPT=best.pth CALIBRATION=DUTS-TR}
pictures=${3:+--pictures $3}
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")/.." && pwd)
models=${MODELS:-$here/runtime/basnet_runtime/models}
size=${SIZE:-256}
work=$(mktemp -d "$models/.new.XXXXXX")
trap 'rm -rf "$work"' EXIT
lite=$work/basnet-lite.safetensors
export_() { "$python" -c "from basnet_export.cli import main; main()" "$@"; }

export_ checkpoint "$checkpoint" -o "$lite" --store fp16 --size "$size"
# shellcheck disable=SC2086  # the option and its value are two words
export_ onnx "$lite" --store fp16 $pictures
if [ "${INT8:-yes}" = yes ]; then
  target=${INT8_TARGET:-openvino}
  store=$([ "$target" = openvino ] && echo fp16 || echo fp32)
  # shellcheck disable=SC2086
  export_ onnx "$lite" -o "$work/basnet-lite-int8.onnx" --precision int8 --target "$target" --store "$store" \
    --calibration "$calibration" --calibration-count 256 --seed 0 --search-minutes "${SEARCH_MINUTES:-5}" \
    ${INT8_OPTIONS:-} $pictures
else
  rm -f "$models"/basnet-lite-int8.onnx*  # of another checkpoint
fi
mv -f "$work"/basnet-lite* "$models"/
ls -l "$models"
