"""Strong augmentation of batches of pictures and masks in torch, on their device.

What is done to a picture is drawn from its own generator, so that it depends on nothing but the seed and the step:

    chances = Chances.drawn(rngs, jitter=(0.4, 1.2), stretch=1.3, flip=0.5)
    images_N3SS, masks_NSS = augmented(images_NSSC, masks_NSS, 224, chances)

Legend: N pictures, S side length, C channels; pictures are uint8 in, float 0..255 out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Chances", "augmented", "blurred", "colored", "jpeg", "windows"]

_GRAY = 124.0
_MAX_SIGMA = 1.6
# Tables K.1 and K.2 of the JPEG standard (ITU-T T.81), for luminance and chrominance.
_LUMINANCE = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"
)
_CHROMINANCE = (
    "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99 " + "99 " * 32
)
_RGB_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@dataclass(frozen=True, kw_only=True, slots=True)
class Chances:
    """What is done to each of N pictures; one value a picture, float32.

    Attributes:
        height: Of the window that is shown, as a share of the picture; above 1 shows its surroundings in gray.
        width: Likewise.
        top: Where the window begins, as a share of the room there is, 0..1.
        left: Likewise.
        flip: 1 mirrors.
        brightness: Factor.
        contrast: Factor about the picture's mean.
        saturation: Factor about gray.
        sigma: Of the blur, pixels; 0 leaves the picture sharp.
        quality: Of the JPEG, 1..100; 0 leaves it out.
    """

    height: Tensor
    width: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    sigma: Tensor
    quality: Tensor

    @classmethod
    def drawn(
        cls, rngs: Sequence[np.random.Generator], *, jitter: tuple[float, float], stretch: float, flip: float
    ) -> Chances:
        """Draw once for each generator, always the same number of draws.

        The order is that of the fields.
        """
        rows = [_drawn(rng, jitter, stretch, flip) for rng in rngs]
        columns = torch.tensor(np.asarray(rows, np.float32)).unbind(1)
        return cls(**dict(zip((f.name for f in fields(cls)), columns, strict=True)))

    def to(self, device: torch.device) -> Chances:
        """The same on another device."""
        return Chances(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


def _drawn(rng: np.random.Generator, jitter: tuple[float, float], stretch: float, flip: float) -> list[float]:
    share = math.exp(rng.uniform(math.log(jitter[0]), math.log(jitter[1])))
    ratio = stretch ** rng.uniform(-0.5, 0.5)
    top, left, mirrored = rng.random(), rng.random(), rng.random() < flip
    color = [rng.uniform(0.7, 1.3), rng.uniform(0.7, 1.3), rng.uniform(0.6, 1.4)]
    sigma, quality = rng.uniform(0.3, _MAX_SIGMA), float(rng.integers(35, 96))
    soft, packed = rng.random() < 0.2, rng.random() < 0.3
    return [share * ratio, share / ratio, top, left, mirrored, *color, sigma * soft, quality * packed]


def augmented(
    images_NSSC: Tensor, masks_NSS: Tensor, size: int, chances: Chances, *, largest: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Apply window, flip, color, blur and JPEG.

    Returns float N,3,size,size and N,1,size,size, both in 0..255.

    Masks N,S,S,2 with what is left out of them give N,2,size,size.
    """
    images, masks = windows(images_NSSC, masks_NSS, size, chances, largest=largest)
    images = colored(images, chances.brightness, chances.contrast, chances.saturation)
    images = blurred(images, chances.sigma)
    return jpeg(images, chances.quality), masks


def windows(
    images_NSSC: Tensor, masks_NSS: Tensor, size: int, chances: Chances, *, largest: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Cut windows of N pictures and masks, resized to `size`.

    They are averaged where they shrink; outside is gray, and no object.

    `largest` is the largest window that can be drawn, as a share: how finely is sampled must not depend on the batch.
    """
    pictures = images_NSSC.permute(0, 3, 1, 2).float() - _GRAY
    truths = masks_NSS[:, None] if masks_NSS.ndim == 3 else masks_NSS.permute(0, 3, 1, 2)
    planes = torch.cat((pictures, truths.float()), 1)
    finer = max(
        1, math.ceil(largest * images_NSSC.shape[1] / size - 0.25)
    )  # so many samples a pixel and axis, against aliasing
    grid = _grid(chances, size * finer)
    sampled = F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if finer > 1:
        sampled = F.avg_pool2d(sampled, finer)
    return (sampled[:, :3] + _GRAY).clamp(0, 255), sampled[:, 3:].clamp(0, 255)


def _grid(chances: Chances, size: int) -> Tensor:
    """Where to sample, N,size,size,2 in -1..1."""
    theta = torch.zeros(len(chances.flip), 2, 3, device=chances.flip.device)
    theta[:, 0, 0] = chances.width * (1 - 2 * chances.flip)
    theta[:, 1, 1] = chances.height
    # The center may move by the room there is, inside the picture or, for a window larger than it, around it.
    theta[:, 0, 2] = (1 - chances.width).abs() * (2 * chances.left - 1)
    theta[:, 1, 2] = (1 - chances.height).abs() * (2 * chances.top - 1)
    return F.affine_grid(theta, [len(theta), 1, size, size], align_corners=False)


def colored(images_N3SS: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Change each picture's brightness, contrast and saturation; clip to 0..255."""
    weights = torch.tensor(_RGB_TO_YCC[0], device=images_N3SS.device).view(1, 3, 1, 1)
    x = images_N3SS * _each(brightness)
    mean = (x * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    x = mean + (x - mean) * _each(contrast)
    gray = (x * weights).sum(1, keepdim=True)
    return (gray + (x - gray) * _each(saturation)).clamp(0, 255)


def blurred(images_N3SS: Tensor, sigma: Tensor) -> Tensor:
    """Blur each picture with a Gaussian of its own sigma; 0 leaves it unchanged.

    The edge is repeated outwards.
    """
    side = images_N3SS.shape[-1]
    distance = (torch.arange(side, device=sigma.device)[:, None] - torch.arange(side, device=sigma.device)).abs()
    width = sigma.clamp(min=1e-3)[:, None, None]
    band = torch.exp(-(distance.float() ** 2) / (2 * width**2))
    band = (band / band.sum(2, keepdim=True))[:, None]  # N,1,S,S; rows add up to 1 also at the edge
    return band @ images_N3SS @ band.transpose(-1, -2)


def jpeg(images_N3SS: Tensor, quality: Tensor) -> Tensor:
    """Simulate a baseline JPEG of each picture's own quality; 0 leaves it unchanged.

    Chrominance has full size.

    The eight-by-eight cosine transform, the standard's tables scaled as libjpeg does, and rounding.
    """
    matrix = torch.tensor(_RGB_TO_YCC, device=images_N3SS.device)
    cosine = _cosines(images_N3SS.device)
    count, _, side, _ = images_N3SS.shape
    if side % 8:
        raise ValueError(f"size {side}: JPEG works on multiples of 8")
    ycc = torch.einsum("ij,njhw->nihw", matrix, images_N3SS)
    ycc = ycc.round() - torch.tensor([128.0, 0.0, 0.0], device=ycc.device).view(1, 3, 1, 1)
    blocks = ycc.reshape(count, 3, side // 8, 8, side // 8, 8).transpose(3, 4)
    steps = _steps(quality)[:, :, None, None]
    frequencies = torch.round(cosine @ blocks @ cosine.T / steps) * steps
    back = (cosine.T @ frequencies @ cosine).transpose(3, 4).reshape(count, 3, side, side)
    back = back + torch.tensor([128.0, 0.0, 0.0], device=ycc.device).view(1, 3, 1, 1)
    packed = torch.einsum("ij,njhw->nihw", torch.linalg.inv(matrix), back.round()).round().clamp(0, 255)
    return torch.where(_each(quality) > 0, packed, images_N3SS)


def _steps(quality: Tensor) -> Tensor:
    """Quantization steps N,3,8,8 of libjpeg's `quality`."""
    tables = torch.tensor([[int(v) for v in t.split()] for t in (_LUMINANCE, _CHROMINANCE, _CHROMINANCE)])
    tables = tables.view(1, 3, 8, 8).to(quality.device)
    q = quality.clamp(min=1)
    scale = torch.where(q < 50, torch.floor(5000 / q), 200 - 2 * q)
    return torch.floor((tables * _each(scale) + 50) / 100).clamp(1, 255)


def _each(values_N: Tensor) -> Tensor:
    return values_N.view(-1, 1, 1, 1)


@lru_cache(maxsize=8)
def _cosines(device: torch.device) -> Tensor:
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)[None, :]
    matrix = torch.cos((2 * n + 1) * k * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.to(device)
