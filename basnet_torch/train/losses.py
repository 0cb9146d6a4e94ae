"""The hybrid loss of BASNet (section 3.4): BCE + (1 - SSIM) + (1 - IoU).

Summed over the maps of a network.

Everything is computed in float32, also under autocast: SSIM subtracts squares that nearly cancel, and BCE takes the
logits so that a saturated map keeps a finite gradient.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from basnet_torch.model.basnet import NamedMaps
from basnet_torch.train.config import Loss

__all__ = ["HybridLoss", "bce", "gaussian_band", "hybrid_loss", "iou", "ssim"]

_WINDOW = 11
_SIGMA = 1.5
_C1 = 0.01**2
_C2 = 0.03**2


class HybridLoss(NamedTuple):
    """The loss to minimize, and each term per map for logs and for naming what broke.

    `terms` holds one value a map (M,), in the order of `maps`, under `bce`, `ssim` and `iou`, each a loss: lower is
    better. Terms that were not asked for are absent.
    """

    total: Tensor
    terms: dict[str, Tensor]
    maps: tuple[str, ...]

    def first_not_finite(self) -> str | None:
        """`"ssim of decoder3"` for the first term that is not finite, or None."""
        for term, values in self.terms.items():
            for name, value in zip(self.maps, values.tolist(), strict=True):
                if not math.isfinite(value):
                    return f"{term} of {name}"
        return None


def hybrid_loss(
    maps: NamedMaps, target: Tensor, terms: Loss = "bce+ssim+iou", *, counted: Tensor | None = None
) -> HybridLoss:
    """Return the loss of M logit maps N,1,H,W against `target` N,1,H,W in 0..1.

    `terms` selects the terms.

    Where `counted` N,1,H,W is 0 rather than 1, nothing depends on map and truth: means are over the other pixels of
    each picture, and windows that reach there see background in both.

    >>> from basnet_torch.model.basnet import SaliencyMaps
    >>> maps = SaliencyMaps(*(torch.full((1, 1, 32, 32), 20.0) for _ in range(8)))
    >>> float(hybrid_loss(maps, torch.ones(1, 1, 32, 32)).total) < 1e-4
    True
    """
    asked = terms.split("+")
    with torch.autocast(target.device.type, enabled=False):
        logits = torch.cat([m.float() for m in maps], 1)  # N,M,H,W
        truth = target.float()
        prediction = torch.sigmoid(logits)
        if counted is not None:
            prediction, truth = prediction * counted, truth * counted
        crossed = bce(logits, truth)
        parts = {"bce": crossed.mean((0, 2, 3)) if counted is None else _mean(crossed, counted)}
        if "ssim" in asked:
            alike = _ssim_map(prediction, truth)
            parts["ssim"] = (1 - alike.mean((2, 3))).mean(0) if counted is None else _mean(1 - alike, counted)
        if "iou" in asked:
            parts["iou"] = (1 - iou(prediction, truth)).mean(0)
        total = torch.stack([part.sum() for part in parts.values()]).sum()
        return HybridLoss(total, parts, maps._fields)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """The mean of each map of N,M,H,W over what counts; pictures weigh the same, one of which nothing does gives 0."""
    pixels = counted.sum((2, 3)).clamp(min=1)
    return ((values * counted).sum((2, 3)) / pixels).mean(0)


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Return the binary cross-entropy per pixel of logits N,C,H,W.

    `target` is N,1,H,W or N,C,H,W.
    """
    return F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity per picture and channel, N,C; the mean of `_ssim_map`."""
    return _ssim_map(prediction, target).mean((2, 3))


def _ssim_map(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity per pixel, N,C,H,W: Gaussian window 11, sigma 1.5, zero padding, equation 5.

    `prediction` is N,C,H,W in 0..1, `target` N,1,H,W or N,C,H,W.
    """
    rows = gaussian_band(prediction.shape[-2], prediction.device)
    columns = gaussian_band(prediction.shape[-1], prediction.device)

    def blur(x: Tensor) -> Tensor:
        return rows @ x @ columns

    mean_p, mean_t = blur(prediction), blur(target)
    var_p = blur(prediction * prediction) - mean_p * mean_p
    var_t = blur(target * target) - mean_t * mean_t
    covariance = blur(prediction * target) - mean_p * mean_t
    luminance = (2 * mean_p * mean_t + _C1) / (mean_p * mean_p + mean_t * mean_t + _C1)
    structure = (2 * covariance + _C2) / (var_p + var_t + _C2)
    return luminance * structure


def iou(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the soft IoU per picture and channel, N,C (equation 6).

    Two empty maps give 1.

    >>> iou(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))
    tensor([[1.]])
    """
    both = (prediction * target).sum((2, 3))
    either = prediction.sum((2, 3)) + target.sum((2, 3)) - both
    tiny = torch.finfo(both.dtype).tiny
    return torch.where(either > tiny, both / either.clamp_min(tiny), torch.ones_like(both))


def gaussian_band(size: int, device: torch.device | None = None) -> Tensor:
    """Return the `size` x `size` band matrix of a Gaussian filter, zero padded.

    Its product with a column is the filtered column.

    Two products with this symmetric matrix cost a twentieth of what an 11x11 convolution costs on a CPU.
    """
    return _gaussian_band(size, device or torch.device("cpu"))


@lru_cache(maxsize=32)
def _gaussian_band(size: int, device: torch.device) -> Tensor:
    position = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    window = torch.exp(-(position**2) / (2 * _SIGMA**2))
    window /= window.sum()
    offset = torch.arange(size)[None, :] - torch.arange(size)[:, None] + _WINDOW // 2
    inside = (offset >= 0) & (offset < _WINDOW)
    band = torch.where(inside, window[offset.clamp(0, _WINDOW - 1)], torch.zeros((), dtype=torch.float64))
    return band.to(device=device, dtype=torch.float32)
