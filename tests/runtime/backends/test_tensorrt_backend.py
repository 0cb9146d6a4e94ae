"""The TensorRT backend's own work over an exact model of CUDA: order, buffers, graphs, errors. The rest needs a GPU."""

import gc
import threading
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from basnet_runtime.backends.base import OverlappedBackend
from basnet_runtime.backends.tensorrt.backend import TensorRTBackend, open_engine
from basnet_runtime.engine_facts import EngineFacts, Profile
from basnet_runtime.manifest import read_manifest
from basnet_runtime.model import SaliencyModel
from basnet_runtime.open import BUILTIN, open_model
from basnet_torch.errors import BackendUnavailable, MediaError, UsageError
from basnet_torch.spec import TensorSpec
from tests.runtime.backends.fake_cuda import FakeCuda, FakeEngine, FakeError

SIZE = 4
SEEDS = range(12)


@pytest.fixture
def cuda():
    return FakeCuda()


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
    return TensorRTBackend(FakeEngine(cuda, **options), cuda, manifest, facts, "TensorRT of a test")


def batch_of(count, seed=0):
    return np.random.default_rng(seed).random((count, 3, SIZE, SIZE), dtype=np.float32)


class Array:
    """Another library's array on the fake device, written on its stream when that comes to it."""

    def __init__(self, cuda, values, stream=77):
        with cuda.current():
            self.memory = cuda.device_bytes(values.nbytes)
            cuda.enqueue(cuda.streams[stream], "write", lambda: self.write(cuda, values))
        self.__cuda_array_interface__ = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (self.memory.address, False),
            "strides": None,
            "stream": stream,
            "version": 3,
        }

    def write(self, cuda, values):
        cuda.at(self.memory.address, values.shape, values.dtype)[...] = values


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
        assert {kind for key, (kind, _) in cuda.live.items() if key not in before} == {"graph"}
        for count in range(1, 9):
            engine.infer(batch_of(count))
        assert len(cuda.memory) == 2 * 4
    assert (cuda.live, cuda.closed) == ({}, True)


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_batches_in_flight_keep_apart_in_every_order(seed, graphs):
    """Shapes in turn, more batches than buffer sets, results asked for late and out of order."""
    cuda = FakeCuda(seed, graphs=graphs)
    with backend(cuda) as engine:
        batches = [batch_of(1 + index % 3, seed=index) for index in range(24)]
        futures = [engine.submit(batch) for batch in batches]
        for index in np.random.default_rng(seed).permutation(24):
            np.testing.assert_array_equal(futures[index].result(), batches[index][:, :1])
    assert cuda.live == {}


def test_copies_and_computing_of_successive_batches_overlap(cuda):
    """With the queues full, each stream can go on as far as its own batch's events let it, whatever the others do."""
    with backend(cuda) as engine:
        for _ in range(3):
            engine.submit(batch_of(2))
        arriving, computing, leaving = engine._streams.arriving, engine._streams.computing, engine._streams.leaving
        cuda.trace.clear()
        while cuda.step(arriving):
            pass
        assert [name for name, _ in cuda.trace].count("upload") == 3  # before anything was computed
        while ("computed", computing) not in cuda.trace:
            cuda.step(computing)
        cuda.step(computing)
        while cuda.step(leaving):
            pass
        names = [name for name, _ in cuda.trace]
        assert (names.count("computed"), names.count("download")) == (1, 1)  # out before the second was computed


def test_one_more_than_fits_waits_for_the_oldest_only(cuda):
    with backend(cuda) as engine:
        futures = [engine.submit(batch_of(2, seed=index)) for index in range(engine.depth + 1)]
        assert [future.buffers is None for future in futures] == [True, False, False, False]
        assert cuda.calls.count("pinned_bytes") == 2 * engine.depth


def test_done_tells_without_waiting(cuda):
    with backend(cuda) as engine:
        future = engine.submit(batch_of(2))
        assert not future.done()
        polls = sum(1 for _ in iter(future.done, True))
        assert polls > 1
        future.result()
        assert future.done()


def test_each_shape_is_captured_once_and_replayed(cuda):
    with backend(cuda) as engine:
        for _ in range(5):
            engine.infer(batch_of(2))
        assert (cuda.calls.count("graph"), cuda.calls.count("launch")) == (1, 4)  # the first run prepares the shape
        engine.infer(batch_of(3))
        engine.infer(batch_of(3))
        assert cuda.calls.count("graph") == 2
        assert engine.description.endswith("fake CUDA, CUDA graphs")
        before = cuda.calls.count("execute")
        engine.infer(batch_of(2))
        assert cuda.calls.count("execute") == before


def test_what_cannot_be_captured_runs_plainly_and_that_is_said():
    cuda = FakeCuda(graphs=False)
    with backend(cuda) as engine:
        for seed in range(3):
            np.testing.assert_array_equal(engine.infer(batch_of(2, seed)), batch_of(2, seed)[:, :1])
        assert engine.description.endswith("no CUDA graphs (this device captures nothing)")
        assert cuda.calls.count("execute") == 3


def test_a_library_that_captures_by_itself_is_left_to_it(cuda):
    with backend(cuda, captures_itself=True) as engine:
        for _ in range(3):
            engine.infer(batch_of(2))
        assert (cuda.calls.count("graph"), cuda.calls.count("execute")) == (0, 3)
        assert engine.description.endswith("CUDA graphs by the library")


def test_nothing_is_allocated_or_bound_per_batch(cuda):
    """What a batch costs in the steady state: two copies, one graph, and the events that order them."""
    with backend(cuda) as engine:
        for _ in range(3):
            engine.infer(batch_of(2))
        cuda.calls.clear()
        engine.submit(batch_of(2))
        assert cuda.calls == ["upload", "record", "wait", "launch", "record", "wait", "download", "record"]


@pytest.mark.parametrize("seed", SEEDS)
def test_arrays_of_the_device_are_taken_and_given_in_place(seed):
    cuda = FakeCuda(seed)
    with backend(cuda) as engine:
        values = batch_of(2, seed)
        array = Array(cuda, values)
        future = engine.submit(batch_of(2, seed=99))  # the working memory is shared with what is in flight
        copies = cuda.calls.count("upload")
        result = engine.infer_device(array)
        seen = result.__cuda_array_interface__
        np.testing.assert_array_equal(cuda.at(seen["data"][0], seen["shape"], seen["typestr"]), values[:, :1])
        np.testing.assert_array_equal(future.result(), batch_of(2, seed=99)[:, :1])
        assert cuda.calls.count("upload") == copies
        assert result.__dlpack_device__() == (2, 0)
        with cuda.current():
            cuda.free(array.memory)
    assert not cuda.closed  # a result is still held
    result.close()
    result.close()
    assert (cuda.live, cuda.closed) == ({}, True)


@pytest.mark.parametrize("seed", SEEDS)
def test_arrays_in_order_with_the_callers_stream(seed):
    """The caller's stream writes, the engine computes, the caller's stream reads; nobody waits on the host."""
    cuda = FakeCuda(seed)
    read = []
    with backend(cuda) as engine:
        results = []
        for turn in range(3):
            values = batch_of(2, seed + turn)
            array = Array(cuda, values, stream=77)
            array.__cuda_array_interface__["stream"] = None  # only `stream` below says what to wait for
            result = engine.infer_device(array, stream=77)
            address, shape = result.__cuda_array_interface__["data"][0], result.shape
            cuda.enqueue(cuda.foreign, "read", lambda a=address, s=shape: read.append(cuda.at(a, s, "float32").copy()))
            results.append((result, values))
        assert len(read) < 3
        del result
        for held, _ in results:
            held.close()
        for got, (_, values) in zip(read, results, strict=True):
            np.testing.assert_array_equal(got, values[:, :1])


def test_results_on_the_device_go_back_with_their_last_reference(cuda):
    with backend(cuda) as engine:
        before = len(cuda.memory)
        engine.infer_device(Array(cuda, batch_of(1)))
        gc.collect()
        assert len(cuda.memory) == before + 1  # the caller's own


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"typestr": "<f8"}, "is float64, and the engine takes contiguous float32"),
        ({"strides": (1, 2, 3, 4)}, "not contiguous"),
        ({"shape": (9, 3, SIZE, SIZE)}, "batch of shape 9x3x4x4"),
        ({"shape": (3, SIZE, SIZE)}, "batch of shape 3x4x4"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(cuda, change, message):
    with backend(cuda) as engine:
        array = Array(cuda, batch_of(2))
        array.__cuda_array_interface__ |= change
        with pytest.raises(UsageError, match=message):
            engine.infer_device(array)


def test_device_times_are_of_the_engine_alone(cuda):
    with backend(cuda) as engine:
        times = engine.device_times(batch_of(4), runs=5, warmup=3)
        assert len(times) == 5
        assert min(times) > 0
        assert cuda.calls.count("upload") == 1
        assert cuda.calls.count("download") == 0
        live = {kind for kind, _ in cuda.live.values()}
        engine.infer(batch_of(4))
        assert live == {"stream", "event", "pinned_bytes", "device_bytes", "graph"}


def test_threads_share_a_backend_and_several_live_side_by_side():
    devices = [FakeCuda(seed) for seed in range(2)]
    engines = [backend(cuda) for cuda in devices]
    wrong = []

    def work(engine, seed):
        for turn in range(12):
            batch = batch_of(1 + (seed + turn) % 4, seed=100 * seed + turn)
            try:
                np.testing.assert_array_equal(engine.infer(batch), batch[:, :1])
            except Exception as error:  # noqa: BLE001
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(engines[seed % 2], seed)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    for engine, cuda in zip(engines, devices, strict=True):
        engine.close()
        assert (cuda.live, cuda.closed) == ({}, True)


def run_all(cuda):
    """Everything a backend does once, and what it gave back."""
    engine = backend(cuda)
    try:
        futures = [engine.submit(batch_of(1 + index % 2, seed=index)) for index in range(8)]
        for future in futures:
            future.result()
        engine.infer_device(Array(cuda, batch_of(1)), stream=77)
        engine.device_times(batch_of(1), runs=2, warmup=1)
    finally:
        engine.close()


def test_whatever_fails_everything_is_given_back():
    """The device fails at each call in turn. What could be freed is, and the error is one of ours or the device's."""
    good = FakeCuda()
    run_all(good)
    gc.collect()
    gc.freeze()  # the many objects of the libraries need not be looked at each time
    for fail_at in range(len(good.calls)):
        cuda = FakeCuda(fail_at=fail_at)
        with suppress(FakeError, BackendUnavailable):
            run_all(cuda)
        gc.collect()
        kinds = sorted(kind for kind, _ in cuda.live.values())
        callers = kinds.count("device_bytes") and 1  # the array that the test itself made
        failed = cuda.calls[fail_at] in (
            "free",
            "synchronize_foreign",
        )  # what fails to be freed is left, and nothing besides
        assert len(kinds) <= callers + failed, (fail_at, cuda.calls[fail_at], kinds)
        assert cuda.closed or fail_at < 3  # before it is made, who makes it closes the device
    gc.unfreeze()


def test_shapes_outside_the_profile_are_refused_with_what_it_takes(cuda):
    with (
        backend(cuda) as engine,
        pytest.raises(UsageError, match="shape 9x3x4x4: the engine takes 1x3x4x4 / 4x3x4x4 / 8x3x4x4"),
    ):
        engine.infer(batch_of(9))


def test_a_run_that_fails_is_said(cuda):
    with (
        backend(cuda, works=False) as engine,
        pytest.raises(BackendUnavailable, match=r"TensorRT of a test, .*did not run"),
    ):
        engine.infer(batch_of(1))
    assert cuda.live == {}


def test_a_failed_device_is_said_where_the_result_is_asked_for():
    cuda = FakeCuda()
    engine = backend(cuda)
    future = engine.submit(batch_of(1))
    cuda.fail_at = len(cuda.calls)
    with cuda.current(), pytest.raises(FakeError):
        cuda.synchronize(engine._streams.leaving)
    cuda.fail_at = len(cuda.calls) + 1  # the wait outside the lock succeeds, the one inside does not
    with pytest.raises(BackendUnavailable, match="the device failed"):
        future.result()
    engine.close()


def test_results_survive_closing(cuda):
    engine = backend(cuda)
    future = engine.submit(batch_of(2))
    engine.close()
    np.testing.assert_array_equal(future.result(), batch_of(2)[:, :1])


def test_an_empty_batch_is_refused(cuda):
    with backend(cuda) as engine, pytest.raises(UsageError, match="no picture"):
        engine.infer(batch_of(0))


def test_it_is_an_overlapped_backend(cuda):
    with backend(cuda) as engine:
        assert isinstance(engine, OverlappedBackend)


def test_closed_backends_say_so(cuda):
    engine = backend(cuda)
    engine.close()
    engine.close()
    with pytest.raises(ValueError, match="it is closed"):
        engine.infer(batch_of(1))


@pytest.mark.parametrize("device", ["tensorrt", "cuda:x", "gpu"])
def test_other_devices_are_refused(device, tmp_path):
    with pytest.raises(UsageError, match=f"device {device}: a TensorRT engine runs on cuda or cuda:N"):
        open_engine(tmp_path / "a.plan", device=device)


def test_a_plan_runs_in_tensorrt_only(tmp_path):
    with pytest.raises(UsageError, match="a plan runs in tensorrt"):
        open_model(tmp_path / "a.plan", backend="openvino")
