"""Export configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import not_
from pathlib import Path
from typing import Any, Literal

from basnet_runtime.kinds import Precision
from basnet_runtime.manifest import Graph, manifest_path
from basnet_torch.errors import UsageError
from basnet_torch.options import OVERWRITE, argument, check, option
from basnet_torch.spec import check_size

__all__ = [
    "PICTURES",
    "SEARCH_MINUTES",
    "SIZE",
    "CalibrationMethod",
    "ExportConfig",
    "Store",
    "Target",
    "keep_fp32",
    "parse_size",
    "refuse_existing",
    "refuse_unfit",
]

Store = Literal["fp32", "fp16"]
Target = Literal["cpu", "openvino", "tensorrt"]
CalibrationMethod = Literal["auto", "mse", "percentile", "minmax", "entropy"]


def parse_size(text: str) -> tuple[int, int]:
    """Height and width from `H` (square) or `HxW`.

    >>> parse_size("256"), parse_size("256x320")
    ((256, 256), (256, 320))
    """
    height, _, width = text.lower().partition("x")
    try:
        return int(height), int(width or height)
    except ValueError:
        raise UsageError(f"size {text!r}: give one number, or height x width as in 256x320") from None


def keep_fp32(text: str) -> dict[str, Any]:
    """Make the option that names parts of a network which stay FP32."""
    return option(
        text, metavar="PART", typed=list[str], parse=lambda parts: tuple(part for part in parts if part != "none")
    )


SIZE = option("Network input; else the checkpoint's.", metavar="H|HxW", parse=parse_size)
SEARCH_MINUTES = option("Longest search for such parts.", min=0)
PICTURES = option("Folder of pictures for the parity check.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """One export; each field's help says what it is."""

    checkpoint: Path = field(metadata=argument("CKPT", "A .pth, .pt or .safetensors checkpoint, or an adopted .onnx."))
    precision: Precision = field(default="fp32", metadata=option("Precision of the network."))
    graph: Graph = field(default="tensor", metadata=option("tensor: normalized floats; frame: bytes of any size."))
    size: tuple[int, int] | None = field(default=None, metadata=SIZE)
    store: Store = field(default="fp32", metadata=option("Stored type of FP32 layers' weights."))
    int8_target: Target = field(
        default="cpu", metadata=option("Runtime of an int8 or fp8 graph; cpu: ONNX Runtime.", "--target")
    )
    calibration: Path | None = field(
        default=None, metadata=option("Folder or zip of real pictures to calibrate int8 ranges on.")
    )
    calibration_count: int = field(default=256, metadata=option("Largest number of calibration pictures.", min=16))
    calibration_method: CalibrationMethod = field(
        default="auto", metadata=option("Calibration method of ranges; auto measures all but entropy.")
    )
    seed: int = field(default=0, metadata=option("Seed that draws calibration pictures."))
    keep_fp32: tuple[str, ...] | None = field(
        default=None, metadata=keep_fp32("Part of a reduced network to keep FP32; repeatable; none: no search.")
    )
    search_minutes: float = field(default=10.0, metadata=SEARCH_MINUTES)
    output: Path | None = field(default=None, metadata=option("File to write; else beside CKPT.", "-o", "--output"))
    overwrite: bool = field(default=False, metadata=OVERWRITE)
    pictures: Path | None = field(default=None, metadata=PICTURES)
    check: bool = field(
        default=True, metadata=option("Keep the file without validating its masks.", "--no-check", parse=not_)
    )

    def __post_init__(self) -> None:
        check(self)
        if self.store == "fp16" and self.precision in ("fp16", "bf16"):
            raise UsageError(f"store fp16 with precision {self.precision}: its weights are kept in 16 bits already")
        if self.store == "fp16" and self.precision != "fp32" and self.int8_target != "openvino":
            raise UsageError(
                f"store fp16 with target {self.int8_target}: its FP32 layers are scaled; leave --store out"
            )
        if self.keep_fp32 and self.precision == "fp32":
            raise UsageError(f"keep_fp32 {', '.join(self.keep_fp32)}: all of an fp32 network stays FP32")
        self._check_quantization()
        if self.output is not None and self.output.suffix != ".onnx":
            raise UsageError(f"output {self.output}: its name must end in .onnx")
        refuse_unfit(self.size)

    def _check_quantization(self) -> None:
        if (self.precision in ("int8", "fp8")) != (self.calibration is not None):
            raise UsageError(
                f"precision {self.precision} needs --calibration, a folder of real pictures like those it will see"
                if self.precision in ("int8", "fp8")
                else f"calibration {self.calibration}: it is for --precision int8 or fp8, not {self.precision}"
            )
        if self.precision == "fp8" and self.int8_target != "tensorrt":
            raise UsageError("precision fp8: no CPU computes in it; add --target tensorrt")

    @property
    def target(self) -> Path:
        """The output path: `output`, or `CKPT.onnx` with what differs in its name.

        What differs is told from an FP32 `tensor` graph.

        >>> ExportConfig(checkpoint=Path("a/basnet.pth"), precision="fp16", graph="frame").target.name
        'basnet-frame-fp16.onnx'
        """
        if self.output is not None:
            return self.output
        parts = [self.checkpoint.stem]
        parts += ["frame"] if self.graph == "frame" else []
        parts += [self.precision] if self.precision != "fp32" else []
        parts += [self.int8_target] if self.int8_target != "cpu" else []
        parts += [f"{self.size[0]}x{self.size[1]}"] if self.size else []
        return self.checkpoint.with_name("-".join(parts) + ".onnx")


def refuse_existing(target: Path, source: Path, what: str, *, overwrite: bool) -> None:
    """Raise UsageError when a target cannot or may not be written."""
    for path in (target, manifest_path(target)):
        if path.is_dir():
            raise UsageError(f"{path} is a folder; name a file")
        if path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"{path}: is the {what} itself; name another file with -o")
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists already; --overwrite replaces it")


def refuse_unfit(size: tuple[int, int] | None) -> None:
    """Raise UsageError for an input size that `check_size` refuses."""
    if size is None:
        return
    try:
        check_size(*size)
    except ValueError as error:
        raise UsageError(str(error)) from error
