"""The script for a CUDA device: which commands it runs, and what a missing device, library or engine costs."""

import os
import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_report.sh"
# Stands for Python: says which device there is, writes what a command was asked to write, and notes the command.
STUB = r"""#!/usr/bin/env bash
if [ "$1" = - ]; then
  if [ -z "$2" ]; then printf '%s\t%s\n' "$GPU" "$NO_GPU"; fi
  exit 0
fi
if [[ $2 == *cannot_build_here* ]]; then
  if [ -n "${BROKEN:-}" ]; then echo "OSError: $BROKEN" >&2; exit 1; fi
  printf '%s\t%s\n' "$FLAVOR" "${NO_ENGINE:-}"; exit 0
fi
shift 2
echo "$*" >>"$LOG"
code=0
if [[ $1 == -q ]]; then echo "${TESTS:-== 5 passed in 2 s ==}"; fi
if [[ -n "${HANG:-}" && "$*" == *$HANG* ]]; then sleep 60; fi
if [[ -n "${FAIL:-}" && "$*" == *$FAIL* ]]; then code=$CODE; echo "error: the | reason" >&2; fi
while [ $# -gt 1 ]; do
  if [[ $1 == -o || $1 == --output ]] && [ $code = 0 ]; then echo '{}' >"$2"; fi
  shift
done
exit $code
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)

    def start(**options):
        given = {"GPU": "H200", "NO_GPU": "", "FLAVOR": "tensorrt", "PLANS": str(tmp_path / "plans"), **options}
        given |= {"PYTHON": str(tmp_path / "python"), "LOG": str(tmp_path / "log"), "OUT": str(tmp_path / "out")}
        environment = {**os.environ, **given}
        done = subprocess.run(["bash", SCRIPT], env=environment, capture_output=True, text=True, check=False)
        rows = {}
        if (tmp_path / "out").exists():
            lines = (tmp_path / "out" / "summary.md").read_text().replace("\\|", "/").splitlines()
            rows = {name: (state, why) for _, name, state, why, _ in (map(str.strip, s.split("|")) for s in lines[4:])}
        log = (tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []
        return done, rows, log

    return start


def test_everything_that_is_claimed_is_run(run):
    done, rows, log = run(CALIBRATION="pictures", CHECKPOINT="wide.pth", PICTURES="set")
    assert done.returncode == 0, done.stderr
    assert {state for state, _ in rows.values()} == {"proven"}
    assert len(rows) == 3 + 2 * 4 + 8 + 1 + 2 * (2 + 1 + 4)
    for backend in ("pytorch", "onnxruntime"):
        assert sum(f"--backend {backend} --device cuda" in line for line in log) == 4
    for model, checkpoint in (("lite", "basnet-lite.safetensors"), ("width64", "wide.pth")):
        (parity,) = (line for line in log if line.startswith("parity") and checkpoint in line and ".plan" in line)
        assert parity.count(".plan") == 4
        assert "--pictures set" in parity
        for graph in ("tensor", "frame"):
            found = [line for line in log if f"{model}-{graph}-fp16.plan" in line]
            engine = next(line for line in found if line.startswith("engine"))
            assert ("--height 32,720,2160" in engine) == (graph == "frame")
            latency = next(line for line in found if line.startswith("latency"))
            assert f"{model}-{graph}-int8.plan --device cuda --batch 1,8,32" in latency
            assert sum(line.startswith("video") for line in found) == 2
    assert sum("--calibration pictures" in line for line in log) == 4


def test_what_cannot_be_shown_is_not_pretended(run):
    _, rows, log = run(ONLY="engine parity")
    assert rows["parity-width64"] == (
        "not proven", "random weights give a flat map, on which nothing can be shown; set CHECKPOINT",
    )  # fmt: skip
    assert rows["engine-lite-tensor-int8"] == ("not proven", "no pictures to calibrate on; set CALIBRATION")
    checks = {line.split("/")[-1]: "--no-check" in line for line in log if line.startswith("engine")}
    assert checks == {f"{m}-{g}-fp16.plan": m == "width64" for m in ("lite", "width64") for g in ("tensor", "frame")}


def test_without_a_device_its_steps_are_not_started(run):
    done, rows, log = run(GPU="", NO_GPU="this machine has no NVIDIA driver", CHECKPOINT="wide.pth")
    assert done.returncode == 0
    proven = {name for name, (state, _) in rows.items() if state == "proven"}
    assert proven == {
        "latency-cpu", "parity-cpu", "video-cpu",
        *(f"engine-{m}-{g}-fp16" for m in ("lite", "width64") for g in ("tensor", "frame")),  # RTX builds anywhere
    }  # fmt: skip
    assert rows["tests-gpu"] == ("not proven", "this machine has no NVIDIA driver")
    assert not [line for line in log if "cuda" in line]


@pytest.mark.parametrize(("code", "state", "end"), [(3, "not proven", 0), (4, "failed", 1), (1, "failed", 1)])
def test_exit_codes_keep_their_meaning(run, code, state, end):
    done, rows, _ = run(FAIL="engine", CODE=str(code), ONLY="engine-lite-tensor-fp16 latency-lite-tensor parity-cpu")
    assert (done.returncode, rows["engine-lite-tensor-fp16"]) == (end, (state, "error: the / reason"))
    assert rows["latency-lite-tensor"] == ("not proven", "no engine was built")
    assert rows["parity-cpu"] == ("proven", "")


def test_an_engine_that_is_not_built_for_this_device_is_built_another_way(run):
    """TensorRT for RTX is told to build for the device; where that fails, for the capabilities that it lists."""
    _, rows, log = run(FLAVOR="rtx", FAIL="current", CODE="3", ONLY="engine-lite-tensor-fp16")
    assert rows["engine-lite-tensor-fp16"] == ("proven", "")
    assert ["--flavor rtx --compute-capability current" in line for line in log] == [True, False]


@pytest.mark.parametrize("hang", ["--backend onnxruntime --device cuda", "-q -m gpu"])
def test_a_step_that_hangs_costs_its_own_row(run, hang):
    done, rows, _ = run(HANG=hang, LIMIT="1", ONLY="latency-lite-cuda tests-gpu parity-cpu", QUICK="1")
    hung, other = ("latency-lite-cuda-onnxruntime", "tests-gpu")[:: -1 if "-m gpu" in hang else 1]
    assert rows[hung] == ("not proven", "took longer than 1 s")
    assert rows[other][0] == rows["parity-cpu"][0] == "proven"
    assert done.returncode == 0


def test_all_steps_together_have_a_limit(run):
    _, rows, _ = run(HANG="latency", TOTAL="4", QUICK="1", ONLY="latency-cpu latency-lite-cuda-pytorch parity-cpu")
    assert re.fullmatch(r"took longer than [234] s", rows["latency-cpu"][1])
    assert rows["parity-cpu"] == ("not proven", "the 4 s of all steps are used up")
    assert {state for state, _ in rows.values()} == {"not proven"}


def test_a_gpu_that_the_library_does_not_build_for(run):
    why = "TensorRT for RTX 1.7 builds for compute capability 7.5, 8.9, 12.0, and H200 has 9.0; install TensorRT"
    done, rows, log = run(FLAVOR="rtx", NO_ENGINE=why, CALIBRATION="pictures", CHECKPOINT="wide.pth")
    assert done.returncode == 0
    engines = {name for name in rows if name.startswith("engine") or name.endswith(("tensor", "frame", "p"))}
    assert len(engines) == 8 + 2 * (2 + 4)
    for name in (*engines, "parity-lite", "parity-width64"):
        assert rows[name] == ("not proven", why)
    assert {s for n, (s, _) in rows.items() if n not in (*engines, "parity-lite", "parity-width64")} == {"proven"}
    assert not [line for line in log if line.startswith("engine")]


def test_a_library_that_fails_when_asked(run):
    _, rows, _ = run(BROKEN="libnvinfer.so: not found", ONLY="engine-lite-tensor-fp16")
    why = "TensorRT cannot be asked: OSError: libnvinfer.so: not found"
    assert rows["engine-lite-tensor-fp16"] == ("not proven", why)


@pytest.mark.parametrize(("told", "state"), [("3 passed, 2 skipped in 1 s", "proven"), ("5 skipped", "not proven")])
def test_skipped_tests_prove_nothing(run, told, state):
    _, rows, _ = run(TESTS=f"== {told} ==", ONLY="tests-gpu")
    assert rows["tests-gpu"] == (state, told)


def test_no_step_of_that_name_is_a_mistake(run, tmp_path):
    done, rows, _ = run(ONLY="nothing")
    assert (done.returncode, rows, (tmp_path / "out").exists()) == (2, {}, False)
    assert "no step's name begins so" in done.stderr


def test_nothing_is_written_over(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "summary.md").write_text("")
    done, _, log = run()
    assert (done.returncode, log) == (1, [])
    assert "exists" in done.stderr
