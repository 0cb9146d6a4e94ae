"""The authors' transforms by their names, to train with their recipes.

    sample = RandomCrop(224)(RescaleT(256)(Sample(image_HWC, mask_HW)), rng)
    planes_CHW, truth_1HW = ToTensorLab(flag=0)(sample)

Legend: H height, W width, C channels; `image` is uint8 RGB, `mask` uint8.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import cv2
import numpy as np

from basnet_torch.arrays import Float32, UInt8
from basnet_torch.spec import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["CenterCrop", "Flag", "RandomCrop", "Rescale", "RescaleT", "Sample", "ToTensorLab"]

Flag = Literal[0, 1, 2]


_XYZ_FROM_RGB = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)


class Sample(NamedTuple):
    """A picture uint8 H,W,3 and its mask uint8 H,W, or H,W,2 with ignored pixels."""

    image: UInt8
    mask: UInt8


class RescaleT:
    """Resize to a square of `side` pixels; bilinear, masks nearest.

    The aspect is not kept, and nothing is smoothed.
    """

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, sample: Sample) -> Sample:
        """The sample at side, side."""
        return _resized(sample, self.side, self.side)


class Rescale:
    """So that the shorter side has `side` pixels, the aspect kept."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, sample: Sample) -> Sample:
        """The sample, its shorter side at `side`."""
        height, width = sample.mask.shape
        if height > width:
            return _resized(sample, int(self.side * height / width), self.side)
        return _resized(sample, self.side, int(self.side * width / height))


class RandomCrop:
    """A square of `side` pixels from anywhere in the picture."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The crop; raises ValueError when the picture is smaller."""
        rows, columns = _room(sample, self.side)
        return _cropped(sample, int(rng.integers(rows + 1)), int(rng.integers(columns + 1)), self.side)


class CenterCrop:
    """The middle square of `side` pixels."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, sample: Sample) -> Sample:
        """The crop; raises ValueError when the picture is smaller."""
        rows, columns = _room(sample, self.side)
        return _cropped(sample, rows // 2, columns // 2, self.side)


class ToTensorLab:
    """Picture to network planes by `flag`, mask to 0..1.

    - 0: RGB over the picture's own largest value, normalized by ImageNet's mean and deviation; 3 planes.
    - 1: CIELAB, each plane brought to 0..1 by its own range, then to mean 0 and deviation 1; 3 planes.
    - 2: RGB, then CIELAB, each as in 1; 6 planes.

    The mask is divided by its largest value; an even plane and an empty mask become zero.
    """

    def __init__(self, flag: Flag = 0) -> None:
        if flag not in (0, 1, 2):
            raise ValueError(f"flag is {flag}; it must be 0, 1 or 2")
        self.flag = flag

    def __call__(self, sample: Sample) -> tuple[Float32, Float32]:
        """float32 C,H,W and 1,H,W."""
        image = np.atleast_3d(sample.image)
        image = np.repeat(image, 3, 2) if image.shape[2] == 1 else image
        truth = sample.mask.astype(np.float32)
        peak = truth.max()
        truth = truth / peak if peak > 0 else truth
        return np.ascontiguousarray(self._planes(image).transpose(2, 0, 1), np.float32), truth[None]

    def _planes(self, image: UInt8) -> Float32:
        if self.flag == 0:
            peak = max(float(image.max()), 1.0)
            return np.asarray((image / peak - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD), np.float32)
        lab = _standardized(_lab(image))
        return lab if self.flag == 1 else np.concatenate((_standardized(image.astype(np.float32)), lab), 2)


def _lab(image: UInt8) -> Float32:
    """CIELAB of sRGB under D65 (IEC 61966-2-1, CIE 15): L 0..100, a and b in their own units. OpenCV's is coarser."""
    encoded = image / 255.0
    linear = np.where(encoded > 0.04045, ((encoded + 0.055) / 1.055) ** 2.4, encoded / 12.92)
    relative = linear @ np.array(_XYZ_FROM_RGB).T / np.array(_WHITE)
    cubic = np.where(relative > 0.008856, np.cbrt(relative), 7.787 * relative + 16 / 116)
    x, y, z = np.moveaxis(cubic, 2, 0)
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), 2).astype(np.float32)


def _standardized(planes_HWC: Float32) -> Float32:
    low, high = planes_HWC.min((0, 1)), planes_HWC.max((0, 1))
    ranged = (planes_HWC - low) / np.where(high > low, high - low, 1)
    spread = ranged.std((0, 1))
    return np.asarray((ranged - ranged.mean((0, 1))) / np.where(spread > 0, spread, 1), np.float32)


def _resized(sample: Sample, height: int, width: int) -> Sample:
    image = cv2.resize(sample.image, (width, height), interpolation=cv2.INTER_LINEAR)
    mask = cv2.resize(sample.mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return Sample(np.asarray(image, np.uint8), np.asarray(mask, np.uint8))


def _room(sample: Sample, side: int) -> tuple[int, int]:
    height, width = sample.mask.shape[:2]
    if min(height, width) < side:
        raise ValueError(f"side is {side}, but the picture has {height}x{width}; rescale it first")
    return height - side, width - side


def _cropped(sample: Sample, top: int, left: int, side: int) -> Sample:
    window = np.s_[top : top + side, left : left + side]
    return Sample(sample.image[window], sample.mask[window])
