"""What needs a CUDA device: FP32 is computed in FP32 there, not in TF32, and engines give the trained model's masks."""

import pytest

from basnet_export.build_config import BuildConfig
from basnet_export.engine import build_engine
from basnet_export.samples import load_pictures
from basnet_runtime.open import open_model
from basnet_runtime.parity import compare, tolerance_for
from basnet_runtime.preflight import read_plan_manifest

pytestmark = pytest.mark.gpu


def test_pytorch_on_cuda_equals_the_cpu(cuda, lite_checkpoint):
    with open_model(lite_checkpoint) as reference, open_model(lite_checkpoint, device=cuda) as candidate:
        report = compare(reference, candidate, load_pictures(None), tolerance_for("fp32"))
    assert report, str(report)


def test_bf16_in_pytorch_on_cuda(cuda, lite_checkpoint):
    with (
        open_model(lite_checkpoint, device=cuda) as reference,
        open_model(lite_checkpoint, device=cuda, precision="bf16") as candidate,
    ):
        report = compare(reference, candidate, load_pictures(None), tolerance_for("bf16"))
    assert report, str(report)


def test_onnx_runtime_on_cuda_equals_pytorch_on_the_same_device(cuda, lite_onnx, lite_checkpoint):
    with open_model(lite_checkpoint, device=cuda) as reference, open_model(lite_onnx, device=cuda) as candidate:
        assert "CUDAExecutionProvider" in candidate.backend.description
        report = compare(reference, candidate, load_pictures(None), tolerance_for("fp32"))
    assert report, str(report)


@pytest.mark.parametrize("graph", ["tensor", "frame"])
def test_an_fp16_engine_keeps_the_contract_on_the_same_device(cuda, lite_checkpoint, tmp_path, graph):
    plan = build_engine(BuildConfig(model=lite_checkpoint, output=tmp_path / "fp16.plan", graph=graph))
    with open_model(lite_checkpoint, device=cuda) as reference, open_model(plan) as candidate:
        assert candidate.backend.name == "tensorrt"
        report = compare(reference, candidate, load_pictures(None), tolerance_for("fp16"))
    assert report, str(report)
    assert read_plan_manifest(plan)[0].parity["passed"]
