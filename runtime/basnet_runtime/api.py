"""The Python side of what `basnet-run` does: pictures and video in, masks, decisions and cut-outs out.

    model = bn.load()
    found = model.predict("photo.jpg")
    found.mask, found.salient, found.cutout()

Legend: H height, W width; masks are float32 0..1 of the picture's size.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.frame import Frame
from basnet_runtime.postprocess import Finisher, Finishing, checked_map
from basnet_runtime.salience import SalienceDecision, SalienceThreshold
from basnet_torch.arrays import Float32, UInt8
from basnet_torch.errors import UsageError

if TYPE_CHECKING:
    from basnet_runtime.model import SaliencyModel

__all__ = ["Prediction", "VideoPrediction", "frame_of", "is_batch", "predictions", "video_predictions"]

_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_BIT_DEPTHS_REFUSED = ("F", "I")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What was found in one picture.

    Attributes:
        image: The picture, uint8 RGB H,W,3.
        mask: float32 H,W, 0..1; all zero where nothing salient was found and weak masks were to be emptied.
        decision: Whether something salient was found, and how sure that is.
        alpha: The picture's own transparency, uint8 H,W, or None.
    """

    image: UInt8
    mask: Float32
    decision: SalienceDecision
    alpha: UInt8 | None = None

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return f"{type(self).__name__}({height}x{width}, salient={self.salient}, score={self.score:.3f})"

    @property
    def salient(self) -> bool:
        """Whether something salient was found."""
        return self.decision.salient

    @property
    def score(self) -> float:
        """How sure that is, 0..1."""
        return self.decision.score

    def cutout(self, *, threshold: float | None = None, feather: float = 0.0, refine_edges: bool = False) -> UInt8:
        """The object alone, uint8 RGBA H,W,4, its own color estimated at soft edges; options as of `compose`."""
        return self.compose("cutout", threshold=threshold, feather=feather, refine_edges=refine_edges)

    def compose(
        self, kind: str, *, threshold: float | None = None, feather: float = 0.0, refine_edges: bool = False
    ) -> UInt8:
        """What `basnet-run --kind` makes: uint8 H,W of `mask`, H,W,4 of `cutout`, H,W,3 of all others.

        Args:
            kind: `mask`, `cutout`, `overlay`, `side`, `color:#rrggbb`, `image:FILE` or `blur`.
            threshold: Share from which a mask's value counts as foreground; None keeps soft masks.
            feather: Blur of the mask's edge, pixels.
            refine_edges: Lay the mask's edges onto the picture's first.

        Raises:
            UsageError: There is no such kind.
            MediaError: The background picture cannot be read.
        """
        from basnet_runtime.media.compose.compose import Composer, OutputKind

        composer = Composer(OutputKind.parse(kind), threshold=threshold, feather=feather, refine_edges=refine_edges)
        frame = Frame(image_HWC=self.image.copy(), alpha_HW=self.alpha)  # composing writes into the picture
        made = composer(frame, np.rint(self.mask * 255).astype(np.uint8), self.decision)
        return made.pixels if made.alpha_HW is None else np.dstack([made.pixels, made.alpha_HW])


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class VideoPrediction(Prediction):
    """What was found in one frame of a video.

    Attributes:
        index: Position, from 0.
        seconds: Presentation time, from the beginning of the first stream, pictures or sound.
    """

    index: int
    seconds: float


def is_batch(images: Any) -> bool:
    """Whether these are several pictures: an array N,H,W,3, or an iterable that is no array, picture or path."""
    if isinstance(images, np.ndarray):
        return images.ndim == 4
    return isinstance(images, Iterable) and not isinstance(images, str | bytes) and not _is_pil(images)


def frame_of(image: Any) -> Frame:
    """One picture as the pipeline takes it.

    Args:
        image: uint8 array H,W (gray), H,W,3 (RGB) or H,W,4 (RGBA); a PIL picture, taken as PIL shows it, so that a
            photo's orientation is the caller's (`ImageOps.exif_transpose`); or the path of a file, read upright.

    Raises:
        UsageError: It is none of these.
        MediaError: The file cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        from basnet_runtime.media.image.pictures import read_picture

        return read_picture(Path(image))
    pixels = _pil_pixels(image) if _is_pil(image) else image
    if not isinstance(pixels, np.ndarray):
        raise UsageError(f"image is a {type(image).__name__}; give a uint8 array, a PIL picture or a path")
    return _framed(pixels)


def _framed(pixels: NDArray[Any]) -> Frame:
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in (1, 3, 4) or not pixels.size:
        raise UsageError(
            f"image is {pixels.dtype} {pixels.shape}; it must be uint8 H,W, H,W,3 (RGB) or H,W,4 (RGBA), not empty"
        )
    if channels == 1:
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    alpha = np.ascontiguousarray(pixels[..., 3]) if channels == 4 else None
    return Frame(image_HWC=np.ascontiguousarray(pixels[..., :3]), alpha_HW=alpha)


def _is_pil(image: Any) -> bool:
    """By what it offers, so that PIL need not be installed."""
    return hasattr(image, "convert") and hasattr(image, "mode") and hasattr(image, "getbands")


def _pil_pixels(image: Any) -> UInt8:
    if image.mode.startswith("I;16"):
        return (np.asarray(image, np.float32) / np.float32(257)).round().astype(np.uint8)
    if image.mode in _BIT_DEPTHS_REFUSED:
        raise UsageError(f"image is a PIL picture of mode {image.mode}, whose range is unknown; scale it to 8 bits")
    transparent = image.mode in _ALPHA_MODES or "transparency" in image.info
    return np.asarray(image.convert("RGBA" if transparent else "RGB"), np.uint8)


def predictions(
    model: SaliencyModel, images: Iterable[Any], *, batch: int, empty_weak: bool = False
) -> Iterator[Prediction]:
    """Of each picture, in order, `batch` of them at a time; nothing of one depends on another.

    Raises:
        UsageError: A picture is no picture, or `batch` is below 1.
        ModelFileError: The network gave values that are not finite.
    """
    if batch < 1:
        raise UsageError(f"batch is {batch}; it must be at least 1")
    rest = iter(images)
    while group := [frame_of(image) for image in islice(rest, batch)]:
        for frame, raw in zip(group, _raw_maps(model, group), strict=True):
            yield _prediction(model, frame, raw, empty_weak=empty_weak)


def _raw_maps(model: SaliencyModel, frames: Sequence[Frame]) -> list[NDArray[Any]]:
    """Of pictures of any size, those of one size together where the graph takes whole pictures."""
    for index, frame in enumerate(frames):
        model.check_size(f"picture {index}", *frame.image_HWC.shape[:2])
    prepared = [model.prepare(frame.flattened()) for frame in frames]
    maps: dict[int, NDArray[Any]] = {}
    for shape in {array.shape for array in prepared}:
        places = [place for place, array in enumerate(prepared) if array.shape == shape]
        maps |= dict(zip(places, model.infer([prepared[place] for place in places]), strict=True))
    return [maps[place] for place in range(len(frames))]


def _prediction(model: SaliencyModel, frame: Frame, raw: NDArray[Any], *, empty_weak: bool) -> Prediction:
    decision = SalienceThreshold(model.postprocess.empty_below)(checked_map(model, raw))
    shape = frame.image_HWC.shape[:2]
    emptied = empty_weak and not decision.salient
    mask = np.zeros(shape, np.float32) if emptied else model.finish(raw, *shape)
    return Prediction(image=frame.image_HWC, mask=mask, decision=decision, alpha=frame.alpha_HW)


def video_predictions(
    model: SaliencyModel, source: str | os.PathLike[str], *, batch: int, stabilize: bool, empty_weak: bool
) -> Iterator[VideoPrediction]:
    """Of each frame of a video file, in order; see `SaliencyModel.video`."""
    from basnet_runtime.media.video.reader import VideoSource
    from basnet_runtime.pipeline.run import Room
    from basnet_runtime.pipeline.timing import StageClock

    if batch < 1:
        raise UsageError(f"batch is {batch}; it must be at least 1")
    finisher = Finisher(model, Finishing(stabilize=stabilize, empty_weak=empty_weak), stream=True)
    with VideoSource(Path(source)) as video:
        model.check_size(os.fspath(source), video.info.height, video.info.width)
        frames = iter(video.frames(Room(), StageClock()))
        while group := list(islice(frames, batch)):
            for frame, raw in zip(group, _raw_maps(model, group), strict=True):
                mask_HW, decision = finisher(frame, raw)
                yield VideoPrediction(
                    image=frame.image_HWC,
                    mask=cast(Float32, mask_HW.astype(np.float32) / np.float32(255)),
                    decision=decision,
                    index=frame.index,
                    seconds=float(frame.pts * video.info.time_base - video.begins),
                )
