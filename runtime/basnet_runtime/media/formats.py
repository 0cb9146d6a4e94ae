r"""Picture formats by their first bytes, and which library reads each.

    >>> picture_format(b"qoif\0\0\0\7\0\0\0\5\3\0").name
    'QOI'

A suffix decides only where a format has no signature of its own (Targa, WBMP).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from basnet_torch.errors import MediaError

__all__ = [
    "HEAD_BYTES",
    "PICTURE_SUFFIXES",
    "TAIL_BYTES",
    "PictureKind",
    "brands_of",
    "is_heic",
    "is_video_head",
    "no_page",
    "picture_format",
]

HEAD_BYTES = 4096
TAIL_BYTES = 26
_SUFFIXES = """
.apng .avif .avifs .bmp .bw .dds .dib .dpx .exr .gif .hdr .heic .heics .heif .heifs .hif .icb .ico .j2c .j2k .jfif .jls
.jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .jxl .mpo .pam .pbm .pcx .pfm .pgm .phm .png .pnm .ppm .psd .qoi .ras .rgba .sgi
.sun .tga .tif .tiff .vda .vst .wbmp .webp .xbm .xpm .xwd
"""
PICTURE_SUFFIXES = frozenset(_SUFFIXES.split())
_HEVC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_AV1_BRANDS = (b"avif", b"avis")
_TARGA_SUFFIXES = (".icb", ".tga", ".vda", ".vst")

Reader = Literal["libvips", "heic", "opencv", "ffmpeg", "none"]
Size = Callable[[bytes], tuple[int, int] | None]


@dataclass(frozen=True, slots=True)
class PictureKind:
    """One format of pictures.

    Attributes:
        name: The usual name.
        codec: FFmpeg's name of its decoder.
        size: Height and width from the first bytes, where the reader does not tell before decoding.
        reader: The library that reads it; `none` where no installed one does.
    """

    name: str
    codec: str = ""
    size: Size = lambda _: None
    reader: Reader = field(kw_only=True)


def no_page(count: int, asked: int) -> MediaError:
    """Describe a page that a file of `count` pictures lacks."""
    return MediaError(f"has {count} page{'s' * (count != 1)}; there is no page {asked}")


def is_heic(head: bytes) -> bool:
    r"""Whether a file's first bytes announce HEVC pictures.

    >>> is_heic(b"\0\0\0\x1cftypheic\0\0\0\0mif1heic"), is_heic(b"\0\0\0\x1cftypavif\0\0\0\0mif1avif")
    (True, False)
    """
    return any(brand in _HEVC_BRANDS for brand in brands_of(head))


def is_video_head(head: bytes) -> bool:
    """Whether these are the first bytes of a common container of video."""
    return (
        (head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide") and picture_format(head) is None)
        or head[:4] in (b"\x1aE\xdf\xa3", b"OggS", b"FLV\1", b"\0\0\1\xba", b"\0\0\1\xb3", b"\x30\x26\xb2\x75")
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
        or (head[:1] == b"G" and head[188:189] == b"G" and head[376:377] == b"G")
    )


def picture_format(head: bytes, suffix: str = "", tail: Callable[[], bytes] = lambda: b"") -> PictureKind | None:
    """Detect the format of a picture; None where it is none.

    Args:
        head: The first `HEAD_BYTES` of the file, or all of it.
        suffix: Of the file's name, in lower case.
        tail: Reads the last `TAIL_BYTES` of the file; called where nothing else has told.
    """
    if head[4:8] == b"ftyp":
        return _by_brands(brands_of(head))
    if head.startswith(b"\xff\xd8"):
        return _JPEG_LS if _jpeg_ls_size(head) else _JPEG
    for signature, kind in _SIGNATURES:
        if head.startswith(signature) if isinstance(signature, tuple) else signature.match(head):
            return kind
    if len(head) >= 18 and (suffix in _TARGA_SUFFIXES or tail()[-18:-2] == b"TRUEVISION-XFILE"):
        width, height = struct.unpack_from("<HH", head, 12)
        known = head[1] in (0, 1) and head[2] in (1, 2, 3, 9, 10, 11) and head[16] in (8, 15, 16, 24, 32)
        if known and width * height > 0:
            return _TARGA
    if suffix == ".wbmp" and head[:2] == b"\0\0":
        return _WBMP
    return next((kind for at, mark, kind in _FURTHER_IN if head[at : at + len(mark)] == mark), None)


def brands_of(head: bytes) -> list[bytes]:
    r"""List the brands in the first box of an ISO base media file.

    >>> brands_of(b"\0\0\0\x18ftypavif\0\0\0\0avismif1")
    [b'avif', b'\x00\x00\x00\x00', b'avis', b'mif1']
    """
    if head[4:8] != b"ftyp":
        return []
    brands = head[8 : int.from_bytes(head[:4], "big")][:256]
    return [brands[at : at + 4] for at in range(0, len(brands), 4)]


def _by_brands(brands: list[bytes]) -> PictureKind | None:
    if any(brand in _HEVC_BRANDS for brand in brands):
        return _HEIC
    if any(brand in _AV1_BRANDS for brand in brands):
        return _AVIF
    if brands[:1] == [b"crx "]:
        return _none("Canon CR3 raw")
    return _HEIF if brands[:1] in ([b"mif1"], [b"msf1"]) else None


def _fixed(layout: str, at: int, size: Callable[..., tuple[int, int]] = lambda width, height: (height, width)) -> Size:
    """A size that always stands in the same place; `size` makes height and width of the stored numbers."""

    def read(head: bytes) -> tuple[int, int] | None:
        return size(*struct.unpack_from(layout, head, at)) if len(head) >= at + struct.calcsize(layout) else None

    return read


def _height_first(height: int, width: int) -> tuple[int, int]:
    return height, width


def _bmp_size(head: bytes) -> tuple[int, int] | None:
    r"""Of both its headers.

    >>> _bmp_size(b"BM" + bytes(12) + struct.pack("<Iii", 40, 7, -5))
    (5, 7)
    """
    if len(head) < 26:
        return None
    core = struct.unpack_from("<I", head, 14)[0] == 12
    width, height = struct.unpack_from("<HH" if core else "<ii", head, 18)
    return abs(height), abs(width)


def _jp2_size(head: bytes) -> tuple[int, int] | None:
    at = head.find(b"ihdr")
    return _fixed(">II", at + 4, _height_first)(head) if at > 0 else None


def _jpeg_ls_size(head: bytes) -> tuple[int, int] | None:
    r"""Of JPEG-LS, whatever segments come first, such as SPIFF's; None of any other JPEG.

    >>> _jpeg_ls_size(b"\xff\xd8" b"\xff\xfe\0\4me" b"\xff\xf7\0\x0b\x08\0\5\0\7")
    (5, 7)
    """
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if marker == 0xF7:
            return _fixed(">HH", at + 5, _height_first)(head)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return None  # a frame of another kind
        at += 1 if marker == 0xFF else 2 if marker == 0xD8 else 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return None


def _matched(pattern: bytes, *, height: int = 2) -> Size:
    r"""A size in text; `height`: which of the pattern's two groups that is.

    >>> _NETPBM(b"P6\n# a comment\n7 5\n255\n")
    (5, 7)
    """
    compiled = re.compile(pattern, re.MULTILINE)

    def read(head: bytes) -> tuple[int, int] | None:
        found = compiled.search(head)
        return (int(found[height]), int(found[3 - height])) if found else None

    return read


def _named(pattern: bytes) -> Size:
    """A size in text that calls its two numbers by name."""
    compiled = re.compile(pattern, re.MULTILINE)

    def read(head: bytes) -> tuple[int, int] | None:
        found = {name.lower(): int(value) for name, value in compiled.findall(head)}
        return (found[b"height"], found[b"width"]) if len(found) == 2 else None

    return read


_NETPBM = _matched(rb"\AP[1-6FfHh](?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s")
_RADIANCE = _matched(rb"^-Y\s+(\d+)\s+\+X\s+(\d+)", height=1)
_J2K = _fixed(">IIII", 8, lambda right, bottom, left, top: (bottom - top, right - left))
_PCX = _fixed("<4H", 4, lambda left, top, right, bottom: (bottom - top + 1, right - left + 1))
_pattern = partial(re.compile, flags=re.DOTALL)
_vips = partial(PictureKind, reader="libvips")
_ffmpeg = partial(PictureKind, reader="ffmpeg")
_jpeg2000 = partial(PictureKind, "JPEG 2000", "jpeg2000", reader="opencv")
_none = partial(PictureKind, reader="none")
_AVIF, _HEIF, _JPEG = _vips("AVIF"), _vips("HEIF"), _vips("JPEG")
_JPEG_LS = _ffmpeg("JPEG-LS", "jpegls", _jpeg_ls_size)
_HEIC = PictureKind("HEIC", reader="heic")
_TARGA = _ffmpeg("Targa", "targa", _fixed("<HH", 12))
_WBMP = _ffmpeg("WBMP", "wbmp", lambda head: (head[3], head[2]) if len(head) > 3 and max(head[2:4]) < 128 else None)
_SIGNATURES: tuple[tuple[tuple[bytes, ...] | re.Pattern[bytes], PictureKind], ...] = (
    ((b"\x89PNG\r\n\x1a\n",), _vips("PNG")),
    (_pattern(rb"GIF8[79]a"), _vips("GIF")),
    (_pattern(rb"RIFF....WEBP"), _vips("WebP")),
    (_pattern(rb"II\*\0....CR"), _none("Canon CR2 raw")),
    (_pattern(rb"II[*+]\0|MM\0[*+]"), _vips("TIFF")),
    ((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"), _vips("JPEG XL")),
    ((b"\x08\xf2\xa6\xb6", b"\xb6\xa6\xf2\x08"), _vips("libvips' own format")),
    (_pattern(rb"BM.{12}[\x0c\x10(48@l|]\0\0\0"), PictureKind("BMP", size=_bmp_size, reader="opencv")),
    ((b"\0\0\0\x0cjP  \r\n\x87\n",), _jpeg2000(_jp2_size)),
    ((b"\xff\x4f\xff\x51",), _jpeg2000(_J2K)),
    (_pattern(rb"P[14]\s+[#\d]"), _ffmpeg("PBM", "pbm", _NETPBM)),
    (_pattern(rb"P[25]\s+[#\d]"), _ffmpeg("PGM", "pgm", _NETPBM)),
    (_pattern(rb"P[36]\s+[#\d]"), _ffmpeg("PPM", "ppm", _NETPBM)),
    ((b"P7\n",), _ffmpeg("PAM", "pam", _named(rb"^(WIDTH|HEIGHT)\s+(\d+)"))),
    (_pattern(rb"P[Ff]\s+[#\d]"), _ffmpeg("PFM", "pfm", _NETPBM)),
    (_pattern(rb"P[Hh]\s+[#\d]"), _ffmpeg("PHM", "phm", _NETPBM)),
    (_pattern(rb"#\?R(ADIANCE|GBE)\n"), _ffmpeg("Radiance HDR", "hdr", _RADIANCE)),
    ((b"\x59\xa6\x6a\x95",), _ffmpeg("Sun raster", "sunrast", _fixed(">II", 4))),
    ((b"qoif",), _ffmpeg("QOI", "qoi", _fixed(">II", 4))),
    (_pattern(rb"\x0a[\0\x02\x03\x04\x05]\x01[\x01\x02\x04\x08]"), _ffmpeg("PCX", "pcx", _PCX)),
    (_pattern(rb"\x01\xda[\0\x01][\x01\x02]\0[\x01-\x03]"), _ffmpeg("SGI", "sgi", _fixed(">HH", 6))),
    (_pattern(rb"\0\0\x01\0[\x01-\xff]\0...[\0\xff][\0\x01]\0[\0-\x20]\0"), _ffmpeg("ICO", "ico")),
    ((b"DDS \x7c\0\0\0",), _ffmpeg("DDS", "dds", _fixed("<II", 12, _height_first))),
    ((b"8BPS\0\x01",), _ffmpeg("Photoshop", "psd", _fixed(">II", 14, _height_first))),
    ((b"\x76\x2f\x31\x01",), _ffmpeg("OpenEXR", "exr")),
    ((b"SDPX",), _ffmpeg("DPX", "dpx", _fixed(">II", 772))),
    ((b"XPDS",), _ffmpeg("DPX", "dpx", _fixed("<II", 772))),
    (_pattern(rb"#define\s+\S*width\s+\d+\s"), _ffmpeg("XBM", "xbm", _named(rb"#define\s+\S*?(width|height)\s+(\d+)"))),
    ((b"/* XPM */",), _ffmpeg("XPM", "xpm", _matched(rb'"\s*(\d+)\s+(\d+)\s+\d+\s+\d+'))),
    (_pattern(rb"\0\0[\0-\x0f].\0\0\0\x07\0\0\0[\0-\x02]\0\0\0[\x01-\x20]"), _ffmpeg("XWD", "xwd", _fixed(">II", 16))),
    (_pattern(rb"\0\0\x02\0[\x01-\xff]\0"), _none("Windows cursor")),
    ((b"%PDF-",), _none("PDF")),
    ((b"%!PS", b"\xc5\xd0\xd3\xc6"), _none("PostScript")),
    (_pattern(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*|<!DOCTYPE svg[^>]*>\s*)*<svg[\s>]"), _none("SVG")),
    ((b"gimp xcf ",), _none("GIMP XCF")),
    (_pattern(rb"FORM....(ILBM|PBM )"), _none("IFF ILBM")),
    ((b"icns",), _none("Apple icon")),
    ((b"\xd7\xcd\xc6\x9a",), _none("WMF")),
    ((b"AT&TFORM",), _none("DjVu")),
    ((b"FUJIFILMCCD-RAW",), _none("Fujifilm raw")),
    (_pattern(rb"IIR[OS]|MMOR"), _none("Olympus raw")),
    ((b"IIU\0",), _none("Panasonic raw")),
    ((b"FOVb",), _none("Sigma raw")),
    ((b"II\xbc\x01",), _none("JPEG XR")),
    ((b"BPG\xfb",), _none("BPG")),
    ((b"FLIF",), _none("FLIF")),
    ((b"SIMPLE  =",), _none("FITS")),
    ((b"\x8aMNG", b"\x8bJNG"), _none("MNG")),
    ((b"\xabKTX",), _none("KTX")),
    ((b"id=ImageMagick",), _none("MIFF")),
    (_pattern(rb"BLP[12]"), _none("BLP")),
    (_pattern(rb"P[GC] [ML][ML]"), _none("PGX")),
)
_FURTHER_IN = ((40, b" EMF", _none("EMF")), (128, b"DICM", _none("DICOM")))
