"""OpenVINO on the CPU, in FP32 or bfloat16. The only module that imports openvino.

with open_openvino(Path("basnet.onnx"), precision="bf16") as backend:
    masks_N1HW = backend.infer(batch_N3HW)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.backends.base import Precision, Ticket
from basnet_runtime.backends.graph_cache import can_keep_graphs, forget_old_graphs, graph_folder
from basnet_runtime.backends.workers import Landed, Workers
from basnet_runtime.processor import why_no_bf16, why_no_int8
from basnet_runtime.threads import allowed_threads
from basnet_torch.device import CPU, Device
from basnet_torch.errors import BackendUnavailable, ModelFileError, UsageError
from basnet_torch.spec import TensorSpec
from basnet_torch.telemetry import without_openvino_telemetry

__all__ = ["OpenVinoBackend", "open_openvino"]

_DTYPES = {"f32": "float32", "u8": "uint8"}


class OpenVinoBackend:
    """Runs either graph; what it takes is read from the graph itself.

    `infer` runs one batch on all threads, `submit` as many batches beside each other as there are threads.
    """

    name: Literal["openvino"] = "openvino"

    def __init__(
        self, compiled: Any, description: str, *, threads: int = 1, lone: Callable[[], Any] | None = None
    ) -> None:
        """Wrap a compiled model.

        Args:
            compiled: An `openvino.CompiledModel` with one input and one output.
            description: What runs.
            threads: Batches that run beside each other.
            lone: Compiles the model once more, with a stream of one thread for each of these; None does without.
        """
        self.input = _spec(compiled.inputs[0])
        self.output = _spec(compiled.outputs[0])
        self.description = description
        self.depth = threads + 1 if lone and threads > 1 else 1
        self._request = compiled.create_infer_request()
        self._one_at_a_time = threading.Lock()  # a request runs one batch, whichever thread asks
        self._lone = lone
        self._workers: Workers | None = None

    def infer(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Masks of `batch`; the batch is read in place and the result is the caller's own copy."""
        with self._one_at_a_time:
            if self._request is None:
                raise ValueError("backend: it is closed; open the model again")
            return cast(NDArray[Any], self._request.infer([batch], share_inputs=True)[0])

    def submit(self, pictures: Sequence[NDArray[Any]] | NDArray[Any]) -> Ticket:
        """Start a batch; see `OverlappedBackend`."""
        batch: NDArray[Any] = np.stack(list(pictures))
        if self._lone is None or self.depth == 1:
            return Landed(self.infer(batch))
        if self._workers is None:
            self._workers = Workers(self.depth - 1, alone=self.infer, beside=_on_a_stream(self._lone()))
        return self._workers.submit(batch)

    def close(self) -> None:
        """Give the compiled models and their memory back."""
        if self._workers is not None:
            self._workers.close()
        self._request = self._workers = self._lone = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_openvino(
    path: Path,
    *,
    device: Device | str = CPU,
    threads: int | None = None,
    precision: Precision = "fp32",
    stored: Precision | None = None,
    keep: bool = True,
) -> OpenVinoBackend:
    """A graph compiled for exactly the arithmetic that was asked.

    Args:
        path: An `.onnx` file with one input and one output.
        device: `cpu`.
        threads: Processor threads; None takes what the container allows.
        precision: `fp32` or `bf16`, what convolutions compute in.
        stored: What the file was written in, so that the description can say where that is not what it computes in.
        keep: Whether the compiled model is kept for the next start.

    Raises:
        BackendUnavailable: OpenVINO, or bfloat16 on this processor, is not there.
        ModelFileError: The file is no graph that OpenVINO can read.
        UsageError: Another device or precision was asked.
    """
    Device.parse(
        device,
        of=("cpu",),
        rule="--backend openvino runs on cpu; other devices, and OpenVINO as the provider of ONNX Runtime, are of "
        "--backend onnxruntime",
    )
    if precision not in ("fp32", "bf16"):
        raise UsageError(f"precision {precision}: OpenVINO computes in fp32 or bf16 on the CPU")
    reason = why_no_int8() if stored == "int8" else None
    if reason:
        raise BackendUnavailable(f"int8 on the CPU: {reason}; run the model exported in fp32")
    ov = _import_openvino()
    threads = threads or allowed_threads()
    keep = keep and can_keep_graphs()
    compiled = _compiled(ov, path, threads, precision, keep=keep)
    active = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if active != _hint(precision):
        raise BackendUnavailable(f"precision {precision}: OpenVINO would compute in {active}; use --precision fp32")
    computes = _computed(stored, precision)
    description = f"OpenVINO {ov.__version__.partition('-')[0]}, CPU, {computes}, {threads} threads"
    return OpenVinoBackend(
        compiled,
        description,
        threads=threads,
        lone=lambda: _compiled(ov, path, threads, precision, streams=threads, keep=keep),
    )


def _on_a_stream(compiled: Any) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Inference that any thread may call: each has a request of its own."""
    own = threading.local()

    def infer(batch: NDArray[Any]) -> NDArray[Any]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        return cast(NDArray[Any], own.request.infer([batch], share_inputs=True)[0])

    return infer


def _computed(stored: Precision | None, precision: Precision) -> str:
    if (stored, precision) == ("fp16", "fp32"):
        return "fp16 file computed in fp32"
    return "int8" if stored == "int8" else precision


def _import_openvino() -> ModuleType:
    try:
        with without_openvino_telemetry():
            import openvino
    except ImportError as error:
        here = ", or take --device openvino" if find_spec("onnxruntime_ep_openvino") else ""
        raise BackendUnavailable(f"OpenVINO is not installed; pip install 'basnet-deploy[openvino]'{here}") from error
    return cast(ModuleType, openvino)


def _hint(precision: Precision) -> str:
    return "bf16" if precision == "bf16" else "f32"


def _compiled(ov: ModuleType, path: Path, threads: int, precision: Precision, *, streams: int = 1, keep: bool) -> Any:
    core = ov.Core()
    if keep:
        core.set_property({"CACHE_DIR": str(graph_folder())})
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        reason = why_no_bf16() or "OpenVINO does not list bfloat16 among this processor's abilities"
        raise BackendUnavailable(f"bf16 on the CPU: {reason}; use --precision fp32")
    config = {
        "INFERENCE_PRECISION_HINT": _hint(precision),  # left to itself OpenVINO takes bf16 where it can
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": streams,
    }
    try:
        model = core.read_model(path)
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise ModelFileError(f"{path}: has other than one input and one output; export it with basnet-export onnx")
        compiled = core.compile_model(model, "CPU", config)
    except RuntimeError as error:
        line = next((t.strip() for t in reversed(str(error).splitlines()) if t.strip()), "no reason given")[:160]
        raise ModelFileError(f"{path}: OpenVINO cannot read it ({line}); export it again") from error
    if keep:
        forget_old_graphs()
    return compiled


def _spec(port: Any) -> TensorSpec:
    shape = tuple(None if axis.is_dynamic else axis.get_length() for axis in port.partial_shape)
    name = port.get_element_type().get_type_name()
    return TensorSpec(name=port.any_name, dtype=_DTYPES.get(name, name), shape=shape)
