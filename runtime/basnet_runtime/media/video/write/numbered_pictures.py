"""Image sequence output: `-o 'frames/%06d.png'`.

Numbers start at 1, as FFmpeg's do. Beside the pictures lies `frames.ffconcat`, which tells FFmpeg how long each of them
is shown: `ffmpeg -safe 0 -i frames/frames.ffconcat out.mov` gives the source's own times back, also when they vary.
"""

from __future__ import annotations

import os
import re
from fractions import Fraction
from pathlib import Path

from basnet_runtime.frame import ResultFrame
from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.image.pictures import ALPHA_SUFFIXES, PICTURE_OUTPUTS, check_picture_output, write_picture
from basnet_runtime.media.video.stream_info import VideoStreamInfo
from basnet_torch.errors import UsageError
from basnet_torch.files import atomic_write

__all__ = ["SequenceSink", "check_sequence", "is_sequence", "numbered"]

_TICKS = 1_000_000
_NUMBER = re.compile(r"%0?(\d*)d")


def is_sequence(target: Path) -> bool:
    """Whether a name stands for numbered pictures.

    >>> is_sequence(Path("frames/%06d.png")), is_sequence(Path("100%.png"))
    (True, False)
    """
    return target.suffix.lower() in PICTURE_OUTPUTS and _NUMBER.search(target.name) is not None


def numbered(target: Path, index: int) -> Path:
    """The name of one picture, `index` from 0.

    >>> numbered(Path("frames/%06d.png"), 0).name
    '000001.png'
    """
    return target.with_name(_NUMBER.sub(lambda found: f"{index + 1:0{int(found[1] or 1)}d}", target.name, count=1))


def check_sequence(target: Path, kind: OutputKind, *, overwrite: bool) -> None:
    """Refuse a format that cannot hold the result, and existing pictures.

    Raises:
        UsageError: With what to do.
    """
    if len(_NUMBER.findall(target.name)) != 1:
        raise UsageError(f"{target}: one number is needed in the name, such as %06d")
    if kind.has_alpha and target.suffix.lower() not in ALPHA_SUFFIXES:
        raise UsageError(f"{target}: {target.suffix} holds no transparency; use {', '.join(ALPHA_SUFFIXES)}")
    check_picture_output(target, alpha=kind.has_alpha)
    there = [path for path in (numbered(target, 0), _listing(target)) if path.exists()]
    if there and not overwrite:
        raise UsageError(f"already there: {there[0]}; --overwrite replaces")


def _listing(target: Path) -> Path:
    return target.with_name("frames.ffconcat")


class SequenceSink:
    """Numbered pictures, each written atomically.

    Attributes:
        warnings: For the user, about the output.
        encoder: What writes it.
        kept: The pictures' name where an interrupted run has done some, else None.
    """

    def __init__(self, target: Path, info: VideoStreamInfo, *, overwrite: bool) -> None:
        """`target`: a name with a number in it."""
        self.warnings: list[str] = []
        self.encoder = f"{target.suffix.lower().removeprefix('.')} pictures"
        self.kept: Path | None = None
        self._target = target
        self._info = info
        self._overwrite = overwrite
        self._times: list[tuple[int, int, int]] = []

    def write(self, item: ResultFrame) -> None:
        """Write one picture.

        Raises:
            MediaError: It cannot be written.
        """
        path = numbered(self._target, item.frame.index)
        write_picture(path, item.pixels, item.alpha_HW, overwrite=self._overwrite)
        self._times.append((item.frame.index, item.frame.pts, item.frame.duration))

    def finish(self) -> None:
        """Write the times."""
        self._write_times()

    def abort(self) -> None:
        """Every picture is whole already."""

    def interrupt(self) -> None:
        """Write the times of what was done."""
        if self._times:
            self._write_times()
            self.kept = self._target

    def _write_times(self) -> None:
        step = max(1, round(1 / (self._info.rate * self._info.time_base)))
        lines = ["ffconcat version 1.0"]
        for i, (index, pts, duration) in enumerate(self._times):
            following = self._times[i + 1][1] if i + 1 < len(self._times) else pts + (duration or step)
            seconds = Fraction(following - pts) * self._info.time_base
            # A picture's clock ticks at its frame rate: the finest one keeps the times.
            name = numbered(self._target, index).name.replace("'", r"'\''")  # quoted as FFmpeg's lists have it
            lines += [f"file '{name}'", f"option framerate {_TICKS}"]
            lines += [f"duration {float(seconds):.6f}"]
        with atomic_write(_listing(self._target), overwrite=self._overwrite) as path:
            path.write_bytes(os.fsencode("\n".join(lines) + "\n"))  # the names as they are, whatever their bytes
