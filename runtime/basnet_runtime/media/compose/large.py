"""Large pictures, never in memory as a whole: read and written in strips.

The first pass keeps the rows that the network's resize takes its pixels from, so that its input is exactly that of any
picture, and a reduced copy for what is estimated from the surroundings. The second pass composes strip by strip into a
plain file beside the result, from which libvips encodes. Memory follows the width alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.frame import Frame
from basnet_runtime.media.compose.compose import Composer, StripComposer
from basnet_runtime.media.image.metadata import surviving
from basnet_runtime.media.image.pictures import PictureFile, save_image
from basnet_runtime.media.image.strip_file import StripFile
from basnet_runtime.model import SaliencyModel
from basnet_runtime.postprocess import Postprocessor, row_strips
from basnet_runtime.salience import SalienceDecision
from basnet_torch.arrays import UInt8

__all__ = ["LARGE_PIXELS", "run_large"]

LARGE_PIXELS = 64_000_000
_STRIP_PIXELS = 1_000_000
_REDUCED_SIDE = 1280


def run_large(
    picture: PictureFile,
    target: Path,
    *,
    model: SaliencyModel,
    postprocess: Postprocessor,
    composer: Composer,
    overwrite: bool,
) -> SalienceDecision:
    """Make one result.

    Args:
        picture: The opened input.
        target: The result's file.
        model: A model that takes prepared tensors; one that resizes inside its graph needs the whole picture.
        postprocess: Of the maps.
        composer: What is made.
        overwrite: An existing file is replaced.

    Raises:
        MediaError: The picture is damaged, or the result cannot be written.
    """
    height, width = picture.upright_size
    rows = _Rows(height, width)
    model.prepare(cast(UInt8, rows))  # only to learn which rows it asks for
    reduced = _Reduced(height, width)
    whole = max(1, _STRIP_PIXELS // width // reduced.factor) * reduced.factor  # rows of a strip
    for strip, frame in picture.strips(row_strips(height, width, whole * width)):
        rows.keep(strip, frame.flattened)
        reduced.add(strip, frame)
    map_hw, decision = postprocess.decide(model.infer([model.prepare(cast(UInt8, rows))])[0])
    strips = composer.in_strips(reduced.frame(), map_hw, height, width)
    with StripFile(target, height) as file:
        for made in _composed(picture, strips):
            file.add(made)
        kept = surviving(picture.metadata, is_mask=file.bands == 1)
        save_image(target, file.image(), metadata=kept, overwrite=overwrite)
    return decision


def _composed(picture: PictureFile, strips: StripComposer) -> Iterator[UInt8]:
    height, width = picture.upright_size
    cut = row_strips(height, width, _STRIP_PIXELS)
    if strips.name != "mask":
        for rows, frame in picture.strips(cut):
            yield strips(rows, frame)
    else:
        for rows in cut:
            yield strips(rows, None)


class _Rows:
    """Stands for a picture H,W,3 of which only some rows are there: those that were asked for before.

    The resize of large pictures takes all its pixels by lists of row numbers, and takes the same rows every time.
    """

    ndim = 3
    dtype = np.dtype(np.uint8)

    def __init__(self, height: int, width: int) -> None:
        self.shape = (height, width, 3)
        self._places: dict[int, int] = {}
        self._kept: UInt8 | None = None

    def __getitem__(self, rows: NDArray[np.intp]) -> UInt8:
        for row in rows:
            self._places.setdefault(int(row), len(self._places))
        if self._kept is None:
            return np.zeros((len(rows), *self.shape[1:]), np.uint8)
        return self._kept[[self._places[int(row)] for row in rows]]

    def keep(self, strip: slice, flattened: Callable[[], UInt8]) -> None:
        """Take what is needed of the strip."""
        if self._kept is None:  # all at once: many small arrays between the large ones would fragment the memory
            self._kept = np.zeros((len(self._places), *self.shape[1:]), np.uint8)
        wanted = [row for row in range(strip.start, strip.stop) if row in self._places]
        if wanted:
            places = [self._places[row] for row in wanted]
            self._kept[places] = flattened()[[row - strip.start for row in wanted]]


class _Reduced:
    """The picture shrunk by a whole factor, area by area, from strips."""

    def __init__(self, height: int, width: int) -> None:
        self._factor = max(1, -(-max(height, width) // _REDUCED_SIDE))
        self._rgba = np.full((-(-height // self._factor), -(-width // self._factor), 4), 255, np.uint8)

    @property
    def factor(self) -> int:
        """Rows of the picture to one of the copy; of strips a multiple, but the last."""
        return self._factor

    def add(self, strip: slice, frame: Frame) -> None:
        """Shrink a strip into its place."""
        import cv2

        first, last = strip.start // self._factor, -(-strip.stop // self._factor)
        size = self._rgba.shape[1], last - first
        self._rgba[first:last, :, :3] = cv2.resize(frame.image_HWC, size, interpolation=cv2.INTER_AREA)
        if frame.alpha_HW is not None:
            self._rgba[first:last, :, 3] = cv2.resize(frame.alpha_HW, size, interpolation=cv2.INTER_AREA)

    def frame(self) -> Frame:
        """All of it."""
        alpha_HW = np.ascontiguousarray(self._rgba[..., 3])
        opaque = alpha_HW.min() == 255
        return Frame(image_HWC=np.ascontiguousarray(self._rgba[..., :3]), alpha_HW=None if opaque else alpha_HW)
