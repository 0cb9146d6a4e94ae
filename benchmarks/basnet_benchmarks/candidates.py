"""What can be measured of a model: each library with each arithmetic that runs it, ready to be opened.

A model is a checkpoint, an exported `.onnx`, a TensorRT engine (`.plan`), or `random:W`, a network of width W with
random weights: its times are those of a trained one, because a network does the same work whatever its weights are.
For ONNX Runtime and OpenVINO a checkpoint is exported to a temporary folder first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from basnet_benchmarks.fingerprint import fingerprint_of
from basnet_benchmarks.torch_variants import Mode, open_torch_variant
from basnet_runtime.backends.base import BackendName, Precision
from basnet_runtime.model import SaliencyModel
from basnet_runtime.model_files import ModelKind, model_kind
from basnet_runtime.open import open_model
from basnet_torch.device import CPU, Device
from basnet_torch.errors import BackendUnavailable, ModelFileError, UsageError

__all__ = [
    "REFERENCE",
    "Candidate",
    "Choice",
    "ModelSource",
    "Variant",
    "candidates_of",
    "noise_batch",
    "open_described",
    "parse_choices",
    "parse_device",
]

_RANDOM = "random:"
_Progress = Callable[[str], None]
Provider = Literal["", "openvino"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One library with one arithmetic.

    Attributes:
        backend: The library.
        precision: What it computes in.
        mode: Tells PyTorch's other ways of running on a CUDA device apart.
        provider: The device to open it with, where a library has more than one for the same processor.
    """

    backend: BackendName
    precision: Precision
    mode: Mode = ""
    provider: Provider = ""

    @property
    def arithmetic(self) -> str:
        """Precision, and mode or provider, for people."""
        return " ".join(part for part in (self.precision, self.mode, self.provider) if part)

    @property
    def choice(self) -> Choice:
        """What asks for it by name, in all its modes."""
        return Choice(backend=self.backend, precision=self.precision, provider=self.provider)

    def __str__(self) -> str:
        return f"{self.backend} {self.arithmetic}"


REFERENCE = Variant(backend="pytorch", precision="fp32")


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A backend that was asked by name; `precision` None takes all of them, and all providers."""

    backend: BackendName
    precision: Precision | None = None
    provider: Provider = ""

    def holds(self, variant: Variant) -> bool:
        """Whether the variant is meant."""
        return self in (variant.choice, Choice(backend=variant.backend))

    def __str__(self) -> str:
        return ":".join(part for part in (self.backend, self.precision, self.provider) if part)


def parse_choices(texts: Sequence[str]) -> tuple[Choice, ...]:
    """Choices from `BACKEND`, `BACKEND:PRECISION` or `onnxruntime:PRECISION:openvino`, OpenVINO being its provider.

    Raises:
        UsageError: For names that are not known.

    >>> parse_choices(["openvino:bf16"])[0].precision
    'bf16'
    """
    return tuple(_choice(text) for text in texts)


def _choice(text: str) -> Choice:
    known = [Choice(backend=backend) for backend in _backends()]
    known += [Choice(backend=backend, precision=number) for backend in _backends() for number in get_args(Precision)]
    known += [Choice(backend="onnxruntime", precision=number, provider="openvino") for number in get_args(Precision)]
    try:
        return next(choice for choice in known if str(choice) == text)
    except StopIteration:
        raise UsageError(
            f"backend {text!r}: give {', '.join(_backends())}, alone, as BACKEND:PRECISION "
            f"({', '.join(get_args(Precision))}) or as onnxruntime:PRECISION:openvino"
        ) from None


def _backends() -> tuple[BackendName, ...]:
    return "pytorch", "onnxruntime", "openvino", "tensorrt"


def parse_device(text: str | Device) -> Device:
    """A device on which every library can be measured.

    Raises:
        UsageError: When it is none.
    """
    also = "; INT8 files are measured in OpenVINO's provider with cpu" if str(text).startswith("openvino") else ""
    rule = f"give cpu, or cuda, tensorrt or rtx, alone or as cuda:N{also}"
    return Device.parse(text, of=("cpu", "cuda", "tensorrt", "rtx"), rule=rule)


class ModelSource:
    """One model as it was named, and the files it becomes.

    Attributes:
        name: As it was given, without its folder.
        file: As it was given; empty for random weights.
        checkpoint: Its checkpoint, None for an `.onnx` and a plan.
        plan: The engine's file, None for anything else.
        precision: What the file computes in; `fp32` for a checkpoint.
        quantized_for: What a quantised file is for; None for others.
        width: Channels at full resolution.
        size: Network input height and width.
    """

    def __init__(self, text: str, folder: Path, progress: _Progress = lambda _: None) -> None:
        """`folder`: a temporary folder of this source alone.

        Raises:
            UsageError: The name is none of a model.
            CheckpointError: The checkpoint cannot be read.
            ModelFileError: The `.onnx` cannot be read.
            BackendUnavailable: PyTorch is not there to read a checkpoint.
        """
        self._folder = folder
        self._progress = progress
        self.precision: Precision = "fp32"
        self.quantized_for: str | None = None
        self.checkpoint: Path | None = None
        self.plan: Path | None = None
        path = Path(text)
        self.name = path.name
        self.file = "" if text.startswith(_RANDOM) else text
        if text.startswith(_RANDOM):
            self.checkpoint = _random_checkpoint(text, folder)
        elif (kind := _kind(path)) == "checkpoint":
            self.checkpoint = path
        elif kind == "plan":
            self.plan = path
        self.width, self.size = self._read_checkpoint() if self.checkpoint else self._read_manifest(path)

    def _read_checkpoint(self) -> tuple[int, tuple[int, int]]:
        from basnet_runtime.backends.pytorch import read_checkpoint

        assert self.checkpoint is not None  # noqa: S101 - for the type checker
        checkpoint = read_checkpoint(self.checkpoint)
        return checkpoint.width, (checkpoint.preprocess.height, checkpoint.preprocess.width)

    def _read_manifest(self, path: Path) -> tuple[int, tuple[int, int]]:
        from basnet_runtime.manifest import read_manifest
        from basnet_runtime.preflight import read_plan_manifest

        manifest = read_plan_manifest(path)[0] if self.plan else read_manifest(path)
        if not self.plan:
            self.__dict__["onnx"] = path  # what `onnx` would otherwise export
        self.precision = manifest.precision
        self.quantized_for = manifest.quantized_for
        return manifest.width, (manifest.preprocess.height, manifest.preprocess.width)

    @cached_property
    def fingerprint(self) -> str:
        """Which network it is, see `fingerprint_of`."""
        return fingerprint_of(self.checkpoint or Path(self.file))

    @cached_property
    def onnx(self) -> Path:
        """The ONNX file; a checkpoint is exported in FP32 when this is first asked.

        Raises:
            BackendUnavailable: A library for exporting is not installed.
            ExportError: The graph is not what it must be.
        """
        from basnet_export.config import ExportConfig
        from basnet_export.onnx_graph import export_onnx

        assert self.checkpoint is not None  # noqa: S101 - `_read_manifest` has set this property otherwise
        self._progress(f"exporting {self.name}")
        output = self._folder / f"{self.checkpoint.stem}.onnx"
        # Unchecked: latency does not depend on the masks, and parity is what the caller goes on to measure.
        return export_onnx(ExportConfig(checkpoint=self.checkpoint, output=output, check=False))

    def variants(self, device: Device) -> tuple[Variant, ...]:
        """Everything that could run it on the device, whether it is installed or not."""
        if self.plan:
            return (Variant(backend="tensorrt", precision=self.precision),)
        found: list[Variant] = []
        if self.quantized_for != "openvino":  # ONNX Runtime's own kernels would compute it in FP32
            found.append(Variant(backend="onnxruntime", precision=self.precision))
        if device == CPU:
            found += self._in_openvino()
        if self.checkpoint:
            found = [REFERENCE, Variant(backend="pytorch", precision="bf16"), *_torch_variants(device), *found]
        return tuple(found)

    def _in_openvino(self) -> Iterator[Variant]:
        """What OpenVINO runs, by itself and, where ONNX Runtime's own kernels are much slower, as its provider."""
        if self.precision == "int8" and (self.quantized_for == "openvino" or find_spec("onnxruntime_ep_openvino")):
            yield Variant(backend="onnxruntime", precision="int8", provider="openvino")
        # OpenVINO has no FP16 arithmetic on the CPU: such a file is computed, and so named, in FP32.
        yield Variant(backend="openvino", precision="fp32" if self.precision == "fp16" else self.precision)
        if self.precision == "fp32":
            yield Variant(backend="openvino", precision="bf16")


def _kind(path: Path) -> ModelKind:
    try:
        return model_kind(path)
    except ModelFileError as error:
        raise UsageError(f"{error}, or random:WIDTH") from error


def _torch_variants(device: Device) -> tuple[Variant, ...]:
    """What an engine must be compared with on its own device; a processor has no fast half precision."""
    if device == CPU:
        return ()
    ways: tuple[tuple[Precision, Mode], ...] = (("fp16", "channels-last"), ("fp32", "compiled"), ("fp16", "compiled"))
    return tuple(Variant(backend="pytorch", precision=precision, mode=mode) for precision, mode in ways)


def _random_checkpoint(text: str, folder: Path) -> Path:
    try:
        import torch
    except ImportError as error:
        raise BackendUnavailable(f"{text}: needs PyTorch; pip install 'basnet-deploy[train]'") from error
    from basnet_torch.checkpoint import Checkpoint, save_checkpoint
    from basnet_torch.model import BASNet
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
    def network(self) -> tuple[int, int, int]:
        """Width and input size: candidates that agree in it do the same work."""
        return (self.source.width, *self.source.size)

    @property
    def contract(self) -> Precision:
        """Whose parity limits hold: the file's where it was written in less than FP32, else the arithmetic's."""
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
    """Noise as the backend takes it, the same for every candidate; a frame graph gets frames of the network's size."""
    shape = (pictures, model.preprocess.height, model.preprocess.width, 3)
    images_NHWC = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return np.stack([model.prepare(image_HWC) for image_HWC in images_NHWC])


def candidates_of(
    sources: Sequence[ModelSource], choices: Sequence[Choice], device: Device, threads: int
) -> list[Candidate]:
    """All variants of all sources that were chosen; no choice takes all.

    Raises:
        UsageError: When a choice fits no variant of any source, or without choices nothing runs a source on the device.
    """
    for source in sources:
        if not choices and not source.variants(device):
            raise UsageError(f"{source.name}: is quantised for {source.quantized_for}, which runs on --device cpu")
    variants = [(source, variant) for source in sources for variant in source.variants(device)]
    for choice in choices:
        if not any(choice.holds(variant) for _, variant in variants):
            there = ", ".join(dict.fromkeys(str(v.choice) for _, v in variants))
            raise UsageError(f"backend {choice} runs none of the given models on {device}; there is {there or 'none'}")
    return [
        Candidate(source=source, variant=variant, device=device, threads=threads)
        for source, variant in variants
        if not choices or any(choice.holds(variant) for choice in choices)
    ]
