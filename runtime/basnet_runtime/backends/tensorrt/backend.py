"""TensorRT engines: batches in flight, CUDA graphs, host or device memory.

with open_engine(Path("fp16.plan")) as backend:
    masks_N1HW = backend.infer(batch_N3HW)

    futures = [backend.submit(batch) for batch in batches]  # copies and computing of successive batches overlap
    masks = [future.result() for future in futures]
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.backends.tensorrt.buffers import BufferSet, Contexts, ShapeRing, Streams, fill, nbytes
from basnet_runtime.cuda.arrays import DeviceArray
from basnet_runtime.cuda.base import Cuda, CudaName, DeviceView
from basnet_runtime.engine_facts import EngineFacts, Shape
from basnet_runtime.kinds import Precision
from basnet_runtime.manifest import Manifest
from basnet_torch.device import Device
from basnet_torch.errors import BackendUnavailable, BasnetError, UsageError
from basnet_torch.files import Closing
from basnet_torch.spec import TensorSpec

__all__ = ["RingFuture", "TensorRTBackend", "open_engine"]

_KEPT_SHAPES = 4  # a folder of pictures of many sizes must not fill the GPU's memory
_KEPT_BYTES = 1 << 30


class RingFuture:
    """A batch in flight."""

    def __init__(self, backend: TensorRTBackend, buffers: BufferSet, count: int) -> None:
        self.buffers: BufferSet | None = buffers  # None once the masks were taken out of it
        self._backend = backend
        self._count = count
        self._masks: NDArray[Any] | None = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Whether `result` returns at once."""
        return self._backend.is_done(self)

    def result(self) -> NDArray[Any]:
        """The masks, the caller's own copy; waits for them.

        Raises:
            BackendUnavailable: The device failed.
        """
        self._backend.wait_for(self)
        if self._masks is None:
            raise BackendUnavailable(f"{self._backend.description}: the device failed ({self._error})") from self._error
        return self._masks

    def synchronize(self, cuda: Cuda) -> None:
        """Take the masks out of the buffer set and free it; the backend's lock is held."""
        buffers, self.buffers = self.buffers, None
        if buffers is None:
            return
        buffers.holder = None
        try:
            cuda.synchronize(buffers.fetched)
            self._masks = buffers.output[: self._count].copy()
        except Exception as error:  # noqa: BLE001 - raised where the result is asked for, perhaps in another thread
            self._error = error


class TensorRTBackend(Closing):
    """Runs either graph in any precision; threads and engines may be many.

    Attributes:
        profiles: The shapes it takes.
        depth: Batches of one shape that can be in flight; one more waits for the oldest.
    """

    name: Literal["tensorrt"] = "tensorrt"

    def __init__(
        self, engine: Contexts, cuda: Cuda, manifest: Manifest, facts: EngineFacts, label: str, *, depth: int = 3
    ) -> None:
        """Once it is made, `engine` and `cuda` are closed with it."""
        self.input: TensorSpec = manifest.input
        self.output: TensorSpec = manifest.output
        self.profiles = facts.profiles
        self.depth = depth
        self._engine = engine
        self._cuda = cuda
        self._label = label
        self._lock = threading.RLock()
        self._rings: OrderedDict[Shape, ShapeRing] = OrderedDict()
        self._turn = 0
        self._closed = False
        self._users = 1  # of the device: this backend, and results on the device that are still held
        with cuda.current():
            self._streams = Streams(cuda, graphs=not engine.captures_itself)

    @property
    def description(self) -> str:
        """What really runs: library, device, precision, and whether CUDA graphs replay."""
        plain = self._streams.plain_because
        whose = "CUDA graphs by the library" if self._engine.captures_itself else "CUDA graphs"
        graphs = f"no CUDA graphs ({plain})" if plain else whose
        return f"{self._label}, {self._cuda.label}, {graphs}"

    def infer(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Masks of `batch`, the caller's own copy.

        Raises:
            UsageError: No profile of the engine holds the batch's shape.
            BackendUnavailable: The engine cannot run.
        """
        return self.submit(batch).result()

    def submit(self, pictures: Sequence[NDArray[Any]] | NDArray[Any], *, is_busy: bool = False) -> RingFuture:  # noqa: ARG002 - a GPU decides by itself
        """Start a batch and return at once; the pictures are copied.

        Raises:
            UsageError: No profile of the engine holds the batch's shape.
            BackendUnavailable: The engine cannot run.
        """
        with self._lock, self._device():
            buffers = self._filled(pictures)
            self._streams.enqueue(buffers)
            self._turn += 1
            buffers.turn = self._turn
            future = buffers.holder = RingFuture(self, buffers, len(pictures))
            return future

    def infer_device(self, array: Any, stream: int | None = None) -> DeviceArray:
        """Return masks on the device of a batch on the device; nothing is copied.

        Args:
            array: Has `__dlpack__` or `__cuda_array_interface__`, and the shape, type and order of `input`.
            stream: Handle of the stream that the array is written on and the result read on, for example
                `torch.cuda.current_stream().cuda_stream`, and all is in order with it. None waits for the result.

        Raises:
            UsageError: The array is not what the engine takes.
            BackendUnavailable: The engine cannot run.
        """
        cuda, computing = self._cuda, self._streams.computing
        with self._lock, self._device():
            view = cuda.view(array, computing)
            self._check_view(view)
            if stream is not None:
                cuda.follow(computing, stream)
            ring = self._ring(view.shape)
            ring.loose = ring.loose or self._engine.context(self.input.name, view.shape)
            gives = tuple(ring.loose.get_tensor_shape(self.output.name))
            memory = cuda.device_bytes(nbytes(gives, self.output))
            self._users += 1
            masks = DeviceArray(cuda, memory, gives, self.output.dtype, stream, released=self._left)
            ring.loose.set_tensor_address(self.input.name, view.address)
            ring.loose.set_tensor_address(self.output.name, memory.address)
            self._streams.execute(ring.loose)
            if stream is None:
                cuda.synchronize(computing)
            else:
                cuda.lead(stream, computing)
            return masks

    def device_times(self, batch: NDArray[Any], runs: int, *, warmup: int = 10) -> list[float]:
        """Return milliseconds of each of `runs` runs of the engine alone, by CUDA events.

        The events are on its stream.

        The batch is copied in once and nothing is copied out. Runs are enqueued without waiting for each other, so that
        the device does not wait for Python where a run takes longer than its enqueueing.
        """
        cuda, streams = self._cuda, self._streams
        with self._lock, self._device(), ExitStack() as freeing:
            buffers = self._filled(batch)
            pairs = [(self._timer(freeing), self._timer(freeing)) for _ in range(runs)]
            cuda.upload(buffers.input_there, buffers.input_here, streams.arriving)
            cuda.synchronize(streams.arriving)
            for _ in range(warmup):
                streams.compute(buffers)
            for start, end in pairs:
                cuda.record(start, streams.computing)
                streams.compute(buffers)
                cuda.record(end, streams.computing)
            cuda.synchronize(streams.computing)
            return [cuda.milliseconds(start, end) for start, end in pairs]

    def _timer(self, freeing: ExitStack) -> Any:
        event = self._cuda.event(timing=True)
        freeing.callback(self._cuda.free, event)
        return event

    @contextmanager
    def _device(self) -> Iterator[None]:
        """The device as the current one; where anything fails, nothing stays in flight that could still write."""
        if self._closed:
            raise ValueError("backend: it is closed; open the model again")
        with self._cuda.current():
            try:
                yield
            except (BasnetError, TypeError):  # ours, and an array of another type
                self._streams.drain()
                raise
            except Exception as error:
                self._streams.drain()
                line = " ".join(str(error).split())[:200]
                raise BackendUnavailable(f"{self.description}: {line}") from error

    def _filled(self, pictures: Sequence[NDArray[Any]] | NDArray[Any]) -> BufferSet:
        """A free set with the pictures in its pinned memory; the last one again up to the fewest the engine takes."""
        if not len(pictures):
            raise UsageError("batch: there is no picture in it")
        fewest = min(profile.smallest[0] for profile in self.profiles)
        shape = (max(len(pictures), fewest), *np.shape(pictures[0]))
        self._check_shape(shape)
        buffers = self._ring(shape).take()
        if buffers.holder is not None:
            buffers.holder.synchronize(self._cuda)
        fill(buffers.input, pictures)
        return buffers

    def _check_shape(self, shape: Shape) -> None:
        if not any(profile.holds(shape) for profile in self.profiles):
            held = "; ".join(map(str, self.profiles))
            raise UsageError(
                f"batch of shape {'x'.join(map(str, shape))}: the engine takes {held} (smallest / best / largest); "
                "use another --batch, or build it with other ranges"
            )

    def _check_view(self, view: DeviceView) -> None:
        self._check_shape(view.shape)
        if view.dtype != self.input.dtype or not view.contiguous:
            found = f"{view.dtype}{'' if view.contiguous else ', not contiguous'}"
            raise UsageError(f"device array: is {found}, and the engine takes contiguous {self.input.dtype}")
        if view.device != self._cuda.index:
            raise UsageError(f"device array: is on cuda:{view.device}, and the engine on cuda:{self._cuda.index}")

    def _ring(self, shape: Shape) -> ShapeRing:
        """The ring of this shape; those of the shapes used last are kept, as far as memory allows."""
        ring = self._rings.pop(shape, None) or ShapeRing(lambda: self._new_set(shape), self.depth)
        self._rings[shape] = ring
        rings = self._rings
        while len(rings) > _KEPT_SHAPES or (len(rings) > 1 and sum(r.nbytes for r in rings.values()) > _KEPT_BYTES):
            self._drop(self._rings.popitem(last=False)[1])
        return ring

    def _new_set(self, shape: Shape) -> BufferSet:
        context = self._engine.context(self.input.name, shape)
        return BufferSet(self._cuda, context, self.input, shape, self.output)

    def _drop(self, ring: ShapeRing) -> None:
        """Give a ring back after what is in flight in it."""
        for buffers in ring.sets:
            if buffers.holder is not None:
                buffers.holder.synchronize(self._cuda)
        self._streams.drain()
        ring.close()

    def is_done(self, future: RingFuture) -> bool:
        """Whether the future's masks are there."""
        with self._lock:
            if future.buffers is None:
                return True
            with self._cuda.current():
                return self._cuda.reached(future.buffers.fetched)

    def wait_for(self, future: RingFuture) -> None:
        """Wait for a future's masks; other threads continue meanwhile."""
        buffers = future.buffers
        if buffers is None:
            return
        with suppress(Exception), self._cuda.current():  # what fails here fails again below, and is kept there
            self._cuda.synchronize(buffers.fetched)
        with self._lock:
            if future.buffers is not None:
                with self._cuda.current():
                    future.synchronize(self._cuda)

    def close(self) -> None:
        """Free the engine and all memory, after what is in flight.

        Whatever fails, the rest is freed too.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with ExitStack() as freeing:  # the last one goes first
                freeing.callback(self._left)
                freeing.enter_context(self._cuda.current())
                freeing.callback(self._engine.close)
                freeing.callback(self._streams.close)
                while self._rings:
                    freeing.callback(self._drop, self._rings.popitem()[1])

    def _left(self) -> None:
        """One user of the device less; the last one closes it."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self._cuda.close()


def open_engine(
    path: Path, *, device: Device | str = "cuda:0", precision: Precision | None = None, cuda: CudaName = "cuda-core"
) -> tuple[TensorRTBackend, Manifest]:
    """An engine ready to run, and its manifest.

    Args:
        path: A plan with its manifest beside it.
        device: `cuda` or `cuda:N`.
        precision: What it must compute in; None takes what it was built for.
        cuda: The library that moves data and keeps the streams.

    Raises:
        BackendUnavailable: The plan is for another library or GPU, or there is no such device.
        UsageError: Another device or precision was asked.
        ModelFileError: There is no such file.
    """
    from basnet_runtime.backends.tensorrt.engine import LoadedEngine
    from basnet_runtime.backends.tensorrt.preflight import check_gpu, preflight
    from basnet_runtime.cuda.devices import open_cuda

    index = Device.parse(device, of=("cuda",), rule="a TensorRT engine runs on cuda or cuda:N").number
    manifest, facts, library = preflight(path)
    if precision not in (None, manifest.precision):
        raise UsageError(f"{path.name} is {manifest.precision}, not {precision}; build it of a {precision} graph")
    with ExitStack() as opening:
        there = open_cuda(index, cuda)
        opening.callback(there.close)
        gpu = there.gpu
        check_gpu(path, facts, gpu.name, gpu.compute_capability)
        with there.current():
            engine = LoadedEngine(library, there, path, facts)
        opening.callback(_closed_there, engine, there)
        label = f"{library}, cuda:{index}, {manifest.precision}, {gpu.name}"
        backend = TensorRTBackend(engine, there, manifest, facts, label)
        opening.pop_all()
    return backend, manifest


def _closed_there(engine: Contexts, cuda: Cuda) -> None:
    with cuda.current():
        engine.close()
