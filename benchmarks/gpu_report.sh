#!/usr/bin/env bash
# Measures, on this machine, all that can be measured: first on the CPU, then on a CUDA device. Where a device or library
# is missing the report says "not proven" with the reason, never "passed". Writes Markdown into gpu-report/.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${1:-gpu-report}
rounds=${ROUNDS:-10}
lite=runtime/basnet_runtime/models/basnet-lite
mkdir -p "$out"
status=0

bench() { "$python" -c 'from basnet_benchmarks.cli import main; main()' "$@"; }

# measure NAME ARGUMENTS...: one benchmark; what is not there is written down as not proven, what fails fails the report
measure() {
  local name=$1 code
  shift
  rm -f "$out/$name.md" # an older run's result is none of this one's
  echo "== $name: basnet-bench $*"
  bench "$@" --output "$out/$name.md" --overwrite 2>"$out/$name.log"
  code=$?
  if [ $code -eq 3 ]; then
    printf '# %s\n\nnot proven: %s\n' "$name" "$(tail -n 1 "$out/$name.log")" | tee "$out/$name.md"
  elif [ $code -ne 0 ]; then
    tail -n 5 "$out/$name.log"
    status=1
  fi
}

# engine NAME MODEL ARGUMENTS...: builds an FP16 plan where a library for it is there; RTX builds without a GPU too
engine() {
  local name=$1 model=$2 code
  shift 2
  rm -f "$out/$name.plan" "$out/$name.plan.json" "$out/$name.md"
  echo "== $name: basnet-export engine $model $*"
  "$python" -c 'from basnet_export.cli import main; main()' engine "$model" -o "$out/$name.plan" --overwrite "$@" \
    2>"$out/$name.log"
  code=$?
  if [ $code -eq 3 ]; then
    printf '# %s\n\nnot proven: %s\n' "$name" "$(tail -n 1 "$out/$name.log")" | tee "$out/$name.md"
  elif [ $code -ne 0 ]; then
    tail -n 5 "$out/$name.log"
    status=1
  fi
}

"$python" -c 'from basnet_runtime.doctor import main; main()' --json >"$out/doctor.json"
measure latency-cpu latency random:64 "$lite.safetensors" --rounds "$rounds"
measure parity-cpu parity "$lite.safetensors"
measure video-cpu video tests/data/pan.mp4
measure latency-cuda latency random:64 "$lite.safetensors" --rounds "$rounds" --device cuda --batch 1,8,32
measure parity-cuda parity "$lite.safetensors" --device cuda
measure latency-tensorrt latency random:64 "$lite.safetensors" --rounds "$rounds" --device tensorrt --batch 1,8,32
engine lite-fp16 "$lite.safetensors" --batch 1,8,32
engine lite-frame-fp16 "$lite.safetensors" --graph frame
for name in lite-fp16 lite-frame-fp16; do
  [ -f "$out/$name.plan" ] || continue
  measure "parity-$name" parity "$lite.safetensors" "$out/$name.plan" --device cuda
  measure "latency-$name" latency "$lite.safetensors" "$out/$name.plan" --rounds "$rounds" --device cuda
  measure "video-$name" video tests/data/pan.mp4 --engine "$out/$name.plan"
done
measure video-cuda video tests/data/pan.mp4 --device cuda --batch 8
echo "Report: $out"
exit $status
