"""What engine to build and how: an inert value that `engine.build_engine` carries out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from basnet_runtime.engine_facts import Profile
from basnet_runtime.kinds import Flavor, Precision
from basnet_runtime.manifest import Graph, Manifest
from basnet_runtime.model_files import PLAN_SUFFIXES, model_kind
from basnet_torch.errors import UsageError

__all__ = ["CURRENT", "BuildConfig", "Range", "Tiling", "parse_range"]

Range = tuple[int, int, int]
_HEIGHTS: Range = (32, 720, 2160)
_WIDTHS: Range = (32, 1280, 3840)
_LARGEST_AXIS = 65_535
CURRENT = "current"
Tiling = Literal["none", "fast", "moderate", "full"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildConfig:
    """One engine.

    Attributes:
        model: The `.onnx`, or a checkpoint, which is exported first.
        output: The file to write; None names it after the model, see `target`.
        precision: For a checkpoint, what the network computes in; an `.onnx` has it written in its graph.
        graph: For a checkpoint, `tensor` or `frame`.
        size: For a checkpoint, network input height and width; None takes its own.
        flavor: Whose engine: `tensorrt`, `rtx`, or `auto` for what is installed.
        batch: Pictures a run: smallest, the number it is tuned for, and largest.
        height: Picture heights of the `frame` graph, likewise; None takes 32 to 2160.
        width: Picture widths of the `frame` graph, likewise; None takes 32 to 3840.
        workspace_mib: Most memory that one layer may take for itself; None leaves it to the library.
        optimization_level: 0 (quick) to 5 (thorough).
        tiling: How hard to look for tilings that keep data in the cache.
        aux_streams: Streams a run may use beside its own; None leaves it to the library.
        version_compatible: Make a plan that later releases of the same major version run too; `tensorrt` only.
        hardware_compatible: Make a plan for every GPU from Ampere on; `tensorrt` only.
        compute_capabilities: What to build for, such as `8.6`, or `current` for this machine's GPU; `rtx` only, which
            otherwise decides where it runs.
        timing_cache: File of kernel timings that is read, and written back; `tensorrt` only.
        cache: Folder of finished engines, found again by the content they were built from.
        calibration: For a checkpoint in int8 or fp8, folder or zip of real pictures that ranges are taken from.
        keep_fp32: For the same, parts that stay FP32; None searches for what the contract needs.
        search_minutes: How long that search may take.
        pictures: Folder of pictures for the parity checks; None takes those of this package.
        check: Whether to prove parity, of the graph here and of the plan where there is a GPU.
        overwrite: Whether an existing file may be replaced.
    """

    model: Path
    output: Path | None = None
    precision: Precision | None = None
    graph: Graph | None = None
    size: tuple[int, int] | None = None
    flavor: Flavor | Literal["auto"] = "auto"
    batch: Range = (1, 1, 8)
    height: Range | None = None
    width: Range | None = None
    workspace_mib: int | None = None
    optimization_level: int = 3
    tiling: Tiling = "none"
    aux_streams: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()
    timing_cache: Path | None = None
    cache: Path | None = None
    calibration: Path | None = None
    keep_fp32: tuple[str, ...] | None = None
    search_minutes: float = 10.0
    pictures: Path | None = None
    check: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
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
        for name, most in (("workspace_mib", 1 << 30), ("aux_streams", 1 << 10), ("optimization_level", 5)):
            if not 0 <= (getattr(self, name) or 0) <= most:
                raise UsageError(f"{name.replace('_', ' ')} is {getattr(self, name)}; it must be 0 to {most}")
        if self.tiling not in get_args(Tiling):
            raise UsageError(f"tiling is {self.tiling!r}; it must be one of {', '.join(get_args(Tiling))}")
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
        """The file to write: `output`, or the model's name with what was asked of its export.

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
        """The shapes of the model's input: its own axes where they are fixed, the asked ones where they are free.

        Raises:
            UsageError: When picture sizes are asked of a graph that takes prepared tensors.
        """
        if manifest.graph == "tensor" and (self.height or self.width):
            raise UsageError("height and width are for a frame graph; a tensor graph takes pictures that are resized")
        free = iter((self.batch, self.height or _HEIGHTS, self.width or _WIDTHS))
        axes = [(axis, axis, axis) if axis is not None else next(free) for axis in manifest.input.shape]
        smallest, best, largest = zip(*axes, strict=True)
        return Profile(smallest=smallest, best=best, largest=largest)


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
