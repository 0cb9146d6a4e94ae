"""Benchmark candidates of a model: each library with each arithmetic it runs.

A model is a checkpoint, an exported `.onnx`, a TensorRT engine (`.plan`), or `random:W`, a network of width W with
random weights: its times are those of a trained one, because a network does the same work whatever its weights are.
For ONNX Runtime and OpenVINO a checkpoint is exported to a temporary folder first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from basnet_benchmarks.device_times import Mode, open_torch_variant
from basnet_runtime.kinds import BackendName, Precision
from basnet_runtime.manifest import Manifest, read_manifest, sha256_of
from basnet_runtime.model import SaliencyModel
from basnet_runtime.model_files import model_kind
from basnet_runtime.open import open_model
from basnet_torch.device import CPU, Device
from basnet_torch.errors import BackendUnavailable, ModelFileError, UsageError
from basnet_torch.options import argument, option

if TYPE_CHECKING:
    from basnet_torch.checkpoint import Checkpoint

__all__ = ["REFERENCE", "Candidate", "ModelSource", "Variant", "candidates_of", "fingerprint_of", "parse_choices"]

# Options that several commands have, as metadata of their configs' fields; see `basnet_benchmarks.cli`
THREADS = option("Threads of every backend. Default: all allowed.", min=1)
BACKENDS = option(
    "Run only this; repeatable. onnxruntime:int8:openvino is its provider of OpenVINO. Default: all.",
    "--backend",
    metavar="BACKEND[:PRECISION]",
)
MODEL = argument(
    "MODEL",
    ".pth, .onnx or .plan; 'lite' is the built-in model.",
    parse=lambda text: None if text == "lite" else Path(text),
)
BACKEND = option("Default: chosen by the file.")
PRECISION = option("Default: the file's own.")
PICTURES = option("Folder of pictures, or data set with masks. Default: five photographs.")
MASKS = option("Values of masks: gray; labels (not 0 is object, 255 left out); trimap (1, 2, 3); auto: gray alone.")
RUN_DEVICE = option("cpu, openvino, or cuda, tensorrt, rtx, alone or as cuda:N.", parse=Device.parse)
_RANDOM = "random:"
_DIGITS = 12
_PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_Progress = Callable[[str], None]
Provider = Literal["", "openvino"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One library with one arithmetic."""

    backend: BackendName  # the library
    precision: Precision  # what it computes in
    mode: Mode = ""  # tells PyTorch's other ways of running on a CUDA device apart
    provider: Provider = ""  # the device to open it with, where a library has more than one for the same CPU

    @property
    def arithmetic(self) -> str:
        """Precision, and mode or provider, for people."""
        return " ".join(part for part in (self.precision, self.mode, self.provider) if part)

    @property
    def choice(self) -> str:
        """What asks for it by name, in all its modes."""
        return ":".join(part for part in (self.backend, self.precision, self.provider) if part)

    def is_asked_by(self, choice: str) -> bool:
        """Tell whether a choice selects it; a library alone selects all its variants."""
        return choice in (self.choice, self.backend)

    def __str__(self) -> str:
        return f"{self.backend} {self.arithmetic}"


REFERENCE = Variant(backend="pytorch", precision="fp32")


def parse_choices(texts: Sequence[str]) -> tuple[str, ...]:
    """Check `BACKEND`, `BACKEND:PRECISION` and `onnxruntime:PRECISION:openvino`.

    Raises:
        UsageError: For names that are not known.
    """
    backends: tuple[BackendName, ...] = get_args(BackendName)
    known = {*backends, *(f"{backend}:{number}" for backend in backends for number in _PRECISIONS)}
    known |= {f"onnxruntime:{number}:openvino" for number in _PRECISIONS}
    for text in texts:
        if text not in known:
            raise UsageError(
                f"backend {text!r}: give {', '.join(backends)}, alone, as BACKEND:PRECISION "
                f"({', '.join(_PRECISIONS)}) or as onnxruntime:PRECISION:openvino"
            )
    return tuple(texts)


def parse_device(text: str | Device) -> Device:
    """Read a device on which every library can be measured."""
    also = "; INT8 files are measured in OpenVINO's provider with cpu" if str(text).startswith("openvino") else ""
    rule = f"give cpu, or cuda, tensorrt or rtx, alone or as cuda:N{also}"
    return Device.parse(text, of=("cpu", "cuda", "tensorrt", "rtx"), rule=rule)


def fingerprint_of(path: Path) -> str:
    """Return a digest of a file's network, so that reports compare like with like.

    A checkpoint and a graph exported from it in FP32 are one network, told by the checkpoint's digest and that of its
    preprocessing. A file of less precision, a `frame` graph and a plan have numbers, and so a digest, of their own.

    Raises:
        ModelFileError: An `.onnx` cannot be read.
        CheckpointError: A checkpoint cannot be read.
    """
    kind = model_kind(path)
    if kind == "checkpoint":
        from basnet_runtime.backends.pytorch import read_checkpoint

        return f"{sha256_of(path)[:_DIGITS]}/{read_checkpoint(path).preprocess.digest()}"
    manifest = read_manifest(path) if kind == "onnx" else None
    if manifest and manifest.precision == "fp32" and manifest.graph == "tensor" and not manifest.changed:
        return f"{manifest.checkpoint_sha256[:_DIGITS]}/{manifest.preprocess.digest()}"
    return sha256_of(path)[:_DIGITS]


MEASURED_DEVICE = option("cpu, or cuda, tensorrt or rtx, alone or as cuda:N.", parse=parse_device)


class ModelSource:
    """A model as named, and its files: a checkpoint, an `.onnx` or a plan.

    `file` is empty for random weights, `precision` is `fp32` for a checkpoint, `quantized_for` is None but for INT8.
    """

    def __init__(self, text: str, folder: Path, progress: _Progress = lambda _: None) -> None:
        """`folder`: a temporary folder of this source alone.

        Raises:
            UsageError: The name is none of a model.
            CheckpointError: The checkpoint cannot be read.
            ModelFileError: The `.onnx` cannot be read.
            BackendUnavailable: PyTorch is not there to read a checkpoint.
        """
        from basnet_runtime.backends.pytorch import read_checkpoint
        from basnet_runtime.backends.tensorrt.preflight import read_plan_manifest

        path, random = Path(text), text.startswith(_RANDOM)
        self._folder, self._progress = folder, progress
        self.name, self.file = path.name, "" if random else text
        self.precision: Precision = "fp32"
        self.quantized_for: str | None = None
        try:
            kind = "checkpoint" if random else model_kind(path)
        except ModelFileError as error:
            raise UsageError(f"{error}, or random:WIDTH") from error
        self.plan = path if kind == "plan" else None
        self.checkpoint = (_random_checkpoint(text, folder) if random else path) if kind == "checkpoint" else None
        if self.checkpoint:
            found: Checkpoint | Manifest = read_checkpoint(self.checkpoint)
        else:
            found = manifest = read_plan_manifest(path)[0] if self.plan else read_manifest(path)
            self.precision, self.quantized_for = manifest.precision, manifest.quantized_for
        if kind == "onnx":
            self.__dict__["onnx"] = path  # what `onnx` would otherwise export
        self.width = found.width
        # What its masks and times are compared with: an adopted network is its own reference, in ONNX Runtime.
        self.reference = REFERENCE if self.checkpoint else None
        if isinstance(found, Manifest) and found.original:
            self.reference = Variant(backend="onnxruntime", precision=self.precision)
        # Which files are one network at one size: they do the same work.
        self.network: tuple[Any, ...] = (found.width, *_size(found))
        if isinstance(found, Manifest) and found.adopted:
            self.network = (found.checkpoint_sha256, *_size(found))
        self.size = _size(found)

    @cached_property
    def fingerprint(self) -> str:
        """Which network it is, see `fingerprint_of`."""
        return fingerprint_of(self.checkpoint or Path(self.file))

    @cached_property
    def onnx(self) -> Path:
        """The ONNX file; a checkpoint is exported in FP32 when this is first asked."""
        from basnet_export.config import ExportConfig
        from basnet_export.onnx_export import export_onnx

        assert self.checkpoint is not None  # noqa: S101 - `__init__` has set this property otherwise
        self._progress(f"exporting {self.name}")
        output = self._folder / f"{self.checkpoint.stem}.onnx"
        # Unchecked: latency does not depend on the masks, and the caller measures parity itself.
        return export_onnx(ExportConfig(checkpoint=self.checkpoint, output=output, check=False))

    def variants(self, device: Device) -> tuple[Variant, ...]:
        """List every candidate for the device, installed or not."""
        if self.plan:
            return (Variant(backend="tensorrt", precision=self.precision),)
        found: list[Variant] = []
        if self.checkpoint:
            found += [REFERENCE, Variant(backend="pytorch", precision="bf16")]
            if device != CPU:  # what an engine must be compared with on its own device
                found += [
                    Variant(backend="pytorch", precision="fp16", mode="channels-last"),
                    Variant(backend="pytorch", precision="fp32", mode="compiled"),
                    Variant(backend="pytorch", precision="fp16", mode="compiled"),
                ]
        if self.quantized_for != "openvino":  # ONNX Runtime's own kernels would compute it in FP32
            found.append(Variant(backend="onnxruntime", precision=self.precision))
        if device != CPU:
            return tuple(found)
        if self.precision == "int8" and (self.quantized_for == "openvino" or find_spec("onnxruntime_ep_openvino")):
            found.append(Variant(backend="onnxruntime", precision="int8", provider="openvino"))
        # OpenVINO has no FP16 arithmetic on the CPU: such a file is computed, and so named, in FP32.
        found.append(Variant(backend="openvino", precision="fp32" if self.precision == "fp16" else self.precision))
        if self.precision == "fp32":
            found.append(Variant(backend="openvino", precision="bf16"))
        return tuple(found)

    def variants_by_name(self, device: Device, choices: Sequence[str]) -> tuple[Variant, ...]:
        """`variants`, and the reference evaluator where it is asked: it takes minutes."""
        slow = Variant(backend="onnx-reference", precision=self.precision)
        asked = device == CPU and not self.plan and any(slow.is_asked_by(choice) for choice in choices)
        return (*self.variants(device), *((slow,) if asked else ()))


def _size(found: Checkpoint | Manifest) -> tuple[int, int]:
    return found.preprocess.height, found.preprocess.width


def _random_checkpoint(text: str, folder: Path) -> Path:
    try:
        import torch
    except ImportError as error:
        raise BackendUnavailable(f"{text}: needs PyTorch; pip install 'basnet-deploy[train]'") from error
    from basnet_torch.checkpoint import Checkpoint, save_checkpoint
    from basnet_torch.model.basnet import BASNet
    from basnet_torch.spec import Postprocess, Preprocess

    number = text.removeprefix(_RANDOM)
    if not number.isdecimal() or int(number) < 1:
        raise UsageError(f"{text}: give a width, as in random:64")
    torch.manual_seed(0)
    path = folder / f"random-{number}.safetensors"
    checkpoint = Checkpoint(
        width=int(number),
        state=BASNet(int(number)).state_dict(),
        preprocess=Preprocess(),
        postprocess=Postprocess(),
        origin="random",
    )
    save_checkpoint(path, checkpoint)
    return path


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One variant of one model."""

    source: ModelSource
    variant: Variant
    device: Device
    threads: int

    @property
    def name(self) -> str:
        """For people, and unique within a run that names each model once."""
        return f"{self.source.name}, {self.variant}"

    @property
    def contract(self) -> Precision:
        """Name the precision whose limits hold: the file's below FP32, or the backend's."""
        return self.variant.precision if self.source.precision == "fp32" else self.source.precision

    @property
    def path(self) -> Path:
        """The file that is opened."""
        if self.variant.backend == "pytorch":
            assert self.source.checkpoint is not None  # noqa: S101 - else there is no such variant
            return self.source.checkpoint
        return self.source.plan or self.source.onnx

    def open(self) -> SaliencyModel:
        """Ready to run; see `open_described`."""
        return open_described(self.described())

    def described(self) -> dict[str, Any]:
        """What `open_described` takes, as plain values that another process can be given."""
        is_torch = self.variant.backend == "pytorch"
        device = Device(self.variant.provider) if self.variant.provider else self.device
        widened = self.source.precision == "fp16" and self.variant.precision == "fp32"
        return {
            "path": str(self.path),
            "backend": self.variant.backend,
            "mode": self.variant.mode,
            "device": device.for_torch() if is_torch else str(device),
            "threads": self.threads,
            "precision": None if widened else self.variant.precision,  # what nobody asked for is not refused
        }


def open_described(values: Mapping[str, Any]) -> SaliencyModel:
    """The model of `Candidate.described`, ready to run.

    Raises:
        BackendUnavailable: The library, device or arithmetic is not there.
        BasnetError: See `basnet_runtime.open.open_model`.
    """
    options = dict(values)
    path, mode = Path(options.pop("path")), options.pop("mode")
    if not mode:
        return open_model(path, **options)
    from basnet_runtime.backends.pytorch import read_checkpoint

    checkpoint = read_checkpoint(path)
    backend = open_torch_variant(checkpoint, device=options["device"], precision=options["precision"], mode=mode)
    return SaliencyModel(backend, checkpoint.preprocess, checkpoint.postprocess, path.name)


def noise_batch(model: SaliencyModel, pictures: int) -> NDArray[Any]:
    """Return noise in the backend's input form, the same for every candidate."""
    shape = (pictures, model.preprocess.height, model.preprocess.width, 3)
    images_NHWC = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return np.stack([model.prepare(image_HWC) for image_HWC in images_NHWC])


def candidates_of(
    sources: Sequence[ModelSource], choices: Sequence[str], device: Device, threads: int
) -> list[Candidate]:
    """All variants of all sources that were chosen; no choice takes all.

    Raises:
        UsageError: When a choice fits no variant of any source, or without choices nothing runs a source on the device.
    """
    for source in sources:
        if not choices and not source.variants(device):
            raise UsageError(f"{source.name}: is quantized for {source.quantized_for}, which runs on --device cpu")
    variants = [(source, variant) for source in sources for variant in source.variants_by_name(device, choices)]
    for choice in choices:
        if not any(variant.is_asked_by(choice) for _, variant in variants):
            there = ", ".join(dict.fromkeys(v.choice for _, v in variants))
            raise UsageError(f"backend {choice} runs none of the given models on {device}; there is {there or 'none'}")
    return [
        Candidate(source=source, variant=variant, device=device, threads=threads)
        for source, variant in variants
        if not choices or any(variant.is_asked_by(choice) for choice in choices)
    ]
