"""MAE and maxF of a network, each mask resized to its picture as in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from basnet_torch.data.datasets import DataReport, Pair, read_pair
from basnet_torch.data.masks import Held, Truth, check_labels
from basnet_torch.data.options import MaskValues, OnBadPair
from basnet_torch.errors import BadPairError, DataError, TrainingError
from basnet_torch.metrics import AccuracyMeter, Scores
from basnet_torch.model.basnet import SaliencyNetwork
from basnet_torch.spec import Postprocess, Preprocess
from basnet_torch.train.config import Autocast

__all__ = ["Validator"]

_BATCH = 8  # pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class _Case:
    prepared_CHW: NDArray[np.float32]
    truth: Truth


class Validator:
    """Holds preprocessed validation pictures and scores a network on them."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        preprocess: Preprocess,
        postprocess: Postprocess,
        *,
        on_bad: OnBadPair = "refuse",
        values: MaskValues = "auto",
        report: DataReport | None = None,
    ) -> None:
        """Read all pairs.

        Args:
            pairs: From `find_pairs`.
            preprocess: What the network takes.
            postprocess: What is done to its maps.
            on_bad: What to do about files that cannot be read and masks of another size than their picture.
            values: What the masks' values mean.
            report: Takes what was found.

        Raises:
            DataError: For the first bad one, or when all are.
        """
        self.preprocess = preprocess
        self.postprocess = postprocess
        self._cases: list[_Case] = []
        report = report or DataReport()
        for pair in pairs:
            try:
                image, truth = read_pair(pair, values)
            except BadPairError as error:
                if on_bad == "refuse":
                    raise
                report.count(pair, error)
                continue
            report.count(pair, None, truth.odd)
            self._cases.append(_Case(prepared_CHW=preprocess.apply(image), truth=truth))
        if pairs and not self._cases:
            raise DataError(f"validation: none of {len(pairs)} pairs can be read ({'; '.join(report.lines()[1:])})")
        check_labels("validation", values, set[Held]().union(*(case.truth.holds for case in self._cases)))

    def __len__(self) -> int:
        return len(self._cases)

    def scores(self, model: SaliencyNetwork, *, autocast: Autocast = "fp32") -> Scores:
        """Run all pictures through `model`, which is left in the mode it had."""
        was_training = model.training
        model.eval()
        try:
            meter = AccuracyMeter()
            for start in range(0, len(self._cases), _BATCH):
                self._add(meter, model, self._cases[start : start + _BATCH], autocast)
            return meter.scores()
        finally:
            model.train(was_training)

    def panel(self, model: SaliencyNetwork, *, autocast: Autocast = "fp32") -> NDArray[np.uint8]:
        """The first four pictures, each a row of picture, truth and mask: uint8 H,W,3."""
        cases = self._cases[:4]
        was_training = model.training
        model.eval()
        try:
            masks = self._masks(model, cases, autocast)
        finally:
            model.train(was_training)
        gain, offset = self.preprocess.affine()
        rows = []
        for case, mask in zip(cases, masks, strict=True):
            picture = (case.prepared_CHW.transpose(1, 2, 0) - offset) / gain
            size = (self.preprocess.width, self.preprocess.height)
            truth = cv2.resize(case.truth.mask_HW, size, interpolation=cv2.INTER_NEAREST_EXACT)
            planes = (truth[..., None], mask[0][..., None] * 255)
            rows.append(np.concatenate([picture, *(np.broadcast_to(p, picture.shape) for p in planes)], 1))
        return np.asarray(np.concatenate(rows).clip(0, 255), np.uint8)

    def _masks(self, model: SaliencyNetwork, cases: Sequence[_Case], autocast: Autocast) -> NDArray[np.float32]:
        device = next(model.parameters()).device
        images = torch.from_numpy(np.stack([c.prepared_CHW for c in cases])).to(device)
        dtype = torch.float16 if autocast == "fp16" else torch.bfloat16
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=autocast != "fp32"):
            return np.asarray(model.mask(images).cpu().numpy(), np.float32)

    def _add(self, meter: AccuracyMeter, model: SaliencyNetwork, cases: Sequence[_Case], autocast: Autocast) -> None:
        for mask, case in zip(self._masks(model, cases, autocast), cases, strict=True):
            truth = case.truth
            height, width = truth.mask_HW.shape
            if not np.isfinite(mask).all():
                raise TrainingError(
                    "validation: the network gives masks that are not finite; lower lr or use autocast fp32"
                )
            finished = self.postprocess.apply(mask[0], height, width)
            meter.add(finished, truth.mask_HW.astype(np.float32) / np.float32(255), truth.ignored_HW)
