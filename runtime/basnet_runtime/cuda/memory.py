"""Buffers on a GPU, page-locked buffers beside them on the host, and one stream that copies between the two.

with CudaMemory(0) as cuda:
    pair = cuda.pair(1024)
    pair.host[:] = 7
    cuda.upload(pair)
    cuda.synchronize()

The device's primary context is used, the one that PyTorch and ONNX Runtime use, so that all live in one process.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from basnet_torch.errors import BackendUnavailable

__all__ = ["BufferPair", "Cuda", "CudaMemory"]


@dataclass(kw_only=True, slots=True)
class BufferPair:
    """As many bytes on the device as on the host.

    Attributes:
        address: Of the device's bytes.
        host: The page-locked bytes, uint8.
        owners: What keeps both alive.
    """

    address: int
    host: NDArray[np.uint8]
    owners: tuple[Any, ...] = ()


class Cuda(Protocol):
    """What a TensorRT backend needs of a CUDA library."""

    @property
    def stream(self) -> int:
        """Handle of the stream on which everything happens in order."""

    def pair(self, size: int) -> BufferPair:
        """Allocate `size` bytes on both sides."""

    def release(self, pair: BufferPair) -> None:
        """Give both sides back."""

    def upload(self, pair: BufferPair) -> None:
        """Enqueue a copy of the host's bytes to the device."""

    def download(self, pair: BufferPair) -> None:
        """Enqueue a copy of the device's bytes to the host."""

    def synchronize(self) -> None:
        """Wait for everything that was enqueued."""

    def close(self) -> None:
        """Give the stream back."""


class CudaMemory:
    """`Cuda` by cuda-core."""

    def __init__(self, index: int) -> None:
        """Make device `index` the current one of this thread and open a stream on it."""
        from cuda.core import Device, LegacyPinnedMemoryResource

        self._device = Device(index)
        self._device.set_current()
        self._pinned = LegacyPinnedMemoryResource()
        self._stream = self._device.create_stream()

    @property
    def stream(self) -> int:
        """See `Cuda`."""
        return int(self._stream.handle)

    def pair(self, size: int) -> BufferPair:
        """See `Cuda`.

        Raises:
            BackendUnavailable: There is not enough memory.
        """
        self._device.set_current()  # of this thread, which may be another than the one that opened
        try:
            there = self._device.allocate(size, stream=self._stream)
            here = self._pinned.allocate(size)
        except Exception as error:  # cuda-core's own error has no public name
            raise BackendUnavailable(f"the GPU has no {size:,} bytes left ({error}); lower --batch") from error
        bytes_there = (ctypes.c_uint8 * size).from_address(int(here.handle))
        return BufferPair(address=int(there.handle), host=np.ctypeslib.as_array(bytes_there), owners=(there, here))

    def release(self, pair: BufferPair) -> None:
        """See `Cuda`."""
        there, here = pair.owners
        pair.host = np.empty(0, np.uint8)
        there.close(self._stream)
        here.close()

    def upload(self, pair: BufferPair) -> None:
        """See `Cuda`."""
        there, here = pair.owners
        there.copy_from(here, stream=self._stream)

    def download(self, pair: BufferPair) -> None:
        """See `Cuda`."""
        there, here = pair.owners
        here.copy_from(there, stream=self._stream)

    def synchronize(self) -> None:
        """See `Cuda`."""
        self._stream.sync()

    def close(self) -> None:
        """See `Cuda`."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
