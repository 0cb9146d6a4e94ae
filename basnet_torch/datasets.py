"""Pairs of picture and mask: found in folders and zip shards, decoded once into memory.

A source is a folder or zip file laid out as `layouts` knows them, or a folder of such zip files. What is wrong with the
data is counted before training starts, and refused or skipped as asked.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from numpy.typing import NDArray

from basnet_torch.config import OnBadPair
from basnet_torch.errors import DataError
from basnet_torch.layouts import Matched, matched

__all__ = [
    "DataReport",
    "Pair",
    "PairStore",
    "decode_image",
    "decode_mask",
    "decode_pair",
    "find_pairs",
    "load_pairs",
]

UInt8 = NDArray[np.uint8]

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_SHOWN = 3
_FAINT = 128  # a mask's brightest value below which nothing of it would count as object


@dataclass(kw_only=True, slots=True)
class DataReport:
    """What was found in the data, by names; filled by `find_pairs` and `load_pairs`.

    `without_mask`, `without_picture`, `unequal` and `unreadable` are bad pairs, refused or skipped. The others are
    used: masks in colour are made grey, those of 0 and 1, or of 0 and another low value, are made black and white,
    empty masks are pictures without an object.
    """

    pairs: int = 0
    without_mask: list[str] = field(default_factory=list)
    without_picture: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    in_colour: list[str] = field(default_factory=list)
    zero_one: list[str] = field(default_factory=list)
    faint: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line for people about each thing that was found, with its count and first names."""
        words = {
            "without_mask": "pictures without a mask, skipped",
            "without_picture": "masks without a picture, skipped",
            "unequal": "masks of another size than their picture, skipped",
            "unreadable": "pairs that cannot be read, skipped",
            "in_colour": "masks in colour, read as grey",
            "zero_one": "masks of 0 and 1, read as 0 and 255",
            "faint": "masks darker than half of white; those of two values are made white",
            "empty": "masks without an object, kept",
        }
        found = [(getattr(self, key), text) for key, text in words.items()]
        return [f"{self.pairs} pairs", *(f"{len(names)} {text} ({_some(names)})" for names, text in found if names)]

    def counts(self) -> dict[str, int]:
        """How many of each, for the run's record."""
        lists = (name for name in self.__slots__ if name != "pairs")
        return {"pairs": self.pairs, **{name: len(getattr(self, name)) for name in lists}}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One picture with its mask, not yet read."""

    name: str
    read_image: Callable[[], bytes]
    read_mask: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class PairStore:
    """Decoded pairs of one square size: `images` uint8 N,S,S,3 RGB and `masks` uint8 N,S,S."""

    names: tuple[str, ...]
    images: UInt8
    masks: UInt8

    def __len__(self) -> int:
        return len(self.names)

    @property
    def size(self) -> int:
        """Side length in pixels."""
        return int(self.images.shape[1])


def find_pairs(
    sources: Iterable[Path], *, on_bad: OnBadPair = "refuse", report: DataReport | None = None
) -> list[Pair]:
    """All pairs of the given folders and zip files, sorted by name within each source.

    Args:
        sources: Folders, zip files, folders of zip files.
        on_bad: What to do about pictures without masks and the reverse.
        report: Takes the names of those that were skipped.

    Raises:
        DataError: For a source that is missing, has no known layout, or (unless skipped) files without their partner.
    """
    report = report or DataReport()
    pairs: list[Pair] = []
    for source in sources:
        if not source.exists():
            raise DataError(f"{source}: no such file or folder")
        shards = sorted(source.glob("*.zip")) if source.is_dir() else [source]
        found = [_pairs_in_zip(shard) for shard in shards] or [_pairs_in_folder(source)]
        for place, match, reader in found:
            if on_bad == "refuse":
                _refuse_unpaired(place, match)
            report.without_mask += match.without_mask
            report.without_picture += match.without_picture
            pairs += [Pair(name=n, read_image=reader(i), read_mask=reader(m)) for n, i, m in match.pairs]
    return pairs


_Reader = Callable[[str], Callable[[], bytes]]


def _pairs_in_zip(path: Path) -> tuple[Path, Matched, _Reader]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: not a readable zip file ({error}); fetch it again") from error
    names = [
        n for n in archive.namelist() if PurePosixPath(n).suffix.lower() in _IMAGE_SUFFIXES and not _is_of_a_mac(n)
    ]
    return path, matched(path, names), lambda name: partial(_read_member, archive, name)


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, RuntimeError) as error:
        raise DataError(f"{archive.filename}: {name} cannot be read ({error}); fetch the zip file again") from error


def _read_path(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _pairs_in_folder(root: Path) -> tuple[Path, Matched, _Reader]:
    files = [p for p in root.rglob("*") if p.suffix.lower() in _IMAGE_SUFFIXES]
    names = [name for p in files if not _is_of_a_mac(name := p.relative_to(root).as_posix())]
    return root, matched(root, names), lambda name: partial(_read_path, root / name)


def _is_of_a_mac(name: str) -> bool:
    """Whether the file holds what macOS puts beside a picture of that name, which is no picture."""
    path = PurePosixPath(name)
    return path.name.startswith("._") or "__MACOSX" in path.parts


def _refuse_unpaired(source: Path, match: Matched) -> None:
    for what, names in (("mask", match.without_mask), ("picture", match.without_picture)):
        if names:
            some = _some([PurePosixPath(name).stem for name in names])
            raise DataError(
                f"{source}: {len(names)} pairs have no {what} ({some}); add or remove them, or --on-bad-pair skip"
            )


def decode_image(data: bytes, name: str) -> UInt8:
    """Bytes of a picture as uint8 H,W,3 RGB; raises DataError naming it."""
    return _decode(data, name, cv2.IMREAD_COLOR_RGB)


def decode_mask(data: bytes, name: str) -> UInt8:
    """Bytes of a mask as uint8 H,W in 0..255, also when stored as 0 and a low value; raises DataError naming it."""
    return _stretched(_stored_mask(data, name)[0])


def _stored_mask(data: bytes, name: str) -> tuple[UInt8, bool]:
    """A mask as it was stored, uint8 H,W, turned as its EXIF says like its picture; and whether it was in colour."""
    # What cv2 calls UNCHANGED would be the file's own values, but not turned.
    stored = _decode(data, name, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    in_colour = stored.ndim == 3
    mask = np.asarray(cv2.cvtColor(stored, cv2.COLOR_BGR2GRAY), np.uint8) if in_colour else stored
    if mask.min() == mask.max():
        whole = _decode(data, name, cv2.IMREAD_UNCHANGED)
        if whole.ndim == 3 and whole.shape[2] == 4 and np.ptp(whole[..., 3]):
            raise DataError(f"{name}: its mask has the object in its transparency alone; store it as grey")
    return mask, in_colour


def _decode(data: bytes, name: str, mode: int) -> UInt8:
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), mode) if data else None
    except cv2.error:  # a header that promises more than there may be
        decoded = None
    if decoded is None:
        raise DataError(f"{name}: {len(data)} bytes that are no readable picture; fetch it again or remove the pair")
    if decoded.dtype == np.uint16 and decoded.max() > 255:  # else eight bits that are stored in sixteen
        decoded = np.right_shift(decoded.astype(np.uint16), 8)
    return np.asarray(decoded, np.uint8)


def decode_pair(pair: Pair) -> tuple[UInt8, UInt8]:
    """Picture uint8 H,W,3 RGB and mask uint8 H,W of a pair; raises DataError for damaged or unequal ones, naming it."""
    image, mask, _ = _stored_pair(pair)
    return image, _stretched(mask)


def _stored_pair(pair: Pair) -> tuple[UInt8, UInt8, bool]:
    image = decode_image(pair.read_image(), pair.name)
    mask, in_colour = _stored_mask(pair.read_mask(), pair.name)
    if image.shape[:2] != mask.shape:
        raise DataError(f"{pair.name}: picture is {image.shape[:2]} and mask {mask.shape}; they must be equal")
    return image, mask, in_colour


def load_pairs(
    pairs: Sequence[Pair],
    size: int,
    on_progress: Callable[[int], None] | None = None,
    *,
    on_bad: OnBadPair = "refuse",
    report: DataReport | None = None,
) -> PairStore:
    """Decode all pairs to `size` x `size` (aspect not kept, as in the paper) in memory: 4 * size^2 bytes a pair.

    Args:
        pairs: From `find_pairs`.
        size: Side length in pixels.
        on_progress: Called with the number decoded so far.
        on_bad: What to do about files that cannot be read and masks of another size than their picture.
        report: Takes what was found.

    Raises:
        DataError: For no pairs, and (unless skipped) for the first bad one, naming it.
    """
    report = report or DataReport()
    images = np.empty((len(pairs), size, size, 3), np.uint8)
    masks = np.empty((len(pairs), size, size), np.uint8)

    def load(i: int) -> _Loaded:
        try:
            return _load_into(pairs[i], images[i], masks[i])
        except DataError as error:
            if on_bad == "refuse":
                raise
            return _Loaded(bad="unequal" if "they must be equal" in str(error) else "unreadable")

    kept = []
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        for i, loaded in enumerate(pool.map(load, range(len(pairs)))):
            for kind in (*filter(None, [loaded.bad]), *loaded.odd):
                getattr(report, kind).append(pairs[i].name)
            if loaded.bad is None:
                kept.append(i)
            if on_progress:
                on_progress(i + 1)
    if not kept:
        raise DataError("pairs: none were found, so there is nothing to load")
    report.pairs = len(kept)
    if len(kept) < len(pairs):
        images, masks = images[kept], masks[kept]
    return PairStore(tuple(pairs[i].name for i in kept), images, masks)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Loaded:
    bad: str | None = None
    odd: tuple[str, ...] = ()


def _load_into(pair: Pair, image_SSC: UInt8, mask_SS: UInt8) -> _Loaded:
    image, mask, in_colour = _stored_pair(pair)
    image_SSC[:], mask_SS[:] = _square(image, len(image_SSC)), _square(_stretched(mask), len(mask_SS))
    peak = mask.max()
    odd = {"in_colour": in_colour, "zero_one": peak == 1, "faint": 1 < peak < _FAINT, "empty": peak == 0}
    return _Loaded(odd=tuple(name for name, holds in odd.items() if holds))


def _stretched(mask: UInt8) -> UInt8:
    """Masks of two values whose brighter one would not count as object, in black and white; others as they are."""
    peak = mask.max()
    if not 0 < peak < _FAINT or not np.all((mask == 0) | (mask == peak)):
        return mask
    return np.where(mask > 0, np.uint8(255), np.uint8(0))


def _square(image: UInt8, size: int) -> UInt8:
    shrinks = image.shape[0] > size or image.shape[1] > size
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (size, size), interpolation=method), np.uint8)
