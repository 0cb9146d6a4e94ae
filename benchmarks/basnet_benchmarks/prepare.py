"""Whether every way of preparing a picture gives the same network input, and what the differences do to the mask.

report = measure_prepare(PrepareConfig(pictures=Path("dev")))

The reference is the authors' resampling: scikit-image, bilinear, half-pixel centres, no anti-aliasing, in float64.
Their own call (mode constant) also fades the outermost pixels of a picture that it enlarges towards black: it has a row
of its own. Beside the ways that this project takes stand others that tools take, to show what a wrong choice costs. All
inputs of a picture run through one network, PyTorch in FP32, so that what differs in the masks comes from preparing.

Legend: C channels, H W of the picture, h w of the network's input.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from basnet_benchmarks.environment import Environment, environment
from basnet_benchmarks.parity import Pictures
from basnet_runtime.model import SaliencyModel
from basnet_runtime.open import BUILTIN, CHECKPOINT_SUFFIXES, open_model
from basnet_runtime.parity import Difference, difference, worst_of
from basnet_runtime.threads import allowed_threads
from basnet_torch.errors import BackendUnavailable, ExportError, UsageError
from basnet_torch.spec import Preprocess

if TYPE_CHECKING:
    from basnet_runtime.backends.base import Backend

__all__ = [
    "InputDifference",
    "PrepareConfig",
    "PrepareReport",
    "Way",
    "WayRow",
    "measure_prepare",
    "ways_without_graph",
]

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
AUTHORS = "scikit-image, bilinear, no anti-aliasing, float64 (the authors' resampling)"
LETTER = "scikit-image, mode constant (the authors' call to the letter)"
CHOSEN = "OpenCV, bilinear, float32"
_Progress = Callable[[str], None]
_Prepare = Callable[[UInt8], Float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """What to compare on what.

    Attributes:
        pictures: Folder of pictures or data set; None takes the bundled photographs.
        model: Checkpoint whose preparing and network are taken; None takes the built-in model's.
        threads: Processor threads; None takes what the container allows.
    """

    pictures: Path | None = None
    model: Path | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.model is not None and self.model.suffix not in CHECKPOINT_SUFFIXES:
            raise UsageError(f"model {self.model}: give the checkpoint, a {', '.join(CHECKPOINT_SUFFIXES)} file")


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One way to prepare a picture.

    Attributes:
        name: For people.
        used: Where this project takes it; empty for one that is shown for what it costs.
        prepare: Picture uint8 H,W,3 to input float32 3,h,w; None where it cannot run here.
        reason: Why it cannot.
    """

    name: str
    used: str
    prepare: _Prepare | None
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputDifference:
    """One picture's input against the authors'; 1 is one standard deviation of the normalised input."""

    name: str
    max_abs: float
    mean_abs: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"name": self.name, "max_abs": self.max_abs, "mean_abs": self.mean_abs}


@dataclass(frozen=True, kw_only=True, slots=True)
class WayRow:
    """What one way gave.

    Attributes:
        name: For people.
        used: Where this project takes it; empty for one that is shown for what it costs.
        reason: Why it did not run; empty when it did.
        inputs: Of every picture, against the authors' input.
        masks: Of every picture, against the mask of the authors' input.
        seconds: That preparing took, of every picture.
    """

    name: str
    used: str
    reason: str = ""
    inputs: tuple[InputDifference, ...] = ()
    masks: tuple[Difference, ...] = ()
    seconds: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the worst picture of each measure, then every picture."""
        worst: dict[str, Any] = {
            "name": self.name,
            "used": self.used,
            "not_run": self.reason,
            "input": None,
            "mask": None,
        }
        if self.masks:
            worst["input"] = {name: max(getattr(r, name) for r in self.inputs) for name in ("max_abs", "mean_abs")}
            worst["input"]["worst"] = max(self.inputs, key=lambda row: row.max_abs).name
            worst["mask"] = self._worst_mask()
        pictures = [
            {"name": put.name, "input": put.to_dict(), "mask": got.to_dict(), "seconds": taken}
            for put, got, taken in zip(self.inputs, self.masks, self.seconds, strict=True)
        ]
        return {**worst, "median_s": float(np.median(self.seconds)) if self.seconds else None, "pictures": pictures}

    def _worst_mask(self) -> dict[str, Any]:
        values, names = worst_of(self.masks)
        return {**values, "worst": names["mean_abs"]}


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareReport:
    """A whole run."""

    model: str
    runs_on: str
    pictures: str
    size: tuple[int, int]
    environment: Environment
    rows: tuple[WayRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "command": "prepare",
            "reference": AUTHORS,
            "model": self.model,
            "runs_on": self.runs_on,
            "pictures": self.pictures,
            "count": max(len(row.masks) for row in self.rows),
            "size": list(self.size),
            "environment": self.environment.to_dict(),
            "ways": [row.to_dict() for row in self.rows],
            "choice": self.choice,
        }

    @property
    def choice(self) -> str:
        """Why the chosen way is taken, with the numbers that were measured."""
        by_name = {row.name: row.to_dict() for row in self.rows}
        ours = by_name[CHOSEN]
        others = [row for row in by_name.values() if row["mask"] and not row["used"]]
        costs = ", ".join(f"{row['name']} moves {100 * row['mask']['flips']:.2f} %" for row in others)
        return (
            f"{CHOSEN} is taken: it is the authors' resampling to {ours['input']['max_abs']:.1g} of the input, moves "
            f"{100 * ours['mask']['flips']:.4f} % of a mask's pixels across 0.5 at most, needs neither torch nor "
            f"scikit-image, and takes {1000 * (ours['median_s'] or 0):.2f} ms a picture. On the same pictures {costs}."
        )


def measure_prepare(config: PrepareConfig, progress: _Progress = lambda _: None) -> PrepareReport:
    """Prepare every picture in every way and run all inputs through one network.

    Raises:
        BackendUnavailable: scikit-image or PyTorch, which the reference needs, is not there.
        BasnetError: A model or picture cannot be read.
    """
    threads = config.threads or allowed_threads()
    checkpoint = config.model or BUILTIN.with_name("basnet-lite.safetensors")
    pictures = Pictures(config.pictures)
    with TemporaryDirectory(prefix="basnet-bench-") as folder, ExitStack() as stack:
        model = stack.enter_context(open_model(checkpoint, threads=threads))
        ways = ways_without_graph(model.preprocess)
        progress("exporting the frame graph")
        ways += _ways_of_the_graph(_prepare_graph(checkpoint, Path(folder)), model.preprocess, threads, stack)
        rows = [WayRow(name=way.name, used=way.used, reason=way.reason) for way in ways]
        for index, picture in enumerate(pictures):
            if index % 20 == 0:
                progress(f"{index} pictures compared")
            rows = _with_picture(rows, ways, picture.name, picture.image_HWC, model)
        return PrepareReport(
            model=model.name,
            runs_on=model.backend.description,
            pictures=pictures.name,
            size=(model.preprocess.height, model.preprocess.width),
            environment=environment(threads),
            rows=tuple(rows),
        )


def ways_without_graph(preprocess: Preprocess) -> list[Way]:
    """The reference first, then what runs outside the graph.

    Raises:
        BackendUnavailable: scikit-image is not installed.
    """
    resize = _skimage_resize()
    size = (preprocess.height, preprocess.width)

    def skimage(image_HWC: UInt8, *, mode: str = "edge", smooth: bool = False) -> Float32:
        resized = resize(image_HWC, size, order=1, mode=mode, preserve_range=True, anti_aliasing=smooth)
        return _normalised(preprocess, np.asarray(resized, np.float64))

    return [
        Way(name=AUTHORS, used="reference", prepare=skimage),
        Way(name=CHOSEN, used="runtime, validation", prepare=preprocess.apply),
        _torch_way(preprocess),
        Way(
            name="scikit-image, anti-aliased (its default)", used="", prepare=lambda image: skimage(image, smooth=True)
        ),
        Way(name=LETTER, used="", prepare=lambda image: skimage(image, mode="constant")),
        Way(name="OpenCV, bilinear, on bytes", used="", prepare=lambda image: _on_bytes(preprocess, image)),
    ]


def _skimage_resize() -> Callable[..., NDArray[Any]]:
    try:
        from skimage.transform import resize
    except ImportError as error:
        raise BackendUnavailable("scikit-image is not installed; pip install 'basnet-deploy[dev]'") from error
    return cast(Callable[..., NDArray[Any]], resize)


def _normalised(preprocess: Preprocess, resized_hwC: NDArray[np.float64]) -> Float32:
    """Scaling and normalising in float64, so that the reference's own rounding is none of the difference."""
    scaled = resized_hwC / (255.0 if preprocess.scale == "255" else max(float(resized_hwC.max()), 1.0))
    normal = (scaled - np.asarray(preprocess.mean)) / np.asarray(preprocess.std)
    return np.ascontiguousarray(normal.transpose(2, 0, 1), np.float32)


def _on_bytes(preprocess: Preprocess, image_HWC: UInt8) -> Float32:
    import cv2

    size = (preprocess.width, preprocess.height)
    return _normalised(preprocess, cv2.resize(image_HWC, size, interpolation=cv2.INTER_LINEAR).astype(np.float64))


def _torch_way(preprocess: Preprocess) -> Way:
    name, used = "PyTorch, interpolate, float32", "export, training"
    try:
        import torch
    except ImportError:
        return Way(name=name, used=used, prepare=None, reason="PyTorch is not installed")
    from torch.nn import functional as F

    gain, offset = (values.reshape(3, 1, 1) for values in preprocess.affine(1.0))

    def prepare(image_HWC: UInt8) -> Float32:
        picture = torch.from_numpy(image_HWC).permute(2, 0, 1)[None].float()
        resized = F.interpolate(
            picture, size=(preprocess.height, preprocess.width), mode="bilinear", align_corners=False, antialias=False
        )[0].numpy()
        return cast(Float32, resized * (gain / preprocess.divisor(resized)) + offset)

    return Way(name=name, used=used, prepare=prepare)


def _prepare_graph(checkpoint: Path, folder: Path) -> Path:
    """The part of the exported `frame` graph that lies before the first convolution.

    Raises:
        ExportError: The graph's beginning is not as it is known.
    """
    import onnx
    from onnx.utils import Extractor

    from basnet_export.config import ExportConfig
    from basnet_export.onnx_graph import export_onnx

    whole = export_onnx(ExportConfig(checkpoint=checkpoint, output=folder / "frame.onnx", graph="frame", check=False))
    graph = onnx.load(whole)
    first = next((node for node in graph.graph.node if node.op_type == "Conv"), None)
    if first is None:
        raise ExportError(f"{checkpoint.name}: its frame graph holds no convolution")
    part = Extractor(onnx.shape_inference.infer_shapes(graph)).extract_model(["frame"], [first.input[0]])
    path = folder / "prepare.onnx"
    onnx.save(part, path)
    return path


def _ways_of_the_graph(graph: Path, preprocess: Preprocess, threads: int, stack: ExitStack) -> list[Way]:
    from basnet_runtime.backends.openvino import open_openvino
    from basnet_runtime.backends.ort import open_onnxruntime

    shape = (3, preprocess.height, preprocess.width)
    ways = []
    openers: Sequence[tuple[str, Callable[..., Backend]]] = (
        ("ONNX Runtime", open_onnxruntime),
        ("OpenVINO", open_openvino),
    )
    for library, opened in openers:
        name, used = f"frame graph in {library}, float32", "frame graph"
        try:
            backend = stack.enter_context(opened(graph, threads=threads))
        except BackendUnavailable as error:
            ways.append(Way(name=name, used=used, prepare=None, reason=str(error)))
            continue
        ways.append(Way(name=name, used=used, prepare=_run_by(backend, shape)))
    return ways


def _run_by(backend: Backend, shape: tuple[int, ...]) -> _Prepare:
    return lambda image_HWC: np.asarray(backend.infer(image_HWC[None]), np.float32).reshape(shape)


def _with_picture(
    rows: Sequence[WayRow], ways: Sequence[Way], name: str, image_HWC: UInt8, model: SaliencyModel
) -> list[WayRow]:
    """The rows with one more picture in each that ran."""
    inputs, seconds = _prepared(ways, np.ascontiguousarray(image_HWC))
    raw = model.infer(list(inputs.values()))
    masks = {way: model.finish(raw_map, *image_HWC.shape[:2]) for way, raw_map in zip(inputs, raw, strict=True)}
    return [
        row
        if row.name not in inputs
        else replace(
            row,
            inputs=(*row.inputs, _input_difference(name, inputs[AUTHORS], inputs[row.name])),
            masks=(*row.masks, difference(name, masks[AUTHORS], masks[row.name])),
            seconds=(*row.seconds, seconds[row.name]),
        )
        for row in rows
    ]


def _prepared(ways: Sequence[Way], image_HWC: UInt8) -> tuple[Mapping[str, Float32], Mapping[str, float]]:
    inputs, seconds = {}, {}
    for way in ways:
        if way.prepare is None:
            continue
        start = time.perf_counter()
        inputs[way.name] = way.prepare(image_HWC)
        seconds[way.name] = time.perf_counter() - start
    return inputs, seconds


def _input_difference(name: str, want: Float32, got: Float32) -> InputDifference:
    apart = np.abs(got.astype(np.float64) - want)
    return InputDifference(name=name, max_abs=float(apart.max()), mean_abs=float(apart.mean()))
