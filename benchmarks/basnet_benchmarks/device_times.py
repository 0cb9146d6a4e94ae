"""CUDA times by events: copy in, compute, CUDA graph, copy out, PyTorch's modes.

    run = open_device_run(model, batch, device, path)
    times = measure_device(run, runs=50)

Every time lies between two events on one stream. Without a graph it holds the gaps in which the device waits for the
library to enqueue its next kernel; a graph is enqueued at once and has none. Half precision with channels last and
`torch.compile` stand beside the reference, so that an engine is compared with more than eager FP32. Not proven: no CUDA
device has run this module yet, only its logic and, on the CPU, its masks are tested.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.backends.base import Backend
from basnet_runtime.backends.pytorch import PyTorchBackend
from basnet_runtime.kinds import Precision
from basnet_torch.device import CPU, Device
from basnet_torch.errors import BackendUnavailable, UsageError
from basnet_torch.spec import TensorSpec

if TYPE_CHECKING:
    from basnet_runtime.model import SaliencyModel
    from basnet_torch.checkpoint import Checkpoint
    from basnet_torch.model.basnet import SaliencyNetwork

__all__ = ["DeviceTimes", "TorchVariant", "measure_device", "open_device_run", "open_torch_variant"]

Mode = Literal["", "channels-last", "compiled"]
_WARM_UP = 10
_Work = Callable[[], object]
_Forward = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceTimes:
    """Seconds of every run, by events on the device; empty for unmeasured parts."""

    copy_in_s: tuple[float, ...] = ()  # from page-locked memory to the device
    compute_s: tuple[float, ...] = ()  # the network, its input and output on the device
    graph_s: tuple[float, ...] = ()  # the same, replayed as one CUDA graph
    copy_out_s: tuple[float, ...] = ()  # from the device to page-locked memory
    no_graph: str = ""  # why there is no graph; empty when there is one


def measure_device(run: TorchRun | OnnxRuntimeRun, runs: int, warm_up: int = _WARM_UP) -> DeviceTimes:
    """Time all four parts, each `runs` times."""
    with run.stream.current():
        copy_in, compute, copy_out = (
            _timed(work, run.stream, runs, warm_up) for work in (run.copy_in, run.compute, run.copy_out)
        )
        graph, reason = (), ""  # type: tuple[float, ...], str
        try:
            graph = _timed(run.captured(), run.stream, runs, warm_up)
        except RuntimeError as error:  # a library that refuses to be captured says so in an error of its own
            with suppress(RuntimeError):
                run.stream.synchronize()
            reason = " ".join(str(error).split())[:160] or type(error).__name__
    return DeviceTimes(copy_in_s=copy_in, compute_s=compute, graph_s=graph, copy_out_s=copy_out, no_graph=reason)


def _timed(work: _Work, stream: TorchStream, runs: int, warm_up: int) -> tuple[float, ...]:
    """All runs are enqueued before the first is waited for, so that the device does not wait for the host's waiting."""
    for _ in range(warm_up):
        work()
    stream.synchronize()
    marks = []
    for _ in range(runs):
        start = stream.mark()
        work()
        marks.append((start, stream.mark()))
    stream.synchronize()
    return tuple(stream.seconds(start, end) for start, end in marks)


class TorchStream:
    """A CUDA stream by PyTorch; the default stream cannot be captured or shared."""

    def __init__(self, device: Device) -> None:
        import torch

        self._cuda: Any = torch.cuda
        self.raw: Any = self._cuda.Stream(torch.device(device.for_torch()))

    def mark(self) -> Any:
        """Enqueue an event."""
        event = self._cuda.Event(enable_timing=True)
        event.record(self.raw)
        return event

    def synchronize(self) -> None:
        """Wait for everything that was enqueued."""
        self.raw.synchronize()

    def seconds(self, start: Any, end: Any) -> float:
        """Time between two events that were passed."""
        return float(start.elapsed_time(end)) / 1000

    def current(self) -> Any:
        """Make a context in which PyTorch enqueues on this stream."""
        return self._cuda.stream(self.raw)


class _TorchBuffers:
    """A batch and its masks on both sides, by PyTorch; page-locked where there is a device to copy to."""

    def __init__(self, batch: NDArray[Any], shape: tuple[int, ...], dtype: str, device: Device) -> None:
        import torch

        pin = device != CPU
        self.here = torch.from_numpy(np.ascontiguousarray(batch))
        self.here = self.here.pin_memory() if pin else self.here
        self.there = self.here.to(device.for_torch(), copy=True)
        kind = getattr(torch, dtype)
        self.masks_there = torch.empty(shape, dtype=kind, device=device.for_torch())
        self.masks_here = torch.empty(shape, dtype=kind, pin_memory=pin)

    def copy_in(self) -> None:
        """Enqueue the copy of the batch to the device."""
        self.there.copy_(self.here, non_blocking=True)

    def copy_out(self) -> None:
        """Enqueue the copy of the masks to the host."""
        self.masks_here.copy_(self.masks_there, non_blocking=True)


class TorchRun:
    """A module of PyTorch, eager or compiled, with one batch."""

    def __init__(self, forward: _Forward, batch: NDArray[Any], stream: TorchStream, device: Device) -> None:
        """`forward`: the batch on the device to float32 masks N,1,H,W there."""
        self.stream = stream
        self.buffers = _TorchBuffers(batch, (len(batch), 1, *batch.shape[2:]), "float32", device)
        self.copy_in, self.copy_out = self.buffers.copy_in, self.buffers.copy_out
        self._forward = forward

    def compute(self) -> None:
        """Enqueue the network."""
        import torch

        with torch.inference_mode():
            self.buffers.masks_there = self._forward(self.buffers.there)

    def captured(self) -> _Work:
        """Capture the network as a CUDA graph; calling the result enqueues a replay."""
        import torch

        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph, stream=getattr(self.stream, "raw", None)):
            self._masks = self._forward(self.buffers.there)  # kept alive: the graph writes into it
        return graph.replay


class BoundSession:
    """An ONNX Runtime session whose input and output are memory that PyTorch holds."""

    def __init__(self, session: Any, buffers: _TorchBuffers, device: Device, *, synchronous: bool) -> None:
        """`synchronous`: wait for each run's end; otherwise return once it is enqueued."""
        import onnxruntime

        self._session = session
        self._binding = session.io_binding()
        self._options = onnxruntime.RunOptions()
        if not synchronous:
            self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        for bind, (node,), tensor in (
            (self._binding.bind_input, session.get_inputs(), buffers.there),
            (self._binding.bind_output, session.get_outputs(), buffers.masks_there),
        ):
            dtype = np.dtype(str(tensor.dtype).removeprefix("torch.")).type
            bind(node.name, device.kind, device.number, dtype, list(tensor.shape), tensor.data_ptr())

    def run(self) -> None:
        """Run once, from memory to memory."""
        self._session.run_with_iobinding(self._binding, self._options)


class OnnxRuntimeRun:
    """A graph in ONNX Runtime's CUDA provider on the timed stream, with one batch."""

    def __init__(self, path: Path, batch: NDArray[Any], output: TensorSpec, device: Device) -> None:
        self.stream = TorchStream(device)
        self._path, self._device = path, device
        sizes = (1, *batch.shape[2:]) if len(output.shape) == 4 else batch.shape[1:3]
        with self.stream.current():
            self._buffers = _TorchBuffers(batch, (len(batch), *sizes), output.dtype, device)
        self.stream.synchronize()
        self.copy_in, self.copy_out = self._buffers.copy_in, self._buffers.copy_out
        self.compute = BoundSession(self._session(), self._buffers, device, synchronous=False).run

    def _session(self, **more: str) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        stream = str(self.stream.raw.cuda_stream)
        provider = {"device_id": str(self._device.number), "use_tf32": "0", "user_compute_stream": stream, **more}
        names = [("CUDAExecutionProvider", provider), "CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(self._path, options, providers=names)
        if session.get_providers()[0] != "CUDAExecutionProvider":
            raise BackendUnavailable(f"device {self._device}: ONNX Runtime's CUDA provider did not load")
        return session

    def captured(self) -> _Work:
        """Let the library capture in its first runs; later runs replay, and wait."""
        session = self._session(enable_cuda_graph="1")
        bound = BoundSession(session, self._buffers, self._device, synchronous=True)
        for _ in range(3):
            bound.run()
        return bound.run


def open_device_run(
    model: SaliencyModel, batch: NDArray[Any], device: Device, path: Path
) -> TorchRun | OnnxRuntimeRun | None:
    """Open a timer of the model file `path`; None where copies cannot be separated.

    Raises:
        BackendUnavailable: The device is not there.
    """
    if model.backend.name == "pytorch":
        device = Device.parse(device.for_torch())
        return TorchRun(forward_of(model.backend), batch, TorchStream(device), device)
    if model.backend.name == "onnxruntime" and device.kind == "cuda":
        return OnnxRuntimeRun(path, batch, model.backend.output, device)
    return None


class TorchVariant(PyTorchBackend):
    """PyTorch in another mode; `called`: float32 N,3,H,W to masks N,1,H,W, on device."""

    def __init__(
        self, network: SaliencyNetwork, called: _Forward, size: tuple[int, int], device: Device, description: str
    ) -> None:
        super().__init__(network, size, device, "fp32", description)
        self._called = called

    def forward(self, images: Any) -> Any:
        """Compute masks on the device of pictures that are there."""
        return super().forward(images) if self._model is None else self._called(images)  # closed: an error

    def close(self) -> None:
        """Give the weights back."""
        super().close()
        self._called = lambda _: None


def open_torch_variant(
    checkpoint: Checkpoint, *, device: str | Device, precision: Precision, mode: Mode, compiler: str = "inductor"
) -> TorchVariant:
    """Open the network channels last; `compiled` uses `torch.compile`, tests a CPU.

    In `fp16` weights and activations are halves, and the last sigmoid is FP32.

    Raises:
        BackendUnavailable: There is no such device.
        UsageError: Another precision or mode was asked.
    """
    import torch

    from basnet_torch.checkpoint import model_from_checkpoint

    device = Device.parse(device, of=("cpu", "cuda"))
    if precision not in ("fp32", "fp16") or mode not in ("channels-last", "compiled"):
        raise UsageError(f"pytorch {precision} {mode}: variants are fp32 and fp16, channels-last or compiled")
    if device != CPU:
        if not torch.cuda.is_available():
            raise BackendUnavailable(f"device {device}: PyTorch {torch.__version__} finds no CUDA device")
        cudnn: Any = torch.backends.cudnn
        cudnn.conv.fp32_precision = "ieee"  # TF32, the default, keeps 10 bits
    dtype = torch.float16 if precision == "fp16" else torch.float32
    network = model_from_checkpoint(checkpoint).eval().to(device=device.for_torch(), dtype=dtype)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stubs leave it out

    def forward(images: Any) -> Any:
        return network.mask(images.to(dtype).contiguous(memory_format=torch.channels_last))

    called: _Forward = torch.compile(forward, backend=compiler, dynamic=False) if mode == "compiled" else forward
    where = "cpu" if device == CPU else torch.cuda.get_device_name(device.for_torch())
    how = "channels last" if mode == "channels-last" else "channels last, torch.compile"
    description = f"PyTorch {torch.__version__}, {device}, {precision}, {how}, {where}"
    size = (checkpoint.preprocess.height, checkpoint.preprocess.width)
    return TorchVariant(network, called, size, device, description)


def forward_of(backend: Backend) -> _Forward:
    """Return what a backend of PyTorch runs on the device, without its copies."""
    found: _Forward | None = getattr(backend, "forward", None)
    if found is None:
        raise UsageError(f"{backend.description}: is no backend of PyTorch whose network can be timed alone")
    return found
