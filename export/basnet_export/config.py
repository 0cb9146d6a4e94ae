"""What to export and how: an inert value that `onnx_graph.export_onnx` carries out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from basnet_runtime.kinds import Precision
from basnet_runtime.manifest import Graph
from basnet_torch.errors import UsageError
from basnet_torch.spec import check_size

__all__ = ["CalibrationMethod", "ExportConfig", "Store", "Target", "parse_size", "refuse_unfit"]

Store = Literal["fp32", "fp16"]
Target = Literal["cpu", "openvino", "tensorrt"]
CalibrationMethod = Literal["auto", "mse", "percentile", "minmax", "entropy"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """One export.

    Attributes:
        checkpoint: The `.pth`, `.pt` or `.safetensors` file.
        output: The file to write; None names it after the checkpoint, see `target`.
        precision: What the network computes in, weights and activations.
        graph: `tensor` (normalized pictures in, probabilities out) or `frame` (bytes in, bytes out).
        store: What the weights of FP32 layers are stored as, in an fp32 graph or an int8 graph for OpenVINO; `fp16`
            halves them, for weights exact in FP16.
        size: Network input height and width; None takes the checkpoint's own.
        pictures: Folder of pictures for the parity check; None takes those of this package.
        int8_target: What an int8 graph is for: `cpu` (unsigned activations, bytes from layer to layer), `openvino`
            (the same at the inputs of convolutions alone) or `tensorrt` (symmetric signed ones there).
        calibration: Folder or zip of real pictures that int8 ranges are taken from.
        calibration_count: The most pictures to take from there.
        calibration_method: How a range follows from the values seen; `auto` measures all but `entropy`.
        seed: Which calibration pictures are drawn and which of their positions are looked at.
        keep_fp32: Parts of a network of less precision that stay FP32; None searches for what the contract needs.
        search_minutes: How long that search may take.
        check: Whether to prove parity before the file is kept.
        overwrite: Whether an existing file may be replaced.
    """

    checkpoint: Path
    output: Path | None = None
    precision: Precision = "fp32"
    graph: Graph = "tensor"
    store: Store = "fp32"
    size: tuple[int, int] | None = None
    pictures: Path | None = None
    int8_target: Target = "cpu"
    calibration: Path | None = None
    calibration_count: int = 256
    calibration_method: CalibrationMethod = "auto"
    seed: int = 0
    keep_fp32: tuple[str, ...] | None = None
    search_minutes: float = 10.0
    check: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        kinds = (("precision", Precision), ("graph", Graph), ("store", Store), ("int8_target", Target))
        for name, known in (*kinds, ("calibration_method", CalibrationMethod)):
            if getattr(self, name) not in get_args(known):
                raise UsageError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(known))}")
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
            raise UsageError("precision fp8: no processor computes in it; add --target tensorrt")

    @property
    def target(self) -> Path:
        """The file to write: `output`, or `CKPT.onnx` with what differs from an FP32 `tensor` graph in its name.

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


def refuse_unfit(size: tuple[int, int] | None) -> None:
    """Raise UsageError for a network input that `check_size` refuses; None, the checkpoint's own, fits."""
    if size is None:
        return
    try:
        check_size(*size)
    except ValueError as error:
        raise UsageError(str(error)) from error


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
