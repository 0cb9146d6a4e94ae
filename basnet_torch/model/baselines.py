"""Baseline networks for comparison: FCN, SegNet, U-Net, HED on BASNet's blocks.

Each keeps the idea it is known for; depth and channels are chosen so that at equal width it has within 12 % as many
parameters as BASNet (`tests/torch/model/test_baselines.py` holds the counts). All take N,3,H,W, multiples of 32.

Legend: N pictures, C channels, H height, W width; `w` is the width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basnet_torch.model.basnet import (
    ConvBNReLU,
    Encoder,
    SaliencyNetwork,
    double,
    enlarge,
    halve,
    initialize,
    residual_stage,
)
from basnet_torch.spec import check_size

__all__ = ["FCN", "HED", "HEDMaps", "OneMap", "SegNet", "UNet", "unpool"]


class OneMap(NamedTuple):
    """The only logit map, N,1,H,W, of a network without deep supervision."""

    fused: Tensor


class HEDMaps(NamedTuple):
    """HED's logit maps, each N,1,H,W: the weighted sum, the sides, fine to coarse."""

    fused: Tensor
    side1: Tensor
    side2: Tensor
    side3: Tensor
    side4: Tensor
    side5: Tensor
    side6: Tensor


class FCN(SaliencyNetwork):
    """FCN-8s (Long et al. 2015, 1411.4038); no decoder.

    Scores at strides 32, 16 and 8 are upsampled and added.

    The two wide layers that were a classifier's ("fc6" and "fc7") are 28w channels wide.
    """

    arch = "fcn"

    def __init__(self, width: int) -> None:
        super().__init__(width)
        w = width
        self.encoder = Encoder(w)
        self.classifier = nn.Sequential(ConvBNReLU(8 * w, 28 * w), ConvBNReLU(28 * w, 28 * w))
        self.score32 = nn.Conv2d(28 * w, 1, 1)
        self.score16 = nn.Conv2d(8 * w, 1, 1)
        self.score8 = nn.Conv2d(8 * w, 1, 1)
        self.apply(initialize)

    def forward(self, image: Tensor) -> OneMap:
        """The fused score for normalized pictures `image` N,3,H,W."""
        check_size(image.shape[-2], image.shape[-1])
        *_, stage4, stage5, stage6 = self.encoder(image)
        score = self.score32(self.classifier(stage6))
        score = double(score) + self.score16(stage5)
        score = double(score) + self.score8(stage4)
        return OneMap(enlarge(score, 8))


class SegNet(SaliencyNetwork):
    """SegNet (Badrinarayanan et al. 2015, 1511.00561).

    The decoder puts values back where pooling took them from.

    No features are handed from encoder to decoder, only the places of the maxima.
    """

    arch = "segnet"
    first_layer = "stem.conv"

    def __init__(self, width: int) -> None:
        super().__init__(width)
        w = width
        self.stem = ConvBNReLU(3, w)
        channels = (
            (w, w, 3),
            (w, 2 * w, 4),
            (2 * w, 4 * w, 6),
            (4 * w, 8 * w, 3),
            (8 * w, 8 * w, 3),
            (8 * w, 8 * w, 3),
        )
        self.down = nn.ModuleList(residual_stage(a, b, blocks) for a, b, blocks in channels)
        deep = ((8 * w, 8 * w, 5), (8 * w, 8 * w, 5), (8 * w, 4 * w, 5))
        fine = ((4 * w, 2 * w, 3), (2 * w, w, 3), (w, w, 3))
        self.up = nn.ModuleList(_convolutions(a, b, count) for a, b, count in (*deep, *fine))
        self.output = nn.Conv2d(w, 1, 3, padding=1)
        self.apply(initialize)

    def forward(self, image: Tensor) -> OneMap:
        """The decoder's map for normalized pictures `image` N,3,H,W."""
        check_size(image.shape[-2], image.shape[-1])
        pooled_from: list[Tensor] = []
        x = self.stem(image)
        for stage in self.down:
            x = stage(halve(x) if pooled_from else x)
            pooled_from.append(x)
        x = self.up[0](pooled_from.pop())
        for stage in list(self.up)[1:]:
            x = stage(unpool(x, pooled_from.pop()))
        return OneMap(self.output(x))


class UNet(SaliencyNetwork):
    """U-Net (Ronneberger et al. 2015, 1505.04597).

    Two convolutions a level; skip connections concatenate.
    """

    arch = "unet"
    first_layer = "down.0.0.conv"

    def __init__(self, width: int) -> None:
        super().__init__(width)
        channels = [3, *(width * n for n in (1, 2, 4, 8, 16, 16))]
        self.down = nn.ModuleList(_convolutions(a, b, 2) for a, b in pairwise(channels))
        self.up = nn.ModuleList(_convolutions(a + b, b, 2) for a, b in pairwise(channels[:0:-1]))
        self.output = nn.Conv2d(width, 1, 1)
        self.apply(initialize)

    def forward(self, image: Tensor) -> OneMap:
        """The decoder's map for normalized pictures `image` N,3,H,W."""
        check_size(image.shape[-2], image.shape[-1])
        skips: list[Tensor] = []
        x = image
        for stage in self.down:
            x = stage(halve(x) if skips else x)
            skips.append(x)
        skips.pop()
        for stage in self.up:
            x = stage(torch.cat((double(x), skips.pop()), 1))
        return OneMap(self.output(x))


class HED(SaliencyNetwork):
    """HED (Xie and Tu 2015, 1504.06375): a map of each stage, and their learned sum.

    Each map has its own loss.
    """

    arch = "hed"

    def __init__(self, width: int) -> None:
        super().__init__(width)
        w = width
        self.encoder = Encoder(w, (3, 4, 6, 3, 7, 7))
        self.sides = nn.ModuleList(nn.Conv2d(c, 1, 1) for c in (w, 2 * w, 4 * w, 8 * w, 8 * w, 8 * w))
        self.fuse = nn.Conv2d(6, 1, 1)
        self.apply(initialize)
        nn.init.constant_(self.fuse.weight, 1 / 6)

    def forward(self, image: Tensor) -> HEDMaps:
        """The fused map and six sides for normalized pictures `image` N,3,H,W."""
        check_size(image.shape[-2], image.shape[-1])
        stages = zip(self.sides, self.encoder(image), (1, 2, 4, 8, 16, 32), strict=True)
        sides = [enlarge(side(features), scale) for side, features, scale in stages]
        return HEDMaps(cast(Tensor, self.fuse(torch.cat(sides, 1))), *sides)


def unpool(x: Tensor, pooled_from: Tensor) -> Tensor:
    """Unpool `x` N,C,h,w to twice the size, by the maxima of `pooled_from`.

    Each value goes where the maximum of its 2x2 square in `pooled_from` N,C,2h,2w stood.

    `pooled_from` is not negative. Where several places come within a 64th of the maximum, all of them get the value: on
    an even surface rounding alone would choose between them, and no exported file would give the same map.

    >>> unpool(torch.tensor([[[[5.0]]]]), torch.tensor([[[[1.0, 3.0], [3.0, 2.0]]]]))
    tensor([[[[0., 5.],
              [5., 0.]]]])
    """
    peak = _repeat(halve(pooled_from))
    return _repeat(x) * (pooled_from >= peak * (63 / 64)).to(x.dtype)


def _repeat(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _convolutions(in_channels: int, out_channels: int, count: int) -> nn.Sequential:
    """`count` conv-BN-ReLU; the first fits the channels when they grow, the last when they shrink."""
    inner = max(in_channels, out_channels) if count > 2 else out_channels
    channels = [in_channels, *[inner] * (count - 1), out_channels]
    return nn.Sequential(*(ConvBNReLU(a, b) for a, b in pairwise(channels)))
