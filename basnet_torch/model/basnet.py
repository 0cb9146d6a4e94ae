"""BASNet: predict module (encoder, bridge, decoder) and refinement module.

Qin et al., "BASNet: Boundary-Aware Salient Object Detection", CVPR 2019, section 3. At `width` 64 it is the paper's
network (87,060,360 parameters); every channel count scales with `width`.

Legend: N pictures, C channels, H height, W width; `w` is the width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basnet_torch.model.encoders import FeatureEncoder, feature_encoder
from basnet_torch.model.structure import DECODER_WIDTHS, RESNET34, Arch
from basnet_torch.spec import check_size

__all__ = [
    "PAPER_WIDTH",
    "BASNet",
    "BasicBlock",
    "CoarseBASNet",
    "CoarseFeatureMaps",
    "CoarseMaps",
    "ConvBNReLU",
    "Encoder",
    "FeatureMaps",
    "FeaturePredictModule",
    "NamedMaps",
    "SaliencyMaps",
    "SaliencyNetwork",
    "double",
    "enlarge",
    "halve",
    "initialize",
    "residual_stage",
]

PAPER_WIDTH = 64


class NamedMaps(Protocol):
    """Every network's output: a NamedTuple of logit maps N,1,H,W, deployed one first."""

    @property
    def _fields(self) -> tuple[str, ...]: ...
    def __getitem__(self, index: int, /) -> Tensor: ...
    def __iter__(self) -> Iterator[Tensor]: ...
    def __len__(self) -> int: ...


class SaliencyMaps(NamedTuple):
    """The eight maps as logits, each N,1,H,W.

    The refined one, the decoder's from fine to coarse, the bridge's.
    """

    refined: Tensor
    decoder1: Tensor
    decoder2: Tensor
    decoder3: Tensor
    decoder4: Tensor
    decoder5: Tensor
    decoder6: Tensor
    bridge: Tensor


class CoarseMaps(NamedTuple):
    """`SaliencyMaps` without the refined one: what the predict module alone gives."""

    decoder1: Tensor
    decoder2: Tensor
    decoder3: Tensor
    decoder4: Tensor
    decoder5: Tensor
    decoder6: Tensor
    bridge: Tensor


class FeatureMaps(NamedTuple):
    """The seven maps of BASNet on an encoder of five stages, each N,1,H,W.

    As `SaliencyMaps`, decoder 1 at stride 2.
    """

    refined: Tensor
    decoder1: Tensor
    decoder2: Tensor
    decoder3: Tensor
    decoder4: Tensor
    decoder5: Tensor
    bridge: Tensor


class CoarseFeatureMaps(NamedTuple):
    """`FeatureMaps` without the refined one."""

    decoder1: Tensor
    decoder2: Tensor
    decoder3: Tensor
    decoder4: Tensor
    decoder5: Tensor
    bridge: Tensor


class ConvBNReLU(nn.Module):
    """A 3x3 convolution with bias, batch norm, ReLU; padding equals dilation."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,H,W to the same H and W."""
        return F.relu(self.norm(self.conv(x)))


class BasicBlock(nn.Module):
    """ResNet-34's block: two 3x3 convolutions and a shortcut.

    A 1x1 convolution fits the shortcut where shapes change.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            fit = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(fit, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,H,W to H and W over the stride."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def residual_stage(in_channels: int, out_channels: int, blocks: int, stride: int = 1) -> nn.Sequential:
    """ResNet basic blocks, the first of which changes resolution and channels."""
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels) for _ in range(blocks - 1)))


class Encoder(nn.Module):
    """Six stages at resolutions 1 to 1/32; the stem does not pool."""

    def __init__(self, w: int, blocks: tuple[int, int, int, int, int, int] = (3, 4, 6, 3, 3, 3)) -> None:
        super().__init__()
        self.stem = ConvBNReLU(3, w)
        self.stage1 = residual_stage(w, w, blocks[0])
        self.stage2 = residual_stage(w, 2 * w, blocks[1], stride=2)
        self.stage3 = residual_stage(2 * w, 4 * w, blocks[2], stride=2)
        self.stage4 = residual_stage(4 * w, 8 * w, blocks[3], stride=2)
        self.stage5 = residual_stage(8 * w, 8 * w, blocks[4])
        self.stage6 = residual_stage(8 * w, 8 * w, blocks[5])

    def forward(self, image: Tensor) -> list[Tensor]:
        """Six feature maps of a picture N,3,H,W, the finest first."""
        stage1 = self.stage1(self.stem(image))
        stage2 = self.stage2(stage1)
        stage3 = self.stage3(stage2)
        stage4 = self.stage4(stage3)
        stage5 = self.stage5(halve(stage4))
        stage6 = self.stage6(halve(stage5))
        return [stage1, stage2, stage3, stage4, stage5, stage6]


class Decoder(nn.Module):
    """Six stages from coarse to fine, each with the encoder's map of its size."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.stage6 = _decoder_stage(16 * w, 8 * w, 8 * w, dilation=2)
        self.stage5 = _decoder_stage(16 * w, 8 * w, 8 * w)
        self.stage4 = _decoder_stage(16 * w, 8 * w, 4 * w)
        self.stage3 = _decoder_stage(8 * w, 4 * w, 2 * w)
        self.stage2 = _decoder_stage(4 * w, 2 * w, w)
        self.stage1 = _decoder_stage(2 * w, w, w)

    def forward(self, bridge: Tensor, encoded: list[Tensor]) -> list[Tensor]:
        """Six maps in the encoder's order, stage 1 (finest) first."""
        decoded = [self.stage6(torch.cat((bridge, encoded[5]), 1))]
        finer = zip((self.stage5, self.stage4, self.stage3, self.stage2, self.stage1), encoded[4::-1], strict=True)
        for stage, skip in finer:
            decoded.append(stage(torch.cat((double(decoded[-1]), skip), 1)))
        return decoded[::-1]


def _decoder_stage(in_channels: int, inner: int, out_channels: int, dilation: int = 1) -> nn.Sequential:
    """Three conv-BN-ReLU; `dilation` applies to the second and third."""
    return nn.Sequential(
        ConvBNReLU(in_channels, inner), ConvBNReLU(inner, inner, dilation), ConvBNReLU(inner, out_channels, dilation)
    )


class SideOutputs(nn.Module):
    """Side outputs: a 3x3 convolution to one channel on each stage, upsampled.

    Stages of the decoder and the bridge; upsampled to the input's size.
    """

    def __init__(self, w: int) -> None:
        super().__init__()
        channels = {"stage1": w, "stage2": w, "stage3": 2 * w, "stage4": 4 * w, "stage5": 8 * w, "stage6": 8 * w}
        convs = {name: nn.Conv2d(c, 1, 3, padding=1) for name, c in channels.items()}
        self.convs = nn.ModuleDict({**convs, "bridge": nn.Conv2d(8 * w, 1, 3, padding=1)})

    def forward(self, decoded: list[Tensor], bridge: Tensor) -> list[Tensor]:
        """Seven logit maps N,1,H,W: decoder stages 1 to 6, then the bridge."""
        scales = (1, 2, 4, 8, 16, 32, 32)
        return [
            enlarge(conv(features), scale)
            for conv, features, scale in zip(self.convs.values(), [*decoded, bridge], scales, strict=True)
        ]


class PredictModule(nn.Module):
    """The coarse half of BASNet: encoder, bridge, decoder, supervised side outputs."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.encoder = Encoder(w)
        self.bridge = nn.Sequential(*(ConvBNReLU(8 * w, 8 * w, dilation=2) for _ in range(3)))
        self.decoder = Decoder(w)
        self.side_outputs = SideOutputs(w)

    def forward(self, image: Tensor) -> list[Tensor]:
        encoded = self.encoder(image)
        bridge = self.bridge(encoded[-1])
        decoded = self.decoder(bridge, encoded)
        return cast(list[Tensor], self.side_outputs(decoded, bridge))


class FeaturePredictModule(nn.Module):
    """The coarse half of BASNet on an encoder of five stages at strides 2 to 32.

    Encoders stand in `basnet_torch.model.encoders`.

    Args:
        encoder: Gives five feature maps.
        widths: Channels of the decoder's stages from coarse (stride 32) to fine (stride 2); the bridge has the first.
    """

    def __init__(self, encoder: FeatureEncoder, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = encoder
        deepest = widths[0]
        inputs = (encoder.channels[-1], deepest, deepest)
        self.bridge = nn.Sequential(*(ConvBNReLU(c, deepest, dilation=2) for c in inputs))
        below = (deepest, *widths)
        stages = {
            f"stage{5 - i}": _decoder_stage(below[i] + encoder.channels[4 - i], w, w, dilation=2 if i == 0 else 1)
            for i, w in enumerate(widths)
        }
        self.decoder = nn.ModuleDict(stages)
        sides = {f"stage{5 - i}": nn.Conv2d(w, 1, 3, padding=1) for i, w in enumerate(widths)}
        self.side_outputs = nn.ModuleDict({**sides, "bridge": nn.Conv2d(deepest, 1, 3, padding=1)})

    def forward(self, image: Tensor) -> list[Tensor]:
        """Six logit maps N,1,H,W: decoder stages 1 to 5, then the bridge."""
        encoded = self.encoder(image)
        bridge = x = self.bridge(encoded[-1])
        logits = [enlarge(self.side_outputs["bridge"](bridge), 32)]
        for number in range(5, 0, -1):
            x = x if number == 5 else double(x)
            x = self.decoder[f"stage{number}"](torch.cat((x, encoded[number - 1]), 1))
            logits.append(enlarge(self.side_outputs[f"stage{number}"](x), 2**number))
        return logits[::-1]


class RefinementModule(nn.Module):
    """Refinement module: a small U-Net that learns the residual of the coarse map.

    It is 64 channels wide.
    """

    def __init__(self, w: int) -> None:
        super().__init__()
        self.input = nn.Conv2d(1, w, 3, padding=1)
        self.down1, self.down2, self.down3, self.down4 = (ConvBNReLU(w, w) for _ in range(4))
        self.bottom = ConvBNReLU(w, w)
        self.up4, self.up3, self.up2, self.up1 = (ConvBNReLU(2 * w, w) for _ in range(4))
        self.output = nn.Conv2d(w, 1, 3, padding=1)

    def forward(self, coarse: Tensor) -> Tensor:
        """Refined logits from coarse logits, N,1,H,W."""
        skips, x = [], self.input(coarse)
        for down in (self.down1, self.down2, self.down3, self.down4):
            skips.append(down(x))
            x = halve(skips[-1])
        x = self.bottom(x)
        for up in (self.up4, self.up3, self.up2, self.up1):
            x = up(torch.cat((double(x), skips.pop()), 1))
        return coarse + cast(Tensor, self.output(x))


class SaliencyNetwork(nn.Module):
    """Base of every network: pictures to named logit maps, the first one deployed.

    Attributes:
        arch: Its name in `--arch` and in checkpoints.
        first_layer: The convolution on the picture, whose output channels are the width.
        width: Channels at full resolution.
        encoder_name: Its encoder in `--encoder`.
    """

    arch: ClassVar[Arch]
    first_layer: ClassVar[str] = "encoder.stem.conv"
    encoder_name: str = RESNET34

    def __init__(self, width: int) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width is {width}; it must be at least 1")
        self.width = width

    def forward(self, image: Tensor) -> NamedMaps:
        """Return logit maps N,1,H,W of normalized pictures `image` N,3,H,W.

        `spec.Preprocess` normalizes.

        Raises:
            ValueError: When height or width is no multiple of 32.
        """
        raise NotImplementedError

    def mask(self, image: Tensor) -> Tensor:
        """The deployed map alone, N,1,H,W in 0..1, float32 whatever the compute type."""
        return torch.sigmoid(self(image)[0].float())


class BASNet(SaliencyNetwork):
    """BASNet: eight maps on the paper's encoder, seven on an encoder of five stages.

    Args:
        width: Channels at full resolution; 64 is the paper's network. On another encoder than `resnet34` these are the
            refinement module's alone.
        encoder: `resnet34` or a name that `basnet_torch.model.encoders.feature_encoder` knows.
        decoder_widths: Channels of the five decoder stages from coarse to fine, for an encoder of five stages.

    Raises:
        ValueError: From `forward`, when height or width is no multiple of 32.
    """

    arch = "basnet"
    first_layer = "predict.encoder.stem.conv"

    def __init__(
        self, width: int = PAPER_WIDTH, *, encoder: str = RESNET34, decoder_widths: tuple[int, ...] = DECODER_WIDTHS
    ) -> None:
        super().__init__(width)
        self.encoder_name = encoder
        self.predict = _predict_module(width, encoder, decoder_widths)
        self.refine = RefinementModule(width)
        self.apply(initialize)

    def forward(self, image: Tensor) -> SaliencyMaps | FeatureMaps:
        """Return the logits of all maps of normalized pictures `image` N,3,H,W.

        `spec.Preprocess` normalizes.
        """
        check_size(image.shape[-2], image.shape[-1])
        decoder1, *coarser = self.predict(image)
        kind = SaliencyMaps if self.encoder_name == RESNET34 else FeatureMaps
        return kind(self.refine(decoder1), decoder1, *coarser)


class CoarseBASNet(SaliencyNetwork):
    """BASNet without its refinement module, the paper's ablation (table 1).

    The finest decoder map is the mask.
    """

    arch = "basnet-coarse"
    first_layer = BASNet.first_layer

    def __init__(
        self, width: int = PAPER_WIDTH, *, encoder: str = RESNET34, decoder_widths: tuple[int, ...] = DECODER_WIDTHS
    ) -> None:
        super().__init__(width)
        self.encoder_name = encoder
        self.predict = _predict_module(width, encoder, decoder_widths)
        self.apply(initialize)

    def forward(self, image: Tensor) -> CoarseMaps | CoarseFeatureMaps:
        """Logits of all maps but the refined one for normalized pictures `image` N,3,H,W."""
        check_size(image.shape[-2], image.shape[-1])
        kind = CoarseMaps if self.encoder_name == RESNET34 else CoarseFeatureMaps
        return kind(*self.predict(image))


def _predict_module(width: int, encoder: str, decoder_widths: tuple[int, ...]) -> PredictModule | FeaturePredictModule:
    if encoder == RESNET34:
        return PredictModule(width)
    return FeaturePredictModule(feature_encoder(encoder), decoder_widths)


def initialize(module: nn.Module) -> None:
    """He initialization, as suits convolutions followed by ReLU."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def halve(x: Tensor) -> Tensor:
    """Max-pooling 2x2."""
    return F.max_pool2d(x, 2, stride=2, ceil_mode=True)


def double(x: Tensor) -> Tensor:
    """Bilinear, to twice the size."""
    return enlarge(x, 2)


def enlarge(x: Tensor, scale: int) -> Tensor:
    """Bilinear with half-pixel centers, to `scale` times the size."""
    return x if scale == 1 else F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
