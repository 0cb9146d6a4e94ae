"""Times by events, and PyTorch's other ways of running, as far as a machine without a CUDA device can test them."""

from contextlib import contextmanager

import numpy as np
import onnxruntime
import pytest
import torch

from basnet_benchmarks import breakdown, device_times, latency, parity
from basnet_benchmarks.candidates import ModelSource, Variant, candidates_of, open_described
from basnet_benchmarks.device_times import (
    BoundSession,
    DeviceTimes,
    TorchRun,
    forward_of,
    measure_device,
    open_device_run,
    open_torch_variant,
)
from basnet_benchmarks.device_times import _TorchBuffers as TorchBuffers
from basnet_benchmarks.parity import ParityConfig
from basnet_runtime.backends.pytorch import read_checkpoint
from basnet_runtime.backends.tensorrt.backend import TensorRTBackend
from basnet_runtime.open import open_model
from basnet_torch.device import CPU, Device
from basnet_torch.errors import BackendUnavailable, UsageError
from tests.conftest import make_fake_model


class FakeStream:
    """A device on which each enqueued work takes the milliseconds that it says."""

    def __init__(self):
        self.now, self.entered, self.log = 0.0, 0, []

    def enqueue(self, name, milliseconds):
        assert self.entered == 1
        self.log.append(name)
        self.now += milliseconds / 1000

    def mark(self):
        self.log.append("mark")
        return self.now

    def synchronize(self):
        self.log.append("wait")

    def seconds(self, start, end):
        return end - start

    @contextmanager
    def current(self):
        self.entered += 1
        yield
        self.entered -= 1


class FakeRun:
    def __init__(self, error=None):
        self.stream = FakeStream()
        self.error = error

    def copy_in(self):
        self.stream.enqueue("in", 2)

    def compute(self):
        self.stream.enqueue("compute", 7)

    def copy_out(self):
        self.stream.enqueue("out", 1)

    def captured(self):
        if self.error:
            raise self.error
        return lambda: self.stream.enqueue("graph", 5)


def test_every_part_is_timed_alone_after_its_warm_up():
    run = FakeRun()
    times = measure_device(run, runs=3, warm_up=2)
    expected = {"copy_in": 0.002, "compute": 0.007, "graph": 0.005, "copy_out": 0.001}
    for part, seconds in expected.items():
        assert getattr(times, f"{part}_s") == pytest.approx([seconds] * 3), part
    log = " ".join(run.stream.log)
    assert log.startswith("in in wait mark in mark mark in mark mark in mark wait compute compute wait mark compute")
    assert times.no_graph == ""


def test_what_cannot_be_captured_is_said_and_the_rest_stands():
    refused = RuntimeError("operation not\npermitted when stream is capturing")
    times = measure_device(FakeRun(refused), runs=2, warm_up=1)
    assert times.graph_s == ()
    assert times.no_graph == "operation not permitted when stream is capturing"
    assert len(times.compute_s) == len(times.copy_out_s) == 2
    assert times.graph_s == ()


@pytest.fixture
def batch(bench_models):
    return np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)


def test_a_bound_session_works_from_memory_to_memory(bench_models, batch):
    """The same calls as on CUDA, with memory of the processor."""
    session = onnxruntime.InferenceSession(bench_models.onnx, providers=["CPUExecutionProvider"])
    buffers = TorchBuffers(batch, (2, 1, 64, 64), "float32", CPU)
    bound = BoundSession(session, buffers, CPU, synchronous=True)
    bound.run()
    buffers.copy_out()
    with open_model(bench_models.onnx, threads=1) as model:
        np.testing.assert_allclose(buffers.masks_here.numpy(), model.backend.infer(batch), atol=1e-6)
        turned = batch[::-1].copy()
        buffers.here.copy_(torch.from_numpy(turned))
        buffers.copy_in()
        bound.run()
        np.testing.assert_allclose(buffers.masks_there.numpy(), model.backend.infer(turned), atol=1e-6)


def test_a_run_of_pytorch_computes_what_the_backend_does(bench_models, batch):
    with open_model(bench_models.checkpoint, threads=1) as model:
        run = TorchRun(forward_of(model.backend), batch, FakeStream(), CPU)
        run.copy_in()
        run.compute()
        run.copy_out()
        np.testing.assert_array_equal(run.buffers.masks_here.numpy(), model.backend.infer(batch))


@pytest.mark.parametrize("mode", ["channels-last", "compiled"])
def test_variants_of_pytorch_give_the_masks(bench_models, batch, mode):
    checkpoint = read_checkpoint(bench_models.checkpoint)
    options = {"device": "cpu", "precision": "fp16", "mode": mode, "compiler": "eager"}
    with open_model(bench_models.checkpoint, threads=1) as model, open_torch_variant(checkpoint, **options) as variant:
        masks = variant.infer(batch)
        assert masks.dtype == np.float32
        difference = np.abs(masks - model.backend.infer(batch)).mean()
        assert 1e-6 < difference < 0.01  # noise through halves; without a difference it would not compute in them
        assert forward_of(variant) == variant.forward
    with pytest.raises(ValueError, match="closed"):
        variant.infer(batch)


def test_variants_need_their_device_and_a_known_name(bench_models):
    checkpoint = read_checkpoint(bench_models.checkpoint)
    with pytest.raises(UsageError, match="fp16"):
        open_torch_variant(checkpoint, device="cpu", precision="bf16", mode="compiled")
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailable, match="finds no CUDA device"):
            open_torch_variant(checkpoint, device="cuda", precision="fp16", mode="compiled")
    with pytest.raises(UsageError, match="no backend of PyTorch"):
        forward_of(make_fake_model().backend)


def test_on_cuda_everything_stands_side_by_side(bench_models, tmp_path):
    source = ModelSource(str(bench_models.checkpoint), tmp_path)
    names = [str(c.variant) for c in candidates_of([source], (), Device("cuda"), 1)]
    assert names == [
        "pytorch fp32",
        "pytorch bf16",
        "pytorch fp16 channels-last",
        "pytorch fp32 compiled",
        "pytorch fp16 compiled",
        "onnxruntime fp32",
    ]
    cpu = [str(c.variant) for c in candidates_of([source], (), CPU, 1)]
    assert not [name for name in cpu if "compiled" in name or "channels" in name]
    (halves,) = [c for c in candidates_of([source], (), Device("cuda"), 1) if c.variant.mode == "channels-last"]
    assert halves.contract == "fp16"
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailable, match="CUDA"):
            open_described(halves.described())


def test_the_engine_times_itself():
    """The method's name and arguments are those of the real class, which needs a device to be made."""
    assert callable(TensorRTBackend.device_times)


@pytest.mark.parametrize("kind", ["cuda", "tensorrt", "rtx"])
def test_pytorch_stands_beside_every_provider_on_the_same_gpu(kind, bench_models, tmp_path, monkeypatch):
    source, asked = ModelSource(str(bench_models.checkpoint), tmp_path), Device(kind, 1)
    candidates = candidates_of([source], (), asked, 1)
    devices = {c.variant.backend: c.described()["device"] for c in candidates}
    assert devices == {"pytorch": "cuda:1", "onnxruntime": f"{kind}:1"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (device.index, 9))
    config = ParityConfig(reference=bench_models.checkpoint, device=asked)
    assert parity._reference_device(config) == Device("cuda", 1)
    assert breakdown._free_on(asked) == 1
    timed = []
    monkeypatch.setattr(device_times, "TorchStream", lambda _: FakeStream())
    monkeypatch.setattr(device_times, "TorchRun", lambda *arguments: timed.append(arguments[-1]))
    with open_model(bench_models.checkpoint, threads=1) as model:
        open_device_run(model, np.empty(1), asked, candidates[0].path)
    assert timed == [Device("cuda", 1)]


def test_ratios_on_the_device_are_taken_by_graphs_where_there_are_any():
    times = {
        "pytorch": DeviceTimes(compute_s=(0.008, 0.009, 0.010), graph_s=(0.004,)),
        "engine": DeviceTimes(compute_s=(0.003,)),
        "graph": DeviceTimes(compute_s=(0.003,), graph_s=(0.001, 0.0015, 0.002)),
        "none": None,
    }
    assert latency._device_ratio(times, "pytorch", "engine") == pytest.approx(3)
    assert latency._device_ratio(times, "pytorch", "graph") == pytest.approx(6)
    assert latency._device_ratio(times, "pytorch", "none") is None
    assert latency._device_ratio(times, None, "engine") is None
    assert Variant(backend="pytorch", precision="fp16", mode="compiled").arithmetic == "fp16 compiled"
