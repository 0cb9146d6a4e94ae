"""FP16 and INT8 of other projects' networks: kept only if their masks are those of the original in ONNX Runtime."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from basnet_export.cli import app
from basnet_runtime.manifest import read_manifest
from basnet_runtime.onnx_file.content import read_graph_content
from basnet_runtime.open import open_model
from tests.foreign import foreign_network
from tests.models import calibration_folder, disc_folder, discs, exported, needs_int8


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def adopted(tmp_path, *options, **form):
    path = foreign_network(tmp_path / "net.onnx", side_outputs=3, **form)
    recipe = ["--mean", "0.5", "--std", "0.3", "--pictures", disc_folder()]
    recipe += ["--size", "48x80"] if not form.get("size", 1) else []
    recipe += ["--activation", "sigmoid"] if not form.get("sigmoid", True) else []
    result = run("adopt", path, *recipe, *options)
    assert result.exit_code == 0, result.stderr
    return path


@pytest.mark.parametrize(
    "form",
    [
        *({"opset": opset} for opset in (9, 10, 11, 13, 18, 24)),
        {"size": None, "batch": None, "opset": 12},
        {"sigmoid": False},
        {"names": False, "squeezed": True},
    ],
    ids=str,
)
def test_fp16(form, tmp_path):
    path = adopted(tmp_path, **form)
    result = run("onnx", path, "--precision", "fp16", "--pictures", disc_folder(), "--json")
    assert result.exit_code == 0, result.stderr
    made = tmp_path / "net-fp16.onnx"
    manifest = read_manifest(made)
    assert (manifest.precision, manifest.adopted, read_graph_content(made).precision) == ("fp16", True, "fp16")
    assert json.loads(result.stdout)["manifest"]["parity"]["passed"]
    assert "rounded" in manifest.parity
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"net{part}" for part in ("-fp16.onnx", "-fp16.onnx.json", ".onnx", ".onnx.json")
    ]
    image = discs()[0].image_HWC
    with open_model(made) as model, open_model(path) as reference:
        np.testing.assert_allclose(model.mask(image), reference.mask(image), atol=0.02)
    assert len(onnx.load(made).graph.output) == 1
    told = run("inspect", made).stdout
    assert "fp16 parity with net.onnx in ONNX Runtime FP32 proven" in told
    assert "read from the graph" not in told


def scaled(path, **factors):
    """The network with the weights of its `features` and its `head` multiplied."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        part, _, kind = tensor.name.partition(".")
        if part in factors and kind == "weight":
            values = numpy_helper.to_array(tensor) * np.float32(factors[part])
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("factors", "reason"),
    [
        ({"features": 2.0**16, "head": 2.0**-16}, "FP16 ends at 65,504"),  # the weights end at 21,845
        ({"features": 2.0**-14, "head": 2.0**12}, "each value rounded to fp16"),
    ],
    ids=["overflow of values", "underflow of weights"],
)
def test_fp16_that_its_own_arithmetic_breaks_is_not_kept(factors, reason, tmp_path, monkeypatch):
    """A CPU computes such a file in FP32 and sees nothing."""
    path = scaled(foreign_network(tmp_path / "net.onnx"), **factors)
    assert run("adopt", path, "--mean", "0.5", "--std", "0.3", "--pictures", disc_folder()).exit_code == 0
    options = ("--precision", "fp16", "--keep-fp32", "none", "--pictures", disc_folder())
    result = run("onnx", path, *options)
    assert (result.exit_code, reason in result.stderr) == (4, True), result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.onnx.json"]
    blind = SimpleNamespace(receipt=dict)
    monkeypatch.setattr("basnet_export.quantize.fp16_emulation.measure_rounded", lambda *_: blind)
    result = run("onnx", path, *options)
    assert result.exit_code == 0, result.stderr


def test_fp16_without_a_convolution_in_fp16(tmp_path):
    kept = ("--keep-fp32", "Conv_0", "--keep-fp32", "Conv_4")
    result = run("onnx", adopted(tmp_path), "--precision", "fp16", *kept, "--pictures", disc_folder())
    assert (result.exit_code, "the graph computes in fp32" in result.stderr) == (1, True), result.stderr
    assert not (tmp_path / "net-fp16.onnx").exists()


def to_int8(path, *options):
    calibration = ("--calibration", calibration_folder(), "--pictures", disc_folder())
    return run("onnx", path, "--precision", "int8", *calibration, *options)


@needs_int8
@pytest.mark.parametrize("target", ["cpu", "openvino"])
def test_int8(target, tmp_path):
    path = adopted(tmp_path, opset=11, channels=16)
    result = to_int8(path, "--target", target)
    assert result.exit_code == 0, result.stderr
    (made,) = tmp_path.glob("net-int8*.onnx")
    manifest = read_manifest(made)
    assert (manifest.precision, manifest.quantization["kernel_rounding"]) == ("int8", "nearest")
    assert manifest.quantization["int8_share"] > 0.8
    assert read_graph_content(made).precision == "int8"


@needs_int8
@pytest.mark.parametrize("options", [(), ("--keep-fp32", "Conv_2")], ids=["nothing inside", "the inside is kept"])
def test_int8_of_less_than_half_is_not_kept(options, tmp_path):
    result = to_int8(adopted(tmp_path, channels=16 if options else 2), *options)
    assert result.exit_code == 4, result.stderr
    assert "0.0% of the arithmetic can be INT8, must be 50% at least" in result.stderr
    assert not list(tmp_path.glob("net-int8*"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--precision", "fp32"), "converts to fp16 or int8"),
        (("--precision", "bf16"), "converts to fp16 or int8"),
        (("--precision", "fp16", "--graph", "frame"), "Leave --graph out"),
        (("--precision", "fp16", "--size", "64"), "Leave --size out"),
    ],
)
def test_what_is_for_checkpoints_is_refused(options, reason, tmp_path):
    result = run("onnx", adopted(tmp_path), *options)
    assert (result.exit_code, reason in result.stderr) == (2, True), result.stderr


def test_files_that_are_not_to_be_converted(tmp_path):
    result = run("onnx", exported(precision="fp32", graph="tensor"), "--precision", "fp16", "-o", tmp_path / "a.onnx")
    assert (result.exit_code, "is an export already" in result.stderr) == (2, True)
    result = run("onnx", adopted(tmp_path, dtype="float16"), "--precision", "fp16")
    assert (result.exit_code, "must be fp32 to be converted" in result.stderr) == (2, True)
    result = run("onnx", foreign_network(tmp_path / "bare.onnx"), "--precision", "fp16")
    assert (result.exit_code, "basnet-export adopt" in result.stderr) == (1, True)
