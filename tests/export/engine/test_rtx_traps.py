"""What TensorRT for RTX does without a word, and the build does not let pass."""

import sys
import zlib
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from basnet_export.cli import app
from basnet_export.engine.build import build_engine
from basnet_export.engine.config import BuildConfig
from basnet_export.engine.progress import BuildProgress
from basnet_runtime.backends.tensorrt import library as tensorrt_library
from basnet_runtime.backends.tensorrt.preflight import read_plan_manifest
from basnet_torch.errors import BackendUnavailable, EngineBuildError
from tests.foreign import foreign_network
from tests.models import disc_folder, exported

tensorrt_rtx = pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT for RTX is not installed; pip install 'basnet-deploy[rtx]'"
)


def config(tmp_path, model=None, **options):
    made = {"flavor": "rtx", "output": tmp_path / "a.plan", "overwrite": True, **options}
    return BuildConfig(model=model or exported(precision="fp16", graph="tensor"), **made)


def test_the_version_is_the_plans_own(tmp_path, monkeypatch):
    """After ONNX Runtime's plug-in is loaded the bindings build with its library and still name theirs."""
    plan = build_engine(config(tmp_path, cache=tmp_path / "cache"))
    honest = read_plan_manifest(plan)[0]
    monkeypatch.setattr(tensorrt_rtx, "__version__", "9.9.9.9")
    tensorrt_library._imported.cache_clear()
    try:
        said = []

        class Progress(BuildProgress):
            def say(self, what):
                said.append(what)

        build_engine(config(tmp_path, cache=tmp_path / "cache"), Progress())
        assert any("found the engine" in line for line in said)
        manifest, facts = read_plan_manifest(build_engine(config(tmp_path)))
    finally:
        tensorrt_library._imported.cache_clear()
    assert facts.version == honest.engine.version != "9.9.9.9"
    assert manifest.exporter["tensorrt_rtx"] == facts.version


def test_no_plan_is_built_in_a_process_with_the_plugin(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", ModuleType("plugin"))
    with pytest.raises(BackendUnavailable, match="build it in a process of its own"):
        build_engine(config(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_stored_plans_are_compressed(tmp_path):
    plan = build_engine(config(tmp_path, cache=tmp_path / "cache")).read_bytes()
    (stored,) = (tmp_path / "cache").glob("*.plan")
    assert zlib.decompress(stored.read_bytes()) == plan
    assert stored.stat().st_size < len(plan)


def test_gpus_are_named(tmp_path):
    build_engine(config(tmp_path, compute_capabilities=("8.6", "12.0")))
    told = CliRunner().invoke(app, ["inspect", str(tmp_path / "a.plan")]).stdout
    assert "8.6 (GeForce RTX 30), 12.0 (GeForce RTX 50)" in told
    result = CliRunner().invoke(
        app,
        ["engine", str(exported(precision="fp16", graph="tensor")), "--flavor", "rtx", "-o", str(tmp_path / "b.plan")],
    )
    assert f"{(tmp_path / 'b.plan').stat().st_size:,} bytes for every GPU that the library supports" in result.stderr


def with_bytes_after_relu(path, kind):
    """Quantize what follows the ReLU with a zero point of zero: as uint8 all 256 steps are used."""
    model = onnx.load(foreign_network(path, side_outputs=0))
    graph = model.graph
    zero = numpy_helper.from_array(np.zeros((), np.uint8 if kind == TensorProto.UINT8 else np.int8), "zero")
    graph.initializer.extend([zero, numpy_helper.from_array(np.float32(1 / 100), "step")])
    at = next(i for i, node in enumerate(graph.node) if node.op_type == "Relu")
    nodes = [
        helper.make_node("QuantizeLinear", ["r", "step", "zero"], ["r.q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["r.q", "step", "zero"], ["r.dq"], name="dequantize"),
    ]
    for node in graph.node:
        node.input[:] = ["r.dq" if name == "r" else name for name in node.input]
    for offset, node in enumerate(nodes):
        graph.node.insert(at + 1 + offset, node)
    onnx.save(model, path)
    recipe = ["--mean", "0.5", "--std", "0.3", "--pictures", str(disc_folder())]
    return path, CliRunner().invoke(app, ["adopt", str(path), *recipe])


def test_ranges_that_would_be_cut_refuse_the_build(tmp_path):
    """The library takes a uint8 zero point for int8, and with it half of the range."""
    path, adopted = with_bytes_after_relu(tmp_path / "net.onnx", TensorProto.UINT8)
    if adopted.exit_code == 3:
        pytest.skip(adopted.stderr)
    assert adopted.exit_code == 0, adopted.stderr
    with pytest.raises(EngineBuildError, match=r"would quantize over other ranges than the graph: .*UINT8") as caught:
        build_engine(config(tmp_path, path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.plan").exists()
