"""The pipeline over a backend that keeps batches in flight: same results, more than one at a time, and never a wait."""

import threading
from collections import deque

import numpy as np
import pytest

from basnet_runtime.backends.fake import FakeBackend
from basnet_runtime.frame import Frame
from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.compose.compose import Composer
from basnet_runtime.model import SaliencyModel
from basnet_runtime.pipeline import run as pipeline
from basnet_runtime.pipeline.run import Pipeline
from basnet_torch.spec import Postprocess, Preprocess


class Flying(FakeBackend):
    """Computes a batch only when its result is asked for, in the order of submission."""

    depth = 3

    def __init__(self):
        super().__init__()
        self.flying, self.most = deque(), 0

    def submit(self, pictures, *, is_busy=False):
        future = Pending(self, np.stack(pictures))
        self.flying.append(future)
        self.most = max(self.most, len(self.flying))
        return future


class Pending:
    def __init__(self, backend, batch):
        self.backend, self.batch = backend, batch

    def done(self):
        return False

    def result(self):
        assert self.backend.flying.popleft() is self
        return self.backend.infer(self.batch)


class Source:
    def __init__(self, count, before=lambda index: None):
        self.count, self.before = count, before

    def frames(self, budget=None):
        for index in range(self.count):
            self.before(index)
            if budget is not None:
                budget.wait(3 * 64)
            yield Frame(image_HWC=np.full((8, 8, 3), index, np.uint8), index=index, pts=index)

    def close(self):
        pass


class Sink:
    def __init__(self):
        self.items, self.written = [], threading.Semaphore(0)

    def write(self, item):
        self.items.append(item)
        self.written.release()

    def finish(self):
        pass

    def interrupt(self):
        pass

    def abort(self):
        pass


def run(backend, source, sink, batch=1):
    model = SaliencyModel(backend, Preprocess(height=32, width=32), Postprocess(), "flying")
    return Pipeline(model, Composer(OutputKind()), batch=batch).run(source, sink)


@pytest.mark.parametrize("batch", [1, 3])
def test_results_come_in_order_with_batches_in_flight(batch):
    backend, sink = Flying(), Sink()
    # All frames are there before the first batch starts, as with a network that is slower than its source.
    run(backend, Source(6 * batch), sink, batch)
    assert [int(item.pixels[0, 0]) for item in sink.items] == list(range(6 * batch))
    assert 1 <= backend.most <= backend.depth
    assert not backend.flying


def test_a_lone_picture_sets_nothing_up_for_overlap(monkeypatch):
    backend, sink = Flying(), Sink()
    monkeypatch.setattr(backend, "submit", None)
    model = SaliencyModel(backend, Preprocess(height=32, width=32), Postprocess(), "flying")
    Pipeline(model, Composer(OutputKind()), overlap=False).run(Source(2), sink)
    assert [int(item.pixels[0, 0]) for item in sink.items] == [0, 1]


def test_as_many_fly_as_are_worth_it():
    backend = Flying()
    model = SaliencyModel(backend, Preprocess(height=32, width=32), Postprocess(), "flying")
    pipeline = Pipeline(model, Composer(OutputKind()))
    frames = [Frame(image_HWC=np.full((8, 8, 3), i, np.uint8), index=i, pts=i) for i in range(9)]
    from basnet_runtime.pipeline.timing import StageClock

    assert len(list(pipeline.maps(frames, StageClock()))) == 9
    assert backend.most == backend.depth


def test_a_source_that_waits_for_its_results_gets_them():
    """As a camera at its own pace: no frame waits for the next one to come."""
    sink = Sink()

    def before(index):
        if index:
            assert sink.written.acquire(timeout=20), f"the result of frame {index - 1} was held back"

    assert run(Flying(), Source(5, before), sink).frames == 5


def test_frames_that_leave_no_room_for_another_end(monkeypatch):
    """As 8K video does: what is in flight must land before the reader gets memory for the next frame."""
    monkeypatch.setattr(pipeline, "_QUEUE_BYTES", 2 * 3 * 64)
    sink = Sink()
    work = threading.Thread(target=run, args=(Flying(), Source(7), sink), daemon=True)
    work.start()
    work.join(20)
    assert not work.is_alive()
    assert [int(item.pixels[0, 0]) for item in sink.items] == list(range(7))
