"""Training batches that depend on nothing but the seed and the step, so that a resumed run sees the same pictures.

Legend: N pictures, S side length in pixels, C channels, H height, W width.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from basnet_torch.datasets import PairStore

__all__ = ["Augment", "BatchStream"]

UInt8 = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """Random crop and flip of picture and mask together.

    Attributes:
        size: Side of the crop given to the network, pixels, a multiple of 32.
        scale: Smallest and largest side of the crop as a share of the stored side; 224/256 twice is the paper's.
        stretch: Largest ratio by which a crop's two sides may differ; 1 keeps crops square.
        flip: Probability of a horizontal flip.
    """

    size: int
    scale: tuple[float, float] = (0.7, 1.0)
    stretch: float = 1.2
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}; it must be two shares in 0..1, the smaller first")
        if self.stretch < 1:
            raise ValueError(f"stretch is {self.stretch}; it must be at least 1")

    def __call__(self, image_SSC: UInt8, mask_SS: UInt8, rng: np.random.Generator) -> tuple[UInt8, UInt8]:
        """One crop: uint8 size,size,3 and uint8 size,size."""
        side = image_SSC.shape[0]
        height, width = self._crop_sides(side, rng)
        top, left = int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1))
        window = np.s_[top : top + height, left : left + width]
        image, mask = self._fit(image_SSC[window]), self._fit(mask_SS[window])
        if rng.random() < self.flip:
            image, mask = image[:, ::-1], mask[:, ::-1]
        return image, mask

    def _crop_sides(self, side: int, rng: np.random.Generator) -> tuple[int, int]:
        share = rng.uniform(*self.scale)
        ratio = self.stretch ** rng.uniform(-0.5, 0.5)
        height, width = (round(side * share * r) for r in (ratio, 1 / ratio))
        return min(height, side), min(width, side)

    def _fit(self, crop: UInt8) -> UInt8:
        if crop.shape[:2] == (self.size, self.size):
            return crop
        method = cv2.INTER_AREA if min(crop.shape[:2]) > self.size else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(crop, (self.size, self.size), interpolation=method), np.uint8)


class BatchStream:
    """Batches by step number: an endless chain of shuffled passes over the store, prepared ahead by one thread."""

    def __init__(self, store: PairStore, augment: Augment, *, batch: int, seed: int) -> None:
        if not 1 <= batch <= len(store):
            raise ValueError(f"batch is {batch}; it must be 1..{len(store)}, the number of pairs")
        self._store = store
        self._augment = augment
        self._batch = batch
        self._seed = seed
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def at(self, step: int) -> tuple[UInt8, UInt8]:
        """The batch of step `step` (from 0): images uint8 N,S,S,3 and masks uint8 N,S,S."""
        crops = [self._sample(step * self._batch + i) for i in range(self._batch)]
        images, masks = zip(*crops, strict=True)
        return np.stack(images), np.stack(masks)

    def _sample(self, position: int) -> tuple[UInt8, UInt8]:
        epoch, place = divmod(position, len(self._store))
        if self._order[0] != epoch:
            order = np.random.default_rng((self._seed, epoch)).permutation(len(self._store))
            self._order = (epoch, order)
        index = self._order[1][place]
        rng = np.random.default_rng((self._seed, epoch, place, 1))
        return self._augment(self._store.images[index], self._store.masks[index], rng)

    def ahead(self, first: int, last: int, depth: int = 3) -> _Ahead:
        """Iterate over the batches of steps `first`..`last`-1, prepared up to `depth` ahead; a context manager."""
        return _Ahead(self, range(first, last), depth)


class _Ahead:
    """Runs `BatchStream.at` in a thread; the iteration raises its error, and leaving the block ends it."""

    def __init__(self, stream: BatchStream, steps: range, depth: int) -> None:
        self._stream = stream
        self._steps = steps
        self._ready: queue.Queue[tuple[UInt8, UInt8] | BaseException] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)

    def _work(self) -> None:
        for step in self._steps:
            try:
                item: tuple[UInt8, UInt8] | BaseException = self._stream.at(step)
            except Exception as error:  # noqa: BLE001 - handed to the main thread, which raises it
                item = error
            while not self._stop.is_set():
                try:
                    self._ready.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if self._stop.is_set() or isinstance(item, BaseException):
                return

    def __iter__(self) -> Iterator[tuple[UInt8, UInt8]]:
        for _ in self._steps:
            item = self._ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
