"""HEIC pictures by pillow-heif (extra `heic`): libvips' wheels lack HEVC.

libheif turns pictures upright by itself, so the orientation that EXIF repeats is set to 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from basnet_runtime.media.formats import no_page
from basnet_runtime.media.image.metadata import clean_exif
from basnet_torch.errors import MediaError

__all__ = ["HEIC_ADVICE", "Heic", "opened_heic"]

HEIC_ADVICE = "HEIC needs pillow-heif; pip install 'basnet-deploy[heic]'"


@contextmanager
def _damage() -> Iterator[None]:
    """Turn what pillow-heif raises for damaged files into one line."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, EOFError, SyntaxError) as error:
        raise MediaError(f"cannot be read: {' '.join(str(error).split())}") from error


@dataclass(frozen=True, slots=True)
class Heic:
    """One picture of an opened file.

    Attributes:
        count: Pictures in the file, without thumbnails and depth maps.
    """

    _picture: Any
    count: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, from the header."""
        width, height = self._picture.size
        return height, width

    def image(self, vips: Any) -> Any:
        """Decode, as a libvips image with its profile, EXIF and XMP.

        Raises:
            MediaError: It is damaged.
        """
        with _damage():
            pixels = np.ascontiguousarray(np.asarray(self._picture))
        pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        height, width, bands = pixels.shape
        image = vips.Image.new_from_memory(pixels.tobytes(), width, height, bands, "uchar")
        image = image.copy(interpretation="b-w" if bands < 3 else "srgb")
        info = self._picture.info
        blobs = {
            "exif": clean_exif(info.get("exif") or b""),
            "xmp": info.get("xmp"),
            "icc-profile": info.get("icc_profile"),
        }
        for name, blob in blobs.items():
            if blob:
                image.set_type(vips.GValue.blob_type, f"{name}-data", bytes(blob))
        return image


def opened_heic(file: BinaryIO, page: int | None = None) -> Heic | None:
    """The main picture, or the one of that number, from 1; None without the library.

    Raises:
        MediaError: It is damaged, or there is no such page.
    """
    try:
        import pillow_heif
    except ImportError:
        return None
    file.seek(0)
    with _damage():
        opened = pillow_heif.open_heif(file, convert_hdr_to_8bit=True)
    if page is not None and page > len(opened):
        raise no_page(len(opened), page)
    return Heic(opened if page is None else opened[page - 1], len(opened))
