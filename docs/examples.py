"""Draw the model card's panel: free photographs beside the built-in model's masks.

python docs/examples.py docs/images/examples.jpg

The first rows are everyday pictures, the last ones what the model was not trained for. All of them are scikit-image's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data

import basnet_runtime as bn

EVERYDAY = ("astronaut", "chelsea", "coffee", "rocket")
HARD = ("brick", "page", "hubble_deep_field", "immunohistochemistry")
SIDE = 220


def tile(image_HWC: NDArray[np.uint8], caption: str = "") -> NDArray[np.uint8]:
    """The picture within a square of SIDE pixels on white, its caption in the corner."""
    scale = SIDE / max(image_HWC.shape[:2])
    size = [max(1, round(n * scale)) for n in image_HWC.shape[1::-1]]
    small = cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA)
    square = np.full((SIDE, SIDE, 3), 255, np.uint8)
    square[: small.shape[0], : small.shape[1]] = small
    cv2.putText(square, caption, (6, SIDE - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (200, 0, 0), 1, cv2.LINE_AA)
    return square


def row(names: tuple[str, ...], model: bn.SaliencyModel) -> NDArray[np.uint8]:
    """Each picture, then its object on white."""
    tiles = []
    for name in names:
        image = getattr(data, name)()
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else np.ascontiguousarray(image[..., :3])
        mask = model(image)[..., None]
        shown = np.rint(image * mask + 255 * (1 - mask)).astype(np.uint8)
        decision = model.salience(image)
        tiles += [tile(image), tile(shown, f"salience {decision.score:.2f}")]
    return np.concatenate(tiles, 1)


def main() -> None:
    """Write the panel to the path that is given."""
    with bn.load() as model:
        panel = np.concatenate(
            [row(EVERYDAY[:2], model), row(EVERYDAY[2:], model), row(HARD[:2], model), row(HARD[2:], model)]
        )
    cv2.imwrite(str(Path(sys.argv[1])), panel[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])


if __name__ == "__main__":
    main()
