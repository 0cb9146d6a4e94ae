#!/usr/bin/env bash
# Measures on this machine's CPU what docs/results.md shows: JSON into benchmarks/reports, and the document's tables written
# anew. A page that also shows pictures is build/cpu-report/report.html; pictures of data sets are not committed.
#
#   DATASETS    data sets with masks, the first also for parity; none: bundled photographs, no accuracy
#   VIDEO       film for frames per second (a drawn one)        CALIBRATION  pictures for INT8; none: no INT8 is made
#   VIDEO_RUNS  runs of each engine on it (6)
#   MODELS      more .onnx files to time, compare and score
#   WIDE        checkpoint of width 64 (random:64)              WIDE_MODELS  .onnx files exported from it, as INT8
#   ROUNDS      turns of each candidate (12), and WIDE_ROUNDS of width 64 alone (24)
#   ONLY        names of the reports to measure, for example "latency-cpu accuracy-dev"; the others stay as they are
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
reports=${REPORTS:-benchmarks/reports}
work=build/cpu-report
lite=runtime/basnet_runtime/models/basnet-lite
read -ra datasets <<<"${DATASETS:-}"
read -ra models <<<"${MODELS:-}"
read -ra wide_models <<<"${WIDE_MODELS:-}"
wide=${WIDE:-random:64}
mkdir -p "$work/models" "$reports"
status=0
names=()

bench() { "$python" -c 'from basnet_benchmarks.cli import main; main()' "$@"; }
export_onnx() { "$python" -c 'from basnet_export.cli import main; main()' onnx "$@"; }
wanted() { [ -z "${ONLY:-}" ] || [[ " $ONLY " == *" $1 "* ]]; }
any_wanted() {
  local name
  for name in "$@"; do
    if wanted "$name"; then return 0; fi
  done
  return 1
}

# measure NAME ARGUMENTS...: one report; a parity that fails (4) is a result and is kept, what cannot be measured is not
measure() {
  local name=$1 code=0
  shift
  names+=("$name")
  wanted "$name" || return 0
  echo "== $name: basnet-bench $*"
  bench "$@" --output "$work/$name.json" --overwrite || code=$?
  if [ $code -ne 0 ]; then status=1; fi
  if [ $code -ne 0 ] && [ $code -ne 4 ]; then return 0; fi
  bench report "$work/$name.json" --brief -o "$reports/$name.json" --overwrite
}

# exported NAME ARGUMENTS...: one graph of the built-in checkpoint, kept between calls as long as that is the same
exported() {
  local file="$work/models/$1.onnx"
  shift
  if [ ! "$file" -nt "$lite.safetensors" ]; then
    echo "== $file: basnet-export onnx $*"
    export_onnx "$lite.safetensors" "$@" -o "$file" --overwrite || { status=1 && return 0; }
  fi
  models+=("$file")
}

if any_wanted latency-cpu parity-dev accuracy-dev-fp16 accuracy-dev-frame-fp16 accuracy-dev-int8; then
  exported basnet-lite-fp16 --precision fp16
  exported basnet-lite-frame-fp16 --precision fp16 --graph frame
  if [ -n "${CALIBRATION:-}" ] && [ ! -f "$lite-int8.onnx" ]; then
    exported basnet-lite-int8 --precision int8 --target openvino --calibration "$CALIBRATION"
  fi
fi
if [ -f "$lite-int8.onnx" ]; then models+=("$lite-int8.onnx"); fi

measure latency-cpu latency "$wide" "${wide_models[@]}" "$lite.safetensors" "${models[@]}" --rounds "${ROUNDS:-12}"
if [ ${#wide_models[@]} -gt 0 ]; then
  measure latency-wide latency "$wide" "${wide_models[@]}" --backend pytorch:fp32 --backend onnxruntime \
    --backend openvino:int8 --rounds "${WIDE_ROUNDS:-24}" --no-stages --no-memory
fi
pictures=()
if [ ${#datasets[@]} -gt 0 ]; then pictures=("${datasets[0]}"); fi
measure parity-dev parity "$lite.safetensors" "$lite.onnx" "${models[@]}" ${pictures:+--pictures "${pictures[0]}"} --panels
if [ -f "$wide" ] && [ ${#wide_models[@]} -gt 0 ]; then
  measure parity-wide parity "$wide" "${wide_models[@]}" ${pictures:+--pictures "${pictures[0]}"} --panels
fi
if [ ${#datasets[@]} -gt 0 ]; then
  measure accuracy-dev accuracy "$lite.onnx" "${datasets[@]}" --panels
  for file in "${models[@]}"; do
    name=$(basename "$file" .onnx)
    measure "accuracy-dev-${name#basnet-lite-}" accuracy "$file" "${datasets[@]}"
  done
fi
engines=(--engine "$lite.onnx")
for file in "${models[@]}"; do
  if [[ $(basename "$file") == basnet-lite-int8*.onnx ]]; then engines+=(--engine "$file"); fi
done
measure video-cpu video "${VIDEO:-tests/data/pan.mp4}" "${engines[@]}" --runs "${VIDEO_RUNS:-6}"

measured=()
for name in "${names[@]}"; do
  if [ -f "$work/$name.json" ]; then measured+=("$work/$name.json"); fi
done
if [ ${#measured[@]} -gt 0 ]; then bench report "${measured[@]}" -o "$work/report.html" --overwrite; fi
LC_ALL=C # the order of the tables
bench report "$reports"/*.json -o "${DOCUMENT:-docs/results.md}" --overwrite
echo "Results: $reports, ${DOCUMENT:-docs/results.md}; page with pictures: $work/report.html"
exit $status
