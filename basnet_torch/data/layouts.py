"""Layouts of data sets and their mirrors: which file is whose mask.

Only names are read.

Known, with the names that they are published under:

- DUTS (`DUTS-TR-Image/*.jpg`, `DUTS-TR-Mask/*.png`, and TE), DUT-OMRON (`DUT-OMRON-image`, `pixelwiseGT-new-PNG`),
  ECSSD (`images`, `ground_truth_mask`), HKU-IS (`imgs`, `gt`), SOC (`Imgs`, `GT`), PASCAL-S, SOD, Judd and SED2 in
  folders of their own for pictures and masks;
- Oxford-IIIT Pet (`images`, `annotations/trimaps`);
- MSRA10K (`Imgs/*.jpg` with `*.png` beside) and THUR15K (five folders `Src` of that kind; some pictures lack one).

A folder of masks is one whose name says so (mask, gt, ground truth ...); its pictures stand in a folder beside it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from basnet_torch.errors import DataError

__all__ = ["KNOWN", "Matched", "masks_beside", "matched"]

KNOWN = "images+masks, imgs+gt, DUTS-TR-Image+DUTS-TR-Mask, ... or *.jpg with *.png of the same name beside"
_MASKS = re.compile(
    r"mask|(^|[^a-z])gts?($|[^a-z])|ground.?truth|pixelwisegt|annotation|label|binary|human.?seg", re.IGNORECASE
)
# In a.jpg.png the mask of a.jpg has the whole name of its picture.
_DOUBLE = re.compile(r"\.(jpe?g|png|webp|bmp|tiff?)$", re.IGNORECASE)
_ENDING = re.compile(r"[-_ .](mask|gt|groundtruth|ground_truth|seg|label)$", re.IGNORECASE)
_PLAIN_MASKS = re.compile(r"(gts?|masks?|ground.?truths?)$", re.IGNORECASE)
_PICTURES = re.compile(r"(^|[^a-z])im($|[^a-z])|image|img|rgb|photo|picture|src|original", re.IGNORECASE)
_PLAIN_PICTURES = re.compile(r"(im|imgs?|images?|rgb|photos?|pictures?|src|originals?)$", re.IGNORECASE)
_DERIVED = re.compile(
    r"edge|contour|boundar|skeleton|instance|body|detail|depth|thermal|flow|blur|scribble|pseudo|pred|fixation",
    re.IGNORECASE,
)
_Masks = tuple[str, Mapping[str, str]]  # a folder, and its files by their stems
_LOSSY = {".jpg", ".jpeg", ".webp", ".bmp"}
_LOSSLESS = {".png", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Matched:
    """What one source holds.

    Attributes:
        pairs: Name, picture file and mask file, sorted within each folder.
        without_mask: Pictures that lack a mask.
        without_picture: Masks that lack a picture.
    """

    pairs: tuple[tuple[str, str, str], ...]
    without_mask: tuple[str, ...] = ()
    without_picture: tuple[str, ...] = ()


def matched(source: Path, names: Sequence[str]) -> Matched:
    """Pair the files of a folder or zip file by name.

    `names` are paths inside `source`, with `/`.

    Raises:
        DataError: When nothing pairs, or it is unclear what belongs to what: two files of a folder share a stem, or
            several folders could be the pictures, or the masks.
    """
    folders: dict[str, list[str]] = {}
    for name in sorted(names):
        folder = unicodedata.normalize("NFC", PurePosixPath(name).parent.as_posix())
        folders.setdefault(folder, []).append(name)
    found = [_beside(source, files) for files in folders.values()]
    apart = {folder: files for (folder, files), here in zip(folders.items(), found, strict=True) if here is None}
    parts = [here for here in found if here is not None] + _across(source, apart)
    if not any(part.pairs for part in parts):
        _refuse_other_names(source, parts)
        seen = ", ".join(sorted({PurePosixPath(f).name or "files" for f in folders})) or "no pictures"
        raise DataError(f"{source}: found {seen}; pictures and masks must stand in folders named as one of {KNOWN}")
    return Matched(
        pairs=tuple(p for part in parts for p in part.pairs),
        without_mask=tuple(n for part in parts for n in part.without_mask),
        without_picture=tuple(n for part in parts for n in part.without_picture),
    )


def _refuse_other_names(source: Path, parts: Sequence[Matched]) -> None:
    """Where there are pictures and masks, and no two of one name."""
    for part in parts:
        if part.without_mask and part.without_picture:
            picture, mask = part.without_mask[0], part.without_picture[0]
            raise DataError(
                f"{source}: no picture has the name of a mask ({picture}, {mask}); "
                "name each mask as its picture, with or without _mask"
            )


def _beside(source: Path, files: Sequence[str]) -> Matched | None:
    """Pictures `a.jpg` and masks `a.png` of one folder, or None where it is not of that kind."""
    pictures = _by_stem(source, [f for f in files if PurePosixPath(f).suffix.lower() in _LOSSY], strict=False)
    masks = _by_stem(source, [f for f in files if PurePosixPath(f).suffix.lower() in _LOSSLESS], strict=False)
    shared = pictures.keys() & masks.keys()
    if len(shared) < max(1, len(masks) / 2) or _MASKS.search(PurePosixPath(files[0]).parent.name):
        return None
    if len(shared) < len(pictures) and len(shared) < 2:
        return None  # one doubled name in a folder of pictures is an accident
    return _joined(pictures, masks)


def masks_beside(source: Path, names: Sequence[str]) -> frozenset[str]:
    """Which of the files of one folder are masks that lie beside their pictures."""
    found = _beside(source, sorted(names)) if names else None
    return frozenset() if found is None else frozenset((*(mask for _, _, mask in found.pairs), *found.without_picture))


def _across(source: Path, folders: Mapping[str, Sequence[str]]) -> list[Matched]:
    """Every folder of pictures with the masks beside it; of several such folders the one that shares most names."""
    found: dict[str, list[_Masks]] = {}
    for folder, files in folders.items():
        rivals = _plain_first(_picture_folders(folder, folders))
        if rivals:
            masks = _by_stem(source, files)
            shared = {other: len(_by_stem(source, folders[other]).keys() & masks.keys()) for other in rivals}
            most = max(shared.values())
            best = rivals[0] if not most else _pictures_among(source, folders, [o for o in rivals if shared[o] == most])
            found.setdefault(best, []).append((folder, masks))
    parts = []
    for folder, rivals_for in found.items():
        pictures = _by_stem(source, folders[folder])
        parts.append(_joined(pictures, _masks_among(source, folder, pictures, rivals_for)))
    return parts


def _plain_first(folders: Sequence[str]) -> list[str]:
    """Without those whose names say that they were made of pictures or masks, where others are left."""
    return [folder for folder in folders if not _DERIVED.search(PurePosixPath(folder).name)] or list(folders)


def _pictures_among(source: Path, folders: Mapping[str, Sequence[str]], rivals: Sequence[str]) -> str:
    """Of folders with equally many names of the masks' the one of pictures."""
    plain = [folder for folder in rivals if _PLAIN_PICTURES.match(PurePosixPath(folder).name)]
    named = plain or [folder for folder in rivals if _PICTURES.search(PurePosixPath(folder).name)]
    lossy = [f for f in rivals if all(PurePosixPath(name).suffix.lower() in _LOSSY for name in folders[f])]
    if named:
        return named[0]
    for chosen in (rivals, lossy):
        if len(chosen) == 1:
            return chosen[0]
    some = ", ".join(PurePosixPath(folder).name for folder in rivals)
    raise DataError(f"{source}: {some} could each be the pictures; leave the one that is, beside its masks")


def _masks_among(source: Path, folder: str, pictures: Mapping[str, str], rivals: Sequence[_Masks]) -> dict[str, str]:
    """The masks of all folders where each picture has one; where it has several, those of the plain folder."""
    shared = {name: pictures.keys() & masks.keys() for name, masks in rivals}
    sharing = [name for name, stems in shared.items() if stems]
    if sum(len(shared[name]) for name in sharing) > len(frozenset().union(*shared.values())):
        good = _plain_first(sharing)
        most = [name for name in good if len(shared[name]) == max(len(shared[other]) for other in good)]
        plain = [name for name in most if _PLAIN_MASKS.match(PurePosixPath(name).name)]
        chosen = next((c for c in (most, plain) if len(c) == 1), None)
        if chosen is None:
            some = ", ".join(PurePosixPath(name).name for name in most)
            what = PurePosixPath(folder).name
            raise DataError(f"{source}: {some} could each be the masks of {what}; leave the one that is, beside it")
        sharing = chosen
    kept = [masks for name, masks in rivals if name in sharing or not shared[name]]
    return {stem: mask for masks in reversed(kept) for stem, mask in masks.items()}


def _picture_folders(masks: str, folders: Mapping[str, Sequence[str]]) -> list[str]:
    """Folders whose path differs from `masks` where that says so, and of DUTS each part its own."""
    parts = PurePosixPath(masks).parts
    place = max((i for i, part in enumerate(parts) if _MASKS.search(part)), default=None)
    if place is None:
        return []
    split = {folder: PurePosixPath(folder).parts for folder in folders}
    beside = (
        {
            folder: other[place]
            for folder, other in split.items()
            if (other[:place], other[place + 1 :]) == (parts[:place], parts[place + 1 :])
            and len(other) == len(parts)
            and not _MASKS.search(other[place])
        }
        or {  # one level of folders more holds the masks, as in annotations/trimaps beside images
            folder: other[place]
            for folder, other in split.items()
            if other[:place] == parts[:place] and len(other) == place + 1 and not _MASKS.search(other[place])
        }
    )
    stem = _MASKS.split(parts[place])[0].strip("-_ ").lower()
    own = [folder for folder, part in beside.items() if stem and part.lower().startswith(stem)]
    return own or list(beside)


def _by_stem(source: Path, files: Sequence[str], *, strict: bool = True) -> dict[str, str]:
    stems: dict[str, str] = {}
    for name in files:
        # One letter with an accent may be written in two ways, and file systems differ in which they keep.
        stem = _ENDING.sub("", _DOUBLE.sub("", PurePosixPath(name).stem))
        stem = unicodedata.normalize("NFC", stem)
        other = stems.setdefault(stem, name)
        if other != name and strict:
            raise DataError(f"{source}: {other} and {name} share a name; keep the one that belongs to the pair")
    return stems


def _joined(pictures: Mapping[str, str], masks: Mapping[str, str]) -> Matched:
    return Matched(
        pairs=tuple((stem, pictures[stem], masks[stem]) for stem in sorted(pictures.keys() & masks.keys())),
        without_mask=tuple(pictures[stem] for stem in sorted(pictures.keys() - masks.keys())),
        without_picture=tuple(masks[stem] for stem in sorted(masks.keys() - pictures.keys())),
    )
