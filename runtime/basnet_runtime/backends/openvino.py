"""OpenVINO on the CPU, in FP32 or bfloat16; the only importer of openvino.

with open_openvino(Path("basnet.onnx"), precision="bf16") as backend:
    masks_N1HW = backend.infer(batch_N3HW)
"""

from __future__ import annotations

import io
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.backends.cache import note_use, optimized_model_path, remove_old_optimized_models
from basnet_runtime.backends.workers import CpuBatches, may_load_twice, run_checked
from basnet_runtime.kinds import Precision
from basnet_runtime.machine.cpu_features import why_no_bf16, why_no_int8
from basnet_runtime.machine.threads import allowed_threads
from basnet_runtime.onnx_file.adapt import Adaptation, adapted
from basnet_torch.device import CPU, Device
from basnet_torch.errors import BackendUnavailable, MediaError, ModelFileError, UsageError
from basnet_torch.files import atomic_write
from basnet_torch.spec import TensorSpec
from basnet_torch.telemetry import without_openvino_telemetry

__all__ = ["OpenVinoBackend", "open_openvino"]

_DTYPES = {"f32": "float32", "u8": "uint8"}
_CONVERTER = "openvino.tools.ovc"
_CHECKSUM = struct.Struct("<I")


class OpenVinoBackend(CpuBatches):
    """Runs either graph; what it takes is read from the graph itself."""

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
        self._request = compiled.create_infer_request()
        self._one_at_a_time = threading.Lock()  # a request runs one batch, whichever thread asks
        super().__init__(threads, lone and (lambda: _on_a_stream(lone(), self.input)))

    def infer(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Return the masks of `batch`, read in place; the result is a copy."""
        with self._one_at_a_time:
            if self._request is None:
                raise ValueError("backend: it is closed; open the model again")
            return _infer(self._request, batch, self.input)

    def close(self) -> None:
        """Give the compiled models and their memory back."""
        super().close()
        self._request = None


def open_openvino(
    path: Path,
    *,
    device: Device | str = CPU,
    threads: int | None = None,
    precision: Precision = "fp32",
    stored: Precision | None = None,
    keep: bool = True,
    digest: str = "",
    adaptation: Adaptation | None = None,
) -> OpenVinoBackend:
    """A graph compiled for exactly the arithmetic that was asked.

    Args:
        path: An `.onnx` file with one input and one output.
        device: `cpu`.
        threads: CPU threads; None takes what the container allows.
        precision: `fp32` or `bf16`, what convolutions compute in.
        stored: What the file was written in, so that the description can say where that is not what it computes in.
        keep: Whether the compiled model is kept for the next start.
        digest: The file's SHA-256 where it is known already and all weights are inside.
        adaptation: What to change in the copy that runs.

    Raises:
        BackendUnavailable: OpenVINO, or bfloat16 on this CPU, is not there.
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

    def opened(streams: int) -> Any:
        if not keep:
            return _compiled(ov, path, threads, precision, streams, adaptation)
        return _from_kept_model(ov, path, threads, precision, streams, digest, adaptation)

    compiled = opened(1)
    active = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if active != _hint(precision):
        raise BackendUnavailable(f"precision {precision}: OpenVINO would compute in {active}; use --precision fp32")
    computes = _computed(stored, precision)
    description = f"OpenVINO {ov.__version__.partition('-')[0]}, CPU, {computes}, {threads} threads"
    return OpenVinoBackend(
        compiled, description, threads=threads, lone=(lambda: opened(threads)) if may_load_twice(path) else None
    )


def _infer(request: Any, batch: NDArray[Any], taken: TensorSpec) -> NDArray[Any]:
    def infer(batch: NDArray[Any]) -> NDArray[Any]:
        return cast(NDArray[Any], request.infer([batch], share_inputs=True)[0])

    return run_checked(infer, batch, taken)


def _on_a_stream(compiled: Any, taken: TensorSpec) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Inference that any thread may call: each has a request of its own."""
    own = threading.local()

    def infer(batch: NDArray[Any]) -> NDArray[Any]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        return _infer(own.request, batch, taken)

    return infer


def _computed(stored: Precision | None, precision: Precision) -> str:
    if (stored, precision) == ("fp16", "fp32"):
        return "fp16 file computed in fp32"
    return "int8" if stored == "int8" else precision


def _import_openvino() -> ModuleType:
    try:
        with without_openvino_telemetry(), _without_converter():
            import openvino
    except ImportError as error:
        here = ", or take --device openvino" if find_spec("onnxruntime_ep_openvino") else ""
        raise BackendUnavailable(f"OpenVINO is not installed; pip install 'basnet-deploy[openvino]'{here}") from error
    return cast(ModuleType, openvino)


@contextmanager
def _without_converter() -> Iterator[None]:
    """Import openvino without its model converter, half of its import time; who asks for the converter still gets it.

    openvino imports `openvino.tools.ovc` at its end, and continues where that cannot be imported.
    """
    if "openvino" in sys.modules or _CONVERTER in sys.modules:
        yield
        return
    sys.modules[_CONVERTER] = cast(ModuleType, None)  # what Python takes for "cannot be imported"
    try:
        yield
    finally:
        del sys.modules[_CONVERTER]
    openvino = sys.modules["openvino"]
    if not hasattr(openvino, "convert_model"):
        vars(openvino).setdefault("__getattr__", _converter)


def _converter(name: str) -> Any:
    if name == "convert_model":
        with without_openvino_telemetry():
            return import_module(_CONVERTER).convert_model
    raise AttributeError(f"module 'openvino' has no attribute {name!r}")


def _hint(precision: Precision) -> str:
    return "bf16" if precision == "bf16" else "f32"


def _config(threads: int, precision: Precision, streams: int) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": _hint(precision),  # left to itself OpenVINO takes bf16 where it can
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": streams,
        # Each process would put its threads on the same first cores: two on a machine were as slow as one.
        "ENABLE_CPU_PINNING": False,
    }


def _compiled(
    ov: ModuleType, path: Path, threads: int, precision: Precision, streams: int, adaptation: Adaptation | None
) -> Any:
    core = ov.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        reason = why_no_bf16() or "OpenVINO does not list bfloat16 among this CPU's instruction sets"
        raise BackendUnavailable(f"bf16 on the CPU: {reason}; use --precision fp32")
    try:
        with adapted(path, adaptation) as graph:
            model = core.read_model(graph)
            if len(model.inputs) != 1 or len(model.outputs) != 1:
                raise ModelFileError(
                    f"{path}: has other than one input and one output; export it with basnet-export onnx"
                )
            return core.compile_model(model, "CPU", _config(threads, precision, streams))
    except RuntimeError as error:
        line = next((t.strip() for t in reversed(str(error).splitlines()) if t.strip()), "no reason given")[:160]
        raise ModelFileError(f"{path}: OpenVINO cannot read it ({line}); export it again") from error


def _from_kept_model(
    ov: ModuleType,
    path: Path,
    threads: int,
    precision: Precision,
    streams: int,
    digest: str,
    adaptation: Adaptation | None,
) -> Any:
    """What `_compiled` gives, without parsing and optimizing from the second time on.

    OpenVINO's own cache would do, but a file there that was cut short is compiled into, and its key is a path and a
    time. Here a checksum stands before the model, and one that cannot be kept costs time only.
    """
    config = _config(threads, precision, streams)
    settings = " ".join((*(f"{name}={value}" for name, value in sorted(config.items())), str(adaptation)))
    kept: Path | None = None
    with suppress(OSError):
        kept = optimized_model_path(path, by=f"openvino-{ov.__version__} {settings}", digest=digest, suffix=".openvino")
        if (model := _checked(kept)) is not None:
            with suppress(RuntimeError):  # of another build of the same version
                compiled = ov.Core().import_model(ov.Tensor(model), "CPU", config)
                note_use(kept)
                return compiled
    compiled = _compiled(ov, path, threads, precision, streams, adaptation)
    if kept is not None:
        with suppress(MediaError, OSError, RuntimeError):
            compiled.export_model(stream := io.BytesIO())
            with atomic_write(kept, overwrite=True) as beside:
                beside.write_bytes(_CHECKSUM.pack(zlib.crc32(stream.getbuffer())) + stream.getbuffer())
            remove_old_optimized_models()
    return compiled


def _checked(kept: Path) -> NDArray[np.uint8] | None:
    """The bytes of a kept model, or None where there are none or they are damaged."""
    if not kept.is_file():
        return None
    content = np.fromfile(kept, np.uint8)
    model = content[_CHECKSUM.size :]
    whole = model.size > 0 and content[: _CHECKSUM.size].tobytes() == _CHECKSUM.pack(zlib.crc32(model.data))
    return model if whole else None


def _spec(port: Any) -> TensorSpec:
    shape = tuple(None if axis.is_dynamic else axis.get_length() for axis in port.partial_shape)
    name = port.get_element_type().get_type_name()
    return TensorSpec(name=port.any_name, dtype=_DTYPES.get(name, name), shape=shape)
