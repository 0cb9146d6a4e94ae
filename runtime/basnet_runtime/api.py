"""The Python API: pictures and video in, masks, decisions and cut-outs out.

    model = bn.load()
    found = model.predict("photo.jpg")
    found.mask, found.salient, found.cutout()

Legend: H height, W width; masks are float32 0..1 of the picture's size.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.frame import Frame, ResultFrame
from basnet_runtime.model import SaliencyModel
from basnet_runtime.postprocess import float_mask
from basnet_runtime.salience import SalienceDecision
from basnet_torch.arrays import Float32, UInt8
from basnet_torch.device import CPU, Device
from basnet_torch.errors import UsageError
from basnet_torch.files import Closing

if TYPE_CHECKING:
    from basnet_runtime.cuda.base import CudaName
    from basnet_runtime.kinds import BackendName, Precision

__all__ = ["Picture", "PilPicture", "Prediction", "Predictor", "VideoPrediction", "frame_of", "is_batch", "load"]

_BATCH = 4  # pictures at once where several are given
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_BIT_DEPTHS_REFUSED = ("F", "I")


class PilPicture(Protocol):
    """What is used of a `PIL.Image.Image`, so that PIL need not be installed."""

    @property
    def mode(self) -> str:
        """Kind of pixels."""

    def getbands(self) -> tuple[str, ...]:
        """Names of the channels."""


Picture: TypeAlias = UInt8 | PilPicture | str | os.PathLike[str]  # arrays are H,W, H,W,3 (RGB) or H,W,4 (RGBA)


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
        """Return the cut-out, uint8 RGBA H,W,4, with colors estimated at soft edges.

        Options as of `compose`.
        """
        return self.compose("cutout", threshold=threshold, feather=feather, refine_edges=refine_edges)

    def compose(
        self, kind: str, *, threshold: float | None = None, feather: float = 0.0, refine_edges: bool = False
    ) -> UInt8:
        """Return the output of a kind: uint8 H,W of `mask`, RGBA of `cutout`, else RGB.

        As `basnet-run --kind` does.

        Args:
            kind: `mask`, `cutout`, `overlay`, `side`, `color:#rrggbb`, `image:FILE` or `blur`.
            threshold: Share from which a mask's value counts as foreground; None keeps soft masks.
            feather: Blur of the mask's edge, pixels.
            refine_edges: Lay the mask's edges onto the picture's first.

        Raises:
            UsageError: There is no such kind.
            MediaError: The background picture cannot be read.
        """
        from basnet_runtime.kinds import OutputKind
        from basnet_runtime.media.compose.compose import Composer

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


class Predictor(Closing):
    """A loaded model for Python users; a context manager that closes it.

    Attributes:
        model: What computes.
    """

    def __init__(self, model: SaliencyModel) -> None:
        self.model = model

    @property
    def description(self) -> str:
        """What really runs, for people.

        Library and version, device or provider, precision, threads.
        """
        return self.model.backend.description

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a string is a picture, though one may walk along it
        self, image: Picture, *, batch: int = ..., empty_weak: bool = ...
    ) -> Float32: ...

    @overload
    def __call__(self, image: Iterable[Picture], *, batch: int = ..., empty_weak: bool = ...) -> list[Float32]: ...

    def __call__(self, image: Any, *, batch: int = _BATCH, empty_weak: bool = False) -> Float32 | list[Float32]:
        """The mask of a picture, or of each of several; see `predict`.

        >>> from basnet_runtime.backends.fake import FakeBackend
        >>> from basnet_torch.spec import Postprocess, Preprocess
        >>> computing = SaliencyModel(FakeBackend(), Preprocess(height=32, width=32), Postprocess(), "brightness")
        >>> model = Predictor(computing)
        >>> image = np.full((40, 60, 3), 255, np.uint8)
        >>> mask = model(image)
        >>> mask.shape, mask.dtype, float(mask.max().round(3))
        ((40, 60), dtype('float32'), 1.0)
        >>> [mask.shape for mask in model([image, image[:20]])]
        [(40, 60), (20, 60)]
        """
        found = self.predict(image, batch=batch, empty_weak=empty_weak)
        return [each.mask for each in found] if isinstance(found, list) else found.mask

    @overload
    def predict(  # type: ignore[overload-overlap]  # as above
        self, image: Picture, *, batch: int = ..., empty_weak: bool = ...
    ) -> Prediction: ...

    @overload
    def predict(self, image: Iterable[Picture], *, batch: int = ..., empty_weak: bool = ...) -> list[Prediction]: ...

    def predict(self, image: Any, *, batch: int = _BATCH, empty_weak: bool = False) -> Prediction | list[Prediction]:
        """Everything about a picture, or about each of several: mask, decision, cut-out.

        Args:
            image: uint8 array H,W, H,W,3 (RGB) or H,W,4 (RGBA), a PIL picture, or a file's path; or several of these,
                in any iterable or as an array N,H,W,3, of any sizes.
            batch: Of several, how many run at once.
            empty_weak: Empty the mask where nothing salient was found; else it is kept, and `salient` says so.

        Raises:
            UsageError: It is no picture, or `batch` is below 1.
            MediaError: A file cannot be read.
            ModelFileError: The network gave values that are not finite.
        """
        from basnet_runtime.pipeline.run import Pipeline
        from basnet_runtime.pipeline.timing import StageClock

        several = is_batch(image)
        pipeline = Pipeline(self.model, _mask_alone, batch=_checked_batch(batch), overlap=False)
        postprocess = self.model.postprocessor(empty_weak=empty_weak)
        found = []
        for frame, raw in pipeline.maps(self._frames(image if several else [image]), StageClock()):
            map_hw, decision = postprocess.decide(raw)
            mask_HW = float_mask(map_hw, *frame.image_HWC.shape[:2])
            found.append(Prediction(image=frame.image_HWC, mask=mask_HW, decision=decision, alpha=frame.alpha_HW))
        return found if several else found[0]

    def _frames(self, images: Iterable[Any]) -> Iterator[Frame]:
        for index, image in enumerate(images):
            frame = frame_of(image)
            self.model.check_size(f"picture {index}", *frame.image_HWC.shape[:2])
            yield frame

    def mask(self, image_HWC: UInt8) -> Float32:
        """Return the network's mask of a uint8 RGB picture H,W,3: float32 H,W in 0..1.

        Whatever the salience decision.
        """
        return self.model.mask(image_HWC)

    def salience(self, image: Picture) -> SalienceDecision:
        """Decide whether something salient is in the picture, with the score."""
        return self.predict(image).decision

    def cutout(self, image: Picture, *, empty_weak: bool = False, **options: Any) -> UInt8:
        """Return the cut-out, uint8 RGBA H,W,4; options as of `Prediction.cutout`."""
        return self.predict(image, empty_weak=empty_weak).cutout(**options)

    def video(
        self, source: str | os.PathLike[str], *, batch: int = 1, stabilize: bool = False, empty_weak: bool = False
    ) -> Iterator[VideoPrediction]:
        """Iterate over the upright frames of a video file, with mask, decision and time.

        Frames are decoded as they are asked for, so memory does not grow; the file is closed at the end, or when the
        iterator is.

        Args:
            source: The file.
            batch: Frames per network run.
            stabilize: Keep the masks from flickering.
            empty_weak: Empty the masks of frames in which nothing salient was found; else they are kept.

        Raises:
            UsageError: `batch` is below 1.
            MediaError: The video cannot be read.
        """
        from basnet_runtime.media.video.reader import VideoSource
        from basnet_runtime.pipeline.run import Pipeline
        from basnet_runtime.pipeline.timing import StageClock

        pipeline = Pipeline(
            self.model,
            _mask_alone,
            batch=_checked_batch(batch),
            stabilize=stabilize,
            empty_weak=empty_weak,
            stream=True,
            overlap=False,
        )
        with VideoSource(Path(source)) as video:
            self.model.check_size(os.fspath(source), video.info.height, video.info.width)
            for item in pipeline.results(video.frames(), StageClock()):
                yield VideoPrediction(
                    image=item.frame.image_HWC,
                    mask=float_mask(item.pixels, *item.pixels.shape),
                    decision=item.decision,
                    index=item.frame.index,
                    seconds=float(item.frame.pts * video.info.time_base - video.begins),
                )

    def close(self) -> None:
        """Close the model."""
        self.model.close()


def load(
    path: Path | str | None = None,
    *,
    backend: BackendName | None = None,
    device: Device | str = CPU,
    threads: int | None = None,
    precision: Precision | None = None,
    cuda: CudaName = "cuda-core",
) -> Predictor:
    """Open a model for Python; arguments and errors are those of `open.open_model`."""
    from basnet_runtime import open as opening

    return Predictor(
        opening.open_model(path, backend=backend, device=device, threads=threads, precision=precision, cuda=cuda)
    )


def _mask_alone(frame: Frame, mask_HW: UInt8, decision: SalienceDecision) -> ResultFrame:
    return ResultFrame(pixels=mask_HW, frame=frame, decision=decision)


def _checked_batch(batch: int) -> int:
    if batch < 1:
        raise UsageError(f"batch is {batch}; it must be at least 1")
    return batch


def is_batch(images: Any) -> bool:
    """Tell whether these are several pictures: an array N,H,W,3 or an iterable.

    A path, an array and a picture are no iterables here.
    """
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
