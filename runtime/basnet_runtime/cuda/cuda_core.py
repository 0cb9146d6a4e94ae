"""`Cuda` by cuda-core, NVIDIA's Python library; the only importer of `cuda.core`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Any

import numpy as np

from basnet_runtime.cuda.arrays import view_of
from basnet_runtime.cuda.base import CaptureFailed, CudaName, DeviceBytes, DeviceView, Gpu, PinnedBytes
from basnet_torch.errors import BackendUnavailable

__all__ = ["CudaCore"]


class CudaCore:
    """Device `index`."""

    name: CudaName = "cuda-core"

    def __init__(self, index: int) -> None:
        """See `open_cuda`."""
        from cuda.bindings import driver
        from cuda.core import Device, LegacyPinnedMemoryResource

        self._driver = driver
        self.index = index
        self._device = Device(index)
        before = self._context()
        self._device.set_current()  # opens the primary context; fails where the device is hidden or the driver too old
        self._primary = self._context()
        self._checked(driver.cuCtxSetCurrent(before))
        with self.current():
            self._pinned = LegacyPinnedMemoryResource()
            self._allocator = self._device.create_stream()

    @property
    def label(self) -> str:
        return f"cuda-core {version('cuda-core')}"

    @property
    def gpu(self) -> Gpu:
        from cuda.core import system

        capability = self._device.compute_capability
        return Gpu(
            name=str(self._device.name),
            compute_capability=f"{capability.major}.{capability.minor}",
            driver=self._kernel_driver(system),
            cuda=".".join(map(str, system.get_user_mode_driver_version()[:2])),
        )

    @staticmethod
    def _kernel_driver(system: Any) -> str:
        try:
            major, *rest = system.get_kernel_mode_driver_version()
        except RuntimeError:  # asked of NVML, which containers may lack
            return ""
        return ".".join([str(major), *(f"{part:02}" for part in rest)])

    def _context(self) -> Any:
        return self._checked(self._driver.cuCtxGetCurrent())[0]

    def _checked(self, result: tuple[Any, ...]) -> tuple[Any, ...]:
        if int(result[0]):
            raise RuntimeError(f"CUDA: {result[0].name}")
        return result[1:]

    @staticmethod
    def _foreign(handle: int) -> Any:
        """Another library's stream; the default ones have numbers instead of addresses."""
        from cuda.core import LEGACY_DEFAULT_STREAM, PER_THREAD_DEFAULT_STREAM, Stream

        if handle in (0, 1):
            return LEGACY_DEFAULT_STREAM
        return PER_THREAD_DEFAULT_STREAM if handle == 2 else Stream.from_handle(handle)

    @contextmanager
    def current(self) -> Iterator[None]:
        self._checked(self._driver.cuCtxPushCurrent(self._primary))
        try:
            yield
        finally:
            self._checked(self._driver.cuCtxPopCurrent())

    def stream(self) -> Any:
        return self._device.create_stream()

    def handle(self, stream: Any) -> int:
        return int(stream.handle)

    def event(self, *, timing: bool = False) -> Any:
        return self._device.create_event({"timing_enabled": timing, "blocking_sync": not timing})

    def record(self, event: Any, stream: Any) -> None:
        stream.record(event)

    def wait(self, stream: Any, event: Any) -> None:
        stream.wait(event)

    def reached(self, event: Any) -> bool:
        return bool(event.is_done)

    def synchronize(self, point: Any) -> None:
        point.sync()

    def milliseconds(self, start: Any, end: Any) -> float:
        return float(end - start)

    def follow(self, stream: Any, foreign: int) -> None:
        stream.wait(self._foreign(foreign))

    def lead(self, foreign: int, stream: Any) -> None:
        self._foreign(foreign).wait(stream)

    def synchronize_foreign(self, foreign: int | None) -> None:
        if foreign is None:
            self._device.sync()
        else:
            self._foreign(foreign).sync()

    def device_bytes(self, size: int) -> DeviceBytes:
        try:
            owner = self._device.allocate(size, stream=self._allocator)
            self._allocator.sync()  # allocation is in order with one stream only, and several use the bytes
        except Exception as error:  # cuda-core's own error has no public name
            raise BackendUnavailable(f"the GPU has no {size:,} bytes left ({error}); lower --batch") from error
        return DeviceBytes(address=int(owner.handle), size=size, owner=owner)

    def pinned_bytes(self, size: int) -> PinnedBytes:
        try:
            owner = self._pinned.allocate(size)
        except Exception as error:
            raise BackendUnavailable(f"{size:,} bytes cannot be page-locked ({error}); lower --batch") from error
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(owner.handle)))
        return PinnedBytes(array=array, owner=owner)

    def upload(self, there: DeviceBytes, here: PinnedBytes, stream: Any) -> None:
        there.owner.copy_from(here.owner, stream=stream)

    def download(self, here: PinnedBytes, there: DeviceBytes, stream: Any) -> None:
        here.owner.copy_from(there.owner, stream=stream)

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Any:
        builder = stream.create_graph_builder()
        try:
            builder.begin_building("thread_local")  # other threads may allocate meanwhile
            enqueue()
            return builder.end_building().complete()
        except Exception as error:
            raise CaptureFailed(" ".join(str(error).split())[:200]) from error
        finally:
            with suppress(Exception):  # ending a capture that was refused says so once more
                builder.close()

    def launch(self, graph: Any, stream: Any) -> None:
        graph.launch(stream)

    def view(self, array: Any, stream: Any) -> DeviceView:
        return view_of(array, self.handle(stream))

    def free(self, item: Any) -> None:
        if isinstance(item, DeviceBytes | PinnedBytes):
            item = item.owner
        item.close()

    def close(self) -> None:
        with self.current():
            self._allocator.close()
