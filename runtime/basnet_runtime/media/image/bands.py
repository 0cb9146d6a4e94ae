"""Color and alpha bands of a libvips image, samples of any type as 16 bits.

What is left is 1, 3 or 4 bands of color by the image's interpretation, and one of transparency where there is one.
"""

from __future__ import annotations

from typing import Any

from basnet_runtime.media.image.tiff import TiffPage
from basnet_torch.errors import MediaError

__all__ = ["color_and_alpha", "has_floats"]

_COLORS = {"b-w": 1, "grey16": 1, "cmyk": 4}
_PLAIN = ("b-w", "grey16", "srgb", "rgb", "rgb16", "scrgb", "multiband", "cmyk")
# Type of the samples to what they are called and the value that is white.
_SCALED: dict[str, tuple[str, float]] = {
    "float": ("floats", 1),
    "double": ("floats", 1),
    "char": ("signed 8-bit integers", 127),
    "short": ("signed 16-bit integers", 32767),
    "uint": ("32-bit integers", 4294967295),
    "int": ("signed 32-bit integers", 2147483647),
}


def color_and_alpha(image: Any, page: TiffPage | None) -> tuple[Any, list[str]]:
    """Select color and alpha of an image, with notes on the rest.

    Args:
        image: As libvips has loaded it.
        page: What a TIFF says of the bands; elsewhere one band more than the color's is transparency.

    Raises:
        MediaError: Its samples have no brightness.
    """
    notes: list[str] = []
    interpretation, bands = image.interpretation, image.bands
    colors = _COLORS.get(interpretation, 1 if interpretation == "multiband" and bands < 3 else 3)
    if bands > colors:
        image, left_out = _selected(image, colors, page)
        if left_out:
            what = "is" if left_out == 1 else "are"
            notes.append(f"{left_out} of its {bands} bands {what} neither color nor transparency and left out")
    if image.format not in ("uchar", "ushort") and interpretation in _PLAIN:
        image, note = _sixteen_bit(image, colors)
        notes.append(note)
    elif interpretation == "multiband":
        image = image.copy(interpretation=_named(image.format, colors))
    return image, notes


def has_floats(image: Any) -> bool:
    """Whether the samples, as loaded, are floats whose white is 1."""
    return image.format in ("float", "double") and image.interpretation in _PLAIN


def _selected(image: Any, colors: int, page: TiffPage | None) -> tuple[Any, int]:
    """Color and transparency, and how many bands are neither."""
    further = image.bands - colors
    if page is None:
        return (image, 0) if further == 1 else (image.extract_band(0, n=colors + 1), further - 1)
    if page.extra is None:  # libtiff has converted to RGBA by itself, and all of it is opaque
        return image.extract_band(0, n=colors), 0
    alpha = next((index for index, meaning in enumerate(page.extra[:further]) if meaning in (1, 2)), None)
    if alpha is None:
        return image.extract_band(0, n=colors), further
    if alpha == 0:
        return (image, 0) if further == 1 else (image.extract_band(0, n=colors + 1), further - 1)
    return image.extract_band(0, n=colors).bandjoin(image.extract_band(colors + alpha)), further - 1


def _sixteen_bit(image: Any, colors: int) -> tuple[Any, str]:
    """Samples scaled by their type, never by what is in them: a dark picture stays dark."""
    if image.format not in _SCALED:
        raise MediaError("its samples are complex numbers; save it with 8 or 16 bits")
    name, top = _SCALED[image.format]
    below = " and what is negative as 0" if "signed" in name else ""
    scaled = (image * (65535 / top)).rint().cast("ushort")
    interpretation = image.interpretation if colors == 4 else _named("ushort", colors)
    return scaled.copy(interpretation=interpretation), f"its samples are {name}, read as 0 to {top:g}{below}"


def _named(kind: str, colors: int) -> str:
    return {("uchar", 1): "b-w", ("ushort", 1): "grey16", ("uchar", 3): "srgb"}.get((kind, colors), "rgb16")
