"""Calibration pictures for INT8: real, enough, and the same every time.

pictures = calibration_pictures(Path("DUTS-TR"), count=256, seed=0)
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np

from basnet_runtime.media.image.pictures import is_picture, read_picture
from basnet_runtime.parity import Picture
from basnet_torch.errors import UsageError

__all__ = ["FEW", "FEWEST", "calibration_pictures", "warning_for"]

T = TypeVar("T")
FEWEST = 16
FEW = 100


def calibration_pictures(source: Path, *, count: int = 256, seed: int = 0) -> list[Picture]:
    """Read at most `count` pictures, drawn with `seed`, sorted by name.

    Args:
        source: A folder of pictures, or training data as `basnet-train` takes it: a folder or zip file of `images/` and
            `masks/`, or a folder of such zip files. Masks are not read.
        count: The most to take.
        seed: Which ones.

    Raises:
        UsageError: For no such source, or fewer than 16 pictures: ranges of so few fit nothing else.
        DataError, MediaError: When a picture is damaged.
    """
    if not source.exists():
        raise UsageError(f"{source}: no such folder or zip file of calibration pictures")
    found = _plain_pictures(source) if source.is_dir() else []
    if found:
        drawn = _drawn(found, count, seed)
        pictures = [Picture(name=path.name, image_HWC=read_picture(path).flattened()) for path in drawn]
    else:
        from basnet_torch.data.datasets import find_pairs
        from basnet_torch.data.masks import decode_picture

        pairs = _drawn(find_pairs([source]), count, seed)
        pictures = [Picture(name=pair.name, image_HWC=decode_picture(pair.read_image(), pair.name)) for pair in pairs]
    if len(pictures) < FEWEST:
        raise UsageError(
            f"{source}: {len(found) or len(pictures)} pictures, and INT8 needs at least {FEWEST} to be calibrated on, "
            f"better {FEW} or more; give a folder of real pictures like those it will see"
        )
    return pictures


def warning_for(pictures: int) -> str | None:
    """The warning for few pictures; None when they are enough.

    >>> warning_for(256) is None
    True
    """
    if pictures >= FEW:
        return None
    return f"warning: calibrated on {pictures} pictures; under {FEW} the ranges may not fit other pictures"


def _plain_pictures(folder: Path) -> list[Path]:
    from basnet_torch.data.layouts import masks_beside

    found = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".zip" and is_picture(path))
    masks = masks_beside(folder, [path.name for path in found])
    return [path for path in found if path.name not in masks]


def _drawn(items: list[T], count: int, seed: int) -> list[T]:
    """Draw `count` items without repetition, in their order."""
    if len(items) <= count:
        return items
    chosen = np.random.default_rng(seed).choice(len(items), count, replace=False)
    return [items[index] for index in sorted(chosen)]
