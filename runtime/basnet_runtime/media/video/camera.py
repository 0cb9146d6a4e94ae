"""Camera frames by OpenCV: `camera:0` or /dev/video0.

OpenCV reads it: PyAV's wheels come without Video4Linux. A camera has no end of its own; `--end` or Ctrl-C ends it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from basnet_runtime.frame import Frame
from basnet_runtime.media.image.stills import cv2_module
from basnet_runtime.media.video.options import Span
from basnet_runtime.media.video.stream_info import Color, VideoStreamInfo
from basnet_runtime.media.video.write.passthrough import NoPassthrough, PassthroughStreams
from basnet_runtime.pipeline.queues import ByteBudget
from basnet_torch.arrays import UInt8
from basnet_torch.errors import MediaError, UsageError
from basnet_torch.files import Closing

__all__ = ["CameraSource"]

_TICKS = 90_000
_FALLBACK_RATE = 30
_MOST_RATE = 1000
_FRAMES_ON_THE_WAY = 4


class CameraSource(Closing):
    """Frames as they come, timed by the clock; late ones are dropped.

    Attributes:
        info: What the output must keep.
        warnings: What a user should know; complete once `frames` has ended.
        decoder: What reads the camera.
        whole: Always: there is nothing beside the pictures.
    """

    def __init__(
        self, number: int, *, span: Span | None = None, open_camera: Callable[[int], Any] | None = None
    ) -> None:
        """Open the camera and take a first picture, which tells its size.

        Raises:
            MediaError: There is no such camera, it is in use, or it gives no picture.
            UsageError: A start is asked, which a camera has not.
        """
        self._span = span or Span()
        if self._span.start is not None:
            raise UsageError("--start: a camera starts now; --end says for how long")
        self.source = f"camera:{number}"
        self.warnings: list[str] = []
        self.whole = True
        self.decoder = "Video4Linux, software"
        self._dropped = 0
        self._camera = (open_camera or _opened)(number)
        first = self._read()
        if first is None:
            self.close()
            raise MediaError(f"{self.source}: there is no such camera, it is in use, or it gives no picture")
        self._started = time.monotonic()
        rate = float(self._camera.get(5))  # CAP_PROP_FPS
        height, width = first.shape[:2]
        self.info = VideoStreamInfo(
            source=self.source,
            height=height,
            width=width,
            time_base=Fraction(1, _TICKS),
            rate=Fraction(rate if 1 <= rate <= _MOST_RATE else _FALLBACK_RATE).limit_denominator(1001),
            pixel_aspect=Fraction(1),
            color=Color(),
            frames=0,
            seconds=0.0,
            part=True,
        )

    @property
    def broken(self) -> bool:
        """A camera promises nothing."""
        return False

    @property
    def passthrough(self) -> PassthroughStreams:
        """No sound."""
        return NoPassthrough()

    def frames(self, budget: ByteBudget | None = None) -> Iterator[Frame]:
        """Frames until the end that was asked, or the camera's."""
        index, last = 0, -1
        while True:
            if budget is not None:
                budget.wait(0)
            image_HWC = self._read()
            pts = max(last + 1, round((time.monotonic() - self._started) * _TICKS))
            if image_HWC is None:
                self.warnings.append("the camera stopped giving pictures")
                break
            if self._span.end is not None and self._span.end.reached(index, Fraction(pts, _TICKS)):
                break
            if budget is not None and budget.used > _FRAMES_ON_THE_WAY * image_HWC.nbytes:
                self._dropped += 1
                continue
            yield Frame(image_HWC=image_HWC, index=index, pts=pts)
            index, last = index + 1, pts
        if self._dropped:
            self.warnings.append(f"{self._dropped} frames came faster than they could be done and were left out")

    def close(self) -> None:
        """Give the camera back."""
        self._camera.release()

    def _read(self) -> UInt8 | None:
        """One picture, or None when none comes: OpenCV waits for at most ten seconds."""
        import cv2

        there, image_HWC = self._camera.read()
        if not there or image_HWC is None or image_HWC.ndim != 3:
            return None
        return np.asarray(cv2.cvtColor(image_HWC, cv2.COLOR_BGR2RGB), np.uint8)


def _opened(number: int) -> Any:
    cv2 = cv2_module()
    return cv2.VideoCapture(number, cv2.CAP_V4L2)
