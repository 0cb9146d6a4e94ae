"""The training loop: a `Trainer` that can stop and resume at any step.

A run directory holds `config.json` (configuration, commit, versions, data), `log.jsonl` and `log.txt` (one line a step
or validation), `curves.html`, `last.pth` (what resuming needs) and `best.pth` (averaged weights with their
`Preprocess`, best validation maxF). Of several processes the first alone writes.

Legend: N pictures, S side length, C channels, H height, W width.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from basnet_torch.checkpoint import (
    FORMAT,
    Checkpoint,
    load_checkpoint,
    model_from_checkpoint,
    read_file,
    save_checkpoint,
)
from basnet_torch.data.batches import Augment, AuthorsCrop, BatchStream, DeviceStream, StrongAugment
from basnet_torch.data.datasets import PairStore
from basnet_torch.errors import CheckpointError, TrainingError, UsageError
from basnet_torch.files import atomic_write
from basnet_torch.json_values import to_plain
from basnet_torch.metrics import Scores
from basnet_torch.model.basnet import NamedMaps, SaliencyNetwork
from basnet_torch.model.encoders import normalization
from basnet_torch.model.registry import build_network
from basnet_torch.spec import Postprocess, Preprocess
from basnet_torch.train.config import Autocast, TrainConfig, learning_rate, lr_factor
from basnet_torch.train.distributed import World
from basnet_torch.train.losses import HybridLoss, hybrid_loss
from basnet_torch.train.records import RunRecord, environment, fingerprint
from basnet_torch.train.validate import Validator

__all__ = ["StepResult", "Trainer", "network_from_config", "processing_of", "refuse_single_values"]

_Images = NDArray[np.uint8] | Tensor
# What another number of changes no step that was done, and so may change when a run is resumed.
_MAY_CHANGE = ("steps", "eval_every", "save_every")
_DTYPES: Mapping[Autocast, torch.dtype] = {"fp32": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """Result of one step; `loss` is the sum of all `terms`, each summed over maps."""

    step: int
    loss: float
    terms: Mapping[str, float]
    gradient_norm: float
    lr: float
    seconds: float


class Trainer:
    """Trains one network in one run directory.

    Args:
        config: What to do.
        store: Training pairs in memory.
        run: Directory to write to; made when missing.
        validator: Pictures with truth, or None to train without validation.
        device: Where the network runs.
        init: A network to start from instead of random weights.
        world: The processes that train together; already joined.
        tensorboard: Also write TensorBoard's files.
        facts: What else `config.json` is to say, for example the data's report.

    Raises:
        CheckpointError: The teacher cannot be read.
        UsageError: The teacher preprocesses pictures in another way, or the batch cannot be shared out.
    """

    def __init__(
        self,
        config: TrainConfig,
        store: PairStore,
        run: Path,
        *,
        validator: Validator | None = None,
        device: str = "cpu",
        init: SaliencyNetwork | None = None,
        world: World | None = None,
        tensorboard: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.world = world or World()
        if config.batch % (self.world.size * config.accumulate):
            parts = f"{self.world.size} processes of {config.accumulate} parts"
            raise UsageError(f"batch is {config.batch}; it must be a multiple of what {parts} share")
        refuse_single_values(config)
        torch.manual_seed(config.seed)
        self.config = config
        self.run = run
        self.device = torch.device(device)
        self.validator = validator
        # On CPUs without AVX-512, torch 2.13's backward pass of a 1x1 convolution with stride 2 writes beyond its
        # memory when it has fewer than 8 input channels and channels come last.
        too_narrow = self.device.type == "cpu" and config.width < 8
        self._layout = torch.channels_last if config.channels_last and not too_narrow else torch.contiguous_format
        self.model = (init or network_from_config(config)).to(self.device)
        self.model.to(memory_format=self._layout)  # type: ignore[call-overload]
        self.average = deepcopy(self.model).requires_grad_(requires_grad=False) if config.ema else self.model
        self._network = self.world.wrapped(self.model)
        if config.compiler != "off":
            self._network = cast(nn.Module, torch.compile(self._network, backend=config.compiler))
        self.optimizer = _optimizer(config, self.model)
        # Where it is disabled it does nothing at all.
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=config.autocast == "fp16")
        self.step = 0
        self.best: float | None = None
        self.stopping = False
        self._agreed = False
        self._data = fingerprint(store)
        self._facts = dict(facts or {})
        self._stream = _stream(config, store, self.device, self.world)
        self.preprocess, self.postprocess = processing_of(config)
        self._teacher = _teacher(config, self.preprocess, self.device)
        self._record = RunRecord(run, tensorboard=tensorboard, active=self.world.is_first)
        gain, offset = self.preprocess.affine(255.0 if config.scale == "255" else 1.0)
        self._gain = torch.from_numpy(gain).view(1, 3, 1, 1).to(self.device)
        self._offset = torch.from_numpy(offset).view(1, 3, 1, 1).to(self.device)

    def fit(self, until: int | None = None) -> Iterator[StepResult]:
        """Train up to step `until` (default: all), yielding after every step.

        Validates and saves on the way.

        `last.pth` is also written when the loop ends early between two steps, by `stop` or by the caller leaving it. An
        error inside a step leaves the file as it was last saved, because that step may be half done.

        Raises:
            TrainingError: When a loss term is not finite, naming term and map; `last.pth` holds the last saved state.
        """
        last = min(until or self.config.steps, self.config.steps)
        self._write_config()
        if self.world.is_first and not (self.run / "last.pth").exists():
            self.save_last()
        self.model.train()
        with self._stream.ahead(self.step, last) as batches:
            for images, masks in batches:
                result = self._step_and_records(images, masks, last)
                try:
                    yield result
                except GeneratorExit:
                    break
                # Several processes stop after the step in which they agreed to.
                if self._agreed if self.world.size > 1 else self.stopping:
                    self.stopping = True
                    break
        self.save_last()
        self._record.finish()

    def _step_and_records(self, images: _Images, masks: _Images, last: int) -> StepResult:
        result = self._train_step(images, masks)
        self.log({"kind": "step", **_plain(result)})
        if self.step % self.config.eval_every == 0 or self.step == last:
            self.validate()
        if self.step % self.config.save_every == 0:
            self.save_last()
        return result

    def stop(self) -> None:
        """End `fit` after the step in hand; safe to call from a signal handler."""
        self.stopping = True

    def _train_step(self, images: _Images, masks: _Images) -> StepResult:
        began = time.perf_counter()
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        names, values = self._backward(*self._to_device(images, masks))
        norm = self._update()
        self._update_average()
        self.step += 1
        self._agreed = self.world.any(self.stopping, self.device)
        total, *terms = self.world.mean(values).tolist()
        return StepResult(
            step=self.step,
            loss=total,
            terms=dict(zip(names, terms, strict=True)),
            gradient_norm=norm,
            lr=rate,
            seconds=time.perf_counter() - began,
        )

    def _backward(self, batch_NCHW: Tensor, target_N1HW: Tensor) -> tuple[list[str], Tensor]:
        """Gradients of the batch, part by part; the terms' names, and the loss with them, each a mean over parts."""
        parts = self.config.accumulate
        names: list[str] = []
        values = torch.zeros((), device=self.device)
        shares = zip(batch_NCHW.chunk(parts), target_N1HW.chunk(parts), strict=True)
        for i, (images, target) in enumerate(shares):
            with self.world.holding_back(self._network, holds=i < parts - 1):
                with torch.autocast(self.device.type, _DTYPES[self.config.autocast], self.config.autocast != "fp32"):
                    maps = self._network(images)
                total, terms = self._loss(maps, images, target)
                self._scaler.scale(total / parts).backward()  # type: ignore[no-untyped-call]
            names = list(terms)
            values = values + torch.stack([total.detach(), *(v.detach() for v in terms.values())]) / parts
        return names, values

    def _loss(self, maps: NamedMaps, images: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its terms over all maps: against the truth, and where there is a teacher against its mask.

        A second plane of `target` is above 0 where a pixel counts in neither.
        """
        counted = (target[:, 1:] == 0).float() if target.shape[1] == 2 else None
        loss = hybrid_loss(maps, target[:, :1], self.config.loss, counted=counted)
        self._refuse_not_finite(loss)
        terms = {name: values.sum() for name, values in loss.terms.items()}
        if self._teacher is None:
            return loss.total, terms
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, self.config.autocast == "bf16"):
            taught = self._teacher.mask(images)
        distilled = hybrid_loss(maps, taught, self.config.loss, counted=counted)
        self._refuse_not_finite(distilled)
        share = self.config.distill
        return (1 - share) * loss.total + share * distilled.total, {**terms, "teacher": distilled.total}

    def _update(self) -> float:
        """Clip and step; returns the gradient's norm. Under fp16 a step that overflowed is left out, as is usual."""
        self._scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip or float("inf"))
        if not bool(torch.isfinite(norm)) and not self._scaler.is_enabled():
            raise TrainingError(
                f"step {self.step}: the gradient's norm is {float(norm)}; lower lr or use autocast fp32"
            )
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return float(norm)

    def _to_device(self, images: _Images, masks: _Images) -> tuple[Tensor, Tensor]:
        """Normalized N,3,S,S and truth N,1,S,S in 0..1, with what is left out N,2,S,S; pictures travel as bytes."""
        if isinstance(images, Tensor) and isinstance(masks, Tensor):
            batch_NCHW, target_N1HW = images.to(self.device), masks.to(self.device)
        else:
            batch_NCHW = torch.from_numpy(np.ascontiguousarray(images)).to(self.device, non_blocking=True)
            batch_NCHW = batch_NCHW.permute(0, 3, 1, 2).float()
            truth = torch.from_numpy(np.ascontiguousarray(masks)).to(self.device, non_blocking=True).float()
            target_N1HW = truth[:, None] if truth.ndim == 3 else truth.permute(0, 3, 1, 2)
        gain = self._gain
        if self.config.scale == "image_max":
            gain = gain / batch_NCHW.amax((1, 2, 3), keepdim=True).clamp(min=1)
        normalized = batch_NCHW * gain + self._offset
        return normalized.contiguous(memory_format=self._layout), target_N1HW / 255

    def _refuse_not_finite(self, loss: HybridLoss) -> None:
        if not bool(torch.isfinite(loss.total)):
            broken = loss.first_not_finite() or "the sum"
            raise TrainingError(
                f"step {self.step}: {broken} is not finite; lower lr, or look at the batch with seed {self.config.seed}"
            )

    def _update_average(self) -> None:
        """Move the averaged weights; young averages forget faster, so that the random start does not linger."""
        if not self.config.ema:
            return
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            averaged, current = _float_state(self.average), _float_state(self.model)
            torch._foreach_lerp_(averaged, current, 1 - decay)

    def validate(self) -> Scores | None:
        """Score the averaged weights; the best maxF so far is saved as `best.pth`."""
        if self.validator is None or not self.world.is_first:
            return None
        scores = self.validator.scores(self.average, autocast=self.config.autocast)
        self.log({"kind": "validation", "step": self.step, "max_f": scores.max_f, "mae": scores.mae})
        if self.best is None or scores.max_f > self.best:
            self.best = scores.max_f
            save_checkpoint(self.run / "best.pth", self.checkpoint({"max_f": scores.max_f, "mae": scores.mae}))
        self._record.picture("panel", self.validator.panel(self.average, autocast=self.config.autocast), self.step)
        self._record.finish()
        return scores

    def checkpoint(self, scores: Mapping[str, float] | None = None) -> Checkpoint:
        """The averaged weights as they are deployed."""
        return Checkpoint(
            arch=self.config.arch,
            width=self.config.width,
            encoder=self.config.encoder,
            decoder_widths=self.config.decoder_widths,
            state=self.average.state_dict(),
            preprocess=self.preprocess,
            postprocess=self.postprocess,
            origin="basnet-deploy",
            metadata={"step": self.step, "config": to_plain(self.config), "scores": dict(scores or {})},
        )

    def save_last(self) -> None:
        """Write `last.pth`: averaged weights and what resuming needs."""
        if not self.world.is_first:
            return
        checkpoint = self.checkpoint()
        content = {
            "format": FORMAT,
            "origin": checkpoint.origin,
            **checkpoint.structure(),
            "preprocess": to_plain(self.preprocess),
            "postprocess": to_plain(self.postprocess),
            "metadata": checkpoint.metadata,
            "state_dict": checkpoint.state,
            "resume": {
                "data": self._data,
                "step": self.step,
                "best": self.best,
                "model": self.model.state_dict() if self.config.ema else None,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
                "config": to_plain(self.config),
            },
        }
        with atomic_write(self.run / "last.pth", overwrite=True) as beside:
            torch.save(content, beside)

    def resume(self, path: Path) -> tuple[str, ...]:
        """Resume from a `last.pth` of the same configuration; returns log messages.

        `steps`, `eval_every` and `save_every` may differ. The learning rate of a step is that of the schedule over the
        new number of steps, so that a cosine that had come to 0 rises to where the longer one is.

        Raises:
            CheckpointError: When the file cannot be resumed from, or was written under another configuration.
            UsageError: When the run has come further than `steps`.
        """
        content = read_file(path)
        saved = content.get("resume")
        if not isinstance(saved, Mapping):
            raise CheckpointError(f"{path}: holds weights only; resume from a last.pth, or start from it with --init")
        mine = to_plain(self.config)
        if any(self._data.get(name) != value for name, value in saved["data"].items()):
            was, now = saved["data"]["pairs"], self._data["pairs"]
            raise CheckpointError(
                f"{path}: was trained on {was} other pairs, these are {now}; use --init for a new run"
            )
        theirs = to_plain(TrainConfig.read(saved["config"]))
        step = int(saved["step"])
        if step > self.config.steps:
            raise UsageError(f"steps is {self.config.steps}, but the run has done {step}; give at least as many")
        changed = [k for k in mine if theirs[k] != mine[k] and k not in _MAY_CHANGE]
        if changed:
            was = ", ".join(f"{k} {theirs[k]} -> {mine[k]}" for k in changed)
            raise CheckpointError(f"{path}: was trained under another configuration ({was}); use --init for a new run")
        self.average.load_state_dict(content["state_dict"])
        if saved["model"] is not None:
            self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if saved.get("scaler"):
            self._scaler.load_state_dict(saved["scaler"])
        self.step, self.best = step, saved["best"]
        if theirs["steps"] == mine["steps"]:
            return ()
        rate = learning_rate(self.config, min(step, mine["steps"] - 1))
        what = f"resumed at step {step} with {mine['steps']} steps instead of {theirs['steps']}"
        return (f"{what}: the learning rate is that of a {self.config.schedule} schedule of so many, now {rate:.2g}",)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to `log.jsonl` and `log.txt`."""
        self._record.add(record)

    def _write_config(self) -> None:
        if not self.world.is_first:
            return
        name = f", {torch.cuda.get_device_name(self.device)}" if self.device.type == "cuda" else ""
        content = {
            "config": to_plain(self.config),
            "device": f"{self.device}{name}",
            "processes": self.world.size,
            "data": self._data,
            **self._facts,
            **environment(),
        }
        text = json.dumps(content, indent=1)
        with atomic_write(self.run / "config.json", overwrite=True) as beside:
            beside.write_text(text + "\n")


def network_from_config(config: TrainConfig) -> SaliencyNetwork:
    """The network of a run, freshly initialized.

    Raises:
        UsageError: There is not enough memory for it.
    """
    try:
        return build_network(config.arch, config.width, encoder=config.encoder, decoder_widths=config.decoder_widths)
    except RuntimeError as error:  # what torch makes of memory that it does not get
        line = str(error).split("\n", maxsplit=1)[0][:160]
        raise UsageError(f"width is {config.width}: the network cannot be built ({line}); lower --width") from error


def processing_of(config: TrainConfig) -> tuple[Preprocess, Postprocess]:
    """Return preprocessing and postprocessing for the weights of a run.

    The authors' way stretches maps.
    """
    mean, std = normalization(config.encoder)
    preprocess = Preprocess(height=config.eval_size, width=config.eval_size, scale=config.scale, mean=mean, std=std)
    return preprocess, Postprocess(stretch=config.scale == "image_max")


def refuse_single_values(config: TrainConfig) -> None:
    """Raise UsageError when a batch norm would get one value a channel.

    One value has no variance.

    Which maps come down to one pixel is the network's own affair, so it is run without computing anything.
    """
    if config.batch // config.accumulate > 1:  # of all processes, which share their statistics
        return
    single: list[nn.Module] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        if x.numel() == x.shape[1]:
            single.append(module.eval())

    with torch.device("meta"):
        model = network_from_config(config)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(look)
        model.train()
        with torch.no_grad():
            model(torch.empty(1, 3, config.size, config.size))
    if single:
        raise UsageError(
            f"batch is {config.batch} and size {config.size}: {len(single)} batch norms would see one picture of one "
            "pixel, which has no variance; raise --batch (or lower --accumulate), or raise --size"
        )


def _stream(config: TrainConfig, store: PairStore, device: torch.device, world: World) -> BatchStream | DeviceStream:
    if config.augment == "strong":
        rules = StrongAugment(size=config.size, scale=config.crop_scale, stretch=config.crop_stretch, flip=config.flip)
        return DeviceStream(store, rules, batch=config.batch, seed=config.seed, device=str(device), share=world.share)
    augment: Augment | AuthorsCrop = AuthorsCrop(size=config.size)
    if config.augment == "crop":
        augment = Augment(size=config.size, scale=config.crop_scale, stretch=config.crop_stretch, flip=config.flip)
    return BatchStream(store, augment, batch=config.batch, seed=config.seed, share=world.share)


def _teacher(config: TrainConfig, preprocess: Preprocess, device: torch.device) -> SaliencyNetwork | None:
    """The network that is learned from, fixed."""
    if not config.teacher:
        return None
    checkpoint = load_checkpoint(Path(config.teacher))
    theirs = replace(checkpoint.preprocess, height=preprocess.height, width=preprocess.width)
    if theirs != preprocess:
        raise UsageError(
            f"{config.teacher}: takes pictures scaled by {theirs.scale}, this run by {preprocess.scale}; "
            "give a teacher of the same scale, or --scale"
        )
    return model_from_checkpoint(checkpoint).requires_grad_(requires_grad=False).to(device)


def _optimizer(config: TrainConfig, model: SaliencyNetwork) -> torch.optim.Optimizer:
    """The optimizer, with one group of parameters for each learning rate."""
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "sgd": partial(torch.optim.SGD, momentum=config.momentum),
        "rmsprop": partial(torch.optim.RMSprop, momentum=config.momentum),
    }
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(lr_factor(config, name), []).append(parameter)
    listed = [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]
    return kinds[config.optimizer](listed, lr=config.lr, weight_decay=config.weight_decay)


def _float_state(model: SaliencyNetwork) -> list[Tensor]:
    """Weights and batch statistics, which are averaged alike."""
    return [v for v in model.state_dict().values() if v.is_floating_point()]


def _plain(result: StepResult) -> dict[str, Any]:
    return {
        "step": result.step,
        "loss": round(result.loss, 5),
        **{k: round(v, 5) for k, v in result.terms.items()},
        "gradient_norm": round(result.gradient_norm, 4),
        "lr": result.lr,
        "seconds": round(result.seconds, 4),
    }
