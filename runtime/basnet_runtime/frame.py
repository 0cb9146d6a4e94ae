"""Frames: what the pipeline takes in, a picture or video frame, and puts out.

Legend: H height, W width; `image_HWC` is uint8 RGB, `alpha_HW` uint8 with 255 opaque.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.salience import GIVEN, SalienceDecision
from basnet_torch.arrays import UInt8

__all__ = ["Frame", "Metadata", "ResultFrame", "check_pixels"]

_BLOCK_PIXELS = 1 << 20


def check_pixels(name: str, pixels: UInt8, *shapes: int) -> None:
    """Raise ValueError unless `pixels` is uint8 with a given number of axes."""
    if pixels.dtype != np.uint8 or pixels.ndim not in shapes:
        axes = " or ".join(str(n) for n in shapes)
        raise ValueError(f"{name} is {pixels.dtype} {pixels.shape}; it must be uint8 with {axes} axes")


@dataclass(frozen=True, kw_only=True, slots=True)
class Metadata:
    """What travels from a picture to its result.

    Attributes:
        exif: EXIF block, orientation 1 and without thumbnail; None when there is none.
        xmp: XMP packet, orientation 1.
        iptc: IPTC block.
        profile: Whether the picture had a color profile; the result then carries sRGB's.
        x_per_mm: Pixels per millimeter across; 1.0 where the file does not say.
        y_per_mm: Pixels per millimeter down.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    profile: bool = False
    x_per_mm: float = 1.0
    y_per_mm: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One decoded picture or video frame, upright.

    Attributes:
        image_HWC: uint8 RGB, straight (not multiplied by alpha).
        index: Position in its source, from 0.
        pts: Presentation time in the source's time base; 0 for pictures.
        duration: How long it is shown, in the same time base; 0 where the source does not say.
        alpha_HW: The picture's own transparency, or None when it is opaque.
        metadata: What its file says beside the pixels, for a result that is a picture again.
    """

    image_HWC: UInt8
    index: int = 0
    pts: int = 0
    duration: int = 0
    alpha_HW: UInt8 | None = None
    metadata: Metadata | None = None

    def __post_init__(self) -> None:
        check_pixels("image_HWC", self.image_HWC, 3)
        if self.alpha_HW is not None and self.alpha_HW.shape != self.image_HWC.shape[:2]:
            raise ValueError(f"alpha_HW is {self.alpha_HW.shape}; the picture is {self.image_HWC.shape[:2]}")

    def __repr__(self) -> str:
        return f"Frame(image_HWC={self.image_HWC.shape}, index={self.index}, pts={self.pts})"

    @property
    def nbytes(self) -> int:
        """Memory held by the pixels."""
        return self.image_HWC.nbytes + (0 if self.alpha_HW is None else self.alpha_HW.nbytes)

    def flattened(self) -> UInt8:
        """The picture as the network sees it: transparent parts over white, H,W,3.

        >>> clear = Frame(image_HWC=np.zeros((1, 1, 3), np.uint8), alpha_HW=np.zeros((1, 1), np.uint8))
        >>> clear.flattened().tolist()
        [[[255, 255, 255]]]
        """
        if self.alpha_HW is None:
            return self.image_HWC
        out_HWC = np.empty_like(self.image_HWC)
        rows = max(1, _BLOCK_PIXELS // max(1, self.image_HWC.shape[1]))
        for y in range(0, len(out_HWC), rows):
            alpha = self.alpha_HW[y : y + rows, :, None].astype(np.uint16)
            mixed = self.image_HWC[y : y + rows] * alpha + np.uint16(255) * (np.uint16(255) - alpha)
            out_HWC[y : y + rows] = (mixed + np.uint16(127)) // np.uint16(255)
        return out_HWC


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultFrame:
    """One finished result.

    Attributes:
        pixels: uint8 H,W (a mask) or H,W,3 (a picture).
        alpha_HW: uint8 H,W transparency of the result, or None when it is opaque.
        frame: The frame it was made from; its pixels may have been reused for `pixels`.
        decision: Whether anything salient was found, and how sure that is.
        memory: What the next frame's mask depends on, arrays by name; None where nobody asked for it.
    """

    pixels: UInt8
    frame: Frame
    alpha_HW: UInt8 | None = None
    decision: SalienceDecision = GIVEN
    memory: dict[str, NDArray[Any]] | None = None

    def __post_init__(self) -> None:
        check_pixels("pixels", self.pixels, 2, 3)
