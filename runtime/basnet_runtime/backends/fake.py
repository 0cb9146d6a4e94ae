"""Fake backend for tests, without a network: the mask is the brightness."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from basnet_torch.files import Closing
from basnet_torch.spec import IMAGENET_MEAN, IMAGENET_STD, TensorSpec

__all__ = ["FakeBackend"]


class FakeBackend(Closing):
    """Takes the `tensor` graph's input and returns mean brightness 0..1.

    A mask's content can be predicted.
    """

    name: Literal["fake"] = "fake"

    def __init__(self, height: int = 32, width: int = 32, *, fail_at: int | None = None) -> None:
        """`fail_at`: index of the picture that raises RuntimeError, to test error paths."""
        self.input = TensorSpec(name="image", dtype="float32", shape=(None, 3, height, width))
        self.output = TensorSpec(name="mask", dtype="float32", shape=(None, 1, height, width))
        self.description = "fake backend"
        self.pictures = 0
        self.closed = False
        self._fail_at = fail_at

    def infer(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Mean of the de-normalized channels, N,1,H,W."""
        if self._fail_at is not None and self.pictures <= self._fail_at < self.pictures + len(batch):
            raise RuntimeError(f"fake failure at picture {self._fail_at}")
        self.pictures += len(batch)
        mean = np.asarray(IMAGENET_MEAN, np.float32).reshape(1, 3, 1, 1)
        std = np.asarray(IMAGENET_STD, np.float32).reshape(1, 3, 1, 1)
        brightness: NDArray[np.float32] = (batch * std + mean).mean(axis=1, keepdims=True, dtype=np.float32)
        return brightness.clip(0, 1)

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True
