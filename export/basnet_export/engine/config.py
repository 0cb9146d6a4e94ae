"""Build configuration of a TensorRT engine."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from operator import not_
from pathlib import Path
from typing import Any, Literal

from basnet_export.config import PICTURES, SEARCH_MINUTES, SIZE, keep_fp32
from basnet_runtime.engine_facts import Profile
from basnet_runtime.kinds import Flavor, Precision
from basnet_runtime.manifest import Graph, Manifest
from basnet_runtime.model_files import PLAN_SUFFIXES, model_kind
from basnet_torch.errors import UsageError
from basnet_torch.options import OVERWRITE, argument, check, option

__all__ = ["CURRENT", "BuildConfig", "Range", "Tiling", "parse_range"]

Range = tuple[int, int, int]
_HEIGHTS: Range = (32, 720, 2160)
_WIDTHS: Range = (32, 1280, 3840)
_LARGEST_AXIS = 65_535
CURRENT = "current"
Tiling = Literal["none", "fast", "moderate", "full"]


def parse_range(name: str, text: str) -> Range:
    """Smallest, best and largest from `N` or `SMALLEST,BEST,LARGEST`.

    >>> parse_range("batch", "8"), parse_range("batch", "1,8,32")
    ((8, 8, 8), (1, 8, 32))
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise UsageError(f"{name} {text!r}: give one number, or smallest,best,largest as in 1,8,32")
    return numbers[0], numbers[1], numbers[2]


def _at_most(number: int) -> tuple[str, Callable[[int], bool]]:
    return f"at most {number}", lambda value: value <= number


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildConfig:
    """One engine; each field's help says what it is."""

    model: Path = field(metadata=argument("MODEL", "An .onnx, or a checkpoint, which is exported."))
    output: Path | None = field(default=None, metadata=option("Plan to write; else beside MODEL.", "-o", "--output"))
    precision: Precision | None = field(
        default=None, metadata=option("Of a checkpoint's network. Default: fp16; an .onnx has its own.")
    )
    graph: Graph | None = field(default=None, metadata=option("Of a checkpoint. Default: tensor."))
    size: tuple[int, int] | None = field(default=None, metadata=SIZE)
    flavor: Literal["auto", "tensorrt", "rtx"] = field(
        default="auto", metadata=option("TensorRT flavor. Default: what is installed.")
    )
    batch: Range = field(
        default=(1, 1, 8),
        metadata=option(
            "Pictures a run: N, or smallest,best,largest.", metavar="RANGE", parse=partial(parse_range, "batch")
        ),
    )
    height: Range | None = field(
        default=None,
        metadata=option(
            "Picture heights of a frame graph.  [default: 32,720,2160]",
            metavar="RANGE",
            parse=partial(parse_range, "height"),
        ),
    )
    width: Range | None = field(
        default=None,
        metadata=option(
            "Picture widths of a frame graph.  [default: 32,1280,3840]",
            metavar="RANGE",
            parse=partial(parse_range, "width"),
        ),
    )
    workspace_mib: int | None = field(
        default=None,
        metadata=option("Memory limit of one layer, MiB.", "--workspace", min=1, must=_at_most(1 << 30)),
    )
    optimization_level: int = field(
        default=3, metadata=option("Optimization, 0 quick to 5 thorough.", "--level", min=0, max=5)
    )
    tiling: Tiling = field(default="none", metadata=option("Effort of the tiling search."))
    aux_streams: int | None = field(
        default=None, metadata=option("Streams beside a run's own.", min=0, must=_at_most(1 << 10))
    )
    version_compatible: bool = field(
        default=False, metadata=option("For later releases too; tensorrt only.", "--version-compatible")
    )
    hardware_compatible: bool = field(
        default=False, metadata=option("For every GPU from Ampere on; tensorrt only.", "--hardware-compatible")
    )
    compute_capabilities: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "Build for this device kind; repeatable; rtx only.", "--compute-capability", metavar="M.N|current"
        ),
    )
    calibration: Path | None = field(
        default=None, metadata=option("Real pictures to calibrate int8 and fp8 ranges of a checkpoint on.")
    )
    keep_fp32: tuple[str, ...] | None = field(
        default=None, metadata=keep_fp32("Part of such a network to keep FP32; repeatable; none: no search.")
    )
    search_minutes: float = field(default=10.0, metadata=SEARCH_MINUTES)
    timing_cache: Path | None = field(default=None, metadata=option("File of kernel timings; tensorrt only."))
    cache: Path | None = field(default=None, metadata=option("Cache folder of built engines."))
    pictures: Path | None = field(default=None, metadata=PICTURES)
    check: bool = field(default=True, metadata=option("Build without validating the graph.", "--no-check", parse=not_))
    overwrite: bool = field(default=False, metadata=OVERWRITE)

    def __post_init__(self) -> None:
        check(self)
        self._check_files()
        self._check_numbers()
        self._refuse_other_flavors_options()

    def _check_files(self) -> None:
        if model_kind(self.model) == "plan":
            raise UsageError(f"{self.model}: is a plan; an engine is built from a checkpoint or an .onnx file")
        for name in ("precision", "graph", "size", "pictures", "calibration", "keep_fp32"):
            if getattr(self, name) is not None and not self.is_checkpoint:
                option = name.replace("_", "-")
                raise UsageError(
                    f"{option} with {self.model.name}: is for a checkpoint, which is exported; an .onnx is as it is"
                )
        if self.output is not None and self.output.suffix not in PLAN_SUFFIXES:
            raise UsageError(f"output {self.output}: its name must end in {' or '.join(PLAN_SUFFIXES)}")

    def _check_numbers(self) -> None:
        for name in ("batch", "height", "width"):
            low, best, high = getattr(self, name) or (1, 1, 1)
            if not 1 <= low <= best <= high <= _LARGEST_AXIS:
                raise UsageError(
                    f"{name} is {low},{best},{high}; give smallest, best and largest, from 1 to {_LARGEST_AXIS}"
                )
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d+\.\d", capability) and capability != CURRENT:
                raise UsageError(f"compute capability {capability!r}: give it with a point, as in 8.6, or {CURRENT}")
        if CURRENT in self.compute_capabilities and len(self.compute_capabilities) > 1:
            raise UsageError(f"compute capability {CURRENT}: stands alone; an engine of this GPU is for no other")

    def _refuse_other_flavors_options(self) -> None:
        only: dict[str, Flavor] = {
            "version_compatible": "tensorrt",
            "hardware_compatible": "tensorrt",
            "timing_cache": "tensorrt",
            "compute_capabilities": "rtx",
        }
        for name, flavor in only.items():
            if getattr(self, name) and self.flavor != flavor:
                raise UsageError(f"{name.replace('_', ' ')}: only {flavor} has it; add --flavor {flavor}")

    @property
    def is_checkpoint(self) -> bool:
        """Whether the model has to be exported first."""
        return model_kind(self.model) == "checkpoint"

    @property
    def target(self) -> Path:
        """The output path: `output`, or the model's name with the export's options.

        >>> BuildConfig(model=Path("a/basnet.pth")).target.name
        'basnet-fp16.plan'
        """
        if self.output is not None:
            return self.output
        if not self.is_checkpoint:
            return self.model.with_suffix(".plan")
        parts = [self.model.stem, *(["frame"] if self.graph == "frame" else []), self.precision or "fp16"]
        parts += [f"{self.size[0]}x{self.size[1]}"] if self.size else []
        return self.model.with_name("-".join(parts) + ".plan")

    @property
    def flags(self) -> dict[str, Any]:
        """What is asked of the builder, for the manifest and for the cache's key."""
        names = ("workspace_mib", "optimization_level", "tiling", "aux_streams")
        return {name: getattr(self, name) for name in (*names, "version_compatible", "hardware_compatible")}

    def profile(self, manifest: Manifest) -> Profile:
        """Return the shapes of the model's input: fixed axes its own, free ones as asked.

        Raises:
            UsageError: When picture sizes are asked of a graph that takes preprocessed tensors.
        """
        if manifest.graph == "tensor" and (self.height or self.width):
            raise UsageError("height and width are for a frame graph; a tensor graph takes pictures that are resized")
        free = iter((self.batch, self.height or _HEIGHTS, self.width or _WIDTHS))
        axes = [(axis, axis, axis) if axis is not None else next(free) for axis in manifest.input.shape]
        smallest, best, largest = zip(*axes, strict=True)
        return Profile(smallest=smallest, best=best, largest=largest)
