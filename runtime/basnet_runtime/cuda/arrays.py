"""Device arrays, exchanged without a copy: DLPack and CUDA array interface."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np

from basnet_runtime.cuda.base import Cuda, DeviceBytes, DeviceView
from basnet_torch.errors import BackendUnavailable, UsageError

__all__ = ["DeviceArray", "view_of"]

_CUDA = 2  # DLPack's number of the kind of device


def view_of(array: Any, stream: int) -> DeviceView:
    """An array of another library, seen in place.

    Args:
        array: It has `__dlpack__` or `__cuda_array_interface__`.
        stream: Handle of the stream that will read it, which is made to wait for the array; -1 does not wait.

    Raises:
        BackendUnavailable: cuda-core, which reads both protocols, is not installed.
        UsageError: It has neither, or is not on a CUDA device.
    """
    try:
        from cuda.core.utils import StridedMemoryView
    except ImportError as error:
        raise BackendUnavailable("device arrays need cuda-core; pip install cuda-core cuda-bindings") from error
    try:
        seen = StridedMemoryView.from_any_interface(array, stream_ptr=stream)
    except (BufferError, AttributeError, TypeError) as error:
        raise UsageError(f"{type(array).__name__}: is no array on a CUDA device ({error})") from error
    if not seen.is_device_accessible or seen.device_id < 0:
        raise UsageError(f"{type(array).__name__}: lies on the host; use infer, or move it to the device")
    return DeviceView(
        address=int(seen.ptr),
        shape=tuple(seen.shape),
        dtype=str(seen.dtype),
        contiguous=_is_contiguous(tuple(seen.shape), seen.strides),
        device=int(seen.device_id),
    )


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> bool:
    """Row by row without gaps; `strides` count elements, and those of axes of 1 do not matter.

    >>> _is_contiguous((2, 1, 3), (3, 7, 1)), _is_contiguous((2, 3), (1, 2))
    (True, False)
    """
    if strides is None:
        return True
    packed = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return all(length == 1 or have == want for length, have, want in zip(shape, strides, packed, strict=True))


class DeviceArray:
    """A result on the device, and the owner of its memory.

    It is complete when it is returned, or in order with a stream.

    Consumers take it with `torch.from_dlpack(result)`, `torch.as_tensor(result, device="cuda")` or the like, and keep
    it alive. Its memory goes back when it is closed, or with its last reference, once its readers are done.
    """

    def __init__(
        self,
        cuda: Cuda,
        memory: DeviceBytes,
        shape: tuple[int, ...],
        dtype: str,
        stream: int | None,
        released: Callable[[], None],
    ) -> None:
        """`stream`: its only reader's handle, None for any; `released`: called at end."""
        self._released = released
        self._cuda = cuda
        self._stream = stream
        self._memory: DeviceBytes | None = memory
        self.shape = shape
        self.dtype = np.dtype(dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3; no stream, because nothing has to be waited for."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._held().address, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """Kind and index of the device."""
        return _CUDA, self._cuda.index

    def __dlpack__(self, **options: Any) -> Any:
        """A DLPack capsule that keeps this array alive."""
        from cuda.core import Buffer
        from cuda.core.utils import StridedMemoryView

        memory = self._held()
        with self._cuda.current():
            buffer = Buffer.from_handle(memory.address, memory.size, owner=self)
            view = StridedMemoryView.from_buffer(buffer, self.shape, dtype=self.dtype)
            return view.__dlpack__(**options)

    def _held(self) -> DeviceBytes:
        if self._memory is None:
            raise ValueError("device array: it is closed")
        return self._memory

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""
        memory, self._memory = self._memory, None
        if memory is None:
            return
        try:
            with self._cuda.current():
                self._cuda.synchronize_foreign(
                    self._stream
                )  # where this fails, the memory may be in use, and is not freed
                self._cuda.free(memory)
        finally:
            self._released()

    def __del__(self) -> None:
        with suppress(Exception):  # the interpreter or the device may be gone already
            self.close()
