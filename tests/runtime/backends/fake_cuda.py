"""An exact model of CUDA's streams, events and memory on the host: what is enqueued runs later, in any order allowed.

Each stream is a queue whose head may run unless it waits for an event. Which stream goes on is drawn at random, so that
an order the code forgot to ask for goes wrong in some draw. Memory and objects that were given back cannot be used.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

from basnet_runtime.cuda.base import CaptureFailed, DeviceBytes, DeviceView, Gpu, PinnedBytes


class FakeError(Exception):
    """What the device says when it was told to fail."""


class FakeStream:
    def __init__(self, handle):
        self.handle, self.queue = handle, deque()


class FakeEvent:
    def __init__(self, timing):
        self.timing, self.recorded, self.reached, self.time = timing, 0, 0, 0


class FakeCuda:
    """`Cuda` without a device. `fail_at` counts calls; the call of that number raises FakeError."""

    name, index, label = "cuda-core", 0, "fake CUDA"
    gpu = Gpu(name="Fake GPU", compute_capability="9.0", driver="580.65.06", cuda="13.0")

    def __init__(self, seed=0, fail_at=None, graphs=True):
        self.random, self.fail_at, self.graphs = random.Random(seed), fail_at, graphs
        self.calls, self.live, self.memory, self.streams = [], {}, {}, {}
        self.next, self.clock, self.trace, self.capturing, self.closed = 1000, 0, [], None, False
        self.lock, self.here = threading.RLock(), threading.local()
        self.foreign = FakeStream(77)
        self.streams[77] = self.foreign

    def _call(self, name):
        assert getattr(self.here, "depth", 0) > 0, f"{name}: the device is not current in this thread"
        assert not self.closed, f"{name}: the device was closed"
        self.calls.append(name)
        if len(self.calls) - 1 == self.fail_at:
            raise FakeError(f"{name} failed")

    @contextmanager
    def current(self):
        self.here.depth = getattr(self.here, "depth", 0) + 1
        try:
            yield
        finally:
            self.here.depth -= 1

    def _made(self, kind, item):
        with self.lock:
            self._call(kind)
            self.live[id(item)] = (kind, item)
            return item

    def _alive(self, *items):
        for item in items:
            assert id(item) in self.live or item is self.foreign, f"{item} was given back"

    def stream(self):
        self.next += 1000
        stream = self._made("stream", FakeStream(self.next))
        self.streams[stream.handle] = stream
        return stream

    def handle(self, stream):
        self._alive(stream)
        return stream.handle

    def event(self, *, timing=False):
        return self._made("event", FakeEvent(timing))

    def enqueue(self, stream, name, work, ready=lambda: True):
        self._alive(stream)
        if self.capturing is not None and self.capturing[0] is stream:
            self.capturing[1].append((name, work, ready))
        else:
            stream.queue.append((name, work, ready))

    def record(self, event, stream):
        with self.lock:
            self._call("record")
            self._alive(event)
            event.recorded += 1
            number = event.recorded
            self.enqueue(stream, "record", lambda: self._reach(event, number))

    def _reach(self, event, number):
        event.reached, event.time = number, self.clock

    def wait(self, stream, event):
        with self.lock:
            self._call("wait")
            self._alive(event)
            number = event.recorded
            self.enqueue(stream, "wait", lambda: None, lambda: event.reached >= number)

    def reached(self, event):
        with self.lock:
            self._call("reached")
            self.step()
            return event.reached >= event.recorded

    def synchronize(self, point):
        with self.lock:
            self._call("synchronize")
            self._alive(point)
            if isinstance(point, FakeStream):
                self._until(lambda: not point.queue)
            else:
                number = point.recorded
                self._until(lambda: point.reached >= number)

    def _until(self, condition):
        while not condition():
            assert self.step(), "nothing can go on: a wait that never ends"

    def step(self, only=None):
        """Run the head of one stream that may go on; whether there was one."""
        able = [s for s in self.streams.values() if s.queue and s.queue[0][2]() and only in (None, s)]
        if not able:
            return False
        stream = self.random.choice(able)
        name, work, _ = stream.queue.popleft()
        self.clock += 1
        self.trace.append((name, stream))
        work()
        return True

    def milliseconds(self, start, end):
        assert start.timing
        assert end.timing
        return float(end.time - start.time)

    def follow(self, stream, foreign):
        with self.lock:
            event = FakeEvent(timing=False)
            self.live[id(event)] = ("hidden", event)
            try:
                self.record(event, self.streams[foreign])
                self.wait(stream, event)
            finally:
                del self.live[id(event)]

    def lead(self, foreign, stream):
        self.follow(self.streams[foreign], stream.handle)

    def synchronize_foreign(self, foreign):
        with self.lock:
            self._call("synchronize_foreign")
            streams = self.streams.values() if foreign is None else [self.streams[foreign]]
            self._until(lambda: not any(stream.queue for stream in streams))

    def device_bytes(self, size):
        self.next += 1000 + size
        memory = self._made("device_bytes", DeviceBytes(address=self.next, size=size, owner=None))
        self.memory[memory.address] = np.full(size, 0xAA, np.uint8)
        return memory

    def pinned_bytes(self, size):
        return self._made("pinned_bytes", PinnedBytes(array=np.full(size, 0x55, np.uint8), owner=None))

    def at(self, address, shape, dtype):
        """A tensor on the device; the address must be one that is allocated."""
        return self.memory[address][: int(np.prod(shape)) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)

    def upload(self, there, here, stream):
        with self.lock:
            self._call("upload")
            self._alive(there, here)
            self.enqueue(stream, "upload", lambda: self.memory[there.address].__setitem__(slice(None), here.array))

    def download(self, here, there, stream):
        with self.lock:
            self._call("download")
            self._alive(there, here)
            self.enqueue(stream, "download", lambda: here.array.__setitem__(slice(None), self.memory[there.address]))

    def capture(self, stream, enqueue):
        with self.lock:
            if not self.graphs:
                raise CaptureFailed("this device captures nothing")
            self.capturing = (stream, [])
            try:
                enqueue()
                return self._made("graph", SimpleNamespace(work=self.capturing[1]))
            except Exception as error:
                raise CaptureFailed(str(error)) from error
            finally:
                self.capturing = None

    def launch(self, graph, stream):
        with self.lock:
            self._call("launch")
            self._alive(graph)
            for name, work, ready in graph.work:
                self.enqueue(stream, name, work, ready)

    def view(self, array, stream):
        self._call("view")
        seen = array.__cuda_array_interface__
        if seen["stream"] is not None:
            self.follow(stream, seen["stream"])
        dtype = np.dtype(seen["typestr"]).name
        return DeviceView(
            address=seen["data"][0], shape=seen["shape"], dtype=dtype, contiguous=seen["strides"] is None, device=0
        )

    def free(self, item):
        with self.lock:
            self._call("free")
            self._alive(item)
            kind, _ = self.live.pop(id(item))
            if kind == "device_bytes":
                del self.memory[item.address]  # work that is still enqueued on it fails when it runs
            if kind == "stream":
                assert not item.queue
                del self.streams[item.handle]

    def close(self):
        assert not self.closed
        self.closed = True


class FakeEngine:
    """Gives each picture's first channel, by way of a working memory that all its contexts share."""

    def __init__(self, cuda, *, captures_itself=False, works=True):
        self.cuda, self.captures_itself, self.works = cuda, captures_itself, works
        self.closed, self.contexts, self.scratch = False, 0, None

    def context(self, tensor, shape):
        self.cuda._call("context")
        assert tensor == "image"
        self.contexts += 1
        return FakeContext(self, shape)

    def close(self):
        assert not self.closed
        self.closed = True


class FakeContext:
    def __init__(self, engine, shape):
        self.engine, self.shape, self.addresses, self.prepared = engine, tuple(shape), {}, False

    def get_tensor_shape(self, name):
        assert name == "mask"
        return (self.shape[0], 1, *self.shape[2:])

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, handle):
        cuda, engine = self.engine.cuda, self.engine
        with cuda.lock:
            cuda._call("execute")
            if cuda.capturing and not self.prepared:
                return False  # as the library: the first run of a shape prepares it, and cannot be captured
            self.prepared = True
            stream, addresses = cuda.streams[handle], dict(self.addresses)
            cuda.enqueue(stream, "compute", lambda: self._first(addresses["image"]))
            cuda.enqueue(stream, "computed", lambda: self._last(addresses["mask"]))
            return engine.works

    def _first(self, address):
        self.engine.scratch = self.engine.cuda.at(address, self.shape, "float32")[:, :1].copy()

    def _last(self, address):
        self.engine.cuda.at(address, self.get_tensor_shape("mask"), "float32")[...] = self.engine.scratch
