"""TensorRT engines on an NVIDIA GPU: pinned copies in, the engine, pinned copies out, in order on one stream.

with open_engine(Path("fp16.plan")) as backend:
    masks_N1HW = backend.infer(batch_N3HW)
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.backends.base import Precision
from basnet_runtime.cuda.memory import BufferPair, Cuda
from basnet_runtime.engine_facts import EngineFacts, Shape
from basnet_runtime.manifest import Manifest
from basnet_runtime.tensorrt_library import TensorRT
from basnet_torch.errors import BackendUnavailable, UsageError
from basnet_torch.spec import TensorSpec

__all__ = ["TensorRTBackend", "open_engine"]

_KEPT_SHAPES = 4  # a folder of pictures of many sizes must not fill the GPU's memory


@dataclass(frozen=True, kw_only=True, slots=True)
class _Buffers:
    """What one input shape needs: both tensors on both sides, and the output's shape."""

    input: BufferPair
    output: BufferPair
    shape: Shape


class TensorRTBackend:
    """Runs either graph, whatever its precision."""

    name: Literal["tensorrt"] = "tensorrt"

    def __init__(self, context: Any, cuda: Cuda, manifest: Manifest, facts: EngineFacts, description: str) -> None:
        """`context`: an `IExecutionContext` of an engine with one input and one output."""
        self.input: TensorSpec = manifest.input
        self.output: TensorSpec = manifest.output
        self.description = description
        self._context = context
        self._cuda = cuda
        self.profiles = facts.profiles
        self._buffers: OrderedDict[Shape, _Buffers] = OrderedDict()

    def infer(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Masks of `batch`, the caller's own copy.

        Raises:
            UsageError: When no profile of the engine holds the batch's shape.
            BackendUnavailable: When the engine cannot run.
        """
        if self._context is None:
            raise ValueError("backend: it is closed; open the model again")
        count = len(batch)
        batch = self._padded(batch)
        buffers = self._buffers_of(batch.shape)
        np.copyto(_view(buffers.input, batch.shape, self.input.dtype), batch, casting="safe")
        self._cuda.upload(buffers.input)
        if not self._context.execute_async_v3(self._cuda.stream):
            raise BackendUnavailable(f"{self.description}: the engine did not run")
        self._cuda.download(buffers.output)
        self._cuda.synchronize()
        return _view(buffers.output, buffers.shape, self.output.dtype)[:count].copy()

    def _padded(self, batch: NDArray[Any]) -> NDArray[Any]:
        """The last picture again, up to the fewest that the engine takes: a video's last batch may be short."""
        fewest = min(profile.smallest[0] for profile in self.profiles)
        missing = fewest - len(batch)
        return batch if missing <= 0 else np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])

    def _buffers_of(self, shape: Shape) -> _Buffers:
        """Buffers of this shape, made known to the engine; those of the shapes used last are kept."""
        if not any(profile.holds(shape) for profile in self.profiles):
            held = "; ".join(map(str, self.profiles))
            raise UsageError(
                f"batch of shape {'x'.join(map(str, shape))}: the engine takes {held} (smallest / best / largest); "
                "use another --batch, or build it with other ranges"
            )
        if not self._context.set_input_shape(self.input.name, shape):
            raise BackendUnavailable(f"{self.description}: the engine refuses the shape {shape}")
        found = self._buffers.pop(shape, None) or self._allocated(shape)
        self._buffers[shape] = found
        while len(self._buffers) > _KEPT_SHAPES:
            self._released(self._buffers.popitem(last=False)[1])
        self._context.set_tensor_address(self.input.name, found.input.address)
        self._context.set_tensor_address(self.output.name, found.output.address)
        return found

    def _allocated(self, shape: Shape) -> _Buffers:
        gives = tuple(self._context.get_tensor_shape(self.output.name))
        return _Buffers(input=self._pair(shape, self.input), output=self._pair(gives, self.output), shape=gives)

    def _pair(self, shape: Shape, tensor: TensorSpec) -> BufferPair:
        return self._cuda.pair(prod(shape) * np.dtype(tensor.dtype).itemsize)

    def _released(self, buffers: _Buffers) -> None:
        self._cuda.release(buffers.input)
        self._cuda.release(buffers.output)

    def close(self) -> None:
        """Give the engine and all memory back."""
        if self._context is None:
            return
        self._context = None
        while self._buffers:
            self._released(self._buffers.popitem()[1])
        self._cuda.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_engine(
    path: Path, *, device: str = "cuda:0", precision: Precision | None = None
) -> tuple[TensorRTBackend, Manifest]:
    """An engine ready to run, and its manifest.

    Args:
        path: A plan with its manifest beside it.
        device: `cuda` or `cuda:N`.
        precision: What it must compute in; None takes what it was built for.

    Raises:
        BackendUnavailable: The plan is for another library or GPU, or there is no such device.
        UsageError: Another device or precision was asked.
        ModelFileError: There is no such file.
    """
    from basnet_runtime.preflight import check_gpu, preflight

    index = _index(device)
    manifest, facts, library = preflight(path)
    if precision not in (None, manifest.precision):
        raise UsageError(f"{path.name} is {manifest.precision}, not {precision}; build it of a {precision} graph")

    from basnet_runtime.cuda.device import find_gpu
    from basnet_runtime.cuda.memory import CudaMemory

    gpu = find_gpu(index)
    if gpu is None:
        raise BackendUnavailable(f"device {device}: there is no NVIDIA driver")
    check_gpu(path, facts, gpu.name, gpu.compute_capability)
    cuda = CudaMemory(index)
    try:
        context = _context(library, path, facts)
    except BaseException:
        cuda.close()
        raise
    description = f"{library}, cuda:{index}, {manifest.precision}, {gpu.name}"
    return TensorRTBackend(context, cuda, manifest, facts, description), manifest


def _index(device: str) -> int:
    kind, colon, index = device.partition(":")
    if kind != "cuda" or (colon and not index.isdecimal()):
        raise UsageError(f"device {device}: a TensorRT engine runs on cuda or cuda:N")
    return int(index or 0)


def _context(library: TensorRT, path: Path, facts: EngineFacts) -> Any:
    """The plan as an execution context, which keeps its engine alive."""
    library.messages.clear()
    runtime = library.trt.Runtime(library.logger)
    if facts.flags.get("version_compatible"):
        runtime.engine_host_code_allowed = True  # such a plan carries code of its own; its digest was checked
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    context = engine.create_execution_context() if engine is not None else None
    if context is None:
        raise BackendUnavailable(f"{path}: {library} cannot load it: {library.messages.reason()}; build it again here")
    return context


def _view(pair: BufferPair, shape: Shape, dtype: str) -> NDArray[Any]:
    return pair.host.view(dtype).reshape(shape)
