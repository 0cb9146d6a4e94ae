"""Training configuration: one immutable value, stored with its checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from basnet_torch.errors import UsageError
from basnet_torch.json_values import from_plain
from basnet_torch.model.structure import DECODER_WIDTHS, RESNET34, Arch, check_structure
from basnet_torch.options import check, option
from basnet_torch.spec import Scale, check_size

__all__ = [
    "PRESETS",
    "Augmentation",
    "Autocast",
    "Compiler",
    "Loss",
    "Optimizer",
    "Schedule",
    "TrainConfig",
    "learning_rate",
    "lr_factor",
]

Loss = Literal["bce", "bce+ssim", "bce+iou", "bce+ssim+iou"]
Optimizer = Literal["adamw", "adam", "sgd", "rmsprop"]
Schedule = Literal["constant", "cosine"]
Autocast = Literal["fp32", "bf16", "fp16"]
Augmentation = Literal["crop", "strong", "authors"]
Compiler = Literal["off", "inductor", "cudagraphs", "eager"]

_PLAIN = ("segnet", "unet")
# What the paper and its code do (section 4.1): nothing is warmed up, clipped, averaged or decayed.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "authors": {
        "width": 64,
        "scale": "image_max",
        "size": 224,
        "eval_size": 256,
        "store_size": 256,
        "augment": "authors",
        "batch": 8,
        "steps": 400_000,
        "optimizer": "adam",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup": 0,
        "clip": 0.0,
        "ema": 0.0,
        "autocast": "fp32",
    }
}


def _at_least(number: int) -> tuple[str, Callable[[float], bool]]:
    return f"at least {number}", lambda value: value >= number


_SHARE = ("in 0..1", lambda value: 0 <= value <= 1)
_SOME = ("in 0..1, 0 excluded", lambda value: 0 < value <= 1)
_NOT_ALL = ("in 0..1, 1 excluded", lambda value: 0 <= value < 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run; each field's help says what it is."""

    arch: Arch = field(default="basnet", metadata=option("Network: BASNet, or a baseline of about its size."))
    loss: Loss = field(default="bce+ssim+iou", metadata=option("Loss terms, added on every map."))
    width: int = field(
        default=64,
        metadata=option(
            "Channels at full resolution; 64 is the paper's network. Other encoders: the refinement module's, 16 when "
            "left out.",
            must=_at_least(1),
        ),
    )
    encoder: str = field(
        default=RESNET34,
        metadata=option(
            "Encoder: resnet34 (the paper's), efficientnet-lite0, -lite1, -lite2, or timm:NAME.", metavar="NAME"
        ),
    )
    decoder_widths: tuple[int, int, int, int, int] = field(
        default=DECODER_WIDTHS, metadata=option("Channels of the decoder's stages, coarse to fine; not of resnet34.")
    )
    scale: Scale = field(default="255", metadata=option("Pictures are divided by 255 or by their own largest value."))
    size: int = field(default=224, metadata=option("Side of the training crop, pixels."))
    eval_size: int = field(default=256, metadata=option("Side in validation, kept with the weights."))
    store_size: int = field(default=256, metadata=option("Side of the pictures in memory, pixels.", must=_at_least(1)))
    augment: Augmentation = field(
        default="crop",
        metadata=option("crop: crop and flip; strong: also color, blur, JPEG, crops beyond the edge; authors: theirs."),
    )
    crop_scale: tuple[float, float] = field(default=(0.7, 1.0), metadata=option("Crop side as share."))
    crop_stretch: float = field(
        default=1.2,
        metadata=option(
            "Largest ratio of a crop's sides.", must=("at least 1 and finite", lambda ratio: 1 <= ratio < math.inf)
        ),
    )
    flip: float = field(default=0.5, metadata=option("Probability of a horizontal flip.", must=_SHARE))
    batch: int = field(default=8, metadata=option("Pictures a step, over all processes.", must=_at_least(1)))
    accumulate: int = field(
        default=1, metadata=option("Parts that a step is computed in, to need less memory.", must=_at_least(1))
    )
    steps: int = field(default=100_000, metadata=option("Steps in all.", must=_at_least(1)))
    optimizer: Optimizer = field(default="adamw", metadata=option("Optimizer."))
    momentum: float = field(default=0.9, metadata=option("Momentum of sgd and rmsprop.", must=_NOT_ALL))
    lr: float = field(
        default=1e-3, metadata=option("Highest learning rate.", must=("above 0", lambda rate: 0 < rate < math.inf))
    )
    encoder_lr: float = field(default=1.0, metadata=option("Learning rate of the encoder, as a share.", must=_SOME))
    layer_decay: float = field(
        default=1.0, metadata=option("Factor on that from each encoder stage to the one before.", must=_SOME)
    )
    teacher: str = field(default="", metadata=option("Teacher checkpoint, for distillation."))
    distill: float = field(default=0.5, metadata=option("Share of the teacher in the loss.", must=_SOME))
    weight_decay: float = field(default=1e-2, metadata=option("Weight decay.", must=_at_least(0)))
    schedule: Schedule = field(default="cosine", metadata=option("Learning rate after the warm-up."))
    warmup: int = field(default=300, metadata=option("Steps of linear warm-up.", must=_at_least(0)))
    clip: float = field(default=5.0, metadata=option("Largest gradient norm; 0 does not clip.", must=_at_least(0)))
    ema: float = field(default=0.999, metadata=option("Decay of the averaged weights; 0 keeps none.", must=_NOT_ALL))
    autocast: Autocast = field(
        default="bf16",
        metadata=option(
            "Type of the convolutions; auto: bf16 where the device has it; fp16: on CUDA.",
            typed=Literal["auto", "fp32", "bf16", "fp16"],
            shown="auto",
        ),
    )
    compiler: Compiler = field(default="off", metadata=option("Backend of torch.compile.", "--compile"))
    channels_last: bool = field(default=True, metadata=option("Memory layout."))
    seed: int = field(
        default=0,
        metadata=option("Seed of weights, order and augmentation.", must=("0 to 2^63 - 1", lambda n: 0 <= n < 1 << 63)),
    )
    eval_every: int = field(default=1000, metadata=option("Steps between validations.", must=_at_least(1)))
    save_every: int = field(default=500, metadata=option("Steps between writes of last.pth.", must=_at_least(1)))

    def __post_init__(self) -> None:
        for name in ("size", "eval_size"):
            try:
                check_size(getattr(self, name), getattr(self, name))
            except ValueError as error:
                raise UsageError(f"{name}: {error}") from error
        check(self)
        largest = 2 if self.augment == "strong" else 1
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= largest:
            rule = f"two shares in 0..{largest}, the smaller first"
            raise UsageError(f"crop_scale is {self.crop_scale}; it must be {rule}")
        if self.batch % self.accumulate:
            raise UsageError(f"accumulate is {self.accumulate}; it must be a divisor of the batch, {self.batch}")
        check_structure(self.arch, self.encoder, self.decoder_widths)
        if self.encoder.startswith("timm:") and self.layer_decay != 1:
            raise UsageError(f"layer_decay: the stages of {self.encoder} have no common names; leave it out")
        if self.arch in _PLAIN and (self.encoder_lr, self.layer_decay) != (1, 1):
            raise UsageError(f"encoder_lr and layer_decay are of a ResNet encoder, which {self.arch} has not")
        if self.augment == "authors" and self.size > self.store_size:
            raise UsageError(f"size is {self.size}; the authors' crops are at most store_size, {self.store_size}")

    @classmethod
    def read(cls, values: Any) -> Self:
        """Read a stored configuration; fields missing in its version take the default.

        Raises:
            UsageError: A field is unknown or does not fit.
        """
        try:
            return from_plain(values, cls)
        except ValueError as error:
            raise UsageError(f"config: {error}") from error


def lr_factor(config: TrainConfig, parameter: str) -> float:
    """What a parameter's learning rate is multiplied by, from its name.

    >>> config = TrainConfig(encoder_lr=0.1, layer_decay=0.5)
    >>> [lr_factor(config, f"predict.{name}") for name in ("encoder.stage6.0", "encoder.stage5.0", "bridge.0")]
    [0.1, 0.05, 1.0]
    """
    found = re.search(r"(?:^|\.)encoder\.(?:stage(\d)|(\w+))\.", f"{parameter}.")
    if found is None:
        return 1.0
    stages = 6 if config.encoder == RESNET34 else 5
    return config.encoder_lr * float(config.layer_decay ** (stages - int(found.group(1) or 0)))


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step `step` (from 0): linear warm-up, then the schedule.

    >>> config = TrainConfig(lr=1.0, warmup=10, steps=110)
    >>> learning_rate(config, 4), learning_rate(config, 10), round(learning_rate(config, 60), 6)
    (0.5, 1.0, 0.5)
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
