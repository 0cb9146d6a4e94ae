"""A backend with the preparing and finishing that belong to its weights: picture in, mask out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast, overload

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.backends.base import Backend, OverlappedBackend, Ticket
from basnet_torch.arrays import Float32, UInt8
from basnet_torch.closing import Closing
from basnet_torch.errors import MediaError
from basnet_torch.spec import Postprocess, Preprocess

if TYPE_CHECKING:
    from basnet_runtime.api import Prediction, VideoPrediction
    from basnet_runtime.backends.tensorrt.facts import Profile
    from basnet_runtime.salience import SalienceDecision

__all__ = ["Picture", "PilPicture", "SaliencyModel"]

_BATCH = 4  # pictures at once where several are given


class PilPicture(Protocol):
    """What is used of a `PIL.Image.Image`, so that PIL need not be installed."""

    @property
    def mode(self) -> str:
        """Kind of pixels."""

    def getbands(self) -> tuple[str, ...]:
        """Names of the channels."""


Picture: TypeAlias = UInt8 | PilPicture | str | os.PathLike[str]  # arrays are H,W, H,W,3 (RGB) or H,W,4 (RGBA)


class _Done:
    """The ticket of a batch that has run already."""

    def __init__(self, raw: NDArray[Any]) -> None:
        self._raw = raw

    def done(self) -> bool:
        return True

    def result(self) -> NDArray[Any]:
        return self._raw


class SaliencyModel(Closing):
    """Runs pictures of any size through one backend; a context manager that closes the backend."""

    def __init__(
        self,
        backend: Backend,
        preprocess: Preprocess,
        postprocess: Postprocess,
        name: str,
        profiles: tuple[Profile, ...] = (),
    ) -> None:
        """`name`: what to call the model, usually its file's name; `profiles`: the only shapes it takes, if any."""
        self.backend = backend
        self.preprocess = preprocess
        self.postprocess = postprocess
        self.name = name
        self._profiles = profiles
        self._overlapped = backend if isinstance(backend, OverlappedBackend) else None

    @property
    def takes_frames(self) -> bool:
        """Whether the backend runs the `frame` graph (uint8 pictures of any size, resized inside)."""
        return self.backend.input.dtype == "uint8"

    def check_size(self, name: str, height: int, width: int) -> None:
        """Refuse a picture of a size that an engine with its sizes inside was not built for.

        Raises:
            MediaError: Naming the picture and what the engine takes.
        """
        if not self.takes_frames or not self._profiles:
            return
        if not any(p.holds((p.best[0], height, width, 3)) for p in self._profiles):
            held = "; ".join(
                f"{p.smallest[1]}x{p.smallest[2]} to {p.largest[1]}x{p.largest[2]}" for p in self._profiles
            )
            raise MediaError(
                f"{name}: is {height}x{width}, and {self.name} takes {held} (height x width); "
                "build it with other --height and --width, or run the .onnx"
            )

    @property
    def plain_size(self) -> tuple[int, int]:
        """Height and width of a small picture that it certainly takes."""
        if self.takes_frames and self._profiles:
            _, height, width, *_ = self._profiles[0].best
            return height, width
        return 64, 64

    def prepare(self, image_HWC: UInt8) -> NDArray[Any]:
        """One uint8 RGB picture as the backend's input without the batch axis."""
        return image_HWC if self.takes_frames else self.preprocess.apply(image_HWC)

    @property
    def depth(self) -> int:
        """Batches that are worth having in flight; 1 where a backend runs one after the other."""
        return self._overlapped.depth if self._overlapped else 1

    def submit(self, prepared: Sequence[NDArray[Any]], *, overlap: bool = True) -> Ticket:
        """Start prepared pictures as one batch, whose raw maps the ticket gives; the next may be started meanwhile.

        Without `overlap` nothing is set up for batches beside each other, and the ticket is done when this returns.
        """
        return self._overlapped.submit(prepared) if self._overlapped and overlap else _Done(self.infer(prepared))

    def infer(self, prepared: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Run prepared pictures as one batch (for the `frame` graph they share one size); returns N,... raw maps."""
        return self.backend.infer(np.stack(prepared))

    def finish(self, raw: NDArray[Any], height: int, width: int) -> Float32:
        """One raw map of the batch as a mask of the picture's size, float32 0..1."""
        if self.takes_frames:
            return cast(Float32, raw.astype(np.float32) / np.float32(255))
        return self.postprocess.apply(raw[0], height, width)

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a string is a picture, though one may walk along it
        self, image: Picture, *, batch: int = ..., empty_weak: bool = ...
    ) -> Float32: ...

    @overload
    def __call__(self, image: Iterable[Picture], *, batch: int = ..., empty_weak: bool = ...) -> list[Float32]: ...

    def __call__(self, image: Any, *, batch: int = _BATCH, empty_weak: bool = False) -> Float32 | list[Float32]:
        """The mask of a picture, or of each of several; see `predict`.

        >>> from basnet_runtime.backends.fake import FakeBackend
        >>> model = SaliencyModel(FakeBackend(), Preprocess(height=32, width=32), Postprocess(), "brightness")
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
            UsageError: It is no picture.
            MediaError: A file cannot be read.
            ModelFileError: The network gave values that are not finite.
        """
        from basnet_runtime.api import is_batch, predictions

        several = is_batch(image)
        found = list(predictions(self, image if several else [image], batch=batch, empty_weak=empty_weak))
        return found if several else found[0]

    def salience(self, image: Picture) -> SalienceDecision:
        """Decide whether something salient is in the picture; the score says how sure that is."""
        return self.predict(image).decision

    def cutout(self, image: Picture, *, empty_weak: bool = False, **options: Any) -> UInt8:
        """The object alone, uint8 RGBA H,W,4; the other options are those of `Prediction.cutout`."""
        return self.predict(image, empty_weak=empty_weak).cutout(**options)

    def video(
        self,
        source: str | os.PathLike[str],
        *,
        batch: int = 1,
        stabilize: bool = False,
        empty_weak: bool = False,
    ) -> Iterator[VideoPrediction]:
        """The frames of a video file, upright and in order, each with its mask, decision and time.

        Frames are decoded as they are asked for, so memory does not grow; the file is closed at the end, or when the
        iterator is.

        Args:
            source: The file.
            batch: Frames per network run.
            stabilize: Keep the masks from flickering.
            empty_weak: Empty the masks of frames in which nothing salient was found; else they are kept.

        Raises:
            MediaError: The video cannot be read.
        """
        from basnet_runtime.api import video_predictions

        return video_predictions(self, source, batch=batch, stabilize=stabilize, empty_weak=empty_weak)

    def mask(self, image_HWC: UInt8) -> Float32:
        """What the network alone says of one uint8 RGB picture H,W,3, whatever the decision: float32 H,W in 0..1."""
        raw = self.infer([self.prepare(image_HWC)])
        return self.finish(raw[0], image_HWC.shape[0], image_HWC.shape[1])

    def close(self) -> None:
        """Close the backend."""
        self.backend.close()
