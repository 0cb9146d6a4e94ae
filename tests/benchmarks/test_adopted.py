"""Other projects' networks in `basnet-bench`: their own file in ONNX Runtime is the reference."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from basnet_benchmarks.candidates import ModelSource
from basnet_benchmarks.cli import app
from basnet_export.cli import app as export
from basnet_runtime.media.image.pictures import write_picture
from tests.foreign import foreign_network
from tests.models import calibration_folder, disc_folder, discs, needs_int8


@pytest.fixture(params=[{}, {"size": None, "batch": None, "opset": 11}, {"dtype": "float16", "sigmoid": False}])
def net(request, tmp_path):
    path = foreign_network(tmp_path / "net.onnx", side_outputs=3, **request.param)
    options = ["--mean", "0.5", "--std", "0.3", "--pictures", disc_folder()]
    options += ["--size", "48x80"] if "size" in request.param else []
    options += ["--activation", "sigmoid"] if "sigmoid" in request.param else []
    result = CliRunner().invoke(export, ["adopt", *map(str, (path, *options))])
    assert result.exit_code == 0, result.stderr
    return path


def bench(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code in (0, 4), result.stderr
    return json.loads(result.stdout)


def test_parity(net):
    """All libraries agree with ONNX Runtime, and so does the standard's own evaluator."""
    choices = ["openvino:fp32", "onnx-reference"]
    asked = [part for choice in choices for part in ("--backend", choice)]
    found = bench("parity", net, "--pictures", disc_folder(), *asked)
    assert "ONNX Runtime" in found["reference_runs_on"]
    assert {row["backend"]: row["verdict"] for row in found["candidates"]} == {
        "openvino": "passed",
        "onnx-reference": "passed",
    }


def test_parity_needs_something_to_compare(net):
    result = CliRunner().invoke(app, ["parity", str(net), "--backend", "onnxruntime", "--pictures", str(disc_folder())])
    assert (result.exit_code, "is the reference itself" in result.stderr) == (2, True)


def test_only_what_was_adopted_is_a_reference(tmp_path):
    """A conversion, and one that was changed, would agree with themselves."""
    path = foreign_network(tmp_path / "net.onnx")
    options = ("--pictures", str(disc_folder()))
    assert CliRunner().invoke(export, ["adopt", str(path), "--mean", "0.5", "--std", "0.3", *options]).exit_code == 0
    half, changed = tmp_path / "net-fp16.onnx", tmp_path / "changed.onnx"
    made = CliRunner().invoke(export, ["onnx", str(path), "--precision", "fp16", "--no-check", *options])
    assert made.exit_code == 0, made.stderr
    graph = onnx.load(half)
    (head,) = (t for t in graph.graph.initializer if t.name == "head.weight")
    head.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(head), head.name))
    onnx.save(graph, changed)
    for file, verdict in (
        (half, "masks not checked against net.onnx in ONNX Runtime FP32"),
        (changed, "not proven: changed after export"),
    ):
        result = CliRunner().invoke(app, ["parity", str(file), *options])
        assert (result.exit_code, "or the .onnx that was adopted" in result.stderr) == (2, True), result.output
        assert ModelSource(str(file), tmp_path).reference is None
        assert verdict in CliRunner().invoke(export, ["inspect", str(file)]).stdout
    verdicts = [
        row["verdict"]
        for row in bench("parity", path, half, changed, *options, "--backend", "onnxruntime")["candidates"]
    ]
    assert verdicts == ["passed", "failed"]


@needs_int8
def test_latency_of_int8_for_openvino(tmp_path):
    """ONNX Runtime's own kernels are not for it, so that it is measured without a reference."""
    path, options = foreign_network(tmp_path / "net.onnx", channels=16), ("--pictures", str(disc_folder()))
    assert CliRunner().invoke(export, ["adopt", str(path), "--mean", "0.5", "--std", "0.3", *options]).exit_code == 0
    made = [
        "onnx",
        str(path),
        "--precision",
        "int8",
        "--target",
        "openvino",
        "--calibration",
        str(calibration_folder()),
    ]
    result = CliRunner().invoke(export, [*made, *options])
    assert result.exit_code == 0, result.stderr
    (made,) = tmp_path.glob("net-int8*.onnx")
    found = bench("latency", made, "--rounds", 1, "--calls", 1, "--batch", "1", "--backend", "openvino")
    assert [(row["backend"], row["precision"]) for row in found["results"]] == [("openvino", "int8")]


def test_latency(net):
    found = bench("latency", net, "--rounds", 2, "--calls", 1, "--batch", "1,2", "--backend", "openvino:fp32")
    rows = {(row["backend"], row["pictures"]): row for row in found["results"]}
    assert set(rows) == {(backend, n) for backend in ("onnxruntime", "openvino") for n in (1, 2)}
    assert rows["openvino", 1]["reference"].startswith("net.onnx, onnxruntime")
    assert rows["openvino", 1]["ratio_to_reference"]["value"] > 0
    assert rows["openvino", 1]["ratio_to_pytorch_fp32"] is None


def test_accuracy(net, tmp_path):
    for picture in discs():
        write_picture(tmp_path / "set" / "images" / f"{picture.name}.jpg", picture.image_HWC)
        mask_HW3 = np.repeat((picture.truth_HW * 255).astype(np.uint8)[..., None], 3, axis=2)
        write_picture(tmp_path / "set" / "masks" / f"{picture.name}.png", mask_HW3)
    (row,) = bench("accuracy", net, tmp_path / "set")["datasets"]
    assert row["max_f"] > 0.9  # the discs are bright, and the network finds what is


def test_video(net, tmp_path, write_video):
    clip = write_video(tmp_path / "clip.mp4", [picture.image_HWC for picture in discs()])
    (row,) = bench("video", clip, "--engine", net, "--runs", 1)["results"]
    assert row["frames_per_second"]["value"] > 0
