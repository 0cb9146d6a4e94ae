"""A sheet of what a model makes of free photographs, found and missed, for its model card.

python -m basnet_benchmarks.examples -o examples.jpg [--model basnet.onnx]

The photographs are those that come with scikit-image, which are free of rights. Each is shown beside its mask as the
network gives it, and dimmed where that is dark; above it stand its name and the verdict with its score.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from basnet_runtime.media.pictures import write_picture
from basnet_runtime.model import SaliencyModel
from basnet_runtime.open import open_model
from basnet_runtime.salience import salience_score
from basnet_torch.errors import UsageError

__all__ = ["NAMES", "main", "write_examples"]

UInt8 = NDArray[np.uint8]
# Objects; several, cut off or thin ones; pages and cells, which it was not trained for; and grounds without an object.
NAMES = (
    *("astronaut", "chelsea", "coffee", "rocket", "camera", "coins"),
    *("page", "immunohistochemistry", "moon", "hubble_deep_field", "brick", "grass"),
)
_SIDE = 170
_HEAD = 18
_GAP = 6


def write_examples(path: Path, model: SaliencyModel, *, names: Sequence[str] = NAMES, columns: int = 2) -> None:
    """Draw the sheet, so many photographs beside each other.

    Raises:
        MediaError: The file cannot be written.
        UsageError: scikit-image is not installed, or brings no such photograph.
    """
    shown = [_example(model, name, _photograph(name)) for name in names]
    shown += [np.full_like(shown[0], 255)] * (-len(shown) % columns)
    rows = [np.hstack(shown[start : start + columns]) for start in range(0, len(shown), columns)]
    write_picture(path, np.vstack(rows), overwrite=True)


def _photograph(name: str) -> UInt8:
    try:
        from skimage import data
    except ImportError as error:
        raise UsageError("the photographs are scikit-image's; pip install scikit-image") from error
    read = getattr(data, name, None)
    if read is None:
        raise UsageError(f"{name}: scikit-image has no such photograph")
    image = np.asarray(read())
    return np.ascontiguousarray(np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image[..., :3])


def _example(model: SaliencyModel, name: str, image_HWC: UInt8) -> UInt8:
    mask_HW = model.mask(image_HWC)[..., None]
    score = salience_score(mask_HW[..., 0])
    salient = score >= model.postprocess.empty_below
    dimmed = np.rint(image_HWC * (0.2 + 0.8 * mask_HW)).astype(np.uint8)
    grey = np.rint(np.repeat(mask_HW, 3, 2) * 255).astype(np.uint8)
    tiles = np.hstack([_tile(each) for each in (image_HWC, grey, dimmed)])
    head = np.full((_HEAD, tiles.shape[1], 3), 255, np.uint8)
    said = f"{name.replace('_', ' ')}: {score:.2f}" + ("" if salient else ", nothing salient")
    cv2.putText(head, said, (2, _HEAD - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([head, tiles])


def _tile(image_HWC: UInt8) -> UInt8:
    """The picture in a square with white around it."""
    scale = _SIDE / max(image_HWC.shape[:2])
    size = max(1, round(image_HWC.shape[1] * scale)), max(1, round(image_HWC.shape[0] * scale))
    small = cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA)
    tile = np.full((_SIDE + _GAP, _SIDE + _GAP, 3), 255, np.uint8)
    top, left = (_SIDE - small.shape[0]) // 2, (_SIDE - small.shape[1]) // 2
    tile[top : top + small.shape[0], left : left + small.shape[1]] = small
    return tile


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m basnet_benchmarks.examples", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the picture to write")
    parser.add_argument("--model", type=Path, help="default: the built-in model")
    parser.add_argument("--columns", type=int, default=2, help="photographs beside each other")
    asked: Any = parser.parse_args(arguments)
    with open_model(asked.model) as model:
        write_examples(asked.output, model, columns=asked.columns)


if __name__ == "__main__":
    main()
