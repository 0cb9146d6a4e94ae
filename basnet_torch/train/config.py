"""Everything a training run is told, as one inert value that is stored with its checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from basnet_torch.errors import UsageError
from basnet_torch.json_values import from_plain
from basnet_torch.model.structure import DECODER_WIDTHS, RESNET34, Arch, check_structure
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
_COUNTS = ("width", "store_size", "batch", "accumulate", "steps", "eval_every", "save_every")
_CHOICES: dict[str, Any] = {
    "arch": Arch,
    "augment": Augmentation,
    "compiler": Compiler,
    "scale": Scale,
    "loss": Loss,
    "optimizer": Optimizer,
    "schedule": Schedule,
    "autocast": Autocast,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run.

    Attributes:
        arch: Which network; `basnet-coarse` is BASNet without its refinement module.
        loss: Which terms of the hybrid loss are added, on every map that the network gives.
        width: Channels at full resolution; 64 is the paper's network. On another encoder than `resnet34` these are the
            refinement module's.
        encoder: `resnet34`, `efficientnet-lite0` to `2`, or `timm:NAME`.
        decoder_widths: Channels of the decoder's five stages from coarse to fine, on another encoder than `resnet34`.
        scale: What pictures are divided by, stored with the weights: 255, or each picture's own largest value.
        size: Side of the training crop, pixels, a multiple of 32.
        eval_size: Side of the network's input in validation, stored with the weights as their `Preprocess`.
        store_size: Side of the pictures held in memory, pixels.
        augment: `crop` crops and flips; `strong` adds color, blur and JPEG, and its crops may reach beyond the
            picture; `authors` takes their transforms over the set and its mirror images.
        crop_scale: Smallest and largest side of a crop as a share of the stored side; above 1 only under `strong`.
        crop_stretch: Largest ratio by which a crop's two sides may differ.
        flip: Probability of a horizontal flip.
        batch: Pictures a step, over all processes.
        accumulate: Parts in which a step's pictures are computed one after another, to need less memory.
        steps: Steps in all.
        optimizer: `adamw`, `adam`, `sgd` or `rmsprop`.
        momentum: Of `sgd` and `rmsprop`.
        lr: Highest learning rate.
        weight_decay: As the optimizer defines it.
        encoder_lr: Learning rate of the encoder as a share of `lr`, for one that was trained before.
        layer_decay: Factor on that from each encoder stage to the one before it.
        teacher: Checkpoint whose masks are learned beside the truth; empty for none.
        distill: Share of the teacher in the loss.
        schedule: After the warm-up, `constant`, or `cosine` to zero.
        warmup: Steps of linear warm-up.
        clip: Largest norm of all gradients together; 0 does not clip.
        ema: Decay a step of the averaged weights that are validated and shipped; 0 keeps none.
        autocast: Type of the convolutions; `fp16` scales the loss and needs CUDA.
        compiler: Backend of `torch.compile`, or `off`.
        channels_last: Keep tensors as N,H,W,C in memory, which convolutions prefer.
        seed: Of initial weights, order, and augmentation.
        eval_every: Steps between validations.
        save_every: Steps between writes of `last.pth`.
    """

    arch: Arch = "basnet"
    loss: Loss = "bce+ssim+iou"
    width: int = 64
    encoder: str = RESNET34
    decoder_widths: tuple[int, int, int, int, int] = DECODER_WIDTHS
    scale: Scale = "255"
    size: int = 224
    eval_size: int = 256
    store_size: int = 256
    augment: Augmentation = "crop"
    crop_scale: tuple[float, float] = (0.7, 1.0)
    crop_stretch: float = 1.2
    flip: float = 0.5
    batch: int = 8
    accumulate: int = 1
    steps: int = 100_000
    optimizer: Optimizer = "adamw"
    momentum: float = 0.9
    lr: float = 1e-3
    encoder_lr: float = 1.0
    layer_decay: float = 1.0
    teacher: str = ""
    distill: float = 0.5
    weight_decay: float = 1e-2
    schedule: Schedule = "cosine"
    warmup: int = 300
    clip: float = 5.0
    ema: float = 0.999
    autocast: Autocast = "bf16"
    compiler: Compiler = "off"
    channels_last: bool = True
    seed: int = 0
    eval_every: int = 1000
    save_every: int = 500

    def __post_init__(self) -> None:
        for field in ("size", "eval_size"):
            try:
                check_size(getattr(self, field), getattr(self, field))
            except ValueError as error:
                raise UsageError(f"{field}: {error}") from error
        largest = 2 if self.augment == "strong" else 1
        rules: dict[str, tuple[bool, str]] = {
            **{f: (getattr(self, f) >= 1, "at least 1") for f in _COUNTS},
            **{f: (getattr(self, f) >= 0, "at least 0") for f in ("warmup", "clip", "weight_decay")},
            "seed": (0 <= self.seed < 1 << 63, "0 to 2^63 - 1"),
            "flip": (0 <= self.flip <= 1, "in 0..1"),
            "crop_scale": (
                0 < self.crop_scale[0] <= self.crop_scale[1] <= largest,
                f"two shares in 0..{largest}, the smaller first",
            ),
            "accumulate": (
                self.accumulate >= 1 and self.batch % max(1, self.accumulate) == 0,
                f"a divisor of the batch, {self.batch}",
            ),
            **{f: (0 < getattr(self, f) <= 1, "in 0..1, 0 excluded") for f in ("distill", "encoder_lr", "layer_decay")},
            "momentum": (0 <= self.momentum < 1, "in 0..1, 1 excluded"),
            "crop_stretch": (1 <= self.crop_stretch < math.inf, "at least 1 and finite"),
            "ema": (0 <= self.ema < 1, "in 0..1, 1 excluded"),
            "lr": (math.isfinite(self.lr) and self.lr > 0, "above 0"),
            **{f: (getattr(self, f) in get_args(kinds), f"one of {_names(kinds)}") for f, kinds in _CHOICES.items()},
        }
        for field, (holds, rule) in rules.items():
            if not holds:
                raise UsageError(f"{field} is {getattr(self, field)!r}; it must be {rule}")

        check_structure(self.arch, self.encoder, self.decoder_widths)
        if self.encoder.startswith("timm:") and self.layer_decay != 1:
            raise UsageError(f"layer_decay: the stages of {self.encoder} have no common names; leave it out")
        if self.arch in _PLAIN and (self.encoder_lr, self.layer_decay) != (1, 1):
            raise UsageError(f"encoder_lr and layer_decay are of a ResNet encoder, which {self.arch} has not")
        if self.augment == "authors" and self.size > self.store_size:
            raise UsageError(f"size is {self.size}; the authors' crops are at most store_size, {self.store_size}")

    @classmethod
    def read(cls, values: Any) -> Self:
        """Read what a run has stored; a field that its version did not have takes the default.

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


def _names(kinds: Any) -> str:
    return ", ".join(get_args(kinds))


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
