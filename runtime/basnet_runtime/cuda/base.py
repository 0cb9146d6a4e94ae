"""The CUDA protocol of backends: memory, streams, events, copies, graphs.

Two modules are of this shape, `cuda_core` and `py_cuda`; `open_cuda` opens one. Everything is asynchronous and in order
on the stream it names; streams know of each other through events alone. Both work in the device's primary context, the
one that PyTorch and ONNX Runtime use, and only between entering and leaving `current`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CaptureFailed", "Cuda", "CudaName", "DeviceBytes", "DeviceView", "Gpu", "PinnedBytes"]

CudaName = Literal["cuda-core", "pycuda"]


class CaptureFailed(Exception):
    """Work that cannot be captured as a CUDA graph; it still runs when enqueued."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One device.

    Attributes:
        name: As its maker calls it.
        compute_capability: Such as `9.0`.
        driver: Version of its driver, such as `580.65.06`; empty where it cannot be asked.
        cuda: Version of CUDA that the driver supports, such as `13.0`.
    """

    name: str
    compute_capability: str
    driver: str
    cuda: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DeviceBytes:
    """Memory of the device; `owner` is the library's own object."""

    address: int
    size: int
    owner: Any


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PinnedBytes:
    """Page-locked memory of the host as uint8; `owner` is the library's own object."""

    array: NDArray[np.uint8]
    owner: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceView:
    """Another library's array on the device, seen in place; `dtype` is numpy's name."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    contiguous: bool
    device: int


class Cuda(Protocol):
    """One device by one library, whose own streams, events and graphs it uses."""

    name: CudaName
    index: int

    @property
    def label(self) -> str:
        """Library and version, for people."""

    @property
    def gpu(self) -> Gpu:
        """The device."""

    def current(self) -> AbstractContextManager[None]:
        """Make the device current in this thread, and afterwards what was current before."""

    def stream(self) -> Any:
        """A stream of its own that does not wait for the default stream."""

    def handle(self, stream: Any) -> int:
        """The stream as TensorRT takes it."""

    def event(self, *, timing: bool = False) -> Any:
        """An event; without `timing` whoever waits for it sleeps."""

    def record(self, event: Any, stream: Any) -> None:
        """Let the event stand for everything enqueued on the stream so far."""

    def wait(self, stream: Any, event: Any) -> None:
        """Hold what follows on the stream until the event is reached."""

    def reached(self, event: Any) -> bool:
        """Whether it is; does not wait."""

    def synchronize(self, point: Any) -> None:
        """Wait in this thread until an event is reached, or a stream is empty."""

    def milliseconds(self, start: Any, end: Any) -> float:
        """Between two reached events that were made with `timing`."""

    def follow(self, stream: Any, foreign: int) -> None:
        """Make our stream wait for all that is enqueued on a foreign one now."""

    def lead(self, foreign: int, stream: Any) -> None:
        """Make a foreign stream wait for all that is enqueued on ours now."""

    def synchronize_foreign(self, foreign: int | None) -> None:
        """Wait in this thread for a foreign stream, or for None the whole device."""

    def device_bytes(self, size: int) -> DeviceBytes:
        """Allocate on the device; raises BackendUnavailable when there is no room."""

    def pinned_bytes(self, size: int) -> PinnedBytes:
        """Allocate page-locked memory; raises BackendUnavailable when there is no room."""

    def upload(self, there: DeviceBytes, here: PinnedBytes, stream: Any) -> None:
        """Enqueue a copy to the device; both sides are of one size."""

    def download(self, here: PinnedBytes, there: DeviceBytes, stream: Any) -> None:
        """Enqueue a copy from the device; both sides are of one size."""

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Any:
        """Capture what `enqueue` enqueues as a graph; raises CaptureFailed.

        The graph does not run yet.
        """

    def launch(self, graph: Any, stream: Any) -> None:
        """Enqueue a graph."""

    def view(self, array: Any, stream: Any) -> DeviceView:
        """View an array of `__dlpack__` or `__cuda_array_interface__` on the stream."""

    def free(self, item: Any) -> None:
        """Free a stream, an event, a graph or bytes that nothing enqueued uses any more."""

    def close(self) -> None:
        """Let go of the device; everything else has been freed."""
