"""Animated GIF, WebP, PNG and AVIF: frames, delays, loop count.

    with AnimationSource(Path("a.gif")) as source:
        Pipeline(model, composer).run(source, AnimationSink(Path("a.mask.gif"), source.info, overwrite=False))

libvips reads and writes GIF and WebP as a stream of frames. It knows no animated PNG or AVIF: OpenCV does, but holds
the whole animation, so these are limited in size. OpenCV does not read an AVIF's loop count; it comes out as endless.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.frame import Frame, ResultFrame
from basnet_runtime.kinds import OutputKind, PictureFormat
from basnet_runtime.media.image.avif import avif_bits, avif_orientation, gray_frames, is_avif_sequence
from basnet_runtime.media.image.metadata import hdr_note, upright
from basnet_runtime.media.image.pictures import (
    DEFAULT_MAX_PIXELS,
    PictureFile,
    encode,
    library_detail,
    vips_module,
)
from basnet_runtime.media.image.stills import Still, cv2_module, still_of
from basnet_runtime.media.image.strip_file import StripFile
from basnet_runtime.pipeline.queues import ByteBudget
from basnet_torch.arrays import UInt8
from basnet_torch.errors import MediaError, UsageError
from basnet_torch.files import Closing, PendingFile, disk_errors

__all__ = [
    "ANIMATION_OUTPUTS",
    "AnimationInfo",
    "AnimationSink",
    "AnimationSource",
    "animation_suffix",
    "check_animation_output",
    "is_animation",
]

ANIMATION_OUTPUTS = (".apng", ".avif", ".gif", ".png", ".webp")
_STREAMED = (".gif", ".webp")
_WHOLE_MAX = 60_000_000  # pixels of an animation that is held as a whole, in several copies of 4 bytes
_FRAMES_MAX = 100_000
_WRITE_OPTIONS: dict[str, dict[str, Any]] = {
    ".gif": {"dither": 0.0, "effort": 4},
    ".webp": {"lossless": True, "effort": 2},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AnimationInfo:
    """What is known before decoding.

    Attributes:
        height: Rows of every frame.
        width: Columns of every frame.
        delays: Milliseconds each frame is shown.
        loops: How often it is played; 0 is for ever.
    """

    height: int
    width: int
    delays: tuple[int, ...]
    loops: int


def is_animation(path: Path) -> bool:
    """Whether the file is an animation, by its content; False where unreadable."""
    try:
        with path.open("rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return False
    kind = _kind(head)
    if kind == ".png":
        return _png_frames(head) > 1
    if kind == ".avif":
        return True
    if kind is None:
        return False
    try:
        with PictureFile(path, max_pixels=1 << 40) as picture:
            return picture.pages > 1
    except MediaError:
        return False


def _kind(head: bytes) -> str | None:
    """The suffix of a format that may hold an animation, from a file's first bytes."""
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return ".gif"
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X":
        return ".webp"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return ".png"
    if is_avif_sequence(head):
        return ".avif"
    return None


def _png_frames(head: bytes) -> int:
    """Frames that an animated PNG announces before its first pixels; 0 for a plain one."""
    for name, at, _ in _png_chunks(head):
        if name == b"acTL":
            return int(struct.unpack_from(">I", head, at)[0])
        if name == b"IDAT":
            break
    return 0


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name of each chunk of a PNG up to IEND, where its data begin, and where the chunk promises to end."""
    at, name = 8, b""
    while at + 12 <= len(data) and name != b"IEND":
        size, name = struct.unpack_from(">I4s", data, at)
        yield name, at + 8, at + 12 + size
        at += 12 + size


def _announced_size(head: bytes) -> tuple[int, int]:
    """Height and width that a PNG's or an AVIF's header promises (its largest image); 0, 0 where it has none."""
    if _kind(head) == ".png":
        width, height = struct.unpack_from(">II", head.ljust(24, b"\0"), 16)
        return height, width
    sizes = [struct.unpack_from(">II", head, found.end() + 4) for found in re.finditer(b"ispe", head[:-12])]
    width, height = max(sizes, default=(0, 0), key=lambda size: size[0] * size[1])
    return height, width


def animation_suffix(path: Path, kind: OutputKind, asked: PictureFormat | None = None) -> str:
    """Choose an animation's output format: the asked one, else its own.

    A GIF's cut-out becomes a WebP, because a GIF cannot hold its soft edges.
    """
    if asked in ("png", "webp"):
        return f".{asked}"
    with path.open("rb") as file:
        own = _kind(file.read(16)) or ".webp"
    return ".webp" if kind.has_alpha and own == ".gif" else own


def check_animation_output(target: Path, kind: OutputKind) -> None:
    """Refuse a name whose format holds no animation, or not its transparency.

    Raises:
        UsageError: With the formats that can.
    """
    suffix = target.suffix.lower()
    if suffix not in ANIMATION_OUTPUTS:
        formats = ", ".join(ANIMATION_OUTPUTS)
        raise UsageError(f"{target}: an animation is written as {formats}, not {suffix or 'no suffix'}")
    if kind.has_alpha and suffix == ".gif":
        raise UsageError(f"{target}: .gif holds no soft transparency; write a cutout as .webp, .png or .avif")


class AnimationSource(Closing):
    """Decode an animation; `pts` counts frames, `duration` is in milliseconds.

    Attributes:
        info: What the file says.
        notes: For the user, about how it was read.
    """

    def __init__(self, path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        """Open and read the header; `max_pixels` is for one frame.

        Raises:
            MediaError: It cannot be read, or is too large.
        """
        self.path = path
        self.notes: list[str] = []
        self._orientation = 1
        self._decoded: list[NDArray[Any]] = []
        self._top = 65535
        self._picture: PictureFile | None = None
        with disk_errors(f"{path}: cannot be read"), path.open("rb") as file:
            head = file.read(1 << 16)
        try:
            if _kind(head) in (".png", ".avif"):  # libvips does not read these as animations
                self.info = self._whole_info(head, max_pixels)
            else:
                self._picture = picture = PictureFile(path, max_pixels=max_pixels, whole=True)
                self._orientation = picture.orientation
                self.info = self._info(picture.height, picture.width, picture.delays, picture.loops)
            if len(self.info.delays) > _FRAMES_MAX:
                raise MediaError(f"{path}: has {len(self.info.delays)} frames, above the limit of {_FRAMES_MAX}")
        except BaseException:
            self.close()
            raise

    def _info(self, height: int, width: int, delays: Sequence[int], loops: int) -> AnimationInfo:
        """Upright."""
        if self._orientation > 4:
            height, width = width, height
        return AnimationInfo(height=height, width=width, delays=tuple(delays), loops=loops)

    def _whole_info(self, head: bytes, max_pixels: int) -> AnimationInfo:
        """By OpenCV, which decodes everything at once; the header says beforehand how much that is."""
        height, width = _announced_size(head)
        if not 0 < height * width <= max_pixels:
            raise MediaError(f"{self.path}: {width}x{height} is above the limit of --max-pixels, or no size at all")
        self.notes += hdr_note(head)
        self._refuse_whole(max(1, _png_frames(head)) * height * width)
        most = _WHOLE_MAX // (height * width) + 1
        with disk_errors(f"{self.path}: cannot be read"):
            data = self.path.read_bytes()
        if _kind(head) == ".png":
            # OpenCV makes room for what a chunk promises before it reads it.
            if not all(end <= len(data) for _, _, end in _png_chunks(data)):
                raise MediaError(f"{self.path}: cannot be read: the file is cut short or damaged")
            with PictureFile(self.path, max_pixels=max_pixels) as first:
                self._orientation = first.orientation
        else:
            self._orientation, self._top = avif_orientation(data), (1 << avif_bits(data)) - 1
        delays, loops = self._decode_whole(data, most, is_avif=_kind(head) == ".avif")
        height, width = self._decoded[0].shape[:2]
        self._refuse_whole(len(self._decoded) * height * width)
        return self._info(height, width, delays, loops)

    def _decode_whole(self, data: bytes, most: int, *, is_avif: bool) -> tuple[list[int], int]:
        """All frames into memory; their delays, and how often they are played."""
        cv2 = cv2_module()
        try:
            _, animation = cv2.imdecodeanimation(np.frombuffer(data, np.uint8).reshape(1, -1), 0, most)
            self._decoded = list(animation.frames)
            if self._decoded:
                return [int(delay) for delay in animation.durations][: len(self._decoded)], int(animation.loop_count)
            if is_avif:
                self._decoded, delays = gray_frames(data, most)
        except cv2.error as error:
            raise MediaError(f"{self.path}: cannot be read: {library_detail(error)}") from error
        except MediaError as error:
            raise MediaError(f"{self.path}: {error}") from error
        if not self._decoded:
            raise MediaError(f"{self.path}: cannot be read: the animation is damaged or of an unknown variant")
        return delays, 0

    def _refuse_whole(self, pixels: int) -> None:
        if pixels > _WHOLE_MAX:
            raise MediaError(
                f"{self.path}: its frames are {pixels / 1e6:.0f} megapixels together, above the limit of "
                f"{_WHOLE_MAX / 1e6:.0f} for this format; make it an animated WebP or a video"
            )

    def frames(self, budget: ByteBudget | None = None) -> Iterator[Frame]:
        """Every frame, in order.

        Raises:
            MediaError: The file is damaged or cut short.
        """
        delays = self.info.delays
        stills = (still_of(pixels, self._top, blue_first=True) for pixels in self._decoded)
        decoded: Iterator[Still | Frame] = stills if self._picture is None else self._picture.frames()
        for index, delay in enumerate(delays):
            if budget is not None:
                budget.wait(4 * self.info.height * self.info.width)
            still = next(decoded)
            image_HWC, alpha_HW = still.image_HWC, still.alpha_HW
            if self._orientation != 1:
                image_HWC = upright(image_HWC, self._orientation)
                alpha_HW = None if alpha_HW is None else upright(alpha_HW, self._orientation)
            yield Frame(image_HWC=image_HWC, alpha_HW=alpha_HW, index=index, pts=index, duration=delay)

    def close(self) -> None:
        """Close the file."""
        self._decoded = []
        if self._picture is not None:
            self._picture.close()


class AnimationSink:
    """Write an animation, atomically."""

    def __init__(self, target: Path, info: AnimationInfo, *, overwrite: bool) -> None:
        """Get ready; nothing is written before the first frame."""
        self._target = target
        self._info = info
        self._overwrite = overwrite
        self._suffix = target.suffix.lower()
        self._strip_file: StripFile | None = None  # memory does not follow the number of frames
        self._kept: list[UInt8] = []

    def write(self, item: ResultFrame) -> None:
        """Take one frame.

        Raises:
            MediaError: The disk is full, or the animation too large for its format.
        """
        pixels = item.pixels if item.pixels.ndim == 3 else item.pixels[..., None]
        if item.alpha_HW is not None:
            pixels = np.dstack([pixels, item.alpha_HW])
        if self._suffix in _STREAMED:
            if self._strip_file is None:
                self._strip_file = StripFile(self._target, pixels.shape[0] * len(self._info.delays))
            self._strip_file.add(pixels)
            return
        self._kept.append(pixels)
        if len(self._kept) * pixels.shape[0] * pixels.shape[1] > _WHOLE_MAX:
            raise MediaError(
                f"{self._target}: {self._suffix} is written from memory, up to {_WHOLE_MAX / 1e6:.0f} megapixels; "
                "write .webp"
            )

    def finish(self) -> None:
        """Encode, and give the file its name."""
        if self._strip_file is None and not self._kept:
            return
        pending = PendingFile(self._target, overwrite=self._overwrite)
        try:
            if self._strip_file is not None:
                self._encode_streamed(self._strip_file.image(), pending.path)
            else:
                self._encode_whole(pending.path)
            pending.commit()
        finally:
            pending.discard()
            self.abort()

    def _encode_streamed(self, image: Any, path: Path) -> None:
        value, info = vips_module().GValue, self._info
        image = image.copy()
        image.set_type(value.gint_type, "page-height", image.height // len(info.delays))
        image.set_type(value.array_int_type, "delay", list(info.delays))
        image.set_type(value.gint_type, "loop", info.loops)
        encode(image, path, self._suffix, _WRITE_OPTIONS[self._suffix], self._target)

    def _encode_whole(self, path: Path) -> None:
        cv2 = cv2_module()
        animation = cv2.Animation()
        change = {1: cv2.COLOR_GRAY2BGR, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
        animation.frames = [cv2.cvtColor(pixels, change[pixels.shape[2]]) for pixels in self._kept]
        animation.durations = list(self._info.delays)
        animation.loop_count = self._info.loops
        suffix = ".png" if self._suffix == ".apng" else self._suffix
        try:
            made, encoded = cv2.imencodeanimation(suffix, animation)
        except cv2.error as error:
            raise MediaError(f"{self._target}: cannot be written: {library_detail(error)}") from error
        if not made:
            raise MediaError(f"{self._target}: cannot be written as {suffix}")
        with disk_errors(f"{self._target}: cannot be written"):
            path.write_bytes(np.asarray(encoded, np.uint8).tobytes())

    def interrupt(self) -> None:
        """Half an animation is none."""
        self.abort()

    def abort(self) -> None:
        """Remove what is unfinished."""
        self._kept.clear()
        if self._strip_file is not None:
            self._strip_file.close()
            self._strip_file = None
