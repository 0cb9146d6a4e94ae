"""Training batches by seed and step: a resumed run sees the same pictures.

Legend: N pictures, S side length in pixels, C channels, H height, W width.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from basnet_torch.arrays import UInt8
from basnet_torch.data.datasets import PairStore
from basnet_torch.data.transforms import RandomCrop, Sample

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Ahead", "Augment", "AuthorsCrop", "BatchStream", "DeviceStream", "Order", "Share", "StrongAugment"]

Item = TypeVar("Item")


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
        """Crop to uint8 size,size,3 and uint8 size,size (,2 with ignored pixels)."""
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
        return max(1, min(height, side)), max(1, min(width, side))

    def _fit(self, crop: UInt8) -> UInt8:
        if crop.shape[:2] == (self.size, self.size):
            return crop
        method = cv2.INTER_AREA if min(crop.shape[:2]) > self.size else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(crop, (self.size, self.size), interpolation=method), np.uint8)


@dataclass(frozen=True, kw_only=True, slots=True)
class StrongAugment:
    """What `augment.augmented` draws from.

    Attributes:
        size: Side of what the network gets, pixels.
        scale: Smallest and largest side of the window as a share of the picture; above 1 shows its surroundings.
        stretch: Largest ratio by which a window's two sides may differ.
        flip: Probability of a horizontal flip.
    """

    size: int
    scale: tuple[float, float]
    stretch: float
    flip: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AuthorsCrop:
    """The authors' augmentation: a random square of each picture and its mirror.

    Attributes:
        size: Side of the crop, pixels.
    """

    size: int

    def __call__(self, image_SSC: UInt8, mask_SS: UInt8, rng: np.random.Generator) -> tuple[UInt8, UInt8]:
        """Crop to uint8 size,size,3 and uint8 size,size (,2 with ignored pixels)."""
        return RandomCrop(self.size)(Sample(image_SSC, mask_SS), rng)


class Order:
    """Order of pictures: an endless chain of shuffled passes over `length` of them."""

    def __init__(self, length: int, seed: int) -> None:
        self._length = length
        self._seed = seed
        self._shuffled: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def at(self, position: int) -> tuple[int, np.random.Generator]:
        """The picture's index, and the generator of everything that is drawn for it."""
        epoch, place = divmod(position, self._length)
        if self._shuffled[0] != epoch:
            order = np.random.default_rng((self._seed, epoch)).permutation(self._length)
            self._shuffled = (epoch, order)
        return int(self._shuffled[1][place]), np.random.default_rng((self._seed, epoch, place, 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """The part of every batch that one process computes: `rank` of `size`."""

    rank: int = 0
    size: int = 1

    def positions(self, step: int, batch: int) -> range:
        """Return the positions of step `step` (from 0) in the chain of all pictures.

        `batch` is that of all processes.
        """
        own = batch // self.size
        first = step * batch + self.rank * own
        return range(first, first + own)


class BatchStream:
    """Batches by step number over shuffled passes of the store, from a reader thread."""

    def __init__(
        self, store: PairStore, augment: Augment | AuthorsCrop, *, batch: int, seed: int, share: Share | None = None
    ) -> None:
        _check_batch(batch, len(store))
        self._store = store
        self._augment = augment
        self._batch = batch
        self._share = share or Share()
        mirrored = isinstance(augment, AuthorsCrop)
        self._order = Order(len(store) * (1 + mirrored), seed)

    def at(self, step: int) -> tuple[UInt8, UInt8]:
        """Return the batch of step `step` (from 0).

        Images are uint8 N,S,S,3, truths uint8 N,S,S or N,S,S,2.
        """
        crops = [self._sample(position) for position in self._share.positions(step, self._batch)]
        images, masks = zip(*crops, strict=True)
        return np.stack(images), np.stack(masks)

    def _sample(self, position: int) -> tuple[UInt8, UInt8]:
        index, rng = self._order.at(position)
        mirrored, index = divmod(index, len(self._store))
        image, mask = self._store.images[index], self._store.truth(index)
        if mirrored:
            image, mask = image[:, ::-1], mask[:, ::-1]
        return self._augment(image, mask, rng)

    def ahead(self, first: int, last: int) -> Ahead[tuple[UInt8, UInt8]]:
        """Iterate over the batches of steps `first`..`last`-1, up to three ahead.

        A context manager.
        """
        return Ahead(self.at, range(first, last))


class DeviceStream:
    """Batches by step number, augmented on the device that holds all pictures."""

    def __init__(
        self,
        store: PairStore,
        augment: StrongAugment,
        *,
        batch: int,
        seed: int,
        device: str,
        share: Share | None = None,
    ) -> None:
        import torch

        _check_batch(batch, len(store))
        self._device = torch.device(device)
        self._images = torch.from_numpy(store.images).to(self._device)
        self._masks = torch.from_numpy(store.truths).to(self._device)
        self._augment = augment
        self._batch = batch
        self._share = share or Share()
        self._order = Order(len(store), seed)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch of step `step` (from 0).

        Images are float N,3,S,S, truths float N,1,S,S or N,2,S,S, in 0..255.
        """
        import torch

        from basnet_torch.data.augment import Chances, augmented

        drawn = [self._order.at(position) for position in self._share.positions(step, self._batch)]
        rules = self._augment
        chances = Chances.drawn([rng for _, rng in drawn], jitter=rules.scale, stretch=rules.stretch, flip=rules.flip)
        index = torch.tensor([i for i, _ in drawn], device=self._device)
        with torch.no_grad():
            return augmented(
                self._images[index],
                self._masks[index],
                rules.size,
                chances.to(self._device),
                largest=rules.scale[1] * rules.stretch**0.5,
            )

    def ahead(self, first: int, last: int) -> Ahead[tuple[Tensor, Tensor]]:
        """Iterate over the batches of steps `first`..`last`-1, up to three ahead.

        A context manager.
        """
        return Ahead(self.at, range(first, last))


def _check_batch(batch: int, pairs: int) -> None:
    if not 1 <= batch <= pairs:
        raise ValueError(f"batch is {batch}; it must be 1..{pairs}, the number of pairs")


class Ahead(Generic[Item]):
    """Run `make(step)` ahead in a thread; the iteration raises its errors.

    Leaving the block ends the thread.
    """

    def __init__(self, make: Callable[[int], Item], steps: range) -> None:
        self._make = make
        self._steps = steps
        self._ready: queue.Queue[Item | BaseException] = queue.Queue(3)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)

    def _work(self) -> None:
        for step in self._steps:
            try:
                item: Item | BaseException = self._make(step)
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

    def __iter__(self) -> Iterator[Item]:
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
