"""Picture files in and out: upright 8-bit sRGB with alpha, by libvips.

    with PictureFile(Path("photo.jpg")) as picture:
        frame = picture.read()

libvips reads and writes; what it does not read goes through OpenCV or FFmpeg as bytes (see `stills`). Nothing is shrunk
on the way: the network's own plain bilinear resize needs the full picture.
"""

from __future__ import annotations

import logging
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from basnet_runtime.frame import Frame, Metadata
from basnet_runtime.media.formats import (
    HEAD_BYTES,
    TAIL_BYTES,
    PictureKind,
    is_heic,
    no_page,
    picture_format,
)
from basnet_runtime.media.image.bands import color_and_alpha, has_floats
from basnet_runtime.media.image.heic import HEIC_ADVICE, Heic, opened_heic
from basnet_runtime.media.image.metadata import (
    LATE_BYTES,
    hdr_note,
    metadata_of,
    stored_orientation,
    tagged,
    with_late_chunks,
)
from basnet_runtime.media.image.stills import STILL_PIXELS, Still, ffmpeg_still, needs_ffmpeg, opencv_still
from basnet_runtime.media.image.tiff import TiffPage, check_blocks, check_page, chosen_page, compression_name, is_tiff
from basnet_torch.arrays import UInt8
from basnet_torch.errors import MediaError, UsageError
from basnet_torch.files import Closing, atomic_write, disk_errors

__all__ = [
    "ALPHA_SUFFIXES",
    "DEFAULT_MAX_PIXELS",
    "PICTURE_OUTPUTS",
    "PictureFile",
    "check_picture_output",
    "encode",
    "encode_picture",
    "is_picture",
    "library_detail",
    "read_picture",
    "save_image",
    "vips_errors",
    "vips_module",
    "write_picture",
]

T = TypeVar("T")
DEFAULT_MAX_PIXELS = 300_000_000
ALPHA_SUFFIXES = (".png", ".tif", ".tiff", ".webp")
_WRITE_OPTIONS: dict[str, dict[str, Any]] = {
    ".png": {"compression": 6},
    ".jpg": {"Q": 92},
    ".jpeg": {"Q": 92},
    ".webp": {"lossless": True, "effort": 2},
    ".tif": {"compression": "deflate", "predictor": "horizontal"},
    ".tiff": {"compression": "deflate", "predictor": "horizontal"},
}
PICTURE_OUTPUTS = tuple(sorted(_WRITE_OPTIONS))
_LONGEST_SIDE = {".jpg": 65_535, ".jpeg": 65_535, ".webp": 16_383}
_STRIP_PIXELS = 4_000_000
_SPLIT_PIXELS = 16_000_000
_OUR_PROFILE = "srgb"


@lru_cache(maxsize=1)
def vips_module() -> Any:
    """Load libvips: quiet, within the allowed threads, without unsafe loaders."""
    logging.getLogger("pyvips").addHandler(logging.NullHandler())  # else its warnings reach stderr
    import pyvips

    from basnet_runtime.machine.threads import allowed_threads

    pyvips.block_untrusted_set(True)  # noqa: FBT003 - the binding has no keyword
    pyvips.cache_set_max(0)  # every picture is used once; a cache only makes memory grow
    pyvips.concurrency_set(allowed_threads())
    return pyvips


def vips_errors() -> tuple[type[Exception], ...]:
    """Exceptions of libvips calls; pyvips cannot decode some error messages."""
    return vips_module().Error, UnicodeDecodeError


class PictureFile(Closing):
    """One opened picture: size from the header, `read` decodes.

    Attributes:
        height: Rows, before turning upright.
        width: Columns, before turning upright.
        notes: What a user should know about how it was read, for example that only its first frame is used.
    """

    def __init__(
        self, path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS, whole: bool = False, page: int | None = None
    ) -> None:
        """Open and read the header.

        Args:
            path: The file.
            max_pixels: The most pixels that `read`, or one of `frames`, may decode.
            whole: Open all frames of an animation.
            page: Of a file of several pictures the one of that number, from 1; None takes the main one.

        Raises:
            MediaError: It cannot be opened, is no known picture, is damaged, has more than `max_pixels` pixels, or no
                such page.
        """
        self.path = path
        self.notes: list[str] = []
        self._page = page
        self._pages = ""
        self._kind: PictureKind | None = None
        self._heic: Heic | None = None
        self._tiff: TiffPage | None = None
        self._complaints: frozenset[str] = frozenset()
        self._still: Still | None = None
        self._has_floats = False
        self._is_reading = False
        self._image: Any = None
        with disk_errors(f"{path}: cannot be read"):
            self._file = path.open("rb")
        try:
            self._open(max_pixels)
            if whole and self.pages > 1:
                self._pages = "n=-1"
                self._image = self._load(access="sequential")
            self._is_reading = True
        except BaseException:
            self._file.close()
            raise

    def _open(self, max_pixels: int) -> None:
        with disk_errors(f"{self.path}: cannot be read"):
            head = os.pread(self._file.fileno(), HEAD_BYTES, 0)
        if not head:
            raise MediaError(f"{self.path}: the file is empty")
        self._kind = kind = picture_format(head, self.path.suffix.lower(), self._tail)
        with self._named():
            if kind is not None and kind.reader == "none":
                raise MediaError(f"is {kind.name}, which no installed library reads; convert it to PNG or JPEG")
            if is_heic(head) and (heic := opened_heic(self._file, self._page)) is not None:
                self._heic = heic
                self.height, self.width = heic.size
                self._refuse_above(max_pixels)
                self._image = self._load(access="sequential")
            elif kind is not None and kind.reader in ("opencv", "ffmpeg"):
                self._open_still(kind, head, max_pixels)
            else:
                self._open_vips(head)
            self.notes += hdr_note(os.pread(self._file.fileno(), 1 << 16, 0) if head[4:8] == b"ftyp" else head)
        self._refuse_above(max_pixels if kind is None else min(max_pixels, STILL_PIXELS.get(kind.reader, max_pixels)))

    def _open_still(self, kind: PictureKind, head: bytes, max_pixels: int) -> None:
        if self._page not in (None, 1) and kind.codec != "ico":
            raise no_page(1, self._page or 0)
        size = kind.size(head)
        if size is None:  # the header does not say, so the decoder is limited instead
            self._still = self._decoded_still(min(max_pixels, STILL_PIXELS["ffmpeg"]))
            size = self._still.image_HWC.shape[:2]
        self.height, self.width = size

    def _open_vips(self, head: bytes) -> None:
        if is_tiff(head):
            self._tiff = chosen_page(self._file, self._page)
        if self._tiff is not None:
            check_page(self._tiff)
            self._pages = self._tiff.options
        self._image = self._load(access="sequential")
        if self._tiff is None and self._page is not None:
            if self._page > self.pages:
                raise no_page(self.pages, self._page)
            if self.pages > 1:
                self._pages = f"page={self._page - 1}"
                self._image = self._load(access="sequential")
        self.height, self.width = self._image.height, self._image.width

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors begin with the file's name."""
        try:
            yield
        except MediaError as error:
            if str(error).startswith(f"{self.path}: "):
                raise
            raise MediaError(f"{self.path}: {error}") from error

    def _tail(self, count: int = TAIL_BYTES) -> bytes:
        size = os.fstat(self._file.fileno()).st_size
        return os.pread(self._file.fileno(), count, max(0, size - count))

    def _refuse_above(self, max_pixels: int) -> None:
        if self.nbytes > 3 * max_pixels:
            clear = " with transparency" if self.nbytes > 3 * self.height * self.width else ""
            limit = max_pixels * 3 * self.height * self.width / self.nbytes
            raise MediaError(
                f"{self.path}: {self.width}x{self.height} is {self.height * self.width / 1e6:.6g} megapixels{clear}, "
                f"above the limit of {limit / 1e6:.6g} (--max-pixels)"
            )

    @property
    def nbytes(self) -> int:
        """Memory the decoded picture needs."""
        bands = 3 if self._image is None else 3 + bool(self._image.hasalpha())
        return self.height * self.width * bands

    @property
    def pages(self) -> int:
        """Frames of an animation or pages of a document."""
        if self._image is None or "n-pages" not in self._image.get_fields():
            return 1
        return int(self._image.get("n-pages"))

    @property
    def delays(self) -> list[int]:
        """Milliseconds each frame is shown; 100 where an animation does not say."""
        known = self._image.get("delay") if "delay" in self._image.get_fields() else []
        return [*known, *([100] * self.pages)][: self.pages]

    @property
    def loops(self) -> int:
        """How often an animation is played; 0 is for ever."""
        return int(self._image.get("loop")) if "loop" in self._image.get_fields() else 0

    def frames(self) -> Iterator[Frame]:
        """Decode every frame of an animation that was opened as a whole.

        Raises:
            MediaError: The file is damaged or cut short.
        """
        rows = [slice(index * self.height, (index + 1) * self.height) for index in range(self.pages)]
        with self._reading():
            for index, pixels in enumerate(_fetched(self._colors(self._image), rows)):
                image_HWC, alpha_HW = _planes(pixels)
                yield Frame(image_HWC=image_HWC, alpha_HW=alpha_HW, index=index)

    @property
    def orientation(self) -> int:
        """How the stored pixels lie, 1 to 8, as EXIF counts."""
        return 1 if self._image is None else stored_orientation(self._image)

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width as it is delivered."""
        return (self.width, self.height) if self.orientation > 4 else (self.height, self.width)

    @property
    def has_strips(self) -> bool:
        """Whether `strips` can deliver it."""
        return self._image is not None and self._heic is None

    @property
    def metadata(self) -> Metadata | None:
        """What the file says beside its pixels."""
        return None if self._image is None else metadata_of(self._image, self.notes)

    def strips(self, rows: Sequence[slice]) -> Iterator[tuple[slice, Frame]]:
        """Decode upright strips of rows, from top to bottom; may be called again.

        Raises:
            MediaError: The picture is damaged or cut short.
        """
        self._image = self._load(access="sequential")  # the last reading has used it up
        with self._reading():
            image = self._colors(self._upright())
            with self._undamaged():
                for strip, pixels in zip(rows, _fetched(image, rows), strict=True):
                    image_HWC, alpha_HW = _planes(pixels)
                    yield strip, Frame(image_HWC=image_HWC, alpha_HW=alpha_HW)

    def read(self, index: int = 0) -> Frame:
        """Decode; call once.

        Raises:
            MediaError: The picture is damaged or cut short.
        """
        try:
            if self._image is None:
                still = self._still or self._decoded_still(STILL_PIXELS["ffmpeg"])
                self.notes += still.notes
                return Frame(image_HWC=still.image_HWC, alpha_HW=still.alpha_HW, index=index)
            with self._reading():
                metadata = metadata_of(self._image, self.notes)
                with self._undamaged():
                    image = self._upright()
                    self._note_pages()
                    image_HWC, alpha_HW = _split(self._colors(image))
        except MemoryError as error:
            raise MediaError(f"{self.path}: there is not enough memory for {self.width}x{self.height}") from error
        return Frame(image_HWC=image_HWC, alpha_HW=alpha_HW, index=index, metadata=metadata)

    def close(self) -> None:
        """Close the file."""
        self._image = None
        self._file.close()

    def _load(self, access: str) -> Any:
        raw = self._raw(access)
        if self._kind is not None and self._kind.name == "PNG":
            raw = with_late_chunks(raw, self._tail(LATE_BYTES))
        self._has_floats = has_floats(raw)
        image, notes = color_and_alpha(raw, self._tiff)
        self.notes += [note for note in notes if note not in self.notes]
        return image

    def _raw(self, access: str) -> Any:
        """As the library gives it."""
        vips = vips_module()
        if self._heic is not None:
            return self._heic.image(vips)
        # By descriptor: libvips reads options out of names such as "a[page=1].png".
        self._file.seek(0)
        source = vips.Source.new_from_descriptor(self._file.fileno())
        with self._reading():
            if self._tiff is not None:
                return self._load_tiff(source, access)
            if self._kind is not None and self._kind.name == "JPEG":
                # Not by what libvips finds itself: its loader for gain maps leaves XMP and IPTC out.
                return vips.Image.jpegload_source(source, access=access, fail_on="truncated")
            options = self._pages and f"[{self._pages}]"
            return vips.Image.new_from_source(source, options, access=access, fail_on="truncated")

    def _load_tiff(self, source: Any, access: str) -> Any:
        """Strict, but for what the header alone is at fault: libtiff's complaints about a tag say nothing of pixels."""
        vips, options = vips_module(), f"[{self._pages}]"
        vips.vips_lib.vips_error_clear()
        image = vips.Image.new_from_source(source, options, access=access, fail_on="error")
        self._complaints = _said_by_vips()
        if any(_NO_CODEC.search(line) for line in self._complaints):
            raise self._broken("\n".join(self._complaints))
        if self._complaints:
            self._file.seek(0)
            source = vips.Source.new_from_descriptor(self._file.fileno())
            image = vips.Image.new_from_source(source, options, access=access, fail_on="truncated")
        return image

    @contextmanager
    def _undamaged(self) -> Iterator[None]:
        """Around the reading of pixels: libtiff and libvips continue where a block of a TIFF cannot be decoded."""
        if self._tiff is None:
            yield
            return
        with self._named():
            if self._has_floats and (self._raw("sequential") > 1).avg() > 255 / 2:
                raise MediaError("most of its samples are floats above 1, which is white; scale them to 0 to 1")
            check_blocks(self._file, self._tiff, _check_jpeg)
            vips_module().vips_lib.vips_error_clear()
            yield
            said = sorted(line for line in _said_by_vips() - self._complaints if _DAMAGE.match(line))
            vips_module().vips_lib.vips_error_clear()
            if said:
                raise self._broken("\n".join(said))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn libvips' errors into one line."""
        try:
            yield
        except vips_errors() as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception | str) -> MediaError:
        text = _message(error)
        if self._tiff is not None and _NO_CODEC.search(text):
            return MediaError(
                f"{self.path}: cannot be read: this build of libvips has no {compression_name(self._tiff)}, which "
                "compresses it; save it with deflate or LZW"
            )
        if self._kind is not None and self._kind.name == "JPEG XL":
            return MediaError(f"{self.path}: is JPEG XL, which this build of libvips does not read; convert it to PNG")
        detail = library_detail(text)
        if detail == _NOTHING_TOLD and self._is_reading:  # threads share libvips' messages, so that one may be gone
            detail = _MEANING["premature end"]
        damaged = "is damaged: " if self._tiff is not None and "tiff2vips" in detail else "cannot be read: "
        return MediaError(f"{self.path}: {damaged}{detail}")

    def _colors(self, image: Any) -> Any:
        """Three or four bands: 8-bit sRGB and, where there is one, alpha."""
        if not image.hasalpha():
            return self._in_srgb(image)
        bands = image.bands - 1
        alpha = image.extract_band(bands)
        if alpha.format != "uchar":
            integers = {"ushort": 65535, "char": 255, "short": 255, "uint": 255, "int": 255}
            alpha = (alpha * (255 / integers.get(alpha.format, 1))).rint().cast("uchar")
        return self._in_srgb(image.extract_band(0, n=bands)).bandjoin(alpha)

    def _upright(self) -> Any:
        """The picture as libvips will deliver it, turned by what its file says."""
        orientation = stored_orientation(self._image)
        if orientation == 1:
            return self._image
        image = self._load(access="random").copy()  # turning needs rows out of order
        image.set_type(vips_module().GValue.gint_type, "orientation", orientation)
        return image.autorot()

    def _in_srgb(self, image: Any) -> Any:
        """Color bands as 8-bit sRGB, through the embedded profile where there is a usable one."""
        if "icc-profile-data" in image.get_fields():
            try:
                converted = image.icc_transform(_OUR_PROFILE, embedded=True, intent="relative", depth=8)
                return converted.colourspace("srgb")
            except vips_errors() as error:
                _message(error)
                self.notes.append("its color profile is unusable and was left out")
        return image.colourspace("srgb").cast("uchar")

    def _note_pages(self) -> None:
        """Say what of a file of several pictures is used, unless it was asked for."""
        if self._page is not None:
            return
        if self._tiff is not None and (self._tiff.number > 1 or self._tiff.inner >= 0):
            used = f"page {self._tiff.number}" if self._tiff.inner < 0 else f"a page inside page {self._tiff.number}"
            self.notes.append(f"its first page is a thumbnail; {used} is used")
        elif self._heic is not None and self._heic.count > 1:
            self.notes.append(f"has {self._heic.count} pictures; only the main one is used, --page N takes another")
        elif self.pages > 1:
            self.notes.append(f"has {self.pages} frames or pages; only the first is used")

    def _decoded_still(self, max_pixels: int) -> Still:
        with self._named():
            if self._kind is not None and needs_ffmpeg(self._kind, os.pread(self._file.fileno(), 1 << 16, 0)):
                return ffmpeg_still(self._kind, self._file, self.path, max_pixels=max_pixels, page=self._page)
            with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return opencv_still(data)


def read_picture(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Frame:
    """Open and decode one picture: upright uint8 sRGB, with its transparency.

    Raises:
        MediaError: See `PictureFile`.
    """
    with PictureFile(path, max_pixels=max_pixels) as picture:
        return picture.read()


def is_picture(path: Path) -> bool:
    """Whether the file is a picture that can be read, whatever its name."""
    try:
        with PictureFile(path):
            return True
    except MediaError:
        return False


def check_picture_output(target: Path, *, alpha: bool) -> None:
    """Refuse a name whose format is unknown or cannot hold the result.

    Raises:
        UsageError: With the formats that can.
    """
    suffix = target.suffix.lower()
    if suffix not in _WRITE_OPTIONS:
        raise UsageError(f"{target}: pictures are written as {', '.join(PICTURE_OUTPUTS)}, not {suffix or 'no suffix'}")
    if alpha and suffix not in ALPHA_SUFFIXES:
        raise UsageError(
            f"{target}: {suffix} holds no transparency; use {', '.join(ALPHA_SUFFIXES)}, "
            "or lay the object on a color with --kind color:#ffffff"
        )


def write_picture(
    target: Path,
    pixels: UInt8,
    alpha_HW: UInt8 | None = None,
    *,
    metadata: Metadata | None = None,
    overwrite: bool = False,
) -> None:
    """Write uint8 H,W or H,W,3 with optional alpha; the suffix is the format.

    Raises:
        MediaError: The file cannot be written, or its format holds no picture as large.
        UsageError: The format is unknown, or holds no transparency and there is some.
    """
    check_picture_output(target, alpha=alpha_HW is not None)
    save_image(target, _joined(pixels, alpha_HW), metadata=metadata, overwrite=overwrite)


def encode_picture(
    suffix: str, pixels: UInt8, alpha_HW: UInt8 | None = None, *, metadata: Metadata | None = None
) -> bytes:
    """Encode a picture as `write_picture` does, into bytes.

    Raises:
        MediaError: The format holds no picture as large.
        UsageError: The format is unknown, or holds no transparency and there is some.
    """
    name = Path(f"picture{suffix}")
    check_picture_output(name, alpha=alpha_HW is not None)
    image, options = _to_encode(name, _joined(pixels, alpha_HW), metadata)
    try:
        return bytes(image.write_to_buffer(suffix, **options))
    except vips_errors() as error:
        raise MediaError(f"{name}: cannot be encoded: {library_detail(error)}") from error


def _joined(pixels: UInt8, alpha_HW: UInt8 | None) -> Any:
    image = _vips_image(pixels)
    return image if alpha_HW is None else image.bandjoin(_vips_image(alpha_HW))


def _to_encode(target: Path, image: Any, metadata: Metadata | None) -> tuple[Any, dict[str, Any]]:
    """The image with its metadata, and libvips' options for the format."""
    suffix = target.suffix.lower()
    longest = _LONGEST_SIDE.get(suffix)
    if longest is not None and max(image.height, image.width) > longest:
        size = f"{image.width}x{image.height}"
        raise MediaError(f"{target}: {size} is too large for {suffix}, whose sides hold {longest} pixels; use .png")
    options = dict(_WRITE_OPTIONS[suffix])
    if metadata is not None:
        image = tagged(image, metadata)
        if metadata.profile and image.bands >= 3:
            options["profile"] = _OUR_PROFILE
    return image, options


def save_image(target: Path, image: Any, *, metadata: Metadata | None = None, overwrite: bool = False) -> None:
    """Write a libvips image, 8-bit sRGB or gray, atomically."""
    image, options = _to_encode(target, image, metadata)
    suffix = target.suffix.lower()
    with atomic_write(target, overwrite=overwrite) as path:
        encode(image, path, suffix, options, target)


def encode(image: Any, path: Path, suffix: str, options: dict[str, Any], target: Path) -> None:
    """Write a libvips image in the format of `suffix`; errors name `target`.

    Raises:
        MediaError: libvips refuses it.
    """
    with path.open("wb") as file:
        try:
            image.write_to_target(vips_module().Target.new_to_descriptor(file.fileno()), suffix, **options)
        except vips_errors() as error:
            raise MediaError(f"{target}: cannot be written: {library_detail(error)}") from error


def _vips_image(pixels: UInt8) -> Any:
    pixels = np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    bands = 1 if pixels.ndim == 2 else pixels.shape[2]
    image = vips_module().Image.new_from_memory(pixels.data, width, height, bands, "uchar")
    return image.copy(interpretation="b-w" if bands == 1 else "srgb")


def _split(image: Any) -> tuple[UInt8, UInt8 | None]:
    """Decode all of an image as color and alpha planes; the alpha of an opaque picture is dropped."""
    height, width, bands = image.height, image.width, image.bands
    if bands == 3 or width * height <= _SPLIT_PIXELS:
        pixels = np.frombuffer(image.write_to_memory(), np.uint8).reshape(height, width, bands)
        return _planes(pixels) if bands == 4 else (pixels, None)  # the memory is libvips' own, not a copy
    # In strips, never holding all four bands together: their copies would not fit.
    color_HWC, alpha_HW = np.empty((height, width, 3), np.uint8), np.empty((height, width), np.uint8)
    count = max(1, _STRIP_PIXELS // width)
    rows = [slice(y, min(y + count, height)) for y in range(0, height, count)]
    for strip, pixels in zip(rows, _fetched(image, rows), strict=True):
        color_HWC[strip], alpha_HW[strip] = pixels[..., :3], pixels[..., 3]
    return color_HWC, None if alpha_HW.min() == 255 else alpha_HW


def _fetched(image: Any, strips: Sequence[slice]) -> Iterator[UInt8]:
    """Decode strips of rows, h,W,bands."""
    region = vips_module().Region.new(image)
    for strip in strips:
        count = strip.stop - strip.start
        data = region.fetch(0, strip.start, image.width, count)
        yield np.frombuffer(data, np.uint8).reshape(count, image.width, image.bands)


def _planes(pixels_HWC: UInt8) -> tuple[UInt8, UInt8 | None]:
    """Color and, unless everything is opaque, alpha, each in memory of its own."""
    color_HWC = np.ascontiguousarray(pixels_HWC[..., :3])
    if pixels_HWC.shape[2] == 3 or pixels_HWC[..., 3].min() == 255:
        return color_HWC, None
    return color_HWC, np.ascontiguousarray(pixels_HWC[..., 3])


# Of what libvips has put down: other threads may fail at the same time, and bytes too many are no damage.
_DAMAGE = re.compile(r"(tiff2vips|VipsJpeg): (?!.*extraneous bytes)")
_NO_CODEC = re.compile(r"not configured|not implemented|built without")
_NOTHING_TOLD = "the file is damaged or of an unknown variant"
_NOISE = re.compile(r"^(unable to .*|.*: *|)$")
_MEANING = {
    "hevc": HEIC_ADVICE,
    "bad labq": "L*a*b* of 8 bits, which this build of libvips does not read; save it with 16 bits or as RGB",
    "not in a known format": "unsupported image format",
    "premature end": "the file is cut short or damaged",
    "end of": "the file is cut short or damaged",
    "read error": "the file is cut short or damaged",
    "out of order": "the file is cut short or damaged",
}


def library_detail(error: Exception | str) -> str:
    r"""The telling line of a library's message.

    >>> library_detail("unable to call VipsForeignLoadPngSource\n  pngload: bad CRC\n")
    'pngload: bad CRC'
    """
    text = _message(error)
    for sign, meaning in _MEANING.items():
        if sign in text.lower():
            return meaning
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in lines if not _NOISE.match(line)), _NOTHING_TOLD)


def _check_jpeg(data: bytes) -> None:
    """Decode strictly; bytes too many between two parts, which some scanners write, are no damage."""
    try:
        vips_module().Image.jpegload_buffer(data, access="sequential", fail_on="warning").avg()
    except vips_errors() as error:
        if "extraneous bytes" not in (text := _message(error)):
            raise MediaError(library_detail(text)) from error


def _said_by_vips() -> frozenset[str]:
    """The lines that libvips has put down since its errors were cleared last."""
    text = vips_module().ffi.string(vips_module().vips_lib.vips_error_buffer()).decode(errors="replace")
    return frozenset(line.strip() for line in text.splitlines() if line.strip())


def _message(error: Exception | str) -> str:
    """What an error says; one that the binding could not read is taken off libvips, or it would spoil the next."""
    if not isinstance(error, UnicodeDecodeError):
        return str(error)
    vips_module().vips_lib.vips_error_clear()
    return error.object.decode(errors="replace")
