"""Open a model file: choose the backend, read the preprocessing, check what runs.

with open_model(Path("basnet.onnx")) as model:
    mask_HW = model.mask(image_HWC)
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from basnet_runtime.backends.base import Backend
from basnet_runtime.cuda.base import CudaName
from basnet_runtime.kinds import BackendName, Precision
from basnet_runtime.machine.cpu_features import why_no_int8
from basnet_runtime.manifest import Manifest, adaptation_for, read_manifest, read_manifest_beside
from basnet_runtime.model import SaliencyModel
from basnet_runtime.model_files import model_kind
from basnet_runtime.onnx_file.header import OnnxHeader, read_onnx_header
from basnet_torch.device import CPU, Device
from basnet_torch.errors import UsageError

__all__ = ["BUILTIN", "BUILTIN_INT8", "builtin_model", "open_model"]

BUILTIN = Path(__file__).parent / "models" / "basnet-lite.onnx"
BUILTIN_INT8 = BUILTIN.with_name("basnet-lite-int8.onnx")


def open_model(
    path: Path | str | None = None,
    *,
    backend: BackendName | None = None,
    device: Device | str = CPU,
    threads: int | None = None,
    precision: Precision | None = None,
    cuda: CudaName = "cuda-core",
    size: tuple[int, int] | None = None,
) -> SaliencyModel:
    """Open a model, a context manager; `basnet_runtime.load` wraps it.

    Args:
        path: A checkpoint (`.pth`, `.ckpt`, `.safetensors` ...), an exported `.onnx` or a TensorRT engine (`.plan`),
            detected by content; None opens the built-in model, in INT8 where processor and library have it.
        backend: Which library runs it. None takes PyTorch for a checkpoint; for `.onnx` ONNX Runtime, or OpenVINO where
            only that is installed or bfloat16 is asked of an FP32 file. `model.backend.description` says what runs.
        device: `cpu`, `cuda` or `cuda:N`; with ONNX Runtime also `openvino`, its provider for the CPU, and
            `tensorrt` or `rtx`, alone or with `:N`. An engine runs on `cuda` where `cpu` is given.
        threads: CPU threads; None takes what the container allows.
        precision: What to compute in; None takes the file's own.
        cuda: For an engine, the library that moves its data: `cuda-core` or `pycuda`.
        size: Height and width to run an `.onnx` at that leaves them free, multiples of 32; None takes the size that it
            was validated at.

    Raises:
        BackendUnavailable: The library, device or arithmetic is not there, or an engine is for another library or GPU.
        ModelFileError: The file is unreadable, foreign, or contradicts its manifest.
        CheckpointError: The checkpoint is unreadable or of another network.
        UsageError: The arguments do not go together.
    """
    device = Device.parse(device)
    if path is None:
        path = builtin_model(backend, device, precision)
        return _open_onnx(path, backend, device, threads, precision, size)
    path = Path(path)
    kind = model_kind(path)
    if size is not None and kind != "onnx":
        raise UsageError(f"{path.name} with a size: only an .onnx takes one. Leave size out")
    if kind == "checkpoint":
        return _open_checkpoint(path, backend, device, threads, precision)
    if kind == "onnx":
        return _open_onnx(path, backend, device, threads, precision, size)
    return _open_plan(path, backend, device, precision, cuda)


def builtin_model(backend: BackendName | None = None, device: Device = CPU, precision: Precision | None = None) -> Path:
    """Return the built-in model's file: INT8 where the CPU adds exactly, or as asked."""
    if precision == "int8":
        return BUILTIN_INT8
    here = device.on_cpu and precision is None and BUILTIN_INT8.exists() and why_no_int8() is None
    return BUILTIN_INT8 if here and _runs_int8(BUILTIN_INT8, backend, device) else BUILTIN


def _runs_int8(path: Path, backend: BackendName | None, device: Device) -> bool:
    """Whether the library that an INT8 file is for is there, and no other is asked."""
    manifest = read_manifest_beside(path) or read_manifest(path)  # it is checked when the file is opened
    if manifest.quantized_for == "openvino" and device == CPU:
        return backend in (None, "openvino") and find_spec("openvino") is not None
    return backend in (None, "onnxruntime", "openvino")


def _open_plan(
    path: Path, backend: BackendName | None, device: Device, precision: Precision | None, cuda: CudaName
) -> SaliencyModel:
    from basnet_runtime.backends.tensorrt.backend import open_engine

    if backend not in (None, "tensorrt"):
        raise UsageError(f"{path.name} with backend {backend}: a plan runs in tensorrt; leave --backend out")
    device = Device("cuda") if device == CPU else device
    engine, manifest = open_engine(path, device=device, precision=precision, cuda=cuda)
    return SaliencyModel(engine, manifest.preprocess, manifest.postprocess, path.name, engine.profiles)


def _open_checkpoint(
    path: Path, backend: BackendName | None, device: Device, threads: int | None, precision: Precision | None
) -> SaliencyModel:
    if backend not in (None, "pytorch"):
        raise UsageError(
            f"{path.name} with backend {backend}: a checkpoint runs in pytorch; run 'basnet-export onnx' first"
        )
    from basnet_runtime.backends.pytorch import open_pytorch, read_checkpoint

    checkpoint = read_checkpoint(path)
    engine = open_pytorch(checkpoint, device=device, threads=threads, precision=precision or "fp32")
    return SaliencyModel(engine, checkpoint.preprocess, checkpoint.postprocess, path.name)


def _open_onnx(
    path: Path,
    backend: BackendName | None,
    device: Device,
    threads: int | None,
    precision: Precision | None,
    size: tuple[int, int] | None,
) -> SaliencyModel:
    header = read_onnx_header(path)
    manifest = read_manifest(path, header)
    if size is not None:
        manifest = _resized(path, manifest, *size)
    backend = backend or _default_backend(manifest, device, precision)
    if "openvino" in (backend, device.kind) and precision == "fp16" == manifest.precision:
        raise UsageError(
            f"{path.name} with precision fp16: OpenVINO computes fp16 files in fp32 on the CPU; "
            "leave --precision out to allow that, or run it with --backend onnxruntime --device cuda"
        )
    for name in {backend, device.kind} & set(manifest.refused):
        raise UsageError(
            f"{path.name} in {name}: {manifest.refused[name]}. Run it in ONNX Runtime: leave --backend and --device out"
        )
    engine = _engine(path, header, manifest, backend, device, threads, precision or manifest.precision)
    return SaliencyModel(engine, manifest.preprocess, manifest.postprocess, path.name)


def _resized(path: Path, manifest: Manifest, height: int, width: int) -> Manifest:
    if (manifest.graph, manifest.input.shape[2:]) != ("tensor", (None, None)):
        raise UsageError(
            f"{path.name} at {height}x{width}: its size is not free. Leave size out, or export it again with --size"
        )
    try:
        return replace(manifest, preprocess=replace(manifest.preprocess, height=height, width=width))
    except ValueError as error:
        raise UsageError(f"{path.name}: {error}") from error


def _default_backend(manifest: Manifest, device: Device, precision: Precision | None) -> BackendName:
    """ONNX Runtime where it can do what is asked, else OpenVINO; what is not installed is no candidate."""
    if device != CPU:
        return "onnxruntime"
    candidates: tuple[BackendName, ...] = ("onnxruntime", "openvino")
    if (precision or manifest.precision) == "bf16" or manifest.quantized_for == "openvino":
        return "openvino"  # ONNX Runtime has no bfloat16 convolution on the CPU, nor one from bytes to floats
    installed = [name for name in candidates if find_spec(name)]
    return installed[0] if installed else "onnxruntime"


def _engine(
    path: Path,
    header: OnnxHeader,
    manifest: Manifest,
    backend: BackendName,
    device: Device,
    threads: int | None,
    precision: Precision,
) -> Backend:
    digest = "" if header.external else manifest.onnx_sha256
    if backend == "openvino":
        from basnet_runtime.backends.openvino import open_openvino

        _refuse_other_precision(path, manifest, precision, allowed=("fp32", "bf16"))
        compute: Precision = "bf16" if precision == "bf16" else "fp32"
        return open_openvino(
            path,
            device=device,
            threads=threads,
            precision=compute,
            stored=manifest.precision,
            digest=digest,
            adaptation=adaptation_for(path, manifest, header),
        )
    if backend == "onnxruntime":
        from basnet_runtime.backends.onnxruntime import open_onnxruntime

        _refuse_other_precision(path, manifest, precision, allowed=())
        if manifest.quantized_for == "openvino" and device.kind != "openvino":
            raise UsageError(
                f"{path.name} in ONNX Runtime on {device}: it is quantized for OpenVINO, and other kernels would "
                "compute it in FP32; leave --backend and --device out, or take --device openvino"
            )
        return open_onnxruntime(
            path,
            device=device,
            threads=threads,
            stored=manifest.precision,
            digest=digest,
            adaptation=adaptation_for(path, manifest, header),
        )
    if backend == "onnx-reference":
        from basnet_runtime.backends.onnx_reference import open_onnx_reference

        _refuse_other_precision(path, manifest, precision, allowed=())
        return open_onnx_reference(
            path, device=device, stored=manifest.precision, adaptation=adaptation_for(path, manifest, header)
        )
    if backend == "pytorch":
        raise UsageError(
            f"{path.name} with backend pytorch: PyTorch runs the checkpoint, not its export; give the .pth"
        )
    raise UsageError(
        f"{path.name} with backend tensorrt: TensorRT runs a plan; run 'basnet-export engine {path.name}' first, "
        "or take --device tensorrt for ONNX Runtime's TensorRT provider"
    )


def _refuse_other_precision(
    path: Path, manifest: Manifest, precision: Precision, *, allowed: tuple[Precision, ...]
) -> None:
    """A file computes in what it was written in; only an FP32 file may be run in what a backend converts to."""
    if precision == manifest.precision or (manifest.precision == "fp32" and precision in allowed):
        return
    how = "--backend openvino computes an fp32 file in bf16; else " if precision == "bf16" and not allowed else ""
    raise UsageError(
        f"{path.name} is {manifest.precision}, not {precision}; {how}run 'basnet-export onnx --precision {precision}'"
    )
