"""Decoded frames to upright RGB: crop, matrix, range of gray, transparency."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from basnet_runtime.media.video.matroska_crop import Crop, matroska_crops
from basnet_runtime.media.video.stream_info import Upright, nearest_matrix
from basnet_runtime.media.video.tracks import video_tracks
from basnet_torch.arrays import UInt8

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = ["FrameReader"]

_LIMITED = 1
_EXPANDED = np.rint((np.arange(256) - 16) * (255 / 219)).clip(0, 255).astype(np.uint8)


class FrameReader:
    """Makes arrays of the frames of one stream.

    Attributes:
        height: Rows as stored, without what is cropped.
        width: Columns as stored, without what is cropped.
        pixel_aspect: Width of one pixel by its height, as stored.
        upright: How pictures are turned.
        clear: Whether they have transparency.
    """

    def __init__(self, first: av.VideoFrame, source: Path | str, stream: VideoStream) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()
        crop = _crop_of(source, stream)
        if crop is not None and (crop.left + crop.right >= first.width or crop.top + crop.bottom >= first.height):
            crop = None
        self._window = (
            (slice(None), slice(None))
            if crop is None
            else (slice(crop.top, first.height - crop.bottom), slice(crop.left, first.width - crop.right))
        )
        self.height = first.height if crop is None else first.height - crop.top - crop.bottom
        self.width = first.width if crop is None else first.width - crop.left - crop.right
        stored = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
        self.pixel_aspect = stored if crop is None else crop.pixel_aspect
        self.upright = _upright_of(first)
        self.clear = any(component.is_alpha for component in first.format.components)

    def read(self, frame: av.VideoFrame) -> tuple[UInt8, UInt8 | None]:
        """Upright RGB, H,W,3, and the transparency, H,W, of a video that has it."""
        matrix = nearest_matrix(int(frame.colorspace), int(frame.color_primaries))
        if matrix != int(frame.colorspace):
            frame.colorspace = matrix
        pixels_HWC = self._pixels(frame)[self._window]
        pixels_HWC = self.upright.apply(pixels_HWC)
        if not self.clear:
            return np.ascontiguousarray(pixels_HWC), None
        return np.ascontiguousarray(pixels_HWC[..., :3]), np.ascontiguousarray(pixels_HWC[..., 3])

    def _pixels(self, frame: av.VideoFrame) -> UInt8:
        # One thread: the frame before is still in the network, which has better use for the others.
        if not self.clear and frame.format.name.startswith("gray") and int(frame.color_range) == _LIMITED:
            luma = self._reformatter.reformat(frame, format="gray", threads=1).to_ndarray()
            return np.repeat(_EXPANDED[luma][..., None], 3, axis=2)  # swscale takes all gray for full range
        pixels = self._reformatter.reformat(frame, format="rgba" if self.clear else "rgb24", threads=1)
        pixels_HWC = np.asarray(pixels.to_ndarray(), np.uint8)
        alpha_HW = _alpha_plane(frame) if self.clear else None
        if alpha_HW is not None:
            pixels_HWC[..., 3] = alpha_HW
        return pixels_HWC


def _alpha_plane(frame: av.VideoFrame) -> UInt8 | None:
    """Transparency from a plane of its own, to the nearest of 256 steps; None where it lies beside the colors.

    swscale's own conversion is one too high in half of the steps.
    """
    components = frame.format.components
    alpha = next(component for component in components if component.is_alpha)
    if sum(component.plane == alpha.plane for component in components) > 1 or not 8 <= alpha.bits <= 16:
        return None
    plane = frame.planes[alpha.plane]
    if alpha.bits == 8:
        return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
    order = ">" if frame.format.is_big_endian else "<"
    stored = np.frombuffer(memoryview(plane), f"{order}u2").reshape(-1, plane.line_size // 2)
    most = (1 << alpha.bits) - 1
    stored = stored[: frame.height, : frame.width].astype(np.uint32)
    return ((stored * 510 + most) // (2 * most)).astype(np.uint8)


def _crop_of(source: Path | str, stream: VideoStream) -> Crop | None:
    if not isinstance(source, Path) or "matroska" not in stream.container.format.name:
        return None
    crops = matroska_crops(source)
    tracks = [track.index for track in video_tracks(cast("InputContainer", stream.container))]
    return crops[tracks.index(stream.index)] if len(crops) == len(tracks) else None


def _upright_of(frame: av.VideoFrame) -> Upright:
    try:
        data: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # it also carries data that PyAV has no name for, such as EXIF: the angle alone can be had
        return Upright.from_angle(frame.rotation)
    if data is None:
        return Upright()
    return Upright.from_matrix(tuple(int(value) for value in np.frombuffer(data, np.int32)))
