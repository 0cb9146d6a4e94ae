"""Video stream info: size, times, pixel aspect, color, rotation."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Self

import numpy as np

from basnet_torch.arrays import UInt8

__all__ = ["Color", "Upright", "VideoStreamInfo", "nearest_matrix"]

_BT709, _UNSPECIFIED, _SMPTE170M, _BT2020 = 1, 2, 6, 9
_CONVERTIBLE = frozenset((0, _BT709, _UNSPECIFIED, 4, 5, _SMPTE170M, 7, _BT2020))  # by swscale


def nearest_matrix(matrix: int, primaries: int) -> int:
    """Nearest color matrix that swscale converts, as numbers of H.273.

    >>> nearest_matrix(10, 9), nearest_matrix(8, 1), nearest_matrix(5, 1)
    (9, 6, 5)
    """
    if matrix in _CONVERTIBLE:
        return matrix
    if matrix in (10, 14):  # BT.2020 of constant luminance, ICtCp
        return _BT2020
    if matrix in (12, 13):  # derived from the primaries
        return {1: _BT709, 9: _BT2020}.get(primaries, _SMPTE170M)
    return _SMPTE170M  # of luma weights 1/4, 1/2, 1/4 (YCgCo) it is the nearest


@dataclass(frozen=True, kw_only=True, slots=True)
class Color:
    """Meaning of YUV samples, by numbers of the H.273 standard; 2 is unspecified.

    Attributes:
        matrix: Matrix coefficients.
        primaries: Color primaries.
        transfer: Transfer characteristics.
        full_range: Luma runs 0..255 instead of 16..235.
    """

    matrix: int = 2
    primaries: int = 2
    transfer: int = 2
    full_range: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoStreamInfo:
    """What an output keeps of a video; sizes and aspect are the upright ones.

    Attributes:
        source: The file, or the address or name of a stream.
        height: Rows.
        width: Columns.
        time_base: Seconds per tick of every `pts`.
        rate: Average frames per second.
        pixel_aspect: Width of one pixel by its height.
        color: Of the source's samples.
        frames: Number of frames the file promises, 0 where it does not say.
        seconds: Length the file promises, 0 where it does not say.
        start: Time of the first frame on the source's clock, seconds.
        stream: Index of the video stream.
        part: Only a part of the source is read, or it is endless: the output's times start at 0.
    """

    source: Path | str
    height: int
    width: int
    time_base: Fraction
    rate: Fraction
    pixel_aspect: Fraction
    color: Color
    frames: int
    seconds: float
    start: Fraction = Fraction(0)
    stream: int = 0
    part: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Upright:
    """One of eight rotations: exchange the axes first, then mirror."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def from_matrix(cls, values: tuple[int, ...]) -> Self:
        """From a display matrix a b u c d v x y w: x' = a x + c y, y' = b x + d y.

        >>> Upright.from_matrix((0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30))
        Upright(transpose=True, mirror_x=True, mirror_y=False)
        """
        a, b, _, c, d = values[:5]
        transpose = abs(b) + abs(c) > abs(a) + abs(d)
        across, down = (c, b) if transpose else (a, d)
        return cls(transpose=transpose, mirror_x=across < 0, mirror_y=down < 0)

    @classmethod
    def from_angle(cls, degrees: int) -> Self:
        """From the angle to turn by, counterclockwise, in steps of 90 degrees.

        >>> Upright.from_angle(-90)
        Upright(transpose=True, mirror_x=True, mirror_y=False)
        """
        cos, sin = {0: (1, 0), 1: (0, -1), 2: (-1, 0), 3: (0, 1)}[round(degrees / 90) % 4]
        return cls.from_matrix((cos, sin, 0, -sin, cos))

    def apply(self, image_HWC: UInt8) -> UInt8:
        """Turn a picture; H and W change places with `transpose`."""
        if self == Upright():
            return image_HWC
        import cv2

        out = cv2.transpose(image_HWC) if self.transpose else image_HWC
        if self.mirror_x or self.mirror_y:
            out = cv2.flip(out, -1 if self.mirror_x and self.mirror_y else int(self.mirror_x))
        return np.ascontiguousarray(out, np.uint8).reshape(*out.shape[:2], image_HWC.shape[2])
