"""Plans of other projects' networks, built by the real library without a GPU."""

import pytest
from typer.testing import CliRunner

from basnet_export.cli import app
from basnet_export.engine.build import build_engine
from basnet_export.engine.config import BuildConfig
from basnet_runtime.backends.tensorrt.preflight import read_plan_manifest
from basnet_runtime.manifest import sha256_of
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
