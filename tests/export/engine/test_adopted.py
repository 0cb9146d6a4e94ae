"""Plans of other projects' networks, built by the real library without a GPU."""

from importlib.util import find_spec

import onnx
import pytest
from onnx import helper
from typer.testing import CliRunner

from basnet_export.cli import app
from basnet_export.engine.build import build_engine
from basnet_export.engine.config import BuildConfig
from basnet_runtime.backends.tensorrt.preflight import read_plan_manifest
from basnet_runtime.manifest import read_manifest, sha256_of
from basnet_torch.errors import EngineBuildError
from tests.foreign import foreign_network
from tests.models import disc_folder

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed; pip install 'basnet-deploy[rtx]'")


@pytest.mark.parametrize(
    ("form", "precision", "largest"),
    [
        ({"opset": 9}, "fp32", 1),
        ({"opset": 11, "side_outputs": 6}, "fp32", 1),
        ({"size": None, "batch": None, "opset": 17}, "fp32", 4),
        ({"dtype": "float16", "sigmoid": False, "opset": 20}, "fp16", 1),
        ({"dtype": "float16", "opset": 13, "names": False}, "fp16", 1),
        ({"squeezed": True, "external": True}, "fp32", 1),
    ],
    ids=[
        "opset 9",
        "seven outputs",
        "free axes",
        "FP16 logits",
        "FP16 of opset 13 without names",
        "N,H,W, weights in another file",
    ],
)
def test_a_plan_of_an_adopted_network(form, precision, largest, tmp_path):
    net = foreign_network(tmp_path / "net.onnx", **form)
    options = ["--mean", "0.5", "--std", "0.3", "--pictures", disc_folder()]
    options += [] if form.get("size", 1) else ["--size", "48x80"]
    options += [] if form.get("sigmoid", True) else ["--activation", "sigmoid"]
    result = CliRunner().invoke(app, ["adopt", *map(str, (net, *options))])
    assert result.exit_code == 0, result.stderr
    plan = build_engine(BuildConfig(model=net, output=tmp_path / "net.plan", flavor="rtx", batch=(1, 2, 4)))
    manifest, facts = read_plan_manifest(plan)
    assert (facts.profiles[0].smallest, facts.profiles[0].largest) == ((1, 3, 48, 80), (largest, 3, 48, 80))
    assert (manifest.input.dtype, manifest.output.dtype, manifest.activation) == ("float32", "float32", "none")
    assert (manifest.precision, facts.typed_flops, manifest.onnx_sha256) == (precision, 1.0, sha256_of(net))
    told = CliRunner().invoke(app, ["inspect", str(plan)]).stdout
    assert "adopted, not BASNet" in told


@pytest.mark.parametrize("opset", [19, 22])
def test_a_window_behind_the_map_refuses_the_build(opset, tmp_path):
    """The parser, as OpenVINO's reader, adds a window of MaxPool that ONNX leaves out."""
    net = foreign_network(tmp_path / "net.onnx", opset=opset)
    graph = onnx.load(net)
    (pool,) = (node for node in graph.graph.node if node.op_type == "AveragePool")
    kernel = {"kernel_shape": [1, 1], "strides": [2, 2], "ceil_mode": 1}
    pool.CopyFrom(helper.make_node("MaxPool", pool.input, pool.output, name="pool", **kernel))
    onnx.save(graph, net)
    options = ["--mean", "0.5", "--std", "0.3", "--pictures", disc_folder()]
    result = CliRunner().invoke(app, ["adopt", *map(str, (net, *options))])
    assert result.exit_code == 0, result.stderr
    with pytest.raises(EngineBuildError, match=r"to \(1, 2, 25, 41\) in node pool: the last window begins") as caught:
        build_engine(BuildConfig(model=net, output=tmp_path / "net.plan", flavor="rtx"))
    assert "\n" not in str(caught.value)
    if find_spec("openvino"):
        assert "openvino" in read_manifest(net).refused
    kernel |= {"kernel_shape": [2, 2]}  # all windows begin inside
    pool.CopyFrom(helper.make_node("MaxPool", pool.input, pool.output, name="pool", **kernel))
    onnx.save(graph, net)
    assert CliRunner().invoke(app, ["adopt", *map(str, (net, *options, "--overwrite"))]).exit_code == 0
    build_engine(BuildConfig(model=net, output=tmp_path / "net.plan", flavor="rtx"))
    if find_spec("openvino"):
        assert read_manifest(net).refused == {}
