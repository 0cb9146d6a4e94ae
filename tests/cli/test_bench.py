"""`basnet-bench` as a user calls it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from basnet_benchmarks import cli
from basnet_benchmarks.cli import app
from basnet_torch.errors import MediaError
from tests.benchmarks.conftest import bench_models, picture_folder  # noqa: F401 - fixtures

QUICK = ("--rounds", 1, "--calls", 1, "--warm-up", 1, "--threads", 1, "--backend", "onnxruntime", "--no-memory")


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_latency_prints_json_and_writes_markdown(bench_models, tmp_path):  # noqa: F811
    output = tmp_path / "latency.md"
    result = call("latency", bench_models.onnx, *QUICK, "--batch", "1,2", "--json", "-o", output)
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert [row["pictures"] for row in values["results"]] == [1, 2]
    assert "round 1 of 1" in result.stderr
    text = output.read_text()
    assert "From file to file, coffee.jpg, ms:" in text
    assert "| good.onnx, onnxruntime fp32 | " in text
    assert set(values["stages"][0]["stages"]) == {
        "decode",
        "preprocess",
        "copy_in",
        "compute",
        "copy_out",
        "postprocess",
        "encode",
    }
    again = call("latency", bench_models.onnx, *QUICK, "-o", output)
    assert (again.exit_code, "--overwrite" in again.stderr) == (2, True)


def test_a_result_is_shown_before_it_is_saved(bench_models, tmp_path, monkeypatch):  # noqa: F811
    def full(*_, **__):
        raise MediaError("latency.md: cannot be written: No space left on device")

    monkeypatch.setattr(cli, "save", full)
    result = call("latency", bench_models.onnx, *QUICK, "-o", tmp_path / "latency.md")
    assert (result.exit_code, "good.onnx" in result.stdout, "No space left" in result.stderr) == (1, True, True)


def test_parity_exit_codes(bench_models, picture_folder):  # noqa: F811
    common = ("--pictures", picture_folder, "--threads", 1, "--backend", "onnxruntime")
    good = call("parity", bench_models.checkpoint, bench_models.onnx, *common)
    assert (good.exit_code, "passed" in good.stdout) == (0, True), good.output
    damaged = call("parity", bench_models.checkpoint, bench_models.onnx, bench_models.damaged, *common, "--json")
    assert damaged.exit_code == 4, damaged.output
    assert [row["verdict"] for row in json.loads(damaged.stdout)["candidates"]] == ["passed", "failed"]


def test_parity_of_a_missing_backend_ends_with_3(bench_models, picture_folder, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "openvino", None)
    arguments = ("--pictures", picture_folder, "--threads", 1, "--backend", "openvino:fp32")
    result = call("parity", bench_models.checkpoint, bench_models.onnx, *arguments)
    assert (result.exit_code, "not proven" in result.stdout, "passed" in result.stdout) == (3, True, False)


def test_video_counts_frames_and_shares_time(bench_models, tmp_path, write_video):  # noqa: F811
    images = list(np.random.default_rng(0).integers(0, 255, (4, 64, 96, 3), dtype=np.uint8))
    clip = write_video(tmp_path / "clip.mp4", images)
    result = call("video", clip, "--model", bench_models.onnx, "--runs", 2, "--threads", 1, "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    (found,) = values["results"]
    assert [run["frames"] for run in found["runs"]] == [4, 4]
    assert {"decode", "network", "encode"} <= set(found["runs"][0]["cpu_seconds_by_stage"])
    assert found["runs"][0]["wall_seconds_by_stage"]["network"] > 0
    assert found["frames_per_second"]["value"] > 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".mp4") == ["clip.mp4"]
    missing = call("video", tmp_path / "absent.mp4", "--model", bench_models.onnx)
    assert (missing.exit_code, len(missing.stderr.strip().splitlines())) == (1, 2)  # progress, then the error


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("latency", "absent.onnx"), 1, "absent.onnx"),
        (("latency", "x.txt"), 2, "random:WIDTH"),
        (("latency", "x.onnx", "--batch", "one"), 2, "numbers with commas"),
        (("latency", "x.onnx", "--backend", "tvm"), 2, "tvm"),
        (("latency", "x.onnx", "-o", "x.txt"), 2, ".json, .md or .html"),
        (("parity", "x.onnx"), 1, "no such file"),
        (("parity", "absent.pth"), 1, "no such file"),
    ],
)
def test_mistakes_end_in_one_line(arguments, code, message):
    result = call(*arguments)
    assert (result.exit_code, message in result.stderr) == (code, True), result.output
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("command", [(), ("latency",), ("parity",), ("video",), ("report",)])
def test_help_loads_no_heavy_library(command):
    code = (
        "import sys\nfrom basnet_benchmarks.cli import app\n"
        f"try:\n    app({[*command, '--help']!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'cv2', 'av', 'matplotlib', 'pyvips'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    answer = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    assert "Usage" in answer.stdout
    assert answer.stdout.splitlines()[-1] == "[]"
