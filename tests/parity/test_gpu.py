"""What needs a CUDA device: FP32 is computed in FP32 there, not in TF32, and engines give the trained model's masks."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from basnet_export.engine.build import build_engine, cannot_build_here
from basnet_export.engine.config import BuildConfig
from basnet_export.samples import load_pictures
from basnet_runtime.backends.tensorrt.preflight import read_plan_manifest
from basnet_runtime.open import BUILTIN, open_model
from basnet_runtime.parity import compare, tolerance_for

pytestmark = pytest.mark.gpu


@pytest.fixture
def engines():
    """Skips where no engine can be built for this device."""
    if reason := cannot_build_here():
        pytest.skip(reason)


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
def test_an_fp16_engine_keeps_the_contract_on_the_same_device(cuda, engines, lite_checkpoint, tmp_path, graph):
    plan = build_engine(BuildConfig(model=lite_checkpoint, output=tmp_path / "fp16.plan", graph=graph))
    with open_model(lite_checkpoint, device=cuda) as reference, open_model(plan) as candidate:
        assert candidate.backend.name == "tensorrt"
        report = compare(reference, candidate, load_pictures(None), tolerance_for("fp16"))
    assert report, str(report)
    assert read_plan_manifest(plan)[0].parity["passed"]


@pytest.fixture
def lite_plan(cuda, engines, tmp_path_factory):
    """One FP16 engine of the built-in model for what follows, built once."""
    target = tmp_path_factory.getbasetemp() / "fp16.plan"
    if not target.exists():
        source = BUILTIN.with_suffix(".safetensors")
        build_engine(BuildConfig(model=source, output=target, batch=(1, 4, 8), check=False))
    return target


def batch_of(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, 256, 256)).astype(np.float32)


def test_batches_in_flight_give_what_they_give_alone(cuda, lite_plan):
    """Runs 1 to 3 of each shape are plain, the later ones CUDA graphs where these are used: all must agree."""
    with open_model(lite_plan) as model:
        engine = model.backend
        batches = [batch_of(1 + index % 3, seed=index) for index in range(24)]
        alone = [engine.infer(batch) for batch in batches]
        futures = [engine.submit(batch) for batch in batches]
        for future, expected in zip(futures, alone, strict=True):
            np.testing.assert_allclose(future.result(), expected, atol=2e-3)
        assert "CUDA graphs" in engine.description


def test_arrays_of_pytorch_are_taken_and_given_in_place(cuda, lite_plan):
    import torch

    with open_model(lite_plan) as model:
        batch = batch_of(2)
        expected = model.backend.infer(batch)
        images = torch.from_numpy(batch).to(cuda)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            handle = stream.cuda_stream
            results = [model.backend.infer_device(images, stream=handle) for _ in range(3)]
            masks = [torch.as_tensor(result, device=cuda).clone() for result in results]
        stream.synchronize()
        for mask in masks:
            np.testing.assert_allclose(mask.cpu().numpy(), expected, atol=2e-3)
        waited = model.backend.infer_device(images)
        taken = torch.from_dlpack(waited)
        assert taken.data_ptr() == waited.__cuda_array_interface__["data"][0]
        np.testing.assert_allclose(taken.cpu().numpy(), expected, atol=2e-3)


def test_engines_live_beside_each_other_and_pytorch(cuda, lite_plan, lite_checkpoint):
    with (
        open_model(lite_plan) as first,
        open_model(lite_plan) as second,
        open_model(lite_checkpoint, device=cuda) as torch_model,
    ):
        expected = first.backend.infer(batch_of(2))

        def work(model):
            return [model.backend.infer(batch_of(2)) for _ in range(20)]

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(work, [first, second, first, second]))
        torch_model.backend.infer(batch_of(2))
        for masks in found:
            for mask in masks:
                np.testing.assert_allclose(mask, expected, atol=2e-3)


def test_pycuda_gives_the_same(cuda, lite_plan):
    pytest.importorskip("pycuda", reason="PyCUDA is not installed")
    with open_model(lite_plan) as expected, open_model(lite_plan, cuda="pycuda") as found:
        for _ in range(2):
            found.backend.infer(batch_of(1))
        assert "PyCUDA has no CUDA graphs" in found.backend.description
        np.testing.assert_allclose(found.backend.infer(batch_of(2)), expected.backend.infer(batch_of(2)), atol=2e-3)


def test_device_times_are_milliseconds_of_the_engine(cuda, lite_plan):
    with open_model(lite_plan) as model:
        times = model.backend.device_times(batch_of(1), runs=50)
    assert len(times) == 50
    assert 0 < min(times) < 1000


def test_device_memory_stays_flat(cuda, lite_plan):
    import torch

    with open_model(lite_plan) as model:
        for index in range(200):
            model.backend.infer(batch_of(1 + index % 8))
        before = torch.cuda.mem_get_info()[0]
        for index in range(2000):
            model.backend.infer(batch_of(1 + index % 8))
        assert before - torch.cuda.mem_get_info()[0] < 1 << 20


def test_the_inspector_tells_of_a_tensorrt_engine(cuda, lite_plan):
    _, facts = read_plan_manifest(lite_plan)
    if facts.flavor == "rtx":
        pytest.skip("TensorRT for RTX compiles where it runs; its plan is not asked")
    assert facts.gpu
    assert facts.typed_flops >= 0.9
