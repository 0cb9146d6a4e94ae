"""How long a CUDA device itself takes: the copy in, the computing, the same replayed as a CUDA graph, the copy out.

with open_device_run(candidate, model, batch) as run:
    times = measure_device(run, runs=50)

Every time lies between two events on one stream. Without a graph it holds the gaps in which the device waits for the
library to enqueue its next kernel; a graph is enqueued at once and has none. Not proven: no CUDA device has run this
module yet, only its logic is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from basnet_torch.device import CPU, Device
from basnet_torch.errors import BackendUnavailable

if TYPE_CHECKING:
    from basnet_benchmarks.candidates import Candidate
    from basnet_runtime.model import SaliencyModel

__all__ = [
    "BoundSession",
    "DeviceRun",
    "DeviceTimes",
    "Stream",
    "TimedBackend",
    "TorchStream",
    "measure_device",
    "open_device_run",
]

_WARM_UP = 10
_Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceTimes:
    """Seconds of every run, by events on the device; empty where a part was not measured.

    Attributes:
        copy_in: From page-locked memory to the device.
        compute: The network, its input and output on the device.
        graph: The same, replayed as one CUDA graph.
        copy_out: From the device to page-locked memory.
        no_graph: Why there is no graph; empty when there is one.
    """

    copy_in: tuple[float, ...] = ()
    compute: tuple[float, ...] = ()
    graph: tuple[float, ...] = ()
    copy_out: tuple[float, ...] = ()
    no_graph: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "copy_in_s": list(self.copy_in),
            "compute_s": list(self.compute),
            "graph_s": list(self.graph),
            "copy_out_s": list(self.copy_out),
            "no_graph": self.no_graph,
        }


@runtime_checkable
class TimedBackend(Protocol):
    """A backend that times its own runs on the device, as `TensorRTBackend` does."""

    def device_times(self, batch: NDArray[Any], runs: int) -> list[float]:
        """Milliseconds of each run of the network alone."""


class Stream(Protocol):
    """Where work is enqueued in order, and marks between which the device measures time."""

    def mark(self) -> Any:
        """Enqueue an event."""

    def synchronize(self) -> None:
        """Wait for everything that was enqueued."""

    def seconds(self, start: Any, end: Any) -> float:
        """Between two marks that were passed."""

    def current(self) -> Any:
        """A context in which the library enqueues on this stream."""


class DeviceRun(Protocol):
    """One candidate with one batch, ready to be timed."""

    @property
    def stream(self) -> Stream:
        """Where its work goes."""

    def copy_in(self) -> None:
        """Enqueue the copy of the batch to the device."""

    def compute(self) -> None:
        """Enqueue the network."""

    def copy_out(self) -> None:
        """Enqueue the copy of the masks to the host."""

    def captured(self) -> _Work:
        """The network as a CUDA graph; calling it enqueues a replay.

        Raises:
            RuntimeError: It cannot be captured.
        """


def measure_device(run: DeviceRun, runs: int, warm_up: int = _WARM_UP) -> DeviceTimes:
    """Time all four parts, each `runs` times."""
    with run.stream.current():
        copy_in, compute = (_timed(work, run.stream, runs, warm_up) for work in (run.copy_in, run.compute))
        copy_out = _timed(run.copy_out, run.stream, runs, warm_up)
        graph, reason = _timed_graph(run, runs, warm_up)
    return DeviceTimes(copy_in=copy_in, compute=compute, graph=graph, copy_out=copy_out, no_graph=reason)


def _timed(work: _Work, stream: Stream, runs: int, warm_up: int) -> tuple[float, ...]:
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


def _timed_graph(run: DeviceRun, runs: int, warm_up: int) -> tuple[tuple[float, ...], str]:
    try:
        replay = run.captured()
        return _timed(replay, run.stream, runs, warm_up), ""
    except RuntimeError as error:  # a library that refuses to be captured says so in an error of its own
        with suppress(RuntimeError):
            run.stream.synchronize()
        return (), " ".join(str(error).split())[:160] or type(error).__name__


class TorchStream:
    """`Stream` by PyTorch, on a stream of its own: the default one can be neither captured nor given to others."""

    def __init__(self, device: Device) -> None:
        """`device`: a CUDA one."""
        import torch

        self._cuda: Any = torch.cuda
        self.raw: Any = self._cuda.Stream(torch.device(device.for_torch()))

    def mark(self) -> Any:
        """See `Stream`."""
        event = self._cuda.Event(enable_timing=True)
        event.record(self.raw)
        return event

    def synchronize(self) -> None:
        """See `Stream`."""
        self.raw.synchronize()

    def seconds(self, start: Any, end: Any) -> float:
        """See `Stream`."""
        return float(start.elapsed_time(end)) / 1000

    def current(self) -> Any:
        """See `Stream`."""
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
        self.there.copy_(self.here, non_blocking=True)

    def copy_out(self) -> None:
        self.masks_here.copy_(self.masks_there, non_blocking=True)


class TorchRun:
    """A module of PyTorch, eager or compiled."""

    def __init__(self, forward: Callable[[Any], Any], batch: NDArray[Any], stream: Stream, device: Device) -> None:
        """`forward`: the batch on the device to float32 masks N,1,H,W there."""
        self.stream = stream
        self._forward = forward
        shape = (len(batch), 1, *batch.shape[2:])
        self._buffers = _TorchBuffers(batch, shape, "float32", device)

    def copy_in(self) -> None:
        """See `DeviceRun`."""
        self._buffers.copy_in()

    def compute(self) -> None:
        """See `DeviceRun`."""
        import torch

        with torch.inference_mode():
            self._buffers.masks_there = self._forward(self._buffers.there)

    def copy_out(self) -> None:
        """See `DeviceRun`."""
        self._buffers.copy_out()

    def captured(self) -> _Work:
        """See `DeviceRun`."""
        import torch

        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph, stream=getattr(self.stream, "raw", None)):
            self._masks = self._forward(self._buffers.there)  # kept alive: the graph writes into it
        return graph.replay


class BoundSession:
    """An ONNX Runtime session whose input and output are memory that PyTorch holds."""

    def __init__(self, session: Any, buffers: _TorchBuffers, device: Device, *, synchronous: bool) -> None:
        """`synchronous`: let every run wait for its end; else it returns when everything is enqueued."""
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
    """A graph in ONNX Runtime's CUDA provider, which works on the stream that is timed."""

    def __init__(self, path: Path, batch: NDArray[Any], shape: tuple[int, ...], dtype: str, device: Device) -> None:
        """`shape`, `dtype`: of the masks that the batch gives."""
        self.stream = TorchStream(device)
        self._path, self._device = path, device
        with self.stream.current():
            self._buffers = _TorchBuffers(batch, shape, dtype, device)
        self.stream.synchronize()
        self._bound = BoundSession(self._session(), self._buffers, device, synchronous=False)

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

    def copy_in(self) -> None:
        """See `DeviceRun`."""
        self._buffers.copy_in()

    def compute(self) -> None:
        """See `DeviceRun`."""
        self._bound.run()

    def copy_out(self) -> None:
        """See `DeviceRun`."""
        self._buffers.copy_out()

    def captured(self) -> _Work:
        """See `DeviceRun`; the library captures in its first runs and replays in later ones, waiting for each."""
        session = self._session(enable_cuda_graph="1")
        bound = BoundSession(session, self._buffers, self._device, synchronous=True)
        for _ in range(3):
            bound.run()
        return bound.run


@contextmanager
def open_device_run(candidate: Candidate, model: SaliencyModel, batch: NDArray[Any]) -> Iterator[DeviceRun | None]:
    """What times the candidate on its device; None for one that cannot be timed apart from its copies.

    Raises:
        BackendUnavailable: The device is not there.
    """
    from basnet_benchmarks.torch_variants import forward_of

    device = candidate.device
    if candidate.variant.backend == "pytorch":
        device = Device.parse(device.for_torch())
        yield TorchRun(forward_of(model.backend), batch, TorchStream(device), device)
    elif candidate.variant.backend == "onnxruntime" and device.kind == "cuda":
        output = model.backend.output
        sizes = batch.shape[2:] if len(output.shape) == 4 else batch.shape[1:3]
        shape = (len(batch), 1, *sizes) if len(output.shape) == 4 else (len(batch), *sizes)
        yield OnnxRuntimeRun(candidate.path, batch, shape, output.dtype, device)
    else:
        yield None
