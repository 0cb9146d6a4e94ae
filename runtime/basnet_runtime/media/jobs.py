"""Which files to run and where each result goes, decided and checked before any work begins.

Folders and globs are expanded, the tree below them is mirrored in the output folder, and a plan that would write two
results to one name, over an input, or over an existing file is refused as a whole.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from basnet_runtime.media.compose import KINDS, OutputKind
from basnet_torch.errors import BasnetError, MediaError, UsageError

__all__ = ["Failure", "Job", "Media", "Plan", "media_of", "plan_jobs"]

Media = Literal["picture", "video"]
_PICTURES = frozenset(
    (
        *(".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg"),
        *(".jpf", ".jpg", ".jpx", ".jxl", ".png", ".tif", ".tiff", ".webp"),
    )
)
_VIDEOS = frozenset(
    (
        *(".264", ".265", ".3gp", ".avi", ".flv", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mkv"),
        *(".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".webm", ".wmv"),
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One input and its output."""

    source: Path
    target: Path
    media: Media


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One input that gave no result, and why."""

    source: Path
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything to do.

    Attributes:
        jobs: In order of the inputs.
        failures: Inputs that cannot be run at all.
        notes: What was left out, for people.
    """

    jobs: tuple[Job, ...]
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """A file and the folder whose tree is mirrored."""

    path: Path
    root: Path
    named: bool


def plan_jobs(
    inputs: Sequence[str],
    *,
    kind: OutputKind,
    output: str | None = None,
    recursive: bool = False,
    overwrite: bool = False,
    skip_existing: bool = False,
    keep_suffix: bool = False,
    video_suffix: Callable[[Path, OutputKind], str],
) -> Plan:
    """Expand the inputs and name the outputs.

    Args:
        inputs: Files, folders, and globs.
        kind: What is made; part of every output's name.
        output: A folder, or a file for a single input; beside each input when None.
        recursive: Take subfolders too.
        overwrite: Existing outputs may be replaced.
        skip_existing: Inputs whose output exists are left out.
        video_suffix: The container for a video's result.
        keep_suffix: Name outputs by the input's whole name, so that a.jpg and a.webp do not collide.

    Raises:
        UsageError: Outputs collide with one another, with inputs, or with existing files.
    """
    found, failures = _expanded(inputs, recursive)
    notes, files = _without_own_outputs(found)
    single = _single_output(output, inputs, files)
    jobs: list[Job] = []
    for file in files:
        try:
            jobs.append(_job(file, kind, None if output is None else Path(output), single, keep_suffix, video_suffix))
        except BasnetError as error:
            failures.append(Failure(source=file.path, error=str(error)))
    if skip_existing:
        kept = [job for job in jobs if not job.target.exists()]
        if len(kept) < len(jobs):
            notes.append(f"{len(jobs) - len(kept)} inputs have their output already and are skipped")
        jobs = kept
    _refuse_collisions(jobs, overwrite=overwrite)
    return Plan(jobs=tuple(jobs), failures=tuple(failures), notes=tuple(notes))


def _expanded(inputs: Sequence[str], recursive: bool) -> tuple[list[_Found], list[Failure]]:  # noqa: FBT001
    found: dict[Path, _Found] = {}
    failures = []
    for text in inputs:
        files = list(_files_of(text, recursive))
        if not files:
            failures.append(Failure(source=Path(text), error=_why_nothing(text, recursive)))
        for file in files:
            known = found.get(file.path)
            if known is None or file.named:
                found[file.path] = file
    return list(found.values()), failures


def _files_of(text: str, recursive: bool) -> Iterator[_Found]:  # noqa: FBT001
    path = Path(text)
    if path.is_dir():
        yield from _files_in(path, recursive)
    elif os.path.lexists(path):
        yield _Found(path=path, root=path.parent, named=True)
    elif glob.has_magic(text):
        yield from _files_matching(text, recursive)


def _files_in(folder: Path, recursive: bool) -> Iterator[_Found]:  # noqa: FBT001
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        for name in sorted(names):
            path = Path(parent, name)
            if not name.startswith(".") and _is_media(path):
                yield _Found(path=path, root=folder, named=False)


def _files_matching(pattern: str, recursive: bool) -> Iterator[_Found]:  # noqa: FBT001
    parts = Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed])
    for name in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 - Path.glob takes no absolute pattern
        path = Path(name)
        if path.is_dir():
            if recursive:
                yield from (_Found(path=file.path, root=root, named=False) for file in _files_in(path, recursive))
        elif _is_media(path):
            yield _Found(path=path, root=root, named=False)


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in _PICTURES | _VIDEOS and not _is_special(path)


def _is_special(path: Path) -> bool:
    """A pipe, device or socket, whatever its name: opening one may wait for ever."""
    return path.exists() and not path.is_file()


def _why_nothing(text: str, recursive: bool) -> str:  # noqa: FBT001
    if Path(text).is_dir():
        return f"{text}: no pictures or video in this folder" + ("" if recursive else "; --recursive looks below it")
    return f"{text}: no such file" + (" (nothing matches the pattern)" if glob.has_magic(text) else "")


def _without_own_outputs(found: list[_Found]) -> tuple[list[str], list[_Found]]:
    """Leave out results of earlier runs, which lie beside their inputs, unless they are named one by one."""
    kept = [file for file in found if file.named or Path(file.path.stem).suffix.removeprefix(".") not in KINDS]
    left_out = len(found) - len(kept)
    return ([f"{left_out} files look like results of an earlier run and are left out"] if left_out else []), kept


def _single_output(output: str | None, inputs: Sequence[str], files: list[_Found]) -> bool:
    """Whether `output` names a file: it has a suffix and is no folder."""
    if output is None or output.endswith(os.sep) or Path(output).is_dir() or not Path(output).suffix:
        return False
    if len(inputs) == 1 and len(files) <= 1 and not Path(inputs[0]).is_dir():
        return True
    if Path(output).suffix.lower() in _PICTURES | _VIDEOS:
        raise UsageError(f"--output {output} is one file, but there are {len(files)} inputs; name a folder")
    return False


def _job(
    file: _Found,
    kind: OutputKind,
    output: Path | None,
    single: bool,  # noqa: FBT001
    keep_suffix: bool,  # noqa: FBT001
    video_suffix: Callable[[Path, OutputKind], str],
) -> Job:
    media = media_of(file.path)
    if single and output is not None:
        return Job(source=file.path, target=output, media=media)
    suffix = ".png" if media == "picture" else video_suffix(file.path, kind)
    folder = file.path.parent if output is None else output / file.path.parent.relative_to(file.root)
    name = file.path.name if keep_suffix else file.path.stem
    return Job(source=file.path, target=folder / f"{name}.{kind.name}{suffix}", media=media)


def media_of(path: Path) -> Media:
    """What a file holds: by suffix; by content where the suffix says nothing.

    Raises:
        MediaError: It is a pipe, device or socket, or a broken link.
    """
    if _is_special(path):
        raise MediaError(f"{path}: is a pipe, device or socket; give a file")
    suffix = path.suffix.lower()
    if suffix in _VIDEOS:
        return "video"
    if suffix in _PICTURES:
        return "picture"
    if not path.exists():
        raise MediaError(f"{path}: no such file (a broken link)")
    from basnet_runtime.media.pictures import is_picture

    return "picture" if is_picture(path) or not _is_video(path) else "video"


def _is_video(path: Path) -> bool:
    from basnet_runtime.media.video_open import open_input

    try:
        with open_input(path) as container:
            return bool(container.streams.video)
    except MediaError:
        return False


def _apart(first: Job, second: Job) -> str:
    """How two jobs of one name get two names."""
    return "add --keep-suffix" if first.source.name != second.source.name else "run them apart with -o"


def _refuse_collisions(jobs: list[Job], *, overwrite: bool) -> None:
    by_target: dict[Path, Job] = {}
    sources = {job.source.resolve() for job in jobs}
    for job in jobs:
        target = job.target.resolve()
        if target in sources:
            raise UsageError(f"{job.target} is an input; it is never written over")
        other = by_target.setdefault(target, job)
        if other is not job:
            raise UsageError(f"{other.source} and {job.source} would both become {job.target}; {_apart(other, job)}")
    existing = [str(job.target) for job in jobs if job.target.exists()]
    if existing and not overwrite:
        named = ", ".join(existing[:3]) + (f" and {len(existing) - 3} more" if len(existing) > 3 else "")
        raise UsageError(f"already there: {named}; --overwrite replaces, --skip-existing leaves out")
