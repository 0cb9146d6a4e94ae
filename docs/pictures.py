"""Draw the pictures of the documents with the built-in model in FP32.

    python docs/pictures.py demo docs/images/demo.jpg          # README.md; `make demo DEMO_PICTURE=...` calls this
    python docs/pictures.py examples docs/images/examples.jpg  # the model card; needs scikit-image

Legend: H height, W width; pictures are uint8 RGB.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

import basnet_runtime as bn

if TYPE_CHECKING:
    from basnet_runtime.api import Predictor

UInt8 = NDArray[np.uint8]
BUNDLED = Path(__file__).parents[1] / "export" / "basnet_export" / "pictures"
DEMO = ("coffee.jpg", "chelsea.jpg")
EVERYDAY = ("astronaut", "chelsea", "coffee", "rocket")
HARD = ("brick", "page", "hubble_deep_field", "immunohistochemistry")
SIDE = 220
CHECK = 12


def demo(model: Predictor) -> UInt8:
    """Two rows of photograph, mask and cut-out."""
    return np.concatenate([_demo_row(BUNDLED / name, model) for name in DEMO])


def _demo_row(path: Path, model: Predictor) -> UInt8:
    found = model.predict(path)
    rgba_HW4 = found.cutout()
    height, width = rgba_HW4.shape[:2]
    dark_HW1 = (np.add.outer(np.arange(height) // CHECK, np.arange(width) // CHECK) % 2)[..., None]
    alpha_HW1 = rgba_HW4[..., 3:] / np.float32(255)
    cutout = np.rint(rgba_HW4[..., :3] * alpha_HW1 + (240 - 40 * dark_HW1) * (1 - alpha_HW1)).astype(np.uint8)
    return np.concatenate([found.image, found.compose("mask")[..., None].repeat(3, axis=2), cutout], axis=1)


def examples(model: Predictor) -> UInt8:
    """Draw four rows of photographs and cut-outs; two are unlike training data."""
    rows = (EVERYDAY[:2], EVERYDAY[2:], HARD[:2], HARD[2:])
    return np.concatenate([_examples_row(names, model) for names in rows])


def _examples_row(names: tuple[str, ...], model: Predictor) -> UInt8:
    from skimage import data

    tiles = []
    for name in names:
        image = getattr(data, name)()
        found = model.predict(image if image.ndim == 2 else np.ascontiguousarray(image[..., :3]))
        mask = found.mask[..., None]
        on_white = np.rint(found.image * mask + 255 * (1 - mask)).astype(np.uint8)
        tiles += [_tile(found.image), _tile(on_white, f"salience {found.score:.2f}")]
    return np.concatenate(tiles, axis=1)


def _tile(image_HWC: UInt8, caption: str = "") -> UInt8:
    """The picture within a square of SIDE pixels on white, its caption in the corner."""
    scale = SIDE / max(image_HWC.shape[:2])
    size = [max(1, round(n * scale)) for n in image_HWC.shape[1::-1]]
    small = cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA)
    square = np.full((SIDE, SIDE, 3), 255, np.uint8)
    square[: small.shape[0], : small.shape[1]] = small
    cv2.putText(square, caption, (6, SIDE - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (200, 0, 0), 1, cv2.LINE_AA)
    return square


def save(name: str, path: Path) -> None:
    """Draw `demo` or `examples` and write it as JPEG."""
    with bn.load(precision="fp32") as model:
        picture_HWC = {"demo": demo, "examples": examples}[name](model)
    _, jpeg = cv2.imencode(".jpg", picture_HWC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg.tobytes())


if __name__ == "__main__":
    save(sys.argv[1], Path(sys.argv[2]))
