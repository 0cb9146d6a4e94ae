"""Batches beside each other on the processor: the same masks in order, errors passed on, nothing left running."""

import threading

import numpy as np
import pytest

from basnet_runtime.backends import workers
from basnet_runtime.backends.base import OverlappedBackend
from basnet_runtime.backends.onnxruntime import open_onnxruntime
from basnet_runtime.backends.openvino import open_openvino
from basnet_runtime.backends.workers import Workers
from tests.models import OPENERS, disc_checkpoint, discs, exported


@pytest.fixture(scope="module")
def pictures():
    return [disc_checkpoint().preprocess.apply(picture.image_HWC) for picture in discs()]


@pytest.mark.parametrize("opener", OPENERS)
def test_masks_are_those_of_infer(opener, pictures):
    before = set(threading.enumerate())  # other tests' models may still be open
    with opener(exported(precision="fp32", graph="tensor"), threads=2) as backend:
        assert isinstance(backend, OverlappedBackend)
        assert backend.depth == 3
        futures = [backend.submit([picture]) for picture in pictures]
        found = [future.result() for future in futures]
        for picture, masks in zip(pictures, found, strict=True):
            np.testing.assert_allclose(masks, backend.infer(picture[None]), rtol=0, atol=1e-5)
    assert not {thread for thread in threading.enumerate() if thread.name.startswith("network")} - before


def test_one_thread_runs_one_after_the_other(pictures):
    with open_onnxruntime(exported(precision="fp32", graph="tensor"), threads=1) as backend:
        assert backend.depth == 1
        future = backend.submit(pictures[:2])
        assert future.done()
        assert len(future.result()) == 2


def test_a_lone_batch_has_all_threads_and_company_one_each():
    calls, gate = [], threading.Event()

    def beside(batch):
        calls.append("beside")
        return batch

    def alone(batch):
        calls.append("alone")
        return batch

    def held(batch):
        calls.append("held")
        gate.wait(10)
        return batch

    workers = Workers(2, alone=alone, beside=beside)
    workers.submit(np.zeros(1)).result()
    workers.submit(np.zeros(1), is_busy=True).result()  # others are on their way
    workers.close()
    workers = Workers(2, alone=held, beside=beside)
    first = workers.submit(np.zeros(1))
    while "held" not in calls:
        pass
    workers.submit(np.zeros(1)).result()
    assert not first.done()
    gate.set()
    first.result()
    workers.close()
    assert calls == ["alone", "beside", "held", "beside"]


def test_errors_come_with_the_result():
    def broken(_batch):
        raise ValueError("no such shape")

    workers = Workers(2, alone=broken, beside=broken)
    future = workers.submit(np.zeros(1))
    with pytest.raises(ValueError, match="no such shape"):
        future.result()
    workers.close()


@pytest.mark.parametrize("open_backend", [open_onnxruntime, open_openvino])
def test_a_large_network_is_loaded_once(open_backend, monkeypatch):
    """Its layers keep all threads busy, and its memory would be taken twice."""
    path = exported(precision="fp32", graph="tensor")
    for limit, depth in ((path.stat().st_size, 3), (path.stat().st_size - 1, 1)):
        monkeypatch.setattr(workers, "_LARGE_BYTES", limit)
        with open_backend(path, threads=2, keep=False) as backend:
            assert backend.depth == depth
