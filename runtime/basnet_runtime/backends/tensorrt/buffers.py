"""Device buffers of batches in flight: a ring of buffer sets per input shape.

Three streams, with events between them.

    host --arriving--> device --computing--> device --leaving--> host

Each stream carries one kind of work of all sets. A set's events hand its batch from one stream to the next, so that
the copy in of one batch, the computing of the one before and the copy out of the one before that run at the same time.
A set is used again only after its result has been read, so that no other dependence exists.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.cuda.base import CaptureFailed, Cuda, DeviceBytes, PinnedBytes
from basnet_runtime.engine_facts import Shape
from basnet_torch.spec import TensorSpec

__all__ = ["BufferSet", "Contexts", "ShapeRing", "Streams", "fill", "nbytes"]


class Contexts(Protocol):
    """Where execution contexts come from, see `engine.LoadedEngine`."""

    captures_itself: bool

    def context(self, tensor: str, shape: Shape) -> Any:
        """One for this input shape."""

    def close(self) -> None:
        """Give the engine back."""


class Streams:
    """The three streams of one backend, and what is enqueued on them.

    Attributes:
        plain_because: Why batches are enqueued kernel by kernel instead of as a CUDA graph; empty where they are not.
    """

    def __init__(self, cuda: Cuda, *, graphs: bool) -> None:
        """`graphs`: capture each set's work after its first run, and replay it."""
        self.cuda = cuda
        self.plain_because = ""
        self._graphs = graphs
        with ExitStack() as building:
            streams = []
            for _ in range(3):
                streams.append(cuda.stream())
                building.callback(cuda.free, streams[-1])
            self.arriving, self.computing, self.leaving = streams
            self._owned = building.pop_all()

    def enqueue(self, buffers: BufferSet) -> None:
        """One batch, from the set's pinned input to its pinned output.

        Raises:
            RuntimeError: The engine does not run; what was enqueued before must be waited for.
        """
        cuda = self.cuda
        cuda.upload(buffers.input_there, buffers.input_here, self.arriving)
        cuda.record(buffers.arrived, self.arriving)
        cuda.wait(self.computing, buffers.arrived)
        self.compute(buffers)
        cuda.record(buffers.computed, self.computing)
        cuda.wait(self.leaving, buffers.computed)
        cuda.download(buffers.output_here, buffers.output_there, self.leaving)
        cuda.record(buffers.fetched, self.leaving)

    def compute(self, buffers: BufferSet) -> None:
        """The engine alone: as a graph where there is one, else kernel by kernel."""
        if buffers.graph is None and buffers.has_run and self._graphs and not self.plain_because:
            try:
                buffers.graph = self.cuda.capture(self.computing, lambda: self.execute(buffers.context))
            except CaptureFailed as error:
                self.plain_because = str(error)
        if buffers.graph is not None:
            self.cuda.launch(buffers.graph, self.computing)
        else:
            self.execute(buffers.context)
        buffers.has_run = True  # TensorRT prepares a shape at its first run, which cannot be captured

    def execute(self, context: Any) -> None:
        """The engine with what is bound to that context, kernel by kernel.

        Raises:
            RuntimeError: It does not run.
        """
        if not context.execute_async_v3(self.cuda.handle(self.computing)):
            raise RuntimeError("the engine did not run")

    def drain(self) -> None:
        """Wait until nothing is in flight, as far as the device still answers."""
        for stream in (self.arriving, self.computing, self.leaving):
            with suppress(Exception):
                self.cuda.synchronize(stream)

    def close(self) -> None:
        """Give the streams back, after what is on them."""
        self.drain()
        self._owned.close()


class BufferSet:
    """Buffers of one batch in flight: tensors, execution context, three events.

    Tensors are on both sides, the context is bound to them.

    Attributes:
        holder: Whose batch is in it; None while it is free.
        turn: Counts the batches of all sets, so that the oldest is known.
    """

    def __init__(self, cuda: Cuda, context: Any, input_: TensorSpec, shape: Shape, output: TensorSpec) -> None:
        self._cuda = cuda
        self.shape = shape
        self.output_shape: Shape = tuple(context.get_tensor_shape(output.name))
        self.context = context
        self.graph: Any = None
        self.has_run = False
        self.holder: Any = None
        self.turn = 0
        with ExitStack() as building:
            self._building = building
            into, out_of = nbytes(shape, input_), nbytes(self.output_shape, output)
            self.input_here: PinnedBytes = self._own(cuda.pinned_bytes(into))
            self.input_there: DeviceBytes = self._own(cuda.device_bytes(into))
            self.output_there: DeviceBytes = self._own(cuda.device_bytes(out_of))
            self.output_here: PinnedBytes = self._own(cuda.pinned_bytes(out_of))
            self.arrived, self.computed, self.fetched = (self._own(cuda.event()) for _ in range(3))
            context.set_tensor_address(input_.name, self.input_there.address)
            context.set_tensor_address(output.name, self.output_there.address)
            self._owned = building.pop_all()
        self.input = self.input_here.array.view(input_.dtype).reshape(shape)
        self.output = self.output_here.array.view(output.dtype).reshape(self.output_shape)

    def _own(self, item: Any) -> Any:
        self._building.callback(self._cuda.free, item)
        return item

    def close(self) -> None:
        """Give everything back; nothing of it is in flight."""
        self.context = None
        with ExitStack() as freeing:
            freeing.push(self._owned)
            if self.graph is not None:
                freeing.callback(self._cuda.free, self.graph)
            self.graph = None


class ShapeRing:
    """The ring of one input shape. Sets are made as they are first needed.

    Attributes:
        loose: An execution context that is bound to other libraries' memory at each run; None until it is needed.
    """

    def __init__(self, make: Callable[[], BufferSet], depth: int) -> None:
        self._make = make
        self._depth = depth
        self._sets: list[BufferSet] = []
        self.loose: Any = None

    def take(self) -> BufferSet:
        """Return a free set, else a new one, else that of the oldest batch, still in it."""
        for buffers in self._sets:
            if buffers.holder is None:
                return buffers
        if len(self._sets) == self._depth:
            return min(self._sets, key=lambda one: one.turn)
        self._sets.append(self._make())
        return self._sets[-1]

    @property
    def sets(self) -> tuple[BufferSet, ...]:
        """Those that were made."""
        return tuple(self._sets)

    @property
    def nbytes(self) -> int:
        """Of the sets that there can be, on one side."""
        return self._depth * sum(int(s.input.nbytes + s.output.nbytes) for s in self._sets[:1])

    def close(self) -> None:
        """Give all sets back."""
        self.loose = None
        with ExitStack() as freeing:
            for buffers in self._sets:
                freeing.callback(buffers.close)
            self._sets = []


def nbytes(shape: Shape, tensor: TensorSpec) -> int:
    """Of a tensor of that shape."""
    return prod(shape) * np.dtype(tensor.dtype).itemsize


def fill(buffers: NDArray[Any], pictures: Any) -> None:
    """Put pictures into a set's input; the last one again where there are too few."""
    for row, picture in zip(buffers, pictures, strict=False):
        np.copyto(row, picture, casting="safe")
    for row in buffers[len(pictures) :]:
        np.copyto(row, pictures[-1], casting="safe")
