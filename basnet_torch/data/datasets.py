"""Data sets: pairs of picture and mask in folders and zip files, kept in memory.

A source is a folder or zip file laid out as `layouts` knows them, or a folder of such zip files. What is wrong with the
data is counted before training starts, and refused or skipped as asked.

Legend: N pairs, S side length, H height, W width.
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

from basnet_torch.arrays import UInt8
from basnet_torch.data.folders import files_below
from basnet_torch.data.layouts import Matched, matched
from basnet_torch.data.masks import Held, Truth, check_labels, decode_mask, decode_picture
from basnet_torch.data.options import MaskValues, OnBadPair
from basnet_torch.errors import BadPairError, DataError, MaskValuesError, UsageError
from basnet_torch.unexpected import unexpected

__all__ = ["DataReport", "Pair", "PairStore", "find_pairs", "load_pairs", "read_pair"]


_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_SHOWN = 3


@dataclass(kw_only=True, slots=True)
class DataReport:
    """What was found in the data, by names; filled by `find_pairs` and `load_pairs`.

    `without_mask` to `unexpected` are bad pairs, refused or skipped. The others are used: masks in color are made
    gray, those of 0 and 1, or of 0 and another low value, are made black and white, empty masks are pictures without
    an object, and label maps may leave pixels out. `unexpected` holds whole lines, which name the pair, the error and
    the log of its traceback.
    """

    pairs: int = 0
    without_mask: list[str] = field(default_factory=list)
    without_picture: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    in_color: list[str] = field(default_factory=list)
    zero_one: list[str] = field(default_factory=list)
    faint: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """List one line for each kind of finding, with its count and first names."""
        words = {
            "without_mask": "pictures without a mask, skipped",
            "without_picture": "masks without a picture, skipped",
            "unequal": "masks of another size than their picture, skipped",
            "unreadable": "pairs that cannot be read, skipped",
            "ignored": "masks that leave every pixel out, skipped",
            "unexpected": "pairs that failed unexpectedly, skipped",
            "in_color": "masks in color, read as gray",
            "zero_one": "masks of 0 and 1, read as 0 and 255",
            "faint": "masks darker than half of white; those of two values are made white",
            "empty": "masks without an object, kept",
            "left_out": "label maps with pixels that are left out of the loss and of scores",
        }
        found = [(getattr(self, key), text) for key, text in words.items()]
        return [f"{self.pairs} pairs", *(f"{len(names)} {text} ({_some(names)})" for names, text in found if names)]

    def count(self, pair: Pair, bad: BadPairError | None, odd: Sequence[str] = ()) -> None:
        """Take up a pair that was read, or could not be."""
        if bad is None:
            self.pairs += 1
        elif bad.kind == "unexpected":
            self.unexpected.append(str(bad))
        else:
            getattr(self, bad.kind).append(pair.name)
        for kind in odd:
            getattr(self, kind).append(pair.name)

    def counts(self) -> dict[str, int]:
        """How many of each, for the run's record."""
        lists = (name for name in self.__slots__ if name != "pairs")
        return {"pairs": self.pairs, **{name: len(getattr(self, name)) for name in lists}}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One picture with its mask, not yet read.

    Attributes:
        name: What both files are called.
        files: The two files' own names, for errors.
        read_image: Gives the picture's bytes.
        read_mask: Gives the mask's bytes.
    """

    name: str
    files: tuple[str, str] = ("", "")
    read_image: Callable[[], bytes]
    read_mask: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class PairStore:
    """Decoded pairs of one square size.

    Attributes:
        names: Of the pairs.
        images: uint8 N,S,S,3 RGB.
        masks: uint8 N,S,S.
        ignored: uint8 N,S,S, above 0 where any of a pixel is left out of the loss; None where all counts.
    """

    names: tuple[str, ...]
    images: UInt8
    masks: UInt8
    ignored: UInt8 | None = None

    @property
    def truths(self) -> UInt8:
        """Masks with ignored pixels: uint8 N,S,S, or N,S,S,2 where there are any."""
        return self.masks if self.ignored is None else np.stack((self.masks, self.ignored), 3)

    def truth(self, index: int) -> UInt8:
        """One of `truths`: uint8 S,S or S,S,2."""
        mask = self.masks[index]
        return mask if self.ignored is None else np.stack((mask, self.ignored[index]), 2)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def size(self) -> int:
        """Side length in pixels."""
        return int(self.images.shape[1])


def find_pairs(
    sources: Iterable[Path], *, on_bad: OnBadPair = "refuse", report: DataReport | None = None
) -> list[Pair]:
    """Find all pairs of the folders and zip files, sorted by name in each source.

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
        inside = source.iterdir() if source.is_dir() else [source]
        shards = sorted(path for path in inside if path == source or (path.suffix.lower() == ".zip" and path.is_file()))
        found = [_pairs_in_zip(shard) for shard in shards] or [_pairs_in_folder(source)]
        for place, match, reader in found:
            if on_bad == "refuse":
                _refuse_unpaired(place, match)
            report.without_mask += match.without_mask
            report.without_picture += match.without_picture
            pairs += [Pair(name=n, files=(i, m), read_image=reader(i), read_mask=reader(m)) for n, i, m in match.pairs]
    return pairs


_Reader = Callable[[str], Callable[[], bytes]]


def _pairs_in_zip(path: Path) -> tuple[Path, Matched, _Reader]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: not a readable zip file ({error}); fetch it again") from error
    # Some programs of Windows write names with backslashes.
    members = {member.replace("\\", "/"): member for member in archive.namelist()}
    names = [name for name in members if _is_picture(name)]
    return path, matched(path, names), lambda name: partial(_read_member, archive, members[name])


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, RuntimeError) as error:
        raise BadPairError(f"{archive.filename}: {name} cannot be read ({error}); fetch the zip file again") from error


def _read_path(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadPairError(f"{path}: cannot be read ({error.strerror})") from error


def _pairs_in_folder(root: Path) -> tuple[Path, Matched, _Reader]:
    names = [name for path in files_below(root) if _is_picture(name := path.relative_to(root).as_posix())]
    return root, matched(root, names), lambda name: partial(_read_path, root / name)


def _is_picture(name: str) -> bool:
    """Whether the name is one of a picture, and not of what macOS puts beside a picture of that name."""
    path = PurePosixPath(name)
    is_of_a_mac = path.name.startswith("._") or "__MACOSX" in path.parts
    return path.suffix.lower() in _IMAGE_SUFFIXES and not is_of_a_mac


def _refuse_unpaired(source: Path, match: Matched) -> None:
    lacking = [
        f"{len(names)} pairs have no {what} ({_some(names)})"
        for what, names in (("mask", match.without_mask), ("picture", match.without_picture))
        if names
    ]
    if lacking:
        raise DataError(f"{source}: {', and '.join(lacking)}; add or remove them, or --on-bad-pair skip")


def read_pair(pair: Pair, values: MaskValues = "auto") -> tuple[UInt8, Truth]:
    """Read a pair: picture uint8 H,W,3 RGB and its truth of the same size.

    Training, validation and scores all read pairs here.

    Raises:
        BadPairError: For damaged or unequal ones and for anything unexpected, naming pair and files; its traceback
            then goes to a log.
        MaskValuesError: The mask's values are not what they are read for.
    """
    try:
        image = decode_picture(pair.read_image(), pair.name)
        truth = decode_mask(pair.read_mask(), pair.name, values)
        if image.shape[:2] != truth.mask_HW.shape:
            sizes = f"picture is {image.shape[:2]} and mask {truth.mask_HW.shape}"
            raise BadPairError(f"{pair.name}: {sizes}; they must be equal", kind="unequal")
    except BadPairError as error:
        raise BadPairError(f"{error} ({' and '.join(pair.files)})", kind=error.kind) from error
    except MaskValuesError as error:
        raise MaskValuesError(f"{error} ({pair.files[1]})") from error
    except DataError:
        raise
    except Exception as error:
        raise BadPairError(unexpected(" and ".join(pair.files), error), kind="unexpected") from error
    return image, truth


def load_pairs(
    pairs: Sequence[Pair],
    size: int,
    on_progress: Callable[[int], None] | None = None,
    *,
    on_bad: OnBadPair = "refuse",
    values: MaskValues = "auto",
    report: DataReport | None = None,
) -> PairStore:
    """Decode all pairs to `size` x `size` in memory: 4 * size^2 bytes a pair.

    The aspect is not kept, as in the paper.

    Args:
        pairs: From `find_pairs`.
        size: Side length in pixels.
        on_progress: Called with the number decoded so far.
        on_bad: What to do about files that cannot be read and masks of another size than their picture.
        values: What the masks' values mean; label maps take a byte more for each pixel.
        report: Takes what was found.

    Raises:
        DataError: For no pairs, and (unless skipped) for the first bad one, naming it.
        MaskValuesError: A mask's values are not what they are read for, which is not skipped.
        UsageError: There is not enough memory for so many pairs of that size.
    """
    report = report or DataReport()
    images, masks, ignored = _rooms(len(pairs), size, values)

    def load(i: int) -> _Loaded:
        try:
            image, truth = read_pair(pairs[i], values)
        except BadPairError as error:
            if on_bad == "refuse":
                raise
            return _Loaded(bad=error)
        images[i], masks[i] = _square(image, size), _square(truth.mask_HW, size)
        if ignored is not None:
            ignored[i] = 0 if truth.ignored_HW is None else _touched(truth.ignored_HW, size)
        return _Loaded(odd=truth.odd, holds=truth.holds)

    kept, held = [], set[Held]()
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        for i, loaded in enumerate(pool.map(load, range(len(pairs)))):
            report.count(pairs[i], loaded.bad, loaded.odd)
            held |= loaded.holds
            if loaded.bad is None:
                kept.append(i)
            if on_progress:
                on_progress(i + 1)
    if not kept:
        why = "; ".join(report.lines()[1:])
        raise DataError(f"pairs: none were found, so there is nothing to load{f' ({why})' if why else ''}")
    check_labels("pairs", values, held)
    if len(kept) < len(pairs):
        images, masks = images[kept], masks[kept]
        ignored = None if ignored is None else ignored[kept]
    return PairStore(tuple(pairs[i].name for i in kept), images, masks, ignored)


def _rooms(count: int, size: int, values: MaskValues) -> tuple[UInt8, UInt8, UInt8 | None]:
    """Arrays for so many pictures, masks and, of label maps, what is left out."""
    shape = (count, size, size)
    try:
        ignored = np.empty(shape, np.uint8) if values in ("labels", "trimap") else None
        return np.empty((*shape, 3), np.uint8), np.empty(shape, np.uint8), ignored
    except MemoryError as error:
        needed = 4 * count * size * size / 1e9
        raise UsageError(f"store_size is {size}: {count} pairs take {needed:,.0f} GB; lower --store-size") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Loaded:
    bad: BadPairError | None = None
    odd: tuple[str, ...] = ()
    holds: frozenset[Held] = frozenset()


def _touched(ignored_HW: NDArray[np.bool_], size: int) -> UInt8:
    """255 in each pixel that takes anything from what is left out, so that none of it is counted."""
    shares = cv2.resize(ignored_HW.astype(np.float32), (size, size), interpolation=_method(ignored_HW.shape, size))
    return np.where(np.asarray(shares) > 1e-6, np.uint8(255), np.uint8(0))


def _square(image: UInt8, size: int) -> UInt8:
    return np.asarray(cv2.resize(image, (size, size), interpolation=_method(image.shape, size)), np.uint8)


def _method(shape: tuple[int, ...], size: int) -> int:
    return cv2.INTER_AREA if shape[0] > size or shape[1] > size else cv2.INTER_LINEAR
