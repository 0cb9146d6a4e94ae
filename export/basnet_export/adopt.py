"""Adopt a foreign network: write a manifest beside its ONNX file.

    path = adopt_file(AdoptConfig(model=Path("u2net.onnx"), preset="u2net"))

The file is not changed. Preprocessing cannot be read from a graph, so a preset or the options say it. What
can be tried is tried: names, axes, types, and the range of the output on real pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from basnet_export.config import PICTURES, parse_size
from basnet_export.samples import load_pictures
from basnet_runtime.backends.base import Backend
from basnet_runtime.manifest import (
    ADOPTED,
    METADATA_KEY,
    Manifest,
    adaptation_for,
    manifest_path,
    sha256_of,
)
from basnet_runtime.model import SaliencyModel
from basnet_runtime.onnx_file.adapt import Activation
from basnet_runtime.onnx_file.content import read_graph_content
from basnet_runtime.onnx_file.header import OnnxHeader, read_onnx_header
from basnet_runtime.parity import Picture, compare, tolerance_for
from basnet_torch import __version__
from basnet_torch.errors import BackendUnavailable, ModelFileError, UsageError
from basnet_torch.files import atomic_write
from basnet_torch.options import OVERWRITE, argument, check, option
from basnet_torch.spec import IMAGENET_MEAN, IMAGENET_STD, Postprocess, Preprocess, Resample, Scale, TensorSpec

__all__ = ["PRESETS", "AdoptConfig", "Preset", "adopt_file"]

Preset = Literal["u2net", "u2netp", "isnet", "birefnet", "modnet"]
_RGB = tuple[float, float, float]
_TRIED = 2  # pictures
_SLACK = 1e-3  # beyond 0..1, for what FP16 rounds


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a network is fed and what its output means.

    The size holds where the graph leaves it free.
    """

    size: tuple[int, int] | None = None
    scale: Scale = "255"
    resample: Resample = "bilinear"
    mean: _RGB = (0.0, 0.0, 0.0)
    std: _RGB = (1.0, 1.0, 1.0)
    activation: Activation = "none"
    stretch: bool = False


_U2NET = Recipe(
    size=(320, 320), scale="image_max", resample="lanczos", mean=IMAGENET_MEAN, std=IMAGENET_STD, stretch=True
)
PRESETS: dict[Preset, Recipe] = {
    "u2net": _U2NET,
    "u2netp": _U2NET,
    "isnet": Recipe(size=(1024, 1024), scale="image_max", resample="lanczos", mean=(0.5, 0.5, 0.5), stretch=True),
    "birefnet": Recipe(size=(1024, 1024), scale="255", mean=IMAGENET_MEAN, std=IMAGENET_STD, activation="sigmoid"),
    "modnet": Recipe(size=(512, 512), scale="255", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
}


def parse_rgb(text: str) -> _RGB:
    """Read three numbers, or one for all channels.

    >>> parse_rgb("0.5"), parse_rgb("0.485,0.456,0.406")
    ((0.5, 0.5, 0.5), (0.485, 0.456, 0.406))
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not np.isfinite(numbers).all():
        raise UsageError(f"{text!r}: give one number, or red,green,blue as in 0.485,0.456,0.406")
    return numbers[0], numbers[1], numbers[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdoptConfig:
    """One file to adopt; an option that is given replaces the preset's."""

    model: Path = field(metadata=argument("FILE", "An .onnx file of another project."))
    preset: Preset | None = field(default=None, metadata=option("Recipe of a known network."))
    size: tuple[int, int] | None = field(
        default=None,
        metadata=option("Network input, where the graph leaves it free.", metavar="H|HxW", parse=parse_size),
    )
    mean: _RGB | None = field(
        default=None, metadata=option("Subtracted after scaling, RGB.", metavar="N|R,G,B", parse=parse_rgb)
    )
    std: _RGB | None = field(
        default=None, metadata=option("Divided by after that, RGB.", metavar="N|R,G,B", parse=parse_rgb)
    )
    scale: Scale | None = field(
        default=None, metadata=option("Divisor of pixels: 255, or the picture's largest value. Default: 255.")
    )
    resample: Resample | None = field(
        default=None,
        metadata=option("Resize filter; lanczos as in rembg. Default: bilinear."),
    )
    output: str | None = field(
        default=None, metadata=option("Name of the mask output. Default: the first.", metavar="NAME")
    )
    activation: Activation | None = field(
        default=None, metadata=option("Activation to add: sigmoid for logits. Default: none.")
    )
    stretch: bool | None = field(default=None, metadata=option("Stretch each mask to its own range. Default: off."))
    pictures: Path | None = field(
        default=None, metadata={**PICTURES, "help": "Folder of pictures to try it on. Default: bundled photographs."}
    )
    overwrite: bool = field(default=False, metadata=OVERWRITE)

    def __post_init__(self) -> None:
        check(self)
        missing = [f"--{name}" for name in ("mean", "std") if self.preset is None and getattr(self, name) is None]
        if missing:
            raise UsageError(
                f"{' and '.join(missing)}: must be given without --preset, no graph holds its preprocessing. "
                f"Give it, or --preset {'|'.join(PRESETS)}"
            )
        if self.std is not None and min(self.std) <= 0:
            raise UsageError(f"std {self.std}: must be above 0. Give what the network was trained with")
        if self.size is not None and min(self.size) < 1:
            raise UsageError(f"size {self.size[0]}x{self.size[1]}: must be at least 1x1. Give height x width")

    @property
    def recipe(self) -> Recipe:
        """The preset's, with the options that are given."""
        names = ("size", "scale", "resample", "mean", "std", "activation", "stretch")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(PRESETS[self.preset] if self.preset else Recipe(), **given)


def adopt_file(config: AdoptConfig, progress: Callable[[str], None] = lambda _: None) -> Path:
    """Write the manifest of a foreign network; return the network's path.

    Raises:
        BackendUnavailable: ONNX Runtime, which tries the network, is not installed.
        ModelFileError: The file is no ONNX graph, or not one that takes a picture and gives a mask.
        UsageError: The options do not fit the graph, or the manifest exists already.
    """
    path, target = config.model, manifest_path(config.model)
    header = read_onnx_header(path)
    if METADATA_KEY in header.metadata:
        raise UsageError(f"{path}: is of basnet-export and has its manifest inside. Run it as it is")
    if target.exists() and not config.overwrite:
        raise UsageError(f"{target} exists already; --overwrite replaces it")
    manifest = _manifest(config, header)
    progress(f"trying it on {_TRIED} pictures, {manifest.precision}, {manifest.input} to {manifest.output}")
    pictures = load_pictures(config.pictures)[:_TRIED]
    _try(path, manifest, pictures)
    if find_spec("openvino") and (reason := _differs_in_openvino(path, manifest, pictures)):
        manifest = replace(manifest, refused={"openvino": reason})
        progress(f"not for OpenVINO: {reason}")
    with atomic_write(target, overwrite=config.overwrite) as beside:
        beside.write_text(manifest.to_json() + "\n", encoding="utf-8")
    others = [tensor.name for tensor in header.outputs if tensor.name != manifest.output.name]
    if others:
        progress(f"not used, and cut in the copy that runs: {', '.join(others)}")
    return path


def _manifest(config: AdoptConfig, header: OnnxHeader) -> Manifest:
    path, recipe = config.model, config.recipe
    taken, given = _input(path, header), _output(config, header)
    height, width = _size(config, taken, recipe)
    content, digest = read_graph_content(path), sha256_of(path)
    return Manifest(
        kind="onnx",
        graph="tensor",
        precision=content.precision,
        store=content.store,
        arch=config.preset or "custom",
        encoder="",
        width=0,
        preprocess=Preprocess(
            height=height,
            width=width,
            scale=recipe.scale,
            resample=recipe.resample,
            mean=recipe.mean,
            std=recipe.std,
            stride=1,
        ),
        postprocess=Postprocess(stretch=recipe.stretch),
        activation=recipe.activation,
        input=taken,
        output=given,
        opset=header.opset,
        checkpoint=path.name,
        checkpoint_sha256=digest,
        onnx_sha256=digest,
        graph_sha256=content.sha256,
        origin=ADOPTED,
        exporter={"basnet-deploy": __version__, "written by": header.producer},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _input(path: Path, header: OnnxHeader) -> TensorSpec:
    """The one input, a picture N,3,H,W of floats.

    Raises:
        ModelFileError: It is none.
    """
    listed = ", ".join(map(str, header.inputs)) or "none"
    if len(header.inputs) != 1:
        raise ModelFileError(f"{path}: takes {listed}, must be one picture. Export it with the other inputs fixed")
    (taken,) = header.inputs
    if taken.dtype not in ("float32", "float16"):
        raise ModelFileError(f"{path}: takes {taken}, must be float32 or float16. Export it without preprocessing")
    if len(taken.shape) == 4 and taken.shape[3] == 3 and taken.shape[1] != 3:
        raise ModelFileError(f"{path}: takes {taken}, channels last; must be N,3,H,W. Export it channels first")
    if len(taken.shape) != 4 or taken.shape[1] not in (3, None):
        raise ModelFileError(f"{path}: takes {taken}, must be pictures N,3,H,W. Give a network of RGB pictures")
    if taken.shape[0] not in (1, None):
        raise ModelFileError(f"{path}: takes {taken}, batch must be 1 or free. Export it again")
    return taken


def _output(config: AdoptConfig, header: OnnxHeader) -> TensorSpec:
    """The output that is the mask.

    Raises:
        UsageError: There is none of that name.
        ModelFileError: It is no map.
    """
    path, names = config.model, [tensor.name for tensor in header.outputs]
    if config.output is not None and config.output not in names:
        raise UsageError(f"output {config.output}: {path.name} has no such output. Give one of {', '.join(names)}")
    given = next(t for t in header.outputs if config.output in (None, t.name))
    _check_map(path, given, given.shape)
    return given


def _check_map(path: Path, given: TensorSpec, shape: tuple[int | None, ...]) -> None:
    if given.dtype not in ("float32", "float16"):
        raise ModelFileError(f"{path}: output {given}, must be float32 or float16. Give another with --output")
    if len(shape) == 4 and shape[3] == 1 and shape[1] not in (1, None):
        raise ModelFileError(f"{path}: output {given}, channels last; must be N,1,H,W. Export it channels first")
    if shape and (len(shape) not in (3, 4) or (len(shape) == 4 and shape[1] not in (1, None))):
        raise ModelFileError(f"{path}: output {given}, must be one map N,1,H,W or N,H,W. Give another with --output")


def _size(config: AdoptConfig, taken: TensorSpec, recipe: Recipe) -> tuple[int, int]:
    """Height and width: the graph's where they are fixed, else the option's, else the preset's.

    Raises:
        UsageError: They are free and not given, or fixed and others are given.
    """
    height, width = taken.shape[2:]
    if config.size is not None and (height or config.size[0], width or config.size[1]) != config.size:
        raise UsageError(f"size {config.size[0]}x{config.size[1]}: the graph takes {taken}. Leave --size out")
    if height and width:
        return height, width
    if recipe.size is None:
        raise UsageError(f"size: the graph takes {taken}, any size. Give --size H or HxW, what it was trained at")
    return height or recipe.size[0], width or recipe.size[1]


def _try(path: Path, manifest: Manifest, pictures: Sequence[Picture]) -> None:
    """Run it on pictures, and refuse what is no mask in 0..1.

    Raises:
        ModelFileError: It does not run, or gives something else.
    """
    from basnet_runtime.backends.onnxruntime import open_onnxruntime

    with _opened(open_onnxruntime, path, replace(manifest, activation="none")) as model:
        maps = [model.infer([model.prepare(picture.image_HWC)]) for picture in pictures]
    for found in maps:
        _check_map(path, manifest.output, found.shape)
        if not np.isfinite(found).all():
            raise ModelFileError(
                f"{path}: output {manifest.output.name} is not finite on a photograph. See --mean, --std"
            )
    low, high = float(min(map(np.min, maps))), float(max(map(np.max, maps)))
    inside = low >= -_SLACK and high <= 1 + _SLACK
    if manifest.activation == "none" and not inside:
        raise ModelFileError(
            f"{path}: output {manifest.output.name} spans {low:.3g} to {high:.3g}, must be 0..1. "
            "Add --activation sigmoid for logits, or give another --output"
        )
    if manifest.activation == "sigmoid" and inside:
        raise ModelFileError(
            f"{path}: output {manifest.output.name} spans {low:.3g} to {high:.3g}, which is 0..1 already. "
            "Give --activation none"
        )


def _opened(open_backend: Callable[..., Backend], path: Path, manifest: Manifest) -> SaliencyModel:
    """The network in a backend, before there is a manifest beside it."""
    digest, adaptation = manifest.onnx_sha256, adaptation_for(path, manifest)
    backend = open_backend(path, stored=manifest.precision, digest=digest, adaptation=adaptation, keep=False)
    return SaliencyModel(backend, manifest.preprocess, manifest.postprocess, path.name)


def _differs_in_openvino(path: Path, manifest: Manifest, pictures: Sequence[Picture]) -> str:
    """Why OpenVINO must not run the file; empty where it may, or where this CPU cannot tell.

    Its reader leaves some attributes of operators out without a word, and only the masks show it.
    """
    from basnet_runtime.backends.onnxruntime import open_onnxruntime
    from basnet_runtime.backends.openvino import open_openvino

    # FP16's limits, for FP32 too: a wrong operator moves masks by more, the order of sums by less.
    limits = tolerance_for("fp16" if manifest.precision == "fp32" else manifest.precision)
    try:
        with (
            _opened(open_onnxruntime, path, manifest) as reference,
            _opened(open_openvino, path, manifest) as candidate,
        ):
            exceeded = compare(reference, candidate, pictures, limits).exceeded
    except BackendUnavailable:
        return ""
    except (ModelFileError, RuntimeError) as error:  # the latter when it computes shapes that do not fit
        return f"OpenVINO does not run it ({str(error).splitlines()[0]})"
    return f"its masks differ from ONNX Runtime's ({exceeded[0]})" if exceeded else ""
