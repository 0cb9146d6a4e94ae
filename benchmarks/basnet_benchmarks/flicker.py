"""How much a video's masks flicker, with the stabiliser and without, and whether it costs accuracy.

    report = measure_flicker(FlickerConfig(sources=(Path("davis/blackswan"), Path("clip.mp4"))))

Flicker is the change of the mask that motion does not explain: the mask before, carried along by the optical flow
between the two pictures, against the mask of now, as a share of what both mark. Pixels where the flow forth and back
disagree, or where it does not explain the picture, are left out. The flow is Farneback's, not the one that the
stabiliser takes, so that it does not judge itself. The truth, where there is one, is scored alike: that is how low
flicker can be.

Legend: H, W the size at which flicker is measured, at most 480 pixels on the long side.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from basnet_benchmarks.environment import Environment, environment
from basnet_benchmarks.parity import Pictures
from basnet_runtime.backends.base import BackendName, Precision
from basnet_runtime.finish import Finisher, Finishing
from basnet_runtime.media.frame import Frame
from basnet_runtime.media.stabiliser import warped
from basnet_runtime.model import SaliencyModel
from basnet_runtime.open import open_model
from basnet_runtime.run import opencv_out_of_the_way
from basnet_runtime.threads import allowed_threads
from basnet_torch.errors import UsageError

__all__ = ["FlickerConfig", "FlickerMeter", "FlickerReport", "FlickerRow", "measure_flicker"]

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]
_SIDE = 480
_BACK = 1.0  # pixels by which the flow forth and back may disagree
_SEEN = 20  # grey levels by which the carried picture may differ
_Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class FlickerConfig:
    """What to run.

    Attributes:
        sources: Video files, and folders of frames, which may be laid out as a data set with masks.
        model: Model file; None takes the built-in model.
        frames: Most frames of each source.
        backend: Library to run with; None chooses.
        precision: What to compute in; None takes the model's own.
        threads: Processor threads; None takes what the container allows.
    """

    sources: tuple[Path, ...]
    model: Path | None = None
    frames: int = 120
    backend: BackendName | None = None
    precision: Precision | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise UsageError(f"frames is {self.frames}; flicker needs at least 2")


@dataclass(frozen=True, kw_only=True, slots=True)
class FlickerRow:
    """One source, or the truth of one.

    Attributes:
        source: Its name.
        masks: `as they are`, `stabilised` or `truth`.
        frames: How many.
        flicker: Unexplained change as a share of the mask, 0..1.
        iou: Mean IoU with the truth at 0.5; None where there is none.
        lag: The same against the truth of the frame before: above `iou`, masks come late.
        milliseconds: Median time that finishing a frame took.
    """

    source: str
    masks: str
    frames: int
    flicker: float
    iou: float | None = None
    lag: float | None = None
    milliseconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "source": self.source,
            "masks": self.masks,
            "frames": self.frames,
            "flicker": self.flicker,
            "iou": self.iou,
            "iou_with_the_truth_before": self.lag,
            "milliseconds": self.milliseconds,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class FlickerReport:
    """A whole run."""

    model: str
    runs_on: str
    environment: Environment
    rows: tuple[FlickerRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "command": "flicker",
            "model": self.model,
            "runs_on": self.runs_on,
            "environment": self.environment.to_dict(),
            "rows": [row.to_dict() for row in self.rows],
        }


class FlickerMeter:
    """Collects the masks of one video, frame by frame."""

    def __init__(self) -> None:
        self.frames = 0
        self._last: Float32 | None = None
        self._changed = self._marked = 0.0
        self._last_truth: Bool | None = None
        self._iou: list[float] = []
        self._lag: list[float] = []

    def add(self, mask_HW: Float32, motion: Motion | None, truth_HW: Bool | None = None) -> None:
        """Count the next mask, 0..1; `motion` from the frame before, None for the first."""
        self.frames += 1
        if motion is not None and self._last is not None:
            carried = warped(self._last, motion.flow_HW2)
            self._changed += float(np.abs(mask_HW - carried)[motion.explained_HW].sum(dtype=np.float64))
            self._marked += float(np.maximum(mask_HW, carried)[motion.explained_HW].sum(dtype=np.float64))
        if truth_HW is not None:
            self._iou.append(_iou(mask_HW > 0.5, truth_HW))
            if self._last_truth is not None:
                self._lag.append(_iou(mask_HW > 0.5, self._last_truth))
        self._last, self._last_truth = mask_HW, truth_HW

    @property
    def flicker(self) -> float:
        """Unexplained change as a share of what was marked; 0 where nothing was."""
        return self._changed / self._marked if self._marked else 0.0

    def row(self, source: str, masks: str, seconds: list[float] | None = None) -> FlickerRow:
        """What was counted."""
        return FlickerRow(
            source=source,
            masks=masks,
            frames=self.frames,
            flicker=self.flicker,
            iou=math.fsum(self._iou) / len(self._iou) if self._iou else None,
            lag=math.fsum(self._lag) / len(self._lag) if self._lag else None,
            milliseconds=1000 * float(np.median(seconds)) if seconds else None,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Motion:
    """From a frame to the one before: `flow_HW2` in pixels, and where it can be relied on."""

    flow_HW2: Float32
    explained_HW: Bool

    @classmethod
    def between(cls, grey_HW: UInt8, last_HW: UInt8) -> Motion:
        """Estimated from the two pictures, uint8 grey."""
        there, back = _flow(grey_HW, last_HW), _flow(last_HW, grey_HW)
        apart = np.linalg.norm(there + warped(back, there), axis=2)
        unlike = np.abs(warped(last_HW, there).astype(np.int16) - grey_HW)
        return cls(flow_HW2=there, explained_HW=(apart < _BACK) & (unlike < _SEEN))


def measure_flicker(config: FlickerConfig, progress: _Progress = lambda _: None) -> FlickerReport:
    """Run every source once through the network, and its maps through both ways of finishing.

    Raises:
        BackendUnavailable: The library or device is not there.
        MediaError: A video cannot be read.
        UsageError: A source has fewer than two frames.
    """
    threads = config.threads or allowed_threads()
    before = environment(threads)
    rows: list[FlickerRow] = []
    opened = open_model(config.model, backend=config.backend, precision=config.precision, threads=threads)
    with opened as model, opencv_out_of_the_way("cpu"):  # times are those of a run
        for source in config.sources:
            progress(f"{source.name}: at most {config.frames} frames")
            rows += _rows(model, source, config.frames)
        return FlickerReport(model=model.name, runs_on=model.backend.description, environment=before, rows=tuple(rows))


def _rows(model: SaliencyModel, source: Path, frames: int) -> list[FlickerRow]:
    ways = {"as they are": Finishing(), "stabilised": Finishing(stabilise=True)}
    finishers = {name: Finisher(model, finishing, stream=True) for name, finishing in ways.items()}
    meters = {name: FlickerMeter() for name in (*ways, "truth")}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    last: UInt8 | None = None
    for frame, truth_HW in islice(_frames(source), frames):
        grey = _grey(frame.image_HWC)
        motion = None if last is None else Motion.between(grey, last)
        last = grey
        truth = None if truth_HW is None else _reduced(truth_HW, grey.shape) > 0.5
        raw = model.infer([model.prepare(frame.image_HWC)])[0]
        for name, finisher in finishers.items():
            start = time.perf_counter()
            mask_HW, _ = finisher(frame, raw)
            seconds[name].append(time.perf_counter() - start)
            meters[name].add(_reduced(mask_HW.astype(np.float32) / np.float32(255), grey.shape), motion, truth)
        if truth is not None:
            meters["truth"].add(truth.astype(np.float32), motion)
    if meters["stabilised"].frames < 2:
        raise UsageError(f"{source}: has {meters['stabilised'].frames} frames; flicker needs at least 2")
    name = source.resolve().name
    rows = [meters[way].row(name, way, seconds[way]) for way in ways]
    return rows + ([meters["truth"].row(name, "truth")] if meters["truth"].frames else [])


def _frames(source: Path) -> Iterator[tuple[Frame, Float32 | None]]:
    if source.is_dir():
        for index, picture in enumerate(Pictures(source)):
            yield Frame(image_HWC=picture.image_HWC, index=index), picture.truth_HW
        return
    from basnet_runtime.media.video import VideoSource
    from basnet_runtime.pipeline import Room
    from basnet_runtime.timing import StageClock

    with VideoSource(source) as video:
        for frame in video.frames(Room(), StageClock()):
            yield frame, None


def _grey(image_HWC: UInt8) -> UInt8:
    import cv2

    grey = np.asarray(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY), np.uint8)
    scale = min(1.0, _SIDE / max(grey.shape))
    size = max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)


def _reduced(mask_HW: Float32, shape: tuple[int, ...]) -> Float32:
    import cv2

    return np.asarray(cv2.resize(mask_HW, shape[1::-1], interpolation=cv2.INTER_AREA), np.float32)


def _flow(grey_HW: UInt8, other_HW: UInt8) -> Float32:
    import cv2

    start = np.zeros((*grey_HW.shape, 2), np.float32)
    flow = cv2.calcOpticalFlowFarneback(grey_HW, other_HW, start, 0.5, 5, 21, 4, 7, 1.5, 0)
    return np.asarray(flow, np.float32)


def _iou(found_HW: Bool, truth_HW: Bool) -> float:
    union = int(np.count_nonzero(found_HW | truth_HW))
    return int(np.count_nonzero(found_HW & truth_HW)) / union if union else 1.0
