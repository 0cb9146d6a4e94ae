"""The batcher: sizes, shapes, company, cancelled pictures, errors, and its end."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from basnet_runtime.model import SaliencyModel
from basnet_runtime.serve.batcher import Batcher
from basnet_torch.spec import Postprocess, Preprocess
from tests.runtime.serve.conftest import HeldBackend


@pytest.fixture
def model():
    return SaliencyModel(HeldBackend(), Preprocess(height=32, width=32), Postprocess(), "held")


def prepared(value, size=32):
    return np.full((3, size, size), value, np.float32)


def test_each_gets_its_own_map(model):
    with Batcher(model) as batcher:
        futures = [batcher.submit(prepared(value)) for value in (0, 0.5, 1)]
        maps = [future.result(10) for future in futures]
    assert [m.shape for m in maps] == [(1, 32, 32)] * 3
    assert [float(m.mean()) for m in maps] == sorted({float(m.mean()) for m in maps})
    assert model.backend.batches == [1, 1, 1]


def test_those_of_one_shape_run_together_and_none_is_overtaken_for_ever(model):
    model.backend.free.clear()
    seen = []
    with Batcher(model, batch=4, on_batch=lambda size, seconds: seen.append((size, seconds > 0))) as batcher:
        first = batcher.submit(prepared(0))
        assert model.backend.entered.acquire(timeout=10)
        rest = [batcher.submit(prepared(0, size)) for size in (32, 64, 32, 32, 64, 32, 32)]
        model.backend.free.set()
        assert [future.result(10).shape[-1] for future in [first, *rest]] == [32, 32, 64, 32, 32, 64, 32, 32]
    assert model.backend.batches == [1, 4, 2, 1]
    assert seen == [(1, True), (4, True), (2, True), (1, True)]


def test_a_batch_waits_for_company(model):
    with Batcher(model, batch=2, wait_seconds=30) as batcher:
        first = batcher.submit(prepared(0))
        assert not first.done()
        second = batcher.submit(prepared(1))
        assert first.result(10) is not None
        assert second.result(10) is not None
    assert model.backend.batches == [2]


def test_the_wait_has_an_end(model):
    with Batcher(model, batch=8, wait_seconds=0.05) as batcher:
        assert batcher.submit(prepared(0)).result(10).shape == (1, 32, 32)
    assert model.backend.batches == [1]


def test_a_cancelled_picture_costs_nothing(model):
    model.backend.free.clear()
    with Batcher(model) as batcher:
        first = batcher.submit(prepared(0))
        assert model.backend.entered.acquire(timeout=10)
        second, third = batcher.submit(prepared(0)), batcher.submit(prepared(0))
        assert second.cancel()
        model.backend.free.set()
        assert first.result(10) is not None
        assert third.result(10) is not None
    assert model.backend.batches == [1, 1]


def test_an_error_fails_its_own_batch_alone(model):
    model.backend._fail_at = 1
    with Batcher(model) as batcher:
        futures = [batcher.submit(prepared(0)) for _ in range(3)]
        assert futures[0].result(10) is not None
        with pytest.raises(RuntimeError, match="fake failure"):
            futures[1].result(10)
        model.backend._fail_at = None
        assert batcher.submit(prepared(0)).result(10) is not None


def test_what_is_queued_is_done_before_the_end_and_nothing_is_taken_after_it(model):
    model.backend.free.clear()
    batcher = Batcher(model)
    futures = [batcher.submit(prepared(0)) for _ in range(3)]
    threading.Timer(0.05, model.backend.free.set).start()
    batcher.close()
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(prepared(0))


class Overlapped(HeldBackend):
    """Two batches beside each other."""

    depth = 2

    def __init__(self):
        super().__init__()
        self.most = self.now = 0
        self.busy = []

    def submit(self, pictures, *, is_busy=False):
        outer = self
        outer.busy.append(is_busy)
        outer.now += 1
        outer.most = max(outer.most, outer.now)

        class Ticket:
            def done(self):
                return False

            def result(self):
                outer.now -= 1
                return outer.infer(np.stack(pictures))

        return Ticket()


def test_as_many_batches_are_in_flight_as_the_backend_wants():
    backend = Overlapped()
    model = SaliencyModel(backend, Preprocess(height=32, width=32), Postprocess(), "overlapped")
    backend.free.clear()
    with Batcher(model) as batcher:
        first = batcher.submit(prepared(0))
        assert backend.entered.acquire(timeout=10)
        rest = [batcher.submit(prepared(0)) for _ in range(5)]
        backend.free.set()
        assert all(future.result(10) is not None for future in [first, *rest])
    assert backend.most == 2


def test_a_picture_leaves_threads_to_those_that_are_decoded_meanwhile(serve, photo):
    backend = Overlapped()
    data = photo.read_bytes()
    with serve(backend) as server, ThreadPoolExecutor(2) as pool:
        url = f"{server.url}/v1/mask"
        assert httpx.post(url, content=data).status_code == 200
        backend.free.clear()
        answers = [pool.submit(httpx.post, url, content=data, timeout=60) for _ in range(2)]
        assert backend.entered.acquire(timeout=10)
        while server.service._working < 2:
            time.sleep(0.01)
        time.sleep(1)  # the second is decoded and waits, so that it begins while the first is being written
        backend.free.set()
        assert [answer.result().status_code for answer in answers] == [200, 200]
    assert backend.busy[0] is False
    assert backend.busy[2] is True
