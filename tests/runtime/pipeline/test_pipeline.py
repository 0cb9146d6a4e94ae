"""The pipeline: order, batches, memory bounds, and that every failure ends the run quickly and cleanly."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from basnet_runtime.frame import Frame
from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.compose.compose import Composer
from basnet_runtime.pipeline import run as pipeline
from basnet_runtime.pipeline.queues import ByteBudget, ClosableQueue, Stopped
from basnet_runtime.pipeline.run import Pipeline
from basnet_runtime.pipeline.timing import STAGES, LibraryThreads, StageClock
from basnet_torch.errors import ModelFileError

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


class ListSource:
    def __init__(self, count, *, size=(8, 8), fail_at=None):
        self.count, self.size, self.fail_at = count, size, fail_at
        self.closed = False
        self.live = []

    def frames(self, budget=None):
        for i in range(self.count):
            if i == self.fail_at:
                raise ValueError("source failed")
            size = self.size(i) if callable(self.size) else self.size
            if budget is not None:
                budget.wait(size[0] * size[1] * 3)
            image = np.full((*size, 3), i % 256, np.uint8)
            yield Frame(image_HWC=image, index=i, pts=i)

    def close(self):
        self.closed = True


class ListSink:
    def __init__(self, *, fail_at=None, fail_finish=False, delay=0.0):
        self.items, self.fail_at, self.fail_finish, self.delay = [], fail_at, fail_finish, delay
        self.finished = self.interrupted = self.aborted = False

    def write(self, item):
        time.sleep(self.delay)
        if len(self.items) == self.fail_at:
            raise ValueError("sink failed")
        self.items.append(item)

    def finish(self):
        if self.fail_finish:
            raise ValueError("finish failed")
        self.finished = True

    def interrupt(self):
        self.interrupted = True

    def abort(self):
        self.aborted = True


def run(model, source, sink, **options):
    return Pipeline(model, Composer(OutputKind()), **options).run(source, sink)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    left = [thread for thread in set(threading.enumerate()) - before if thread.name in ("read", "write")]
    assert left == []


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_all_frames_in_order_with_their_own_masks(fake_model, batch):
    source, sink = ListSource(50), ListSink()
    report = run(fake_model, source, sink, batch=batch)
    assert [item.frame.index for item in sink.items] == list(range(50))
    assert [int(item.pixels[0, 0]) for item in sink.items] == list(range(50))
    assert report.frames == 50
    assert sink.finished
    assert not sink.aborted
    assert source.closed


def test_empty_source(fake_model):
    sink = ListSink()
    assert run(fake_model, ListSource(0), sink).frames == 0
    assert sink.finished


@pytest.mark.parametrize("at", [0, 1, 30])
@pytest.mark.parametrize("part", ["source", "sink"])
def test_errors_reach_the_caller(fake_model, part, at):
    source = ListSource(100, fail_at=at if part == "source" else None)
    sink = ListSink(fail_at=at if part == "sink" else None)
    with pytest.raises(ValueError, match=f"{part} failed"):
        run(fake_model, source, sink, batch=4)
    assert sink.aborted
    assert not sink.finished
    assert source.closed


def test_error_while_finishing(fake_model):
    sink = ListSink(fail_finish=True)
    with pytest.raises(ValueError, match="finish failed"):
        run(fake_model, ListSource(5), sink)
    assert sink.aborted


def test_network_errors_end_the_run(make_model):
    source, sink = ListSource(1000), ListSink()
    with pytest.raises(RuntimeError, match="fake failure at picture 20"):
        run(make_model(fail_at=20), source, sink, batch=4)
    assert sink.aborted
    assert source.closed


def test_interrupt_ends_the_run(fake_model):
    def interrupt(item):
        if item.frame.index == 10:
            raise KeyboardInterrupt

    sink = ListSink()
    with pytest.raises(KeyboardInterrupt):
        run(fake_model, ListSource(10_000), sink, on_frame=interrupt)
    assert sink.interrupted
    assert sink.aborted


def test_memory_bound_does_not_deadlock_with_a_large_batch(fake_model, monkeypatch):
    monkeypatch.setattr(pipeline, "_QUEUE_BYTES", 5 * 100 * 100 * 3)  # room for five frames, a batch of 64
    sink = ListSink()
    report = run(fake_model, ListSource(30, size=(100, 100)), sink, batch=64)
    assert report.frames == 30


def stopped_in(wait, *args):
    """A thread that waits until it is stopped."""

    def work():
        with pytest.raises(Stopped):
            wait(*args)

    return threading.Thread(target=work)


def test_frames_in_flight_are_bounded():
    budget = ByteBudget(100)
    budget.wait(500)  # alone, anything fits
    budget.take(500)
    waiter = stopped_in(budget.wait, 1)
    waiter.start()
    time.sleep(0.05)
    assert waiter.is_alive()
    budget.stop()
    waiter.join(5)
    assert not waiter.is_alive()


def test_a_budget_frees():
    budget = ByteBudget(100)
    budget.take(90)
    waiter = threading.Thread(target=budget.wait, args=(20,))
    waiter.start()
    budget.take(-90)
    waiter.join(5)
    assert not waiter.is_alive()


def test_a_queue_blocks_when_full_and_stops():
    queue = ClosableQueue(2)
    queue.put(1)
    queue.put(2)
    writer = stopped_in(queue.put, 3)
    writer.start()
    time.sleep(0.05)
    assert writer.is_alive()
    queue.stop()
    writer.join(5)
    assert not writer.is_alive()
    with pytest.raises(Stopped):
        next(iter(queue))


def test_frame_graph_batches_have_one_size(make_model):
    class FrameBackend(type(make_model().backend)):
        def __init__(self):
            super().__init__()
            self.input = type(self.input)(name="frame", dtype="uint8", shape=(None, None, None, 3))
            self.shapes = []

        def infer(self, batch):
            self.shapes.append(batch.shape)
            return batch.mean(axis=3).astype(np.uint8)

    model = make_model()
    model.backend = FrameBackend()
    sink = ListSink()
    run(model, ListSource(7, size=lambda i: (8, 8) if i < 3 else (4, 6)), sink, batch=2)
    assert [shape[:3] for shape in model.backend.shapes] == [(2, 8, 8), (1, 8, 8), (2, 4, 6), (2, 4, 6)]
    assert [int(item.pixels[0, 0]) for item in sink.items] == list(range(7))


def test_time_is_accounted_for(fake_model):
    clock = StageClock()
    sink = ListSink(delay=0.002)
    report = Pipeline(fake_model, Composer(OutputKind())).run(ListSource(20, size=(200, 200)), sink, clock)
    assert set(report.clock.times) == set(STAGES)
    assert clock.times["encode"].wall >= 0.04
    assert clock.times["encode"].cpu < 0.04
    assert report.frames_per_second > 0
    assert clock.other() >= 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_no_black_mask(make_model, monkeypatch, value):
    model = make_model()
    whole = model.backend.infer

    def spoiled(batch):
        maps = whole(batch)
        maps[-1, 0, 3, 5] = value
        return maps

    monkeypatch.setattr(model.backend, "infer", spoiled)
    sink = ListSink()
    with pytest.raises(ModelFileError, match="fake: gave values that are not finite; run it in fp32"):
        run(model, ListSource(3), sink)
    assert sink.aborted


def test_a_second_interrupt_while_ending_still_aborts_the_sink(fake_model, monkeypatch):
    def interrupt(item):
        raise KeyboardInterrupt

    wait = pipeline._Run._wait

    def interrupted(workers, seconds=None):
        wait(workers, seconds)
        if seconds is not None:
            raise KeyboardInterrupt("second")

    monkeypatch.setattr(pipeline._Run, "_wait", staticmethod(interrupted))
    sink, source = ListSink(), ListSource(10)
    with pytest.raises(KeyboardInterrupt, match="second"):
        run(fake_model, source, sink, on_frame=interrupt)
    assert sink.aborted
    assert source.closed


def test_waiting_for_memory_is_no_decoding(fake_model, monkeypatch):
    monkeypatch.setattr(pipeline, "_QUEUE_BYTES", 1)
    report = run(fake_model, ListSource(5), ListSink(delay=0.05))
    assert report.clock.times["encode"].wall >= 0.25
    assert report.clock.times["decode"].wall < 0.1


def test_threads_of_codecs_count_for_their_stages(fake_model):
    class Threads(LibraryThreads):
        def __init__(self, seconds):
            super().__init__()
            self.seconds = seconds

    source, sink = ListSource(2), ListSink()
    source.codec_threads, sink.codec_threads = Threads(100.0), Threads(200.0)
    times = run(fake_model, source, sink).clock.times
    assert 100 <= times["decode"].cpu < 101
    assert 200 <= times["encode"].cpu < 201
    assert times["network"].cpu < 1


def test_adopted_threads_are_counted_once():
    end, started = threading.Event(), threading.Event()

    def work():
        until = time.thread_time() + 0.1
        while time.thread_time() < until:
            pass
        started.set()
        end.wait(20)

    threads, thread = LibraryThreads(), threading.Thread(target=work)
    with threads.adopt():
        thread.start()
        assert started.wait(20)
    assert thread.native_id in threads
    threads.collect()
    first = threads.seconds
    threads.collect()
    end.set()
    thread.join()
    assert 0.08 <= first <= 0.3
    assert threads.seconds - first < 0.05
