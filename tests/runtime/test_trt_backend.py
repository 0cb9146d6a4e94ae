"""The TensorRT backend's own work, over a CUDA layer in host memory: shapes, buffers, errors. The rest needs a GPU."""

import ctypes
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from basnet_runtime.backends.trt import TensorRTBackend, _index
from basnet_runtime.cuda.memory import BufferPair
from basnet_runtime.engine_facts import EngineFacts, Profile
from basnet_runtime.manifest import read_manifest
from basnet_runtime.model import SaliencyModel
from basnet_runtime.open import BUILTIN, open_model
from basnet_torch.errors import BackendUnavailable, MediaError, UsageError
from basnet_torch.spec import TensorSpec

SIZE = 4


class HostCuda:
    """`Cuda` whose device is a second piece of host memory; work is done when it is waited for, as on a stream."""

    stream = 7

    def __init__(self):
        self.live, self.queue, self.closed = {}, [], False

    def pair(self, size):
        there = np.zeros(size, np.uint8)
        pair = BufferPair(address=there.ctypes.data, host=np.zeros(size, np.uint8), owners=(there,))
        self.live[pair.address] = pair
        return pair

    def release(self, pair):
        del self.live[pair.address]

    def upload(self, pair):
        self.queue.append(lambda: pair.owners[0].__setitem__(slice(None), pair.host))

    def download(self, pair):
        self.queue.append(lambda: pair.host.__setitem__(slice(None), pair.owners[0]))

    def synchronize(self):
        for work in self.queue:
            work()
        self.queue.clear()

    def close(self):
        self.closed = True


class Brightness:
    """An execution context whose engine gives each picture's first channel."""

    def __init__(self, cuda, works=True):
        self.cuda, self.works, self.shape, self.addresses = cuda, works, None, {}

    def set_input_shape(self, name, shape):
        assert name == "image"
        self.shape = shape
        return True

    def get_tensor_shape(self, name):
        assert name == "mask"
        return (self.shape[0], 1, *self.shape[2:])

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        assert stream == self.cuda.stream
        shape, addresses = self.shape, dict(self.addresses)
        self.cuda.queue.append(lambda: self.compute(shape, addresses))
        return self.works

    def compute(self, shape, addresses):
        kind = ctypes.c_float * int(np.prod(shape))
        images = np.ctypeslib.as_array(kind.from_address(addresses["image"])).reshape(shape)
        masks = np.ctypeslib.as_array((ctypes.c_float * images[:, :1].size).from_address(addresses["mask"]))
        masks[:] = images[:, :1].ravel()


@pytest.fixture
def cuda():
    return HostCuda()


def backend(cuda, smallest=1, **options):
    profile = Profile(smallest=(smallest, 3, SIZE, SIZE), best=(4, 3, SIZE, SIZE), largest=(8, 3, SIZE, SIZE))
    facts = EngineFacts(
        flavor="rtx",
        version="1.0.0.0",
        gpu="",
        compute_capabilities=(),
        driver="",
        plan_sha256="",
        plan_bytes=0,
        profiles=(profile,),
        build_seconds=0.0,
        typed_layers=1.0,
        typed_flops=1.0,
    )
    manifest = replace(
        read_manifest(BUILTIN),
        input=TensorSpec(name="image", dtype="float32", shape=(None, 3, SIZE, SIZE)),
        output=TensorSpec(name="mask", dtype="float32", shape=(None, 1, SIZE, SIZE)),
    )
    return TensorRTBackend(Brightness(cuda, **options), cuda, manifest, facts, "TensorRT of a test")


def batch_of(count, seed=0):
    return np.random.default_rng(seed).random((count, 3, SIZE, SIZE), dtype=np.float32)


def test_batches_of_any_size_come_back_whole(cuda):
    with backend(cuda) as engine:
        for count in (1, 8, 3, 1, 8):
            batch = batch_of(count, seed=count)
            np.testing.assert_array_equal(engine.infer(batch), batch[:, :1])


def test_short_batches_are_filled_up_to_what_the_engine_takes(cuda):
    with backend(cuda, smallest=4) as engine:
        for count in (4, 1, 3):
            batch = batch_of(count, seed=count)
            np.testing.assert_array_equal(engine.infer(batch), batch[:, :1])


def test_pictures_are_not_cast_to_something_else(cuda):
    with backend(cuda) as engine, pytest.raises(TypeError, match="float64"):
        engine.infer(batch_of(1).astype(np.float64))


def test_picture_sizes_outside_the_profile_fail_one_by_one():
    spec = TensorSpec(name="frame", dtype="uint8", shape=(None, None, None, 3))
    profile = Profile(smallest=(1, 32, 32, 3), best=(1, 720, 1280, 3), largest=(8, 1080, 1920, 3))
    engine = SimpleNamespace(input=spec)
    manifest = read_manifest(BUILTIN)
    model = SaliencyModel(engine, manifest.preprocess, manifest.postprocess, "fp16.plan", (profile,))
    model.check_size("a.jpg", 1080, 1920)
    with pytest.raises(MediaError, match=r"b\.jpg: is 3024x4032, and fp16\.plan takes 32x32 to 1080x1920"):
        model.check_size("b.jpg", 3024, 4032)


def test_a_result_is_the_callers_own(cuda):
    with backend(cuda) as engine:
        first = engine.infer(batch_of(2, seed=1))
        kept = first.copy()
        engine.infer(batch_of(2, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_buffers_are_made_once_a_shape_and_do_not_pile_up(cuda):
    with backend(cuda) as engine:
        engine.infer(batch_of(2))
        before = set(cuda.live)
        for _ in range(3):
            engine.infer(batch_of(2))
        assert set(cuda.live) == before
        for count in range(1, 9):
            engine.infer(batch_of(count))
        assert len(cuda.live) == 2 * 4
    assert (cuda.live, cuda.closed) == ({}, True)


def test_shapes_outside_the_profile_are_refused_with_what_it_takes(cuda):
    with (
        backend(cuda) as engine,
        pytest.raises(UsageError, match="shape 9x3x4x4: the engine takes 1x3x4x4 / 4x3x4x4 / 8x3x4x4"),
    ):
        engine.infer(batch_of(9))


def test_a_run_that_fails_is_said(cuda):
    with backend(cuda, works=False) as engine, pytest.raises(BackendUnavailable, match="the engine did not run"):
        engine.infer(batch_of(1))


def test_closed_backends_say_so(cuda):
    engine = backend(cuda)
    engine.close()
    engine.close()
    with pytest.raises(ValueError, match="it is closed"):
        engine.infer(batch_of(1))


@pytest.mark.parametrize("device", ["tensorrt", "cuda:x", "gpu"])
def test_other_devices_are_refused(device):
    with pytest.raises(UsageError, match="runs on cuda or cuda:N"):
        _index(device)
    assert (_index("cuda"), _index("cuda:2")) == (0, 2)


def test_a_plan_runs_in_tensorrt_only(tmp_path):
    with pytest.raises(UsageError, match="a plan runs in tensorrt"):
        open_model(tmp_path / "a.plan", backend="openvino")
