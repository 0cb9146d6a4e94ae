"""ONNX Runtime on the CPU, CUDA or a provider; the only importer of onnxruntime.

with open_onnxruntime(Path("basnet.onnx")) as backend:
    masks_N1HW = backend.infer(batch_N3HW)
"""

from __future__ import annotations

import mmap
import platform
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

from numpy.typing import NDArray

from basnet_runtime.backends.cache import note_use, optimized_model_path, remove_old_optimized_models
from basnet_runtime.backends.openvino_provider import openvino_devices, openvino_options, openvino_version
from basnet_runtime.backends.rtx_provider import rtx_devices, rtx_options, rtx_plugin_version
from basnet_runtime.backends.workers import CpuBatches, may_load_twice, run_checked
from basnet_runtime.kinds import Precision
from basnet_runtime.machine.cpu_features import why_no_int8
from basnet_runtime.machine.threads import allowed_threads
from basnet_runtime.onnx_file.adapt import Adaptation, adapted
from basnet_torch.device import CPU, Device, DeviceKind
from basnet_torch.errors import BackendUnavailable, MediaError, ModelFileError
from basnet_torch.files import atomic_write, scratch_folder
from basnet_torch.spec import TensorSpec

__all__ = ["OnnxRuntimeBackend", "open_onnxruntime", "session_of", "write_folded_graph"]

# What is asked by device, most specific first; each falls to the next for single operations it does not have.
_PROVIDERS: dict[DeviceKind, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "openvino": ("OpenVINOExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    "rtx": ("NvTensorRTRTXExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
_MISSING = {
    "cuda": "pip uninstall -y onnxruntime, then pip install 'basnet-deploy[gpu]'",
    "tensorrt": "pip uninstall -y onnxruntime, then pip install 'basnet-deploy[gpu]'",
}
_RULE = "ONNX Runtime runs on cpu, openvino, or on cuda, tensorrt, rtx, each alone or as cuda:N"
_NO_FALLBACK = "fallback to CPU EP has been explicitly disabled"
_WEIGHTS_SUFFIX = ".weights"
_WEIGHTS_ENTRY = "session.optimized_model_external_initializers_file_name"
_DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}


class OnnxRuntimeBackend(CpuBatches):
    """Runs either graph; what it takes is read from the graph itself."""

    name: Literal["onnxruntime"] = "onnxruntime"

    def __init__(
        self, session: Any, description: str, *, threads: int = 1, lone: Callable[[], Any] | None = None
    ) -> None:
        """Wrap a session.

        Args:
            session: An `onnxruntime.InferenceSession` with one input and one output.
            description: What runs.
            threads: Batches that run beside each other.
            lone: Makes the session for these, which uses one thread; None lets them share `session`.
        """
        self.input = _spec(session.get_inputs()[0])
        self.output = _spec(session.get_outputs()[0])
        self.description = description
        self._session = session
        super().__init__(threads, lone and (lambda: partial(self._run, lone())))

    def infer(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Return the masks of `batch`, read in place; the result is the caller's own."""
        if self._session is None:
            raise ValueError("backend: it is closed; open the model again")
        return self._run(self._session, batch)

    def _run(self, session: Any, batch: NDArray[Any]) -> NDArray[Any]:
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        def infer(batch: NDArray[Any]) -> NDArray[Any]:
            return cast(NDArray[Any], session.run((self.output.name,), {self.input.name: batch})[0])

        try:
            return run_checked(infer, batch, self.input)
        except (state.EPFail, state.Fail, state.RuntimeException) as error:
            raise BackendUnavailable(
                f"{self.description}: cannot run this batch ({_first_line(error)}); try a smaller one, or cpu"
            ) from error

    def close(self) -> None:
        """Give the sessions and their memory back."""
        super().close()
        self._session = None


def open_onnxruntime(
    path: Path,
    *,
    device: Device | str = CPU,
    threads: int | None = None,
    stored: Precision | None = None,
    keep: bool = True,
    digest: str = "",
    adaptation: Adaptation | None = None,
) -> OnnxRuntimeBackend:
    """A session on exactly the provider that was asked.

    Args:
        path: An `.onnx` file with one input and one output, at least where it is adapted.
        device: `cpu`, `openvino` for the CPU by OpenVINO's provider, `cuda`, or `tensorrt` and `rtx` for the
            providers of TensorRT and TensorRT for RTX; the last three with `:N` are the device of that number.
        threads: CPU threads; None takes what the container allows.
        stored: What the file was written in, so that the description can say where that is not what it computes in.
        keep: Whether the optimized graph is kept for the next start, on the CPU.
        digest: The file's SHA-256 where it is known already and all weights are inside.
        adaptation: What to change in the copy that runs.

    Raises:
        BackendUnavailable: ONNX Runtime, the provider or an operation of the graph is not there.
        ModelFileError: The file is no graph that ONNX Runtime can read.
        UsageError: The device is of another kind.
    """
    device = Device.parse(device, rule=_RULE)
    kind = device.kind
    if stored == "bf16" and kind == "openvino":
        raise BackendUnavailable(
            f"{path}: OpenVINO's provider computes in FP32 here, not in bf16; use --backend openvino"
        )
    reason = why_no_int8() if stored == "int8" and device.on_cpu else None
    if reason:
        raise BackendUnavailable(f"int8 on the CPU: {reason}; run the model exported in fp32")
    ort = _import_onnxruntime(kind)
    threads = threads or allowed_threads()
    plugged = kind == "openvino" or (kind == "rtx" and _PROVIDERS["rtx"][0] not in ort.get_available_providers())
    providers = [] if plugged else _provider_options(ort, device)
    keeps = keep and kind == "cpu" and stored != "fp8"
    widens = kind == "cpu" and stored == "fp16"

    def opened(streams: int) -> Any:
        if kind == "openvino":
            with adapted(path, adaptation) as graph:
                return _session_in_openvino(ort, graph, path, threads, streams, keep=keep)
        if plugged:
            return _with_one_in_and_out(_session_in_rtx(ort, path, device, digest, adaptation, keep=keep), path)
        options = _options(ort, threads if streams == 1 else 1, stored)
        if keeps:
            session = _from_kept_graph(ort, path, providers, options, digest, adaptation, widens=widens)
            return _with_one_in_and_out(session, path)
        with _runnable(ort, path, adaptation, widens=widens) as graph:
            return _with_one_in_and_out(_opened(ort, graph, providers, options, path), path)

    session = opened(1)
    _check_active(session.get_providers(), device)
    where = f"{threads} threads" if device.on_cpu else f"device {device.number}"
    provider = _PROVIDERS[kind][0]
    if plugged:
        provider += f" {openvino_version() if kind == 'openvino' else rtx_plugin_version()}"
    description = f"ONNX Runtime {ort.__version__}, {provider}, {_computed(stored, kind)}{where}"
    lone = (lambda: opened(threads)) if device.on_cpu and may_load_twice(path) else None
    return OnnxRuntimeBackend(session, description, threads=threads, lone=lone)


def _check_active(active: Sequence[str], device: Device) -> None:
    if active[0] != _PROVIDERS[device.kind][0]:
        raise BackendUnavailable(
            f"device {device}: ONNX Runtime runs {', '.join(active)} instead of {_PROVIDERS[device.kind][0]}, "
            "whose CUDA libraries did not load; install the CUDA and cuDNN that this onnxruntime-gpu was built for, "
            "or ask --device cpu"
        )


def _computed(stored: Precision | None, kind: str) -> str:
    """What a file that was written in less than FP32 is computed in, for the description."""
    # On x86-64 it has no FP16 convolution: it casts weights and activations to FP32. On Arm it may have one. OpenVINO
    # has been told to compute in FP32.
    widens = kind == "openvino" or (kind == "cpu" and platform.machine() in ("x86_64", "AMD64"))
    if stored == "fp8" or (stored == "fp16" and widens):
        return f"{stored} file computed in fp32, "
    return "int8, " if stored == "int8" else ""


def session_of(graph: Path | bytes) -> Any:
    """Return an `onnxruntime.InferenceSession` on the CPU, for any graph.

    Inputs and outputs may be of any number.

    Raises:
        BackendUnavailable: ONNX Runtime, or an operation of the graph, is not there.
        ModelFileError: The graph cannot be read.
    """
    ort = _import_onnxruntime("cpu")
    return _opened(ort, graph, list(_PROVIDERS["cpu"]), _options(ort, allowed_threads()))


def write_folded_graph(path: Path, target: Path) -> None:
    """Write a graph with its constants folded, in standard operations.

    Raises:
        BackendUnavailable: ONNX Runtime, or an operation of the graph, is not there.
        ModelFileError: The graph cannot be read.
    """
    ort = _import_onnxruntime("cpu")
    options = _options(ort, 1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    _opened(ort, path, list(_PROVIDERS["cpu"]), options)


def _import_onnxruntime(kind: str) -> ModuleType:
    extra = {"cpu": "cpu", "openvino": "cpu,openvino-ep", "rtx": "rtx-ep"}.get(kind, "gpu")
    if version("onnxruntime") and version("onnxruntime-gpu"):
        raise BackendUnavailable(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'basnet-deploy[cpu]' or '[gpu]'"
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(f"ONNX Runtime is not installed; pip install 'basnet-deploy[{extra}]'") from error
    return cast(ModuleType, onnxruntime)


def version(distribution: str) -> str | None:
    """Return the version of the package that would be imported; None without it.

    Read off the folder's names: importlib.metadata, which knows more places, takes 15 ms of a start.
    """
    found = find_spec("onnxruntime")
    if found is None or found.origin is None:
        return None
    name = f"{distribution.replace('-', '_')}-"
    folders = Path(found.origin).parents[1].glob(f"{name}*.dist-info")
    return next((folder.name.removeprefix(name).removesuffix(".dist-info") for folder in folders), None)


def _provider_options(ort: ModuleType, device: Device) -> list[Any]:
    available, wanted = ort.get_available_providers(), _PROVIDERS[device.kind]
    if wanted[0] not in available:
        raise BackendUnavailable(
            f"device {device.kind}: this ONNX Runtime has {', '.join(available)} but no {wanted[0]}; "
            f"{_MISSING.get(device.kind, 'install onnxruntime again')}"
        )
    options = {
        name: {"device_id": str(device.number)}
        for name in wanted
        if name in available and name != "CPUExecutionProvider"
    }
    wanted = tuple(name for name in wanted if name in available)
    if "CUDAExecutionProvider" in options:
        options["CUDAExecutionProvider"]["use_tf32"] = "0"  # TF32, the default, keeps 10 bits: no FP32 file's masks
    return [(name, options[name]) if name in options else name for name in wanted]


def _options(ort: ModuleType, threads: int, stored: Precision | None = None) -> Any:
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    # Further optimization of ONNX Runtime 1.32 gives wrong masks on quantized FP8: of `basnet-lite`, they are 0.41
    # from FP32 in the mean, and 0.003 without it.
    options.graph_optimization_level = levels.ORT_ENABLE_BASIC if stored == "fp8" else levels.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Waiting threads sleep: spinning ones take the CPUs from the threads that decode and encode video.
    # Measured on two busy CPUs, width 16: 0.63 of the time, with a third more work done by another thread.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only; warnings about placement are no news to a user
    return options


def _session_in_openvino(ort: ModuleType, graph: Path, path: Path, threads: int, streams: int, *, keep: bool) -> Any:
    """A session that OpenVINO compiles as a whole."""
    devices = openvino_devices(ort)  # first: what is asked below is not in every ONNX Runtime
    options = _options(ort, threads)
    # OpenVINO optimizes by itself, and reads quantized layers better as they were written.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # What OpenVINO cannot run is an error; else ONNX Runtime would run it on its own kernels without a word.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.log_severity_level = 4  # it would also print the line that the error below makes of it
    options.add_provider_for_devices(devices, openvino_options(threads=threads, streams=streams, keep=keep))
    session = _opened(ort, graph, None, options, path)
    if keep:
        remove_old_optimized_models()
    return _with_one_in_and_out(session, path)


def _session_in_rtx(
    ort: ModuleType, path: Path, device: Device, digest: str, adaptation: Adaptation | None, *, keep: bool
) -> Any:
    """A session that TensorRT for RTX compiles as a whole; what it compiled is kept for the next start."""
    devices = rtx_devices(ort)
    if device.number >= len(devices):
        raise BackendUnavailable(f"device {device}: the plug-in offers {len(devices)} GPUs; give a smaller number")

    def options() -> Any:
        made = _options(ort, 1)
        made.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        made.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        made.log_severity_level = 4
        made.add_provider_for_devices([devices[device.number]], rtx_options())
        return made

    kept: Path | None = None
    failures = (MediaError, ModelFileError, BackendUnavailable, OSError)
    with suppress(*failures):
        gpu = sorted(devices[device.number].ep_metadata.items())
        by = f"onnxruntime-{ort.__version__} rtx-{rtx_plugin_version()} {gpu} {adaptation}"
        kept = optimized_model_path(path, by=by, digest=digest) if keep else None
        if kept is not None and not _is_sealed(kept):
            with atomic_write(kept, overwrite=True) as beside, adapted(path, adaptation) as graph:
                _compile_context(ort, graph, beside, options())
                _seal(beside)
            remove_old_optimized_models()
    if kept is not None and _is_sealed(kept):
        with suppress(*failures):
            session = _opened(ort, kept, None, options(), path, "TensorRT for RTX's")
            note_use(kept)
            return session
    with adapted(path, adaptation) as graph:  # and where it cannot be compiled, this says why
        return _opened(ort, graph, None, options(), path, "TensorRT for RTX's")


def _compile_context(ort: ModuleType, graph: Path, target: Path, options: Any) -> None:
    """Write a graph whose one node is the compiled network."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    try:
        ort.ModelCompiler(options, str(graph), embed_compiled_data_into_model=True).compile_to_file(str(target))
    except (state.EPFail, state.Fail, state.RuntimeException, state.NotImplemented, RuntimeError) as error:
        raise BackendUnavailable(f"{graph}: its compiled context is not kept ({_first_line(error)})") from error


def _with_one_in_and_out(session: Any, path: Path) -> Any:
    if len(session.get_inputs()) != 1 or len(session.get_outputs()) != 1:
        raise ModelFileError(f"{path}: has other than one input and one output; export it with basnet-export onnx")
    return session


@contextmanager
def _runnable(ort: ModuleType, path: Path, adaptation: Adaptation | None, *, widens: bool) -> Iterator[Path]:
    """Yield the file to optimize; of an FP16 file one whose constants are FP32 already.

    ONNX Runtime widens them after it has fused what it can, and so leaves each Clip, a ReLU6, beside its convolution.
    """
    with adapted(path, adaptation) as graph:
        if not widens:
            yield graph  # without a temporary folder: a container may have none
            return
        with scratch_folder() as folder:
            options = _options(ort, 1)
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.optimized_model_filepath = str(folder / path.name)
            _opened(ort, graph, list(_PROVIDERS["cpu"]), options, path)
            yield folder / path.name


def _from_kept_graph(
    ort: ModuleType,
    path: Path,
    providers: list[Any],
    options: Any,
    digest: str,
    adaptation: Adaptation | None,
    *,
    widens: bool,
) -> Any:
    """What `_opened` gives, five times as fast from the second time on; a graph that cannot be kept costs time only."""
    level = options.graph_optimization_level
    failures = (MediaError, ModelFileError, BackendUnavailable, OSError)
    kept: Path | None = None
    with suppress(*failures):
        by = f"onnxruntime-{ort.__version__} mapped {adaptation} {widens}"
        kept = optimized_model_path(path, by=by, digest=digest)
        weights = kept.with_suffix(_WEIGHTS_SUFFIX)
        if _is_sealed(kept, weights):
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            session = _opened(ort, kept, providers, options)
            note_use(kept)
            note_use(weights)
            return session
    options.graph_optimization_level = level
    if kept is not None:
        with suppress(*failures):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with (
                scratch_folder(kept.parent) as folder,  # first: where nothing can be kept, nothing is made twice
                _runnable(ort, path, adaptation, widens=widens) as graph,
            ):
                options.optimized_model_filepath = str(folder / kept.name)
                options.add_session_config_entry(_WEIGHTS_ENTRY, kept.with_suffix(_WEIGHTS_SUFFIX).name)
                session = _opened(ort, graph, providers, options, path)
                _publish(folder, kept)
            remove_old_optimized_models()
            return session
        options.optimized_model_filepath = ""
    with _runnable(ort, path, adaptation, widens=widens) as graph:
        return _opened(ort, graph, providers, options, path)


def _publish(folder: Path, kept: Path) -> None:
    """Seal a graph that was written in `folder` and move it to its place, its weights in a file beside it.

    Such weights are mapped, where those inside a graph are read and copied: 9 ms of CPU time against 44 for
    `basnet-lite`, and sessions and processes share the memory. The graph holds the name of their file, so both are
    written under the names that they keep, and never in place: other processes have them mapped.
    """
    graph, weights = folder / kept.name, folder / kept.with_suffix(_WEIGHTS_SUFFIX).name
    _seal(graph, weights)
    if weights.exists():  # not where all constants are small
        weights.replace(kept.with_suffix(_WEIGHTS_SUFFIX))
    graph.replace(kept)


def _seal(graph: Path, weights: Path | None = None) -> None:
    """End an ONNX file with a checksum of its weights' file and of what is before it, as an entry of its metadata."""
    checksum = zlib.crc32(graph.read_bytes(), _checksum_of(weights))
    with graph.open("ab") as file:
        file.write(_sealed(checksum))


def _is_sealed(graph: Path, weights: Path | None = None) -> bool:
    """Whether an ONNX file is there and ends with its checksum: a flipped bit in its weights would show nowhere."""
    length = len(_sealed(0))
    if not graph.is_file() or graph.stat().st_size <= length:
        return False
    with _mapped(graph) as view:
        return bytes(view[-length:]) == _sealed(zlib.crc32(view[:-length], _checksum_of(weights)))


def _checksum_of(weights: Path | None) -> int:
    if weights is None or not weights.is_file() or weights.stat().st_size == 0:
        return 0
    with _mapped(weights) as view:
        return zlib.crc32(view)


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        memoryview(content) as view,
    ):
        yield view


def _sealed(checksum: int) -> bytes:
    """Entry `checksum` of a ModelProto's metadata_props, field 14: a protobuf message may continue with more fields."""
    key, value = b"checksum", b"%08x" % checksum
    entry = bytes((0x0A, len(key))) + key + bytes((0x12, len(value))) + value
    return bytes((0x72, len(entry))) + entry


def _opened(
    ort: ModuleType,
    graph: Path | bytes,
    providers: list[Any] | None,
    options: Any,
    name: Path | None = None,
    whose: str = "OpenVINO's",
) -> Any:
    """Open a session; errors name the file `name`, of which the graph may be an adapted copy."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    path = name or (graph if isinstance(graph, Path) else "graph in memory")
    try:
        # Its own fallback prints on standard output and continues with other kernels, even in the middle of a run.
        return ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)
    except state.NotImplemented as error:
        raise BackendUnavailable(
            f"{path}: {_first_line(error)}; ONNX Runtime cannot run this graph here: try --backend openvino"
        ) from error
    except (state.InvalidProtobuf, state.InvalidGraph, state.InvalidArgument, state.Fail, state.NoSuchFile) as error:
        if _NO_FALLBACK in str(error):
            raise BackendUnavailable(f"{path}: {whose} provider runs only a part of it; use --device cpu") from error
        raise ModelFileError(f"{path}: ONNX Runtime cannot read it ({_first_line(error)}); export it again") from error
    except (state.EPFail, state.RuntimeException, RuntimeError, ValueError) as error:
        raise BackendUnavailable(
            f"{path}: ONNX Runtime's provider does not start here ({_first_line(error)}); use --device cpu"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).rsplit(" : ", maxsplit=1)[-1].strip().split("\n", maxsplit=1)[0][:160]


def _spec(node: Any) -> TensorSpec:
    shape = tuple(n if isinstance(n, int) else None for n in node.shape)
    return TensorSpec(name=node.name, dtype=_DTYPES.get(node.type, node.type), shape=shape)
