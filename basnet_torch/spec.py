"""How a picture becomes the network's input and how its output becomes a mask.

`Preprocess` and `Postprocess` are stored with the weights and in every manifest, and are read back by training's
validation, export, every backend and the benchmarks: one definition, nothing to keep in step by hand.

Legend: N pictures, C channels, H height, W width; `image_HWC` is uint8 RGB.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray

from basnet_torch.arrays import Float32, UInt8
from basnet_torch.json_values import to_plain

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "STRIDE",
    "Postprocess",
    "Preprocess",
    "TensorSpec",
    "check_size",
    "resize_bilinear",
    "resize_lanczos",
]

Scale = Literal["255", "image_max"]
Resample = Literal["bilinear", "lanczos"]

STRIDE = 32  # six encoder stages halve the picture five times
_LARGE_PIXELS = 16_000_000
_LOBES = 3  # of the Lanczos window
_BLOCK = 16  # target pixels whose source pixels are multiplied at once: more would mostly multiply by zero
_STRIP_PIXELS = 1_000_000  # converted to floats at once, so that memory does not follow the picture
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def check_size(height: int, width: int, stride: int = STRIDE) -> None:
    """Refuse a network input size that the five halvings cannot undo exactly.

    Raises:
        ValueError: With the next smaller and larger sizes that fit.

    >>> check_size(256, 224)
    >>> check_size(250, 224)
    Traceback (most recent call last):
    ...
    ValueError: size 250x224 does not fit: multiples of 32 are needed, the next are 224x224 and 256x224
    """
    if height > 0 and width > 0 and height % stride == 0 and width % stride == 0:
        return
    down = [max(stride, n // stride * stride) for n in (height, width)]
    up = [max(stride, -(-n // stride) * stride) for n in (height, width)]
    near = f"{down[0]}x{down[1]} and {up[0]}x{up[1]}" if down != up else f"{up[0]}x{up[1]}"
    are = "the next are" if down != up else "the next is"
    raise ValueError(f"size {height}x{width} does not fit: multiples of {stride} are needed, {are} {near}")


def resize_bilinear(image: NDArray[Any], height: int, width: int) -> Float32:
    """Resize H,W or H,W,C to `height`,`width`, bilinear, as float32.

    Half-pixel centers, no anti-aliasing.

    The same resampling as torch's `interpolate(align_corners=False)` and ONNX `Resize` (linear, half_pixel), in float32
    because OpenCV rounds to uint8 when it is given uint8. Above 16 megapixels only the rows and columns that are needed
    are converted, so that memory does not follow the source.

    >>> resize_bilinear(np.array([[0, 4]], np.uint8), 1, 4)
    array([[0., 1., 3., 4.]], dtype=float32)
    """
    if image.shape[:2] == (height, width):
        return image.astype(np.float32)
    if image.shape[0] * image.shape[1] > _LARGE_PIXELS:
        return _resize_by_taps(image, height, width)
    import cv2

    resized = cv2.resize(image.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return cast(Float32, resized)


def _resize_by_taps(image: NDArray[Any], height: int, width: int) -> Float32:
    """`resize_bilinear` that reads only the (at most) 2 x 2 source pixels of every target pixel."""
    top, bottom, down = _taps(image.shape[0], height)
    left, right, across = _taps(image.shape[1], width)
    trailing = (1,) * (image.ndim - 2)
    across = across.reshape(1, -1, *trailing)
    rows = []
    for y in (top, bottom):
        band = image[y]
        a, b = band[:, left].astype(np.float32), band[:, right].astype(np.float32)
        rows.append(a + (b - a) * across)
    upper, lower = rows
    return cast(Float32, upper + (lower - upper) * down.reshape(-1, 1, *trailing))


def _taps(source: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Float32]:
    """Lower neighbor, upper neighbor and the upper one's weight, for half-pixel centers."""
    center = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    low = np.floor(center).astype(np.intp)
    return low, np.minimum(low + 1, source - 1), (center - low).astype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One input or output of a model; `None` in the shape is a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        axes = "x".join("?" if n is None else str(n) for n in self.shape)
        return f"{self.name} {self.dtype} {axes}"


@dataclass(frozen=True, slots=True)
class _Block:
    """Weights of some neighboring target pixels over the source pixels that they read."""

    target: slice
    source: slice
    weights: Float32


def resize_lanczos(image_HWC: UInt8, height: int, width: int) -> Float32:
    """Resize H,W,C bytes to float32 h,w,C of whole numbers 0..255.

    The window has three lobes and widens where a picture shrinks. Rows first, then columns, each rounded to bytes: the
    values are Pillow's `LANCZOS` to within 1 of 255.

    >>> resize_lanczos(np.full((5, 9, 3), 7, np.uint8), 2, 2)[0, 0].tolist()
    [7.0, 7.0, 7.0]
    """
    rows, columns, channels = image_HWC.shape
    across = np.empty((rows, width, channels), np.uint8)
    strip = max(1, _STRIP_PIXELS // columns)
    for top in range(0, rows, strip):
        band_hWC = image_HWC[top : top + strip].astype(np.float32)
        if width == columns:
            across[top : top + strip] = band_hWC
            continue
        for block in _blocks(columns, width):
            across[top : top + strip, block.target] = _bytes(np.matmul(block.weights, band_hWC[:, block.source]))
    if height == rows:
        return across.astype(np.float32)
    out_HWC = np.empty((height, width, channels), np.float32)
    for block in _blocks(rows, height):
        read = across[block.source].reshape(-1, width * channels).astype(np.float32)
        out_HWC[block.target] = _bytes(block.weights @ read).reshape(-1, width, channels)
    return out_HWC


def _bytes(values: Float32) -> Float32:
    """Round halves up and clip to 0..255."""
    np.add(values, np.float32(0.5), out=values)
    np.floor(values, out=values)
    return np.clip(values, 0, 255, out=values)


@lru_cache(maxsize=64)
def _blocks(source: int, target: int) -> tuple[_Block, ...]:
    """Weights that sum to 1 for each target pixel; those beyond the edge are left out, as Pillow does."""
    scale = source / target
    stretch = max(scale, 1.0)
    found = []
    for first in range(0, target, _BLOCK):
        centers = (np.arange(first, min(first + _BLOCK, target)) + 0.5) * scale
        low = max(0, int(np.floor(centers[0] - _LOBES * stretch)))
        high = min(source, int(np.ceil(centers[-1] + _LOBES * stretch)))
        places = (np.arange(low, high) + 0.5 - centers[:, None]) / stretch
        weights = np.where(np.abs(places) < _LOBES, np.sinc(places) * np.sinc(places / _LOBES), 0)
        weights /= weights.sum(axis=1, keepdims=True)
        found.append(_Block(slice(first, first + len(centers)), slice(low, high), weights.astype(np.float32)))
    return tuple(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocess:
    """Preprocessing of a picture: resize to a fixed size, scale to 0..1, normalize.

    Attributes:
        height: Network input height in pixels, a multiple of `stride`.
        width: Network input width in pixels, a multiple of `stride`.
        scale: `255` divides by 255; `image_max` by the resized picture's own largest value, as the authors do.
        mean: Per channel, RGB, subtracted after scaling.
        std: Per channel, RGB, divided by after subtracting.
        stride: 32 for the networks of this project, 1 for others, whose graphs say what they take.
        resample: `bilinear`, without anti-aliasing; `lanczos` as Pillow does it, with anti-aliasing, in whole levels.
    """

    MAY_LACK: ClassVar = ("stride", "resample")  # in older files; the others, so that a file is not half understood
    height: int = 256
    width: int = 256
    scale: Scale = "255"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    stride: int = STRIDE
    resample: Resample = "bilinear"

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride is {self.stride}; it must be at least 1")
        check_size(self.height, self.width, self.stride)
        if self.scale not in ("255", "image_max"):
            raise ValueError(f"scale is {self.scale!r}; it must be '255' or 'image_max'")
        if self.resample not in ("bilinear", "lanczos"):
            raise ValueError(f"resample is {self.resample!r}; it must be 'bilinear' or 'lanczos'")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std} must be three values each, std above 0")

    def apply(self, image_HWC: UInt8) -> Float32:
        """Preprocess a uint8 RGB picture H,W,3; returns float32 3,height,width.

        >>> Preprocess(height=32, width=32).apply(np.zeros((5, 9, 3), np.uint8)).shape
        (3, 32, 32)
        """
        if image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or image_HWC.dtype != np.uint8:
            raise ValueError(f"image is {image_HWC.dtype} {image_HWC.shape}; it must be uint8 H,W,3 in RGB order")
        resize = resize_lanczos if self.resample == "lanczos" else resize_bilinear
        resized_HWC = resize(image_HWC, self.height, self.width)
        gain, offset = self.affine(self.divisor(resized_HWC))
        out_CHW = np.empty((3, self.height, self.width), np.float32)
        for c in range(3):
            np.multiply(resized_HWC[..., c], gain[c], out=out_CHW[c])
            out_CHW[c] += offset[c]
        return out_CHW

    def divisor(self, resized_HWC: Float32) -> float:
        """Return what the resized picture 0..255 is divided by.

        255, or its own largest value (1 for a black picture).
        """
        return 255.0 if self.scale == "255" else max(float(resized_HWC.max()), 1.0)

    def affine(self, divisor: float = 255.0) -> tuple[Float32, Float32]:
        """Scaling and normalizing as one `gain * x + offset` per channel, x in 0..255."""
        std = np.asarray(self.std, np.float64)
        gain = 1.0 / (divisor * std)
        offset = -np.asarray(self.mean, np.float64) / std
        return gain.astype(np.float32), offset.astype(np.float32)

    def digest(self) -> str:
        """Twelve hex digits that change when any field does; stored in manifests.

        >>> Preprocess().digest() == Preprocess(height=224).digest()
        False
        """
        fed = {name: value for name, value in to_plain(self).items() if name != "stride"}  # which feeds nothing
        if self.resample == "bilinear":  # so that digests of older files hold
            del fed["resample"]
        return hashlib.sha256(json.dumps(fed, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True, slots=True)
class Postprocess:
    """Network output to mask: an optional stretch, then back to the picture's size.

    Attributes:
        stretch: Stretch the map to its own minimum and maximum, per picture, as the authors do.
        empty_below: Nothing salient is found in a map whose score (the value that its strongest thousandth reaches) is
            below this; one whose largest value is below it is not stretched either. `basnet-bench threshold` finds it.
    """

    MAY_LACK: ClassVar = ()
    stretch: bool = False
    empty_below: float = 0.1

    def apply(self, mask_HW: Float32, height: int, width: int) -> Float32:
        """Postprocess a map h,w in 0..1; returns float32 height,width in 0..1."""
        return resize_bilinear(self.stretched(mask_HW), height, width)

    def stretched(self, mask_HW: Float32) -> Float32:
        """Return the map, stretched to 0..1 where that is asked and it is not flat.

        >>> Postprocess(stretch=True).stretched(np.full((2, 2), 0.02, np.float32)).max() < 0.1
        np.True_
        """
        if not self.stretch:
            return mask_HW
        low, high = float(mask_HW.min()), float(mask_HW.max())
        if high < self.empty_below or high - low < 1e-6:
            return mask_HW
        return cast(Float32, (mask_HW - np.float32(low)) / np.float32(high - low))
