"""Pairs of picture and mask: found in folders and zip shards, decoded once into memory.

A source is a folder laid out as DUTS (`DUTS-TR-Image` beside `DUTS-TR-Mask`) or under the names mirrors use, a zip file
with such folders inside, or a folder of such zip files. Pairs share a file stem.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from numpy.typing import NDArray

from basnet_torch.errors import DataError

__all__ = ["Pair", "PairStore", "decode_image", "decode_mask", "find_pairs", "load_pairs"]

UInt8 = NDArray[np.uint8]

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
# (picture folder, mask folder) in lower case, as the data sets and their mirrors name them.
_LAYOUTS = (
    ("duts-tr-image", "duts-tr-mask"),
    ("duts-te-image", "duts-te-mask"),
    ("images", "masks"),
    ("images", "ground_truth_mask"),
    ("imgs", "gt"),
    ("image", "mask"),
    ("img", "gt"),
    ("im", "gt"),
    ("dut-omron-image", "pixelwisegt-new-png"),
)


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


def find_pairs(sources: Iterable[Path]) -> list[Pair]:
    """All pairs of the given folders and zip files, sorted by name within each source.

    Raises:
        DataError: For a source that is missing, has no known layout, or pictures without masks (and the reverse).
    """
    pairs: list[Pair] = []
    for source in sources:
        if not source.exists():
            raise DataError(f"{source}: no such file or folder")
        shards = sorted(source.glob("*.zip")) if source.is_dir() else [source]
        pairs += [p for shard in shards for p in _pairs_in_zip(shard)] if shards else _pairs_in_folder(source)
    return pairs


def _pairs_in_zip(path: Path) -> list[Pair]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: not a readable zip file ({error}); fetch it again") from error
    names = [n for n in archive.namelist() if PurePosixPath(n).suffix.lower() in _IMAGE_SUFFIXES]
    return _match(path, names, lambda name: partial(_read_member, archive, name))


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{archive.filename}: {name} cannot be read ({error}); fetch the zip file again") from error


def _read_path(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _pairs_in_folder(root: Path) -> list[Pair]:
    files = [p for p in root.rglob("*") if p.suffix.lower() in _IMAGE_SUFFIXES]
    names = [p.relative_to(root).as_posix() for p in files]
    return _match(root, names, lambda name: partial(_read_path, root / name))


def _match(source: Path, names: Sequence[str], reader: Callable[[str], Callable[[], bytes]]) -> list[Pair]:
    """Pairs of every picture folder that has its mask folder beside it."""
    folders = _by_folder(source, names)
    pairs = []
    for folder in sorted(folders):
        masks = next((m for m in _mask_folders(folder) if m in folders), None)
        if masks is not None:
            pictures, truths = folders[folder], folders[masks]
            _refuse_unpaired(source / folder, pictures, truths)
            pairs += [
                Pair(name=s, read_image=reader(pictures[s]), read_mask=reader(truths[s])) for s in sorted(pictures)
            ]
    if not pairs:
        known = ", ".join(f"{a}+{b}" for a, b in _LAYOUTS)
        found = ", ".join(sorted({PurePosixPath(f).name for f in folders})) or "no pictures"
        raise DataError(f"{source}: found {found}; pictures and masks must stand in folders named as one of {known}")
    return pairs


def _by_folder(source: Path, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """File names by folder (its own name in lower case) and stem.

    Raises:
        DataError: When two files of a folder share a stem, so that it is unclear which belongs to the pair.
    """
    folders: dict[str, dict[str, str]] = {}
    for name in names:
        path = PurePosixPath(name)
        folder = folders.setdefault((path.parent.parent / path.parent.name.lower()).as_posix(), {})
        other = folder.setdefault(path.stem, name)
        if other != name:
            raise DataError(f"{source}: {other} and {name} share a name; keep the one that belongs to the pair")
    return folders


def _mask_folders(folder: str) -> list[str]:
    """Where the masks of a picture folder may stand, beside it."""
    path = PurePosixPath(folder)
    return [(path.parent / masks).as_posix() for pictures, masks in _LAYOUTS if pictures == path.name]


def _refuse_unpaired(source: Path, pictures: dict[str, str], masks: dict[str, str]) -> None:
    for what, names in (("mask", sorted(set(pictures) - set(masks))), ("picture", sorted(set(masks) - set(pictures)))):
        if names:
            some = ", ".join(names[:3])
            raise DataError(f"{source}: {len(names)} pairs have no {what} ({some}, ...); add or remove them")


def decode_image(data: bytes, name: str) -> UInt8:
    """Bytes of a picture as uint8 H,W,3 RGB; raises DataError naming it."""
    return _decode(data, name, cv2.IMREAD_COLOR_RGB)


def decode_mask(data: bytes, name: str) -> UInt8:
    """Bytes of a mask as uint8 H,W in 0..255, also when it is stored as 0 and 1; raises DataError naming it."""
    mask = _decode(data, name, cv2.IMREAD_GRAYSCALE)
    return np.where(mask > 0, np.uint8(255), np.uint8(0)) if 0 < mask.max() <= 1 else mask


def _decode(data: bytes, name: str, mode: int) -> UInt8:
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), mode) if data else None
    if decoded is None:
        raise DataError(f"{name}: {len(data)} bytes that are no readable picture; fetch it again or remove the pair")
    return np.asarray(decoded, np.uint8)


def load_pairs(pairs: Sequence[Pair], size: int, on_progress: Callable[[int], None] | None = None) -> PairStore:
    """Decode all pairs to `size` x `size` (aspect not kept, as in the paper) in memory: 4 * size^2 bytes a pair.

    Args:
        pairs: From `find_pairs`.
        size: Side length in pixels.
        on_progress: Called with the number decoded so far.

    Raises:
        DataError: For no pairs, an unreadable file, or a mask of another size than its picture.
    """
    if not pairs:
        raise DataError("pairs: none were found, so there is nothing to load")
    images = np.empty((len(pairs), size, size, 3), np.uint8)
    masks = np.empty((len(pairs), size, size), np.uint8)

    def load(i: int) -> None:
        image = decode_image(pairs[i].read_image(), pairs[i].name)
        mask = decode_mask(pairs[i].read_mask(), pairs[i].name)
        if image.shape[:2] != mask.shape:
            raise DataError(f"{pairs[i].name}: picture is {image.shape[:2]} and mask {mask.shape}; they must be equal")
        images[i], masks[i] = _square(image, size), _square(mask, size)

    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        for done, _ in enumerate(pool.map(load, range(len(pairs))), start=1):
            if on_progress:
                on_progress(done)
    return PairStore(tuple(p.name for p in pairs), images, masks)


def _square(image: UInt8, size: int) -> UInt8:
    shrinks = image.shape[0] > size or image.shape[1] > size
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (size, size), interpolation=method), np.uint8)
