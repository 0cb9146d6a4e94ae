"""The training loop: one `Trainer` that can stop after any step and go on as if it had not.

A run directory holds `config.json`, `log.jsonl` (one line a step or validation), `last.pth` (what resuming needs) and
`best.pth` (averaged weights with their `Preprocess`, best validation maxF).

Legend: N pictures, S side length, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from basnet_torch.architectures import build
from basnet_torch.batches import Augment, BatchStream
from basnet_torch.checkpoint import FORMAT, Checkpoint, read_file, save_checkpoint, write_whole
from basnet_torch.config import TrainConfig, learning_rate
from basnet_torch.datasets import PairStore
from basnet_torch.errors import CheckpointError, TrainingError
from basnet_torch.losses import HybridLoss, hybrid_loss
from basnet_torch.metrics import Scores
from basnet_torch.model import SaliencyNetwork
from basnet_torch.spec import Postprocess, Preprocess
from basnet_torch.validate import Validator

__all__ = ["StepResult", "Trainer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What one step did; `loss` is the sum of all terms, `terms` each of them summed over the network's maps."""

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
    ) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.run = run
        self.device = torch.device(device)
        self.validator = validator
        self._layout = _memory_format(config, self.device)
        self.model = (init or build(config.arch, config.width)).to(self.device)
        self.model.to(memory_format=self._layout)  # type: ignore[call-overload]
        self.average = deepcopy(self.model).requires_grad_(requires_grad=False) if config.ema else self.model
        self.optimizer = _optimizer(config, self.model)
        self.step = 0
        self.best: float | None = None
        self.stopping = False
        self._data = {"pairs": len(store), "names": _digest(store.names)}
        augment = Augment(size=config.size, scale=config.crop_scale, stretch=config.crop_stretch, flip=config.flip)
        self._stream = BatchStream(store, augment, batch=config.batch, seed=config.seed)
        self.preprocess = Preprocess(height=config.eval_size, width=config.eval_size)
        self.postprocess = Postprocess()
        gain, offset = self.preprocess.affine()
        self._gain = torch.from_numpy(gain).view(1, 3, 1, 1).to(self.device)
        self._offset = torch.from_numpy(offset).view(1, 3, 1, 1).to(self.device)

    def fit(self, until: int | None = None) -> Iterator[StepResult]:
        """Train up to step `until` (default: all), yielding after every step; validates and saves on the way.

        `last.pth` is also written when the loop ends early between two steps, by `stop` or by the caller leaving it. An
        error inside a step leaves the file as it was last saved, because that step may be half done.

        Raises:
            TrainingError: When a loss term is not finite, naming term and map; `last.pth` holds the last saved state.
        """
        last = min(until or self.config.steps, self.config.steps)
        self._write_config()
        if not (self.run / "last.pth").exists():
            self.save_last()
        self.model.train()
        with self._stream.ahead(self.step, last) as batches:
            for images, masks in batches:
                result = self._step_and_records(images, masks, last)
                try:
                    yield result
                except GeneratorExit:
                    break
                if self.stopping:
                    break
        self.save_last()

    def _step_and_records(self, images: NDArray[np.uint8], masks: NDArray[np.uint8], last: int) -> StepResult:
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

    def _train_step(self, images: NDArray[np.uint8], masks: NDArray[np.uint8]) -> StepResult:
        began = time.perf_counter()
        batch_NCHW, target_N1HW = self._to_device(images, masks)
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.autocast == "bf16"):
            maps = self.model(batch_NCHW)
        loss = hybrid_loss(maps, target_N1HW, self.config.loss)
        self._refuse_not_finite(loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip or float("inf"))
        if not bool(torch.isfinite(norm)):
            raise TrainingError(
                f"step {self.step}: the gradient's norm is {float(norm)}; lower lr or use autocast fp32"
            )
        self.optimizer.step()
        self._update_average()
        self.step += 1
        return StepResult(
            step=self.step,
            loss=loss.total.item(),
            terms={name: values.sum().item() for name, values in loss.terms.items()},
            gradient_norm=norm.item(),
            lr=rate,
            seconds=time.perf_counter() - began,
        )

    def _to_device(self, images: NDArray[np.uint8], masks: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Normalised N,3,S,S and truth N,1,S,S in 0..1; pictures travel as bytes."""
        batch_NCHW = torch.from_numpy(images).to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        target_NHW = torch.from_numpy(np.ascontiguousarray(masks)).to(self.device, non_blocking=True)
        normalised = batch_NCHW.float() * self._gain + self._offset
        return normalised.contiguous(memory_format=self._layout), target_NHW[:, None].float() / 255

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
        """Score the averaged weights; keeps them as `best.pth` when their maxF is the best so far."""
        if self.validator is None:
            return None
        scores = self.validator.scores(self.average, autocast=self.config.autocast)
        self.log({"kind": "validation", "step": self.step, "max_f": scores.max_f, "mae": scores.mae})
        if self.best is None or scores.max_f > self.best:
            self.best = scores.max_f
            save_checkpoint(self.run / "best.pth", self.checkpoint({"max_f": scores.max_f, "mae": scores.mae}))
        return scores

    def checkpoint(self, scores: Mapping[str, float] | None = None) -> Checkpoint:
        """The averaged weights as they are deployed."""
        return Checkpoint(
            arch=self.config.arch,
            width=self.config.width,
            state=self.average.state_dict(),
            preprocess=self.preprocess,
            postprocess=self.postprocess,
            origin="basnet-deploy",
            metadata={"step": self.step, "config": self.config.to_dict(), "scores": dict(scores or {})},
        )

    def save_last(self) -> None:
        """Write `last.pth`: a checkpoint of the averaged weights that also holds what resuming needs."""
        content = {
            "format": FORMAT,
            "origin": "basnet-deploy",
            "arch": self.config.arch,
            "preprocess": self.preprocess.to_dict(),
            "postprocess": self.postprocess.to_dict(),
            "metadata": self.checkpoint().metadata,
            "state_dict": self.average.state_dict(),
            "resume": {
                "data": self._data,
                "step": self.step,
                "best": self.best,
                "model": self.model.state_dict() if self.config.ema else None,
                "optimizer": self.optimizer.state_dict(),
                "config": self.config.to_dict(),
            },
        }
        write_whole(self.run / "last.pth", lambda beside: torch.save(content, beside))

    def resume(self, path: Path) -> None:
        """Continue from a `last.pth` of the same configuration.

        Raises:
            CheckpointError: When the file cannot be resumed from, or was written under another configuration.
        """
        content = read_file(path)
        saved = content.get("resume")
        if not isinstance(saved, Mapping):
            raise CheckpointError(f"{path}: holds weights only; resume from a last.pth, or start from it with --init")
        mine = self.config.to_dict()
        if saved["data"] != self._data:
            was, now = saved["data"]["pairs"], self._data["pairs"]
            raise CheckpointError(
                f"{path}: was trained on {was} other pairs, these are {now}; use --init for a new run"
            )
        theirs = TrainConfig.from_dict(
            saved["config"]
        ).to_dict()  # fields of older files that did not exist: as default
        changed = [k for k in mine if theirs[k] != mine[k]]
        if changed:
            was = ", ".join(f"{k} {theirs[k]} -> {mine[k]}" for k in changed)
            raise CheckpointError(f"{path}: was trained under another configuration ({was}); use --init for a new run")
        self.average.load_state_dict(content["state_dict"])
        if saved["model"] is not None:
            self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.best = int(saved["step"]), saved["best"]

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to `log.jsonl`."""
        self.run.mkdir(parents=True, exist_ok=True)
        with (self.run / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def _write_config(self) -> None:
        text = json.dumps(
            {"config": self.config.to_dict(), "torch": torch.__version__, "device": str(self.device)}, indent=1
        )
        write_whole(self.run / "config.json", lambda beside: beside.write_text(text + "\n"))


def _memory_format(config: TrainConfig, device: torch.device) -> torch.memory_format:
    """As configured, except that networks of fewer than 8 channels stay contiguous on the CPU.

    There, on processors without AVX-512, torch 2.13's backward pass of a 1x1 convolution with stride 2 writes beyond
    its memory when it has fewer than 8 input channels and channels come last.
    """
    too_narrow = device.type == "cpu" and config.width < 8
    return torch.channels_last if config.channels_last and not too_narrow else torch.contiguous_format


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]


def _optimizer(config: TrainConfig, model: SaliencyNetwork) -> torch.optim.Optimizer:
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    return kinds[config.optimizer](model.parameters(), lr=config.lr, weight_decay=config.weight_decay)


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
