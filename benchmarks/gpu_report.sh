#!/usr/bin/env bash
# Proves on this machine's CUDA device all that can be proven, and writes JSON, Markdown and HTML into a new folder under
# benchmarks/reports/. Without a device, or without a library, the rows that need it read "not proven". No network.
#   benchmarks/gpu_report.sh [--pictures DUTS-TE] [--calibration DUTS-TR] [--checkpoint w64.pth] [--only latency] [--quick]
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -c "from basnet_benchmarks.cli import main; main()" gpu "$@"
