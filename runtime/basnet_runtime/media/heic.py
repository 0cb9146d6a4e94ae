"""HEIC pictures, as phones take them: libvips' wheels carry no HEVC decoder, pillow-heif's do (extra `heic`).

libheif turns pictures upright by itself, so the orientation that EXIF repeats is set to 1.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np

from basnet_runtime.media.metadata import clean_exif
from basnet_torch.errors import MediaError

__all__ = ["HEIC_ADVICE", "heic_image", "heic_size", "is_heic"]

HEIC_ADVICE = "HEIC needs pillow-heif; pip install 'basnet-deploy[heic]'"
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")


def is_heic(head: bytes) -> bool:
    r"""Whether a file's first bytes announce HEVC pictures.

    >>> is_heic(b"\0\0\0\x1cftypheic\0\0\0\0mif1heic"), is_heic(b"\0\0\0\x1cftypavif\0\0\0\0mif1avif")
    (True, False)
    """
    if head[4:8] != b"ftyp":
        return False
    brands = head[8 : int.from_bytes(head[:4], "big")][:256]
    return any(brands[at : at + 4] in _BRANDS for at in range(0, len(brands), 4))


def _opened(file: BinaryIO) -> Any | None:
    try:
        import pillow_heif
    except ImportError:
        return None
    file.seek(0)
    try:
        return pillow_heif.open_heif(file, convert_hdr_to_8bit=True)
    except (ValueError, OSError, RuntimeError, EOFError, SyntaxError) as error:
        raise MediaError(f"cannot be read: {' '.join(str(error).split())}") from error


def heic_size(file: BinaryIO) -> tuple[int, int] | None:
    """Height and width from the header; None without the library.

    Raises:
        MediaError: It is damaged.
    """
    opened = _opened(file)
    return None if opened is None else (opened.size[1], opened.size[0])


def heic_image(file: BinaryIO, vips: Any) -> Any:
    """Decode, as a libvips image with its profile, EXIF and XMP.

    Raises:
        MediaError: It is damaged.
    """
    opened = _opened(file)
    if opened is None:
        raise MediaError(HEIC_ADVICE)
    try:
        pixels = np.ascontiguousarray(np.asarray(opened))
    except (ValueError, OSError, RuntimeError, EOFError, SyntaxError) as error:
        raise MediaError(f"cannot be read: {' '.join(str(error).split())}") from error
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    height, width, bands = pixels.shape
    image = vips.Image.new_from_memory(pixels.tobytes(), width, height, bands, "uchar")
    image = image.copy(interpretation="b-w" if bands < 3 else "srgb")
    exif = clean_exif(opened.info.get("exif") or b"")
    for name, blob in (
        ("exif-data", exif),
        ("xmp-data", opened.info.get("xmp")),
        ("icc-profile-data", opened.info.get("icc_profile")),
    ):
        if blob:
            image.set_type(vips.GValue.blob_type, name, bytes(blob))
    return image
