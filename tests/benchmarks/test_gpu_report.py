"""The report of a CUDA device: what it would run, what a missing device or library costs, what is held against what."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from basnet_benchmarks import gpu_report
from basnet_benchmarks.environment import environment
from basnet_benchmarks.gpu_bars import bars_of
from basnet_benchmarks.gpu_report import GpuReport, run_steps
from basnet_benchmarks.gpu_steps import GpuConfig, Step, steps_of
from basnet_benchmarks.report import markdown
from basnet_torch.errors import UsageError

MODELS = {"lite": Path("lite.safetensors"), "width64": Path("wide.safetensors")}
CLIPS = {"720p": Path("720p.mp4"), "2160p": Path("2160p.mp4")}


def steps(tmp_path, **options):
    config = GpuConfig(output=tmp_path / "out", **options)
    return {step.name: step for step in steps_of(config, tmp_path, MODELS, CLIPS)}


def test_everything_that_is_claimed_has_a_step(tmp_path):
    found = steps(tmp_path, calibration=tmp_path, checkpoint=Path("wide.pth"))
    for model, checkpoint in MODELS.items():
        for graph in ("tensor", "frame"):
            assert {f"engine-{model}-{graph}-{p}" for p in ("fp16", "int8")} <= set(found)
            latency = found[f"latency-{model}-{graph}"]
            assert latency.arguments[:4] == (
                "latency",
                str(checkpoint),
                *(str(tmp_path / f"{model}-{graph}-{p}.plan") for p in ("fp16", "int8")),
            )
            assert latency.arguments[latency.arguments.index("--batch") :][:2] == ("--batch", "1,8,32")
            assert {f"video-{model}-{graph}-fp16-{clip}" for clip in CLIPS} <= set(found)
        assert found[f"parity-{model}"].on_gpu
    assert not any(step.blocked for step in found.values())
    assert not found["engine-lite-tensor-fp16"].on_gpu  # TensorRT for RTX builds anywhere


def test_what_cannot_be_shown_is_not_pretended(tmp_path):
    found = steps(tmp_path)
    assert "random weights give a flat map" in found["parity-width64"].blocked
    assert "no pictures to calibrate on" in found["engine-lite-tensor-int8"].blocked
    assert "--no-check" in found["engine-width64-tensor-fp16"].arguments
    assert "--no-check" not in found["engine-lite-tensor-fp16"].arguments


def test_steps_are_chosen_by_how_they_begin(tmp_path):
    assert set(steps(tmp_path, only=("latency-lite", "tests"))) == {
        "latency-lite-tensor",
        "latency-lite-frame",
        "tests-gpu",
    }


def test_nothing_is_written_over(tmp_path):
    with pytest.raises(UsageError, match="exists already"):
        GpuConfig(output=tmp_path)


@pytest.fixture
def commands(monkeypatch):
    """Commands that are not run: each answers with the next code and line."""
    ran, answers = [], []

    def run(command, **_):
        ran.append(command[3:])
        code, line = answers.pop(0) if answers else (0, "")
        return SimpleNamespace(returncode=code, stderr=f"progress\n{line}\n", stdout="")

    monkeypatch.setattr(subprocess, "run", run)
    return SimpleNamespace(ran=ran, answers=answers)


def test_without_a_device_its_steps_are_not_started(commands):
    asked = [
        Step(name="a", tool="bench", arguments=("x",)),
        Step(name="b", tool="bench", arguments=("y",), on_gpu=True),
        Step(name="c", tool="bench", arguments=("z",), blocked="no data"),
    ]
    results = list(run_steps(asked, "this machine has no NVIDIA driver"))
    assert [(r.state, r.reason) for r in results] == [
        ("done", ""),
        ("not proven", "this machine has no NVIDIA driver"),
        ("not proven", "no data"),
    ]
    assert commands.ran == [["x"]]


@pytest.mark.parametrize(("code", "state"), [(0, "done"), (3, "not proven"), (4, "failed"), (1, "failed")])
def test_exit_codes_keep_their_meaning(commands, code, state):
    commands.answers.append((code, "error: the reason"))
    (result,) = run_steps([Step(name="a", tool="bench", arguments=("x",))], "")
    assert result.state == state
    assert result.reason == ("error: the reason" if code else "")


def test_engines_that_were_not_built_are_left_out(commands, tmp_path):
    there, absent = tmp_path / "there.plan", tmp_path / "absent.plan"
    there.touch()
    step = Step(name="a", tool="bench", arguments=("m", str(there), str(absent)), needs=(there, absent))
    assert next(run_steps([step], "")).state == "done"
    assert commands.ran == [["m", str(there)]]
    step = Step(name="a", tool="bench", arguments=("m", str(absent)), needs=(absent,))
    assert next(run_steps([step], "")).reason == "no engine was built"


def test_an_engine_that_does_not_run_here_is_built_another_way_and_so_are_the_next(commands):
    """As TensorRT for RTX on a capability that it does not list."""
    commands.answers += [(3, "UNSUPPORTED_CC"), (0, "")]
    engines = [Step(name=name, tool="export", arguments=("engine", name)) for name in "ab"]
    results = list(run_steps(engines, "", ways=((), ("--compute-capability", "current"))))
    assert [r.state for r in results] == ["done", "done"]
    here = ["--compute-capability", "current"]
    assert commands.ran == [["engine", "a"], ["engine", "a", *here], ["engine", "b", *here]]


def row(model, seconds, batch, precision="fp16", backend="TensorRT 10"):
    device = {"compute_s": [9.0], "graph_s": [seconds]} if seconds else None
    return {"model": model, "pictures": batch, "precision": precision, "backend": backend, "device": device}


def reports(engine=0.012):
    eager, compiled = ({"backend": "PyTorch 2.11"} for _ in range(2))
    return {
        "latency-width64-tensor": {
            "results": [
                row("width64-tensor-fp16.plan (width 64)", 0.0008, 1),
                row("width64-tensor-fp16.plan (width 64)", engine, 32),
                row("wide.safetensors", 0.12, 32, "fp32", **eager),
                row("wide.safetensors", 0.018, 32, "fp16 compiled", **compiled),
            ]
        },
        "video-lite-frame-fp16-720p": {
            "results": [{"runs": [{"seconds": 10.0, "wall_seconds_by_stage": {"decode": 9.5, "network": 2.0}}] * 3}]
        },
        "parity-lite": {"candidates": [{"model": "a.plan", "verdict": "passed", "report": {}}]},
    }


def test_claims_are_held_against_what_was_found():
    bars = bars_of(reports())
    assert [bar.verdict for bar in bars] == ["met"] * 6
    assert bars[0].found == "0.8 ms"
    assert bars[1].found == "85.7 %"  # 32 pictures of 254 GFLOP in 12 ms
    assert (bars[2].found, bars[3].found, bars[4].found) == ("10 x", "1.5 x", "95 %")


def test_a_slow_engine_misses():
    verdicts = {bar.claim: bar.verdict for bar in bars_of(reports(engine=0.02))}
    assert list(verdicts.values())[1:4] == ["missed"] * 3


def test_without_reports_nothing_is_claimed():
    bars = bars_of({"latency-cpu": {"results": [row("x", None, 1)]}})
    assert bars
    assert {bar.verdict for bar in bars} == {"not proven on a GPU"}


def test_what_could_not_run_is_not_met():
    bars = bars_of({"parity-lite": {"candidates": [{"model": "a.plan", "verdict": "not proven", "report": None}]}})
    assert {bar.verdict for bar in bars} == {"not proven on a GPU"}


def test_the_summary_is_readable():
    steps_done = (
        gpu_report.StepResult(name="latency-cpu", state="done"),
        gpu_report.StepResult(name="tests-gpu", state="not proven", reason="no NVIDIA driver"),
    )
    summary = GpuReport(environment=environment(1), gpu="", steps=steps_done, bars=bars_of(reports()))
    text = markdown(summary)
    assert "of which this machine has none" in text
    assert "| width 64, FP16 engine alone, batch 1, median | at most 1 ms | 0.8 ms | met |" in text
    assert "- tests-gpu: not proven: no NVIDIA driver" in text
    assert "- done: latency-cpu" in text
