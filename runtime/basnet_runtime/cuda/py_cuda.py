"""`Cuda` by PyCUDA, without CUDA graphs and foreign streams.

The only module that imports `pycuda`.

PyCUDA compiles at installation and needs NVIDIA's toolkit there. Its `autoinit` would make a context of its own, in
which PyTorch's memory is unknown; the primary context is used instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from basnet_runtime.cuda.arrays import view_of
from basnet_runtime.cuda.base import CaptureFailed, CudaName, DeviceBytes, DeviceView, Gpu, PinnedBytes
from basnet_torch.errors import BackendUnavailable

__all__ = ["PyCuda"]


class PyCuda:
    """Device `index`."""

    name: CudaName = "pycuda"

    def __init__(self, index: int) -> None:
        """See `open_cuda`."""
        from pycuda import driver

        self._driver = driver
        driver.init()
        self.index = index
        self._device = driver.Device(index)
        self._primary = self._device.retain_primary_context()

    @property
    def label(self) -> str:
        return f"PyCUDA {version('pycuda')}"

    @property
    def gpu(self) -> Gpu:
        major, minor = self._device.compute_capability()
        number = int(self._driver.get_driver_version())  # 13000 is 13.0
        return Gpu(
            name=str(self._device.name()),
            compute_capability=f"{major}.{minor}",
            driver="",  # which PyCUDA does not tell
            cuda=f"{number // 1000}.{number % 1000 // 10}",
        )

    @contextmanager
    def current(self) -> Iterator[None]:
        self._primary.push()
        try:
            yield
        finally:
            self._driver.Context.pop()

    def stream(self) -> Any:
        return self._driver.Stream(1)  # CU_STREAM_NON_BLOCKING

    def handle(self, stream: Any) -> int:
        return int(stream.handle)

    def event(self, *, timing: bool = False) -> Any:
        kinds = self._driver.event_flags
        return self._driver.Event(kinds.DEFAULT if timing else kinds.DISABLE_TIMING | kinds.BLOCKING_SYNC)

    def record(self, event: Any, stream: Any) -> None:
        event.record(stream)

    def wait(self, stream: Any, event: Any) -> None:
        stream.wait_for_event(event)

    def reached(self, event: Any) -> bool:
        return bool(event.query())

    def synchronize(self, point: Any) -> None:
        point.synchronize()

    def milliseconds(self, start: Any, end: Any) -> float:
        return float(start.time_till(end))

    def follow(self, stream: Any, foreign: int) -> None:  # noqa: ARG002 - waits for all streams, as it can name none
        self._driver.Context.synchronize()

    def lead(self, foreign: int, stream: Any) -> None:  # noqa: ARG002 - what is done need not be waited for
        stream.synchronize()

    def synchronize_foreign(self, foreign: int | None) -> None:  # noqa: ARG002 - waits for all streams, as it can name none
        self._driver.Context.synchronize()

    def device_bytes(self, size: int) -> DeviceBytes:
        try:
            owner = self._driver.mem_alloc(size)
        except self._driver.Error as error:
            raise BackendUnavailable(f"the GPU has no {size:,} bytes left ({error}); lower --batch") from error
        return DeviceBytes(address=int(owner), size=size, owner=owner)

    def pinned_bytes(self, size: int) -> PinnedBytes:
        try:
            array = self._driver.pagelocked_empty(size, "uint8")
        except self._driver.Error as error:
            raise BackendUnavailable(f"{size:,} bytes cannot be page-locked ({error}); lower --batch") from error
        return PinnedBytes(array=array, owner=array.base)

    def upload(self, there: DeviceBytes, here: PinnedBytes, stream: Any) -> None:
        self._driver.memcpy_htod_async(there.address, here.array, stream)

    def download(self, here: PinnedBytes, there: DeviceBytes, stream: Any) -> None:
        self._driver.memcpy_dtoh_async(here.array, there.address, stream)

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Any:  # noqa: ARG002 - the shape is `Cuda`'s
        raise CaptureFailed("PyCUDA has no CUDA graphs")

    def launch(self, graph: Any, stream: Any) -> None:
        raise NotImplementedError  # there is no graph, because `capture` makes none

    def view(self, array: Any, stream: Any) -> DeviceView:
        self.follow(stream, 0)  # whoever wrote the array has then finished
        return view_of(array, -1)

    def free(self, item: Any) -> None:
        if isinstance(item, DeviceBytes | PinnedBytes):
            item.owner.free()
        # Streams and events have no method for it: PyCUDA destroys them with their last reference.

    def close(self) -> None:
        self._primary.detach()
