"""Whole videos, several engines by turns: who runs when, what is refused, what ratios are taken of."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from basnet_benchmarks import video
from basnet_benchmarks.cli import app
from basnet_benchmarks.results import values_of
from basnet_benchmarks.statistics import round_order
from basnet_benchmarks.video import VideoConfig, measure_video
from basnet_runtime.command.run import Summary
from basnet_torch.errors import UsageError
from tests.benchmarks.test_results import video_comparison, video_result

CLIP = Path("clip.mp4")


@pytest.fixture
def ran(monkeypatch):
    """What would have been run, in order; nothing is."""
    order = []

    def run(config, _):
        order.append(config.model)
        name = config.model.name if config.model else "built-in"
        spent = {"decode": (0.5, 1.0), "network": (1.5, 3.0)}
        return Summary(model=name, runs_on="CPU", frames=8, seconds=len(order), seconds_by_stage=spent)

    monkeypatch.setattr(video, "run", run)
    return order


def test_engines_take_turns_in_rounds(ran):
    models, said = tuple(Path("models") / name for name in ("a.onnx", "b.onnx", "c.onnx")), []
    report = measure_video(VideoConfig(source=CLIP, models=models, runs=4), said.append)
    rounds = [[path.name for path in ran[start : start + 3]] for start in range(0, 12, 3)]
    assert rounds == [round_order(["a.onnx", "b.onnx", "c.onnx"], index) for index in range(4)]
    assert said[:4] == ["run 1 of 4: a.onnx", "run 1 of 4: b.onnx", "run 1 of 4: c.onnx", "run 2 of 4: c.onnx"]
    assert [result.model for result in report.results] == ["a.onnx", "b.onnx", "c.onnx"]
    assert [run.seconds for run in report.results[0].runs] == [1, 6, 9, 10]


def test_without_an_engine_the_built_in_model_runs(ran):
    report = measure_video(VideoConfig(source=CLIP))
    assert ran == [None] * 3
    assert [result.model for result in report.results] == ["built-in"]


@pytest.mark.parametrize("again", ["a.onnx", "./a.onnx", "other/a.onnx"])
def test_an_engine_is_named_once(again):
    with pytest.raises(UsageError, match=r"engines a\.onnx, a\.onnx: give each once"):
        VideoConfig(source=CLIP, models=(Path("a.onnx"), Path(again)))


def test_the_command_takes_several_engines(ran):
    engines = ("--engine", "a.onnx", "--model", "b.onnx")
    answer = CliRunner().invoke(app, ["video", "clip.mp4", *engines, "--runs", "2", "--json"])
    assert answer.exit_code == 0, answer.output
    assert [result["model"] for result in json.loads(answer.stdout)["results"]] == ["a.onnx", "b.onnx"]
    assert list(map(str, ran)) == ["a.onnx", "b.onnx", "b.onnx", "a.onnx"]
    twice = CliRunner().invoke(app, ["video", "clip.mp4", "--engine", "a.onnx", "--engine", "a.onnx"])
    assert (twice.exit_code, len(twice.stderr.strip().splitlines())) == (2, 1)


def test_ratios_are_taken_round_by_round():
    """The medians' own ratio is 3 / 2; the second model was twice as fast in two rounds of three."""
    first, second = video_result(2.0, 6.0, 3.0), video_result(1.0, 3.0, 2.0)
    ratio = replace(second, first=first.runs).ratio_to_first
    assert (ratio.value, ratio.low, ratio.high) == (2.0, None, None)


def test_json_of_a_comparison():
    values = values_of(video_comparison())
    assert list(values) == ["command", "source", "environment", "results"]
    first, second = values["results"]
    assert list(first) == ["model", "runs_on", "frames_per_second", "ratio_to_first", "of_ceiling", "runs"]
    assert first["ratio_to_first"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert second["ratio_to_first"] == {"value": 2.0, "low": 2.0, "high": 3.0}
    assert second["frames_per_second"] == {"value": 5.83333, "low": 4.0, "high": 20.0}
    assert second["of_ceiling"] == pytest.approx((2 / 1.5 + 1) / 2, rel=1e-5)  # 4 s of two processors, medians
    assert second["runs"][1] == {
        "frames": 10,
        "seconds": 1.0,
        "frames_per_second": 10.0,
        "of_ceiling": 2.0,
        "cpu_seconds_by_stage": {"decode": 1.0, "network": 3.0},
        "wall_seconds_by_stage": {},
    }
