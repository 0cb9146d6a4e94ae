#!/usr/bin/env bash
# Proves on this machine's CUDA device what can be proven: engines, GPU tests, latency, parity, video. Each step is a
# command of its own, so that one that fails costs only its own row. Writes summary.md (a row for each step: proven, or
# why not), the JSON of each step, report.md and report.html. Without a device, or without a library, the rows that need
# it read "not proven", as do steps that take longer than their limit. No network.
#
#   OUT          new folder (benchmarks/reports/gpu-DEVICE-TIME)   PLANS        folder that keeps the engines (none)
#   PICTURES     pictures to show parity on (five photographs)     CALIBRATION  pictures for INT8; none: no INT8 engines
#   CHECKPOINT   trained weights of width 64 (random ones)         ONLY         beginnings of the steps to run (all)
#   LIMIT        seconds a step may take (3600)              TOTAL        seconds all steps may take (no limit)
#   QUICK        1: few rounds, a tiny network beside lite, LIMIT=90 and TOTAL=440: all of it ends within 8 minutes
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d -t basnet-gpu-XXXXXX)
running=""
trap 'rm -rf "$work"' EXIT
trap 'if [ -n "$running" ]; then kill "$running" 2>/dev/null || true; fi; exit 130' INT TERM
plans=${PLANS:-$work/plans}
lite=runtime/basnet_runtime/models/basnet-lite.safetensors
status=0
rows=()

if [ -n "${QUICK:-}" ]; then limit=${LIMIT:-90} total=${TOTAL:-440}; else limit=${LIMIT:-3600} total=${TOTAL:-}; fi
grace=10 # seconds between asking a step to end and killing it
deadline=0

# timed COMMAND...: ends it, and the processes it started, at the deadline. A group of its own does not hear Ctrl-C, so
# that it runs in the background and the trap ends it; what runs in the background ignores SIGINT unless told otherwise.
timed() {
  local left=$((deadline - SECONDS)) code=0
  if [ $left -lt 1 ]; then return 124; fi
  timeout --kill-after=$grace $left env --default-signal=INT "$@" <&0 &
  running=$!
  wait $running || code=$?
  running=""
  return $code
}
within() { # SECONDS COMMAND...
  deadline=$((SECONDS + $1))
  timed "${@:2}"
}
bench() { timed "$python" -c 'from basnet_benchmarks.cli import main; main()' "$@"; }
export_engine() { timed "$python" -c 'from basnet_export.cli import main; main()' engine "$@"; }
run_tests() { timed "$python" -m pytest "$@"; }
wanted() {
  local begin
  for begin in ${ONLY:-}; do
    if [[ $1 == "$begin"* ]]; then return 0; fi
  done
  [ -z "${ONLY:-}" ]
}
note() {
  rows+=("| $1 | $2 | ${3//|/\\|} |")
  echo "$2: $1 $3"
}

# step NAME WHY_NOT COMMAND...: runs the command unless there is a reason not to; exit code 3 means that something is missing
step() {
  local name=$1 reason=$2 code=0 seconds=$limit began=$SECONDS passed=""
  shift 2
  wanted "$name" || return 0
  if [ -n "$reason" ]; then
    note "$name" "not proven" "$reason"
    return 0
  fi
  if [ -n "$total" ] && [ $((total - SECONDS)) -lt "$seconds" ]; then seconds=$((total - SECONDS)); fi
  if [ "$seconds" -lt 1 ]; then
    note "$name" "not proven" "the $total s of all steps are used up"
    return 0
  fi
  echo "== $name: $*"
  deadline=$((SECONDS + seconds))
  "$@" >"$work/out" 2>"$work/err" || code=$?
  cat "$work/err" >&2
  reason=$(grep -hv '^ *$' "$work/out" "$work/err" | tail -n1 || true)
  # 137 is also what a process has that was killed for memory
  if [ $code = 137 ] && [ $((SECONDS - began)) -ge "$seconds" ]; then code=124; fi
  if [ "$1" = run_tests ]; then passed=${reason//=/}; fi
  if [ $code = 0 ] && [ -n "$passed" ] && [[ $passed != *passed* ]]; then code=3 reason=$passed; fi
  case $code in
    0) note "$name" proven "$passed" ;;
    3) note "$name" "not proven" "$reason" ;;
    124) note "$name" "not proven" "took longer than $seconds s" ;;
    *)
      note "$name" failed "$reason"
      status=1
      ;;
  esac
}
report() { step "$1" "$2" bench "${@:3}" --output "$out/$1.json"; }

# The device's name, a tab, and why there is none
found=$(
  within 60 "$python" - <<'PYTHON' || echo $'\tCUDA cannot be asked: it fails, or takes longer than 60 s'
from basnet_runtime.cuda.devices import find_gpu
from basnet_torch.errors import BackendUnavailable

try:
    gpu = find_gpu()
    print(f"{gpu.name}\t" if gpu else "\tthis machine has no NVIDIA driver")
except BackendUnavailable as error:
    print(f"\t{error}")
PYTHON
)
gpu=${found%%$'\t'*}
no_gpu=${found#*$'\t'}
here=() # TensorRT for RTX builds for the capabilities that it lists, unless told to build for the device that is there
facts=$(
  within 60 "$python" -c 'from basnet_export.engine.build import cannot_build_here, flavor_here
print(flavor_here(), cannot_build_here(), sep="\t")' 2>"$work/err" ||
    printf '\tTensorRT cannot be asked: %s\n' "$(grep -v '^ *$' "$work/err" | tail -n1 || true)"
)
no_engine=${facts#*$'\t'}
if [ -z "$no_gpu" ] && [ "${facts%%$'\t'*}" = rtx ]; then here=(--flavor rtx --compute-capability current); fi
name=${gpu:-no gpu}
out=${OUT:-benchmarks/reports/gpu-$(tr 'A-Z ' 'a-z-' <<<"$name")-$(date -u +%Y-%m-%d-%H%M)}
mkdir "$out"
mkdir -p "$plans"

rounds=(--rounds 10) batches=1,8,32 width=64 frames=240
if [ -n "${QUICK:-}" ]; then
  rounds=(--rounds 2 --calls 1 --warm-up 1 --no-memory) batches=1 width=4 frames=8
fi
wide=${CHECKPOINT:-$work/random-$width.safetensors}
# Clips, a bundled photograph that moves, and random weights where no checkpoint is given
within 60 "$python" - "$work" "$frames" "${CHECKPOINT:-random:$width}" <<'PYTHON'
import sys
from pathlib import Path

import av
import cv2
import numpy as np

from basnet_benchmarks.candidates import ModelSource
from basnet_export.samples import load_pictures

work, frames, model = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if model.startswith("random:"):
    ModelSource(model, work)
for name, size in (("720p", (1280, 720)), ("2160p", (3840, 2160))):
    picture = cv2.resize(load_pictures(None)[0].image_HWC, size, interpolation=cv2.INTER_CUBIC)
    with av.open(str(work / f"{name}.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(picture, 4 * index, 1), format="rgb24")))
        container.mux(stream.encode(None))
PYTHON

report latency-cpu "" latency "$lite" "$wide" "${rounds[@]}"
report parity-cpu "" parity "$lite" --backend onnxruntime:fp32 --backend openvino:fp32
report video-cpu "" video "$work/720p.mp4" --runs 1

pictures=(${PICTURES:+--pictures "$PICTURES"})
flat="random weights give a flat map, on which nothing can be shown; set CHECKPOINT"
# A backend that is asked by name must open: PyTorch, eager and compiled, and ONNX Runtime have rows of their own
for backend in pytorch onnxruntime; do
  for model in lite width64; do
    checkpoint=$lite why=$no_gpu
    if [ $model = width64 ]; then checkpoint=$wide; fi
    report "latency-$model-cuda-$backend" "$no_gpu" latency "$checkpoint" --backend $backend --device cuda \
      --batch $batches "${rounds[@]}"
    if [ $model = width64 ] && [ -z "${CHECKPOINT:-}" ]; then why=$flat; fi
    report "parity-$model-cuda-$backend" "$why" parity "$checkpoint" --backend $backend --device cuda "${pictures[@]}"
  done
done

ranges=(${CALIBRATION:+--calibration "$CALIBRATION"})
engine() {
  local code=0
  export_engine "$@" "${here[@]}" || code=$?
  if [ $code -ne 0 ] && [ ${#here[@]} -gt 0 ]; then
    code=0
    export_engine "$@" || code=$?
  fi
  return $code
}
for model in lite width64; do
  checkpoint=$lite checks=("${pictures[@]}")
  if [ $model = width64 ]; then checkpoint=$wide; fi
  # Random weights give a flat map, on which nothing can be shown
  if [ $model = width64 ] && [ -z "${CHECKPOINT:-}" ]; then checks=(--no-check); fi
  for graph in tensor frame; do
    sizes=()
    if [ $graph = frame ]; then sizes=(--height 32,720,2160 --width 32,1280,3840); fi
    for precision in fp16 int8; do
      why=$no_engine own=()
      if [ $precision = int8 ]; then own=("${ranges[@]}"); fi
      if [ $precision = int8 ] && [ -z "${why:-${CALIBRATION:-}}" ]; then
        why="no pictures to calibrate on; set CALIBRATION"
      fi
      plan=$plans/$model-$graph-$precision.plan
      step "engine-$model-$graph-$precision" "$why" engine "$checkpoint" --graph $graph --precision $precision \
        --batch 1,8,32 "${sizes[@]}" "${checks[@]}" "${own[@]}" --overwrite --output "$plan"
      if [ -f "$plan.json" ]; then cp "$plan.json" "$out/"; fi
    done
  done
done

step tests-gpu "$no_gpu" run_tests -q -m gpu --junitxml="$out/tests-gpu.xml"

shopt -s nullglob
# why_not PLAN...: why a step that needs one of these engines cannot run
why_not() {
  if [ -n "$no_gpu" ]; then echo "$no_gpu"; elif [ $# -eq 0 ]; then echo "${no_engine:-no engine was built}"; fi
}
for model in lite width64; do
  checkpoint=$lite why=""
  if [ $model = width64 ]; then checkpoint=$wide; fi
  if [ $model = width64 ] && [ -z "${CHECKPOINT:-}" ]; then why=$flat; fi
  for graph in tensor frame; do
    built=("$plans/$model-$graph-"*.plan)
    report "latency-$model-$graph" "$(why_not "${built[@]}")" latency "$checkpoint" "${built[@]}" --device cuda \
      --batch $batches "${rounds[@]}"
  done
  built=("$plans/$model-"*.plan)
  report "parity-$model" "${why:-$(why_not "${built[@]}")}" parity "$checkpoint" "${built[@]}" --device cuda \
    "${pictures[@]}"
  for graph in tensor frame; do
    built=("$plans/$model-$graph-fp16"*.plan)
    for clip in 720p 2160p; do
      report "video-$model-$graph-fp16-$clip" "$(why_not "${built[@]}")" video "$work/$clip.mp4" \
        --engine "$plans/$model-$graph-fp16.plan" --batch 8 --device cuda
    done
  done
done

if [ ${#rows[@]} -eq 0 ]; then
  rmdir "$out"
  echo "error: ONLY $ONLY: no step's name begins so" >&2
  exit 2
fi
{
  echo "# ${gpu:-No CUDA device: $no_gpu}"
  printf '%s\n' "" "| step | state | why |" "| --- | --- | --- |" "${rows[@]}"
} >"$out/summary.md"
measured=()
for file in "$out"/*.json; do
  if [[ $file != *.plan.json ]]; then measured+=("$file"); fi
done
if [ ${#measured[@]} -gt 0 ]; then
  for page in report.md report.html; do
    deadline=$((SECONDS + 15))
    bench report "${measured[@]}" -o "$out/$page" || echo "$page was not written" >&2
  done
fi
echo "report: $out"
exit $status
