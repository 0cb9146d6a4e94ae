"""Pictures for parity checks: a folder, or the five bundled photographs and crops of them."""

from __future__ import annotations

from pathlib import Path

from basnet_runtime.media.image.pictures import is_picture, read_picture
from basnet_runtime.parity import Picture
from basnet_torch.errors import UsageError

__all__ = ["BUNDLED", "load_pictures"]

BUNDLED = Path(__file__).with_name("pictures")
_CROPS = ((0.0, 0.0), (0.4, 0.1))  # where they begin, as shares of height and width, of each of which they have 0.6


def load_pictures(folder: Path | None = None, *, cropped: bool = False) -> list[Picture]:
    """Read all pictures of a folder, or the bundled ones, sorted by name.

    Args:
        folder: The user's own pictures.
        cropped: Add two crops of each bundled photograph: where less of an object is seen, networks are less decided,
            and small changes move the mask most.

    Raises:
        UsageError: When the folder is none or holds no picture.
        MediaError: When a picture is damaged.
    """
    own, folder = folder is not None, folder or BUNDLED
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of pictures")
    paths = sorted(path for path in folder.iterdir() if path.is_file() and is_picture(path))
    if not paths:
        raise UsageError(f"{folder}: holds no pictures, so parity cannot be checked")
    pictures = [Picture(name=path.name, image_HWC=read_picture(path).flattened()) for path in paths]
    return [*pictures, *(crop for picture in pictures if cropped and not own for crop in _crops(picture))]


def _crops(picture: Picture) -> list[Picture]:
    height, width = picture.image_HWC.shape[:2]
    corners = [(int(height * top), int(width * left)) for top, left in _CROPS]
    return [
        Picture(
            name=f"{picture.name} from {top}, {left}",
            image_HWC=picture.image_HWC[top : top + height * 3 // 5, left : left + width * 3 // 5].copy(),
        )
        for top, left in corners
    ]
