"""Pictures for parity checks: a folder, or the five bundled photographs."""

from __future__ import annotations

from pathlib import Path

from basnet_runtime.media.image.pictures import is_picture, read_picture
from basnet_runtime.parity import Picture
from basnet_torch.errors import UsageError

__all__ = ["BUNDLED", "load_pictures"]

BUNDLED = Path(__file__).with_name("pictures")


def load_pictures(folder: Path | None = None) -> list[Picture]:
    """Read all pictures of a folder, or the bundled ones, sorted by name.

    Raises:
        UsageError: When the folder is none or holds no picture.
        MediaError: When a picture is damaged.
    """
    folder = folder or BUNDLED
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of pictures")
    paths = sorted(path for path in folder.iterdir() if path.is_file() and is_picture(path))
    if not paths:
        raise UsageError(f"{folder}: holds no pictures, so parity cannot be checked")
    return [Picture(name=path.name, image_HWC=read_picture(path).flattened()) for path in paths]
