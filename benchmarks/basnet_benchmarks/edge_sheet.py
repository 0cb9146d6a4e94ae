"""Cut-outs of the bundled photographs on a colour, before and after, to be looked at by eye.

    write_sheet(Path("edges.jpg"), model=None, overwrite=False)

A row for each photograph: the picture, its mask, and the object laid on a colour that no photograph has, with the
picture's own pixels, with estimated foreground colours, and with refined edges too. The last rows show hair whose true
foreground is known, under its exact mask, enlarged; there the last column is the truth.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from basnet_benchmarks.edges import Composition, compositions
from basnet_benchmarks.parity import Pictures
from basnet_runtime.media.compose import Composer, OutputKind
from basnet_runtime.media.frame import Frame
from basnet_runtime.media.pictures import write_picture
from basnet_runtime.open import open_model

__all__ = ["write_sheet"]

UInt8 = NDArray[np.uint8]
_COLOUR = (32, 192, 96)
_SIDE = 200
_KNOWN = (0, 6, 10)  # compositions whose colours differ most
_PART = (slice(60, 260), slice(180, 400))  # of them, about the upper edge
_GAP = 6


def write_sheet(path: Path, *, model: Path | None, overwrite: bool) -> None:
    """Draw the sheet with a model's masks; None takes the built-in model.

    Raises:
        MediaError: The file cannot be written.
    """
    with open_model(model) as opened:
        rows = []
        for picture in Pictures(None):
            mask_HW = np.rint(opened.mask(picture.image_HWC) * 255).astype(np.uint8)
            rows.append(_row(picture.image_HWC, mask_HW))
    rows += [_known_row(made) for index, made in enumerate(compositions()) if index in _KNOWN]
    write_picture(path, np.vstack(rows), overwrite=overwrite)


def _known_row(made: Composition) -> UInt8:
    estimated = _composed(made.image_HWC, made.mask_HW, refine_edges=False)
    shown = (made.image_HWC, _grey(made.mask_HW), _mixed(made.image_HWC, made.mask_HW), estimated)
    return np.hstack([_tile(each[_PART]) for each in (*shown, _mixed(made.front_HWC, made.mask_HW))])


def _row(image_HWC: UInt8, mask_HW: UInt8) -> UInt8:
    as_it_is = _mixed(image_HWC, mask_HW)
    estimated, refined = (_composed(image_HWC, mask_HW, refine_edges=refine) for refine in (False, True))
    return np.hstack([_tile(each) for each in (image_HWC, _grey(mask_HW), as_it_is, estimated, refined)])


def _grey(mask_HW: UInt8) -> UInt8:
    return np.repeat(mask_HW[..., None], 3, axis=2)


def _mixed(image_HWC: UInt8, mask_HW: UInt8) -> UInt8:
    share = mask_HW[..., None] / np.float32(255)
    mixed: UInt8 = np.rint(share * image_HWC + (1 - share) * np.array(_COLOUR, np.float32)).astype(np.uint8)
    return mixed


def _composed(image_HWC: UInt8, mask_HW: UInt8, *, refine_edges: bool) -> UInt8:
    composer = Composer(OutputKind(name="color", color=_COLOUR), refine_edges=refine_edges)
    return composer(Frame(image_HWC=image_HWC.copy()), mask_HW).pixels


def _tile(image_HWC: UInt8) -> UInt8:
    """The picture in a square with white around it."""
    import cv2

    scale = _SIDE / max(image_HWC.shape[:2])
    size = round(image_HWC.shape[1] * scale), round(image_HWC.shape[0] * scale)
    small = cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA)
    tile = np.full((_SIDE + _GAP, _SIDE + _GAP, 3), 255, np.uint8)
    top, left = (_SIDE - small.shape[0]) // 2, (_SIDE - small.shape[1]) // 2
    tile[top : top + small.shape[0], left : left + small.shape[1]] = small
    return tile
