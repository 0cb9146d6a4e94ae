"""Plan a run: expand inputs, name outputs, refuse what would lose a result.

Folders and globs are expanded and the tree below them is mirrored in the output folder. A plan that would write two
results to one name, over an input, or over an existing file is refused as a whole.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from basnet_runtime.cluster.buckets import shown
from basnet_runtime.command.folders import Entered, files_below, matching
from basnet_runtime.kinds import KINDS, OutputKind
from basnet_runtime.media.formats import HEAD_BYTES, PICTURE_SUFFIXES, TAIL_BYTES, is_video_head, picture_format
from basnet_runtime.media.video.motion_jpeg import is_motion_jpeg
from basnet_torch.errors import BasnetError, MediaError, UsageError
from basnet_torch.files import fitting_name
from basnet_torch.unexpected import unexpected

__all__ = [
    "Failure",
    "FoundFile",
    "Job",
    "LocalFiles",
    "Media",
    "Plan",
    "ProgressListener",
    "failure_of",
    "left_out_note",
    "media_of",
    "plan_jobs",
    "without_finished",
]

Media = Literal["picture", "animation", "video"]
_MOVING = ("AVIF", "GIF", "HEIF", "PNG", "WebP")
_STILLS = ("alias_pix", "brender_pix", "ico", "image2", "msp")
_VIDEO_SUFFIXES = """
.264 .265 .3g2 .3gp .amv .asf .avi .divx .dv .f4v .flv .h264 .h265 .hevc .ivf .m1v .m2p .m2t .m2ts .m2v .m4v .mj2 .mjpeg
.mjpg .mk3d .mkv .mov .mp4 .mpe .mpeg .mpg .mpv .mts .mxf .nut .obu .ogm .ogv .qt .rm .rmvb .tod .trp .ts .vob .webm
.wmv .wtv .y4m
"""
_VIDEOS = frozenset(_VIDEO_SUFFIXES.split())


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One input and its output.

    Attributes:
        source: Input file; for a stream its name.
        target: Output file.
        media: What the input holds.
        stream: Address of a network stream or name of a camera; empty for a file.
    """

    source: Path
    target: Path
    media: Media
    stream: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One input that gave no result, and why."""

    source: Path
    error: str


class ProgressListener(Protocol):
    """Receives progress callbacks, from the writer thread too."""

    def started(self, what: str, total: int) -> None:
        """Begin a group of pictures or one video of `total` frames, 0 when unknown."""

    def advanced(self) -> None:
        """Count one more written frame."""


def failure_of(source: Path, error: Exception) -> Failure:
    """Describe an error; the traceback of one that is not ours goes to the log."""
    return Failure(source=source, error=str(error) if isinstance(error, BasnetError) else unexpected(source, error))


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything to do.

    Attributes:
        jobs: In order of the inputs.
        failures: Inputs that cannot be run at all.
        notes: What was left out, for people.
        left_out: Suffix to number of files in the folders that are neither pictures nor video.
        folder: Where a job of many files keeps its journal; None for single files.
    """

    jobs: tuple[Job, ...]
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    folder: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundFile:
    """A file and the folder whose tree is mirrored; `named` when given by name."""

    path: Path
    root: Path
    named: bool


class LocalFiles:
    """What planning asks of the file system."""

    def files_of(self, text: str, *, recursive: bool) -> Iterator[FoundFile]:
        """Find the files that an input names."""
        yield from _files_of(text, recursive)

    def is_folder(self, text: str) -> bool:
        """Whether an input or the output is a folder."""
        return Path(text).is_dir()

    def is_special(self, path: Path) -> bool:
        """Whether it is a pipe, device or socket."""
        return _is_special(path)

    def media_of(self, path: Path) -> Media:
        """Tell what a file holds; errors as of `media_of`."""
        return media_of(path)

    def exists(self, path: Path) -> bool:
        """Whether a result is there."""
        return path.exists()


def plan_jobs(
    inputs: Sequence[str],
    *,
    kind: OutputKind,
    suffix_of: Callable[[Path, Media], str],
    output: str | None = None,
    recursive: bool = False,
    keep_suffix: bool = False,
    wanted: Callable[[Path], bool] = lambda _: True,
    within: LocalFiles | None = None,
) -> Plan:
    """Expand the inputs and name the outputs; then call `without_finished`.

    Args:
        inputs: Files, folders, and globs.
        kind: What is made; part of every output's name.
        suffix_of: Chooses the format of an input's result.
        output: A folder, or a file for a single input; beside each input when None.
        recursive: Take subfolders too.
        keep_suffix: Name outputs by the input's whole name, so that a.jpg and a.webp do not collide.
        wanted: Files found in folders that it denies are left out, and said nothing about.
        within: The file system; None is the local one.

    Raises:
        UsageError: The output is one file and there are several inputs.
    """
    within = within or LocalFiles()
    found, failures, left_out = _expanded(inputs, recursive, within)
    found = [file for file in found if file.named or wanted(file.path)]
    # Results of earlier runs lie beside their inputs; they are taken only where they are named one by one.
    own = {*KINDS, "partial"}
    files = [file for file in found if file.named or Path(file.path.stem).suffix.removeprefix(".") not in own]
    notes = left_out_note(left_out)
    if len(files) < len(found):
        notes.insert(0, f"{len(found) - len(files)} files look like results of an earlier run and are left out")
    single = _single_output(output, inputs, files, within)

    def job(file: FoundFile) -> Job:
        media = within.media_of(file.path)
        if single:
            return Job(source=file.path, target=Path(str(output)), media=media)
        ending = f".{kind.name}{suffix_of(file.path, media)}"
        parent = file.path.parent
        folder = parent if output is None else Path(output) / parent.relative_to(file.root)
        stem = file.path.name if keep_suffix else file.path.stem
        return Job(source=file.path, target=folder / fitting_name(stem, ending), media=media)

    jobs: list[Job] = []
    for file in files:
        try:
            jobs.append(job(file))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this input's alone
            failures.append(failure_of(file.path, error))
    # The folder below which all results lie: the output folder, or the one input folder.
    folder = None if output is None else Path(output)
    if single or (len(inputs) == 1 and any(file.named for file in files)):
        folder = None
    elif output is None and len(inputs) == 1 and within.is_folder(inputs[0]):
        folder = Path(inputs[0])
    return Plan(jobs=tuple(jobs), failures=tuple(failures), notes=tuple(notes), left_out=dict(left_out), folder=folder)


def without_finished(
    plan: Plan,
    *,
    overwrite: bool = False,
    skip_existing: bool = False,
    finished: frozenset[Path] = frozenset(),
    exists: Callable[[Path], bool] = Path.exists,
) -> Plan:
    """Take out finished jobs; refuse a plan that would lose a result.

    Args:
        plan: What is to be made.
        overwrite: Existing outputs may be replaced.
        skip_existing: Inputs whose output exists are left out.
        finished: Targets that an earlier run of this job has made.
        exists: Whether a target is there.

    Raises:
        UsageError: Outputs collide with one another, with inputs, or with existing files.
    """
    _refuse_collisions(plan.jobs)
    notes = list(plan.notes)
    jobs = [job for job in plan.jobs if job.target not in finished]
    if len(jobs) < len(plan.jobs):
        notes.append(f"{len(plan.jobs) - len(jobs)} of {len(plan.jobs)} were done by an earlier run and are kept")
    if skip_existing:
        kept = [job for job in jobs if not exists(job.target)]
        if len(kept) < len(jobs):
            notes.append(f"{len(jobs) - len(kept)} inputs have their output already and are skipped")
        jobs = kept
    elif not overwrite and (existing := [str(shown(job.target)) for job in jobs if exists(job.target)]):
        named = ", ".join(existing[:3]) + (f" and {len(existing) - 3} more" if len(existing) > 3 else "")
        raise UsageError(f"already there: {named}; --overwrite replaces, --skip-existing leaves out")
    return replace(plan, jobs=tuple(jobs), notes=tuple(notes))


def _refuse_collisions(jobs: Sequence[Job]) -> None:
    by_target: dict[Path, Job] = {}
    sources = {job.source.resolve() for job in jobs}
    for job in jobs:
        target = job.target.resolve()
        if target in sources:
            raise UsageError(f"{shown(job.target)} is an input; it is never written over")
        other = by_target.setdefault(target, job)
        if other is not job:
            fix = "add --keep-suffix" if other.source.name != job.source.name else "run them apart with -o"
            raise UsageError(
                f"{shown(other.source)} and {shown(job.source)} would both become {shown(job.target)}; {fix}"
            )


def _expanded(
    inputs: Sequence[str],
    recursive: bool,  # noqa: FBT001
    within: LocalFiles,
) -> tuple[list[FoundFile], list[Failure], Counter[str]]:
    found: dict[Path, FoundFile] = {}
    others: set[Path] = set()
    entered = Entered()
    failures = []
    suffixes = PICTURE_SUFFIXES | _VIDEOS
    for text in inputs:
        files = list(within.files_of(text, recursive=recursive))
        unnamed = (file.path for file in files if not file.named)
        others |= {path for path in unnamed if path.suffix.lower() not in suffixes or within.is_special(path)}
        files = [file for file in files if file.path not in others or file.named]
        if not files:
            if within.is_folder(text):
                why = "no pictures or video in this folder" + ("" if recursive else "; --recursive looks below it")
            else:
                why = "no such file" + (" (nothing matches the pattern)" if glob.has_magic(text) else "")
            failures.append(Failure(source=Path(text), error=f"{shown(Path(text))}: {why}"))
        for file in files:
            if not file.named and not entered.first_name(file.path.parent):
                continue
            if file.named or file.path not in found:
                found[file.path] = file
    left_out = Counter(path.suffix.lower() for path in sorted(others - found.keys()))
    return list(found.values()), failures, left_out


def _files_of(text: str, recursive: bool) -> Iterator[FoundFile]:  # noqa: FBT001
    path = Path(text)
    if path.is_dir():
        yield from (FoundFile(path=file, root=path, named=False) for file in files_below(path, recursive=recursive))
    elif os.path.lexists(path):
        yield FoundFile(path=path, root=path.parent, named=True)
    elif glob.has_magic(text):
        root = Path(*path.parts[: next(i for i, part in enumerate(path.parts) if glob.has_magic(part))])
        yield from (FoundFile(path=file, root=root, named=False) for file in matching(text, recursive=recursive))


def left_out_note(left_out: Mapping[str, int]) -> list[str]:
    """Count files that are neither pictures nor video, by suffix."""
    if not left_out:
        return []
    by_suffix = ", ".join(
        f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(left_out.items(), key=lambda item: -item[1])
    )
    count = sum(left_out.values())
    what = "file is no picture or video" if count == 1 else "files are no pictures or video"
    return [f"{count} {what} and left out, by suffix: {by_suffix}"]


def _is_special(path: Path) -> bool:
    """A pipe, device or socket, whatever its name: opening one may wait for ever."""
    return path.exists() and not path.is_file()


def _single_output(output: str | None, inputs: Sequence[str], files: list[FoundFile], within: LocalFiles) -> bool:
    """Whether `output` names a file: it has a suffix and is no folder."""
    if output is None or output.endswith(os.sep) or within.is_folder(output):
        return False
    if not Path(output).suffix:
        if Path(output).exists():
            raise UsageError(f"--output {output} is a file and no folder; name a folder, a file with a suffix, or '-'")
        return False
    if len(inputs) == 1 and len(files) <= 1 and not within.is_folder(inputs[0]):
        return True
    if Path(output).suffix.lower() in PICTURE_SUFFIXES | _VIDEOS:
        raise UsageError(
            f"--output {shown(Path(output))} is one file, but there are {len(files)} inputs; name a folder"
        )
    return False


def media_of(path: Path) -> Media:
    """Tell what a file holds, by its first bytes, else by its suffix.

    Raises:
        MediaError: It is a pipe, device or socket, a broken link, or sound without pictures.
    """
    if _is_special(path):
        raise MediaError(f"{path}: is a pipe, device or socket; give a file")
    suffix = path.suffix.lower()
    if not path.exists():
        raise MediaError(f"{path}: no such file (a broken link)")
    head = _bytes_of(path, HEAD_BYTES)
    kind = picture_format(head, suffix, lambda: _bytes_of(path, TAIL_BYTES, from_end=True))
    if suffix in _VIDEOS and (kind is None or kind.name == "JPEG"):  # a row of JPEG is a video
        return "video"
    if kind is not None and kind.name == "JPEG" and suffix not in PICTURE_SUFFIXES and is_motion_jpeg(path):
        return "video"
    if kind is not None and kind.name in _MOVING:
        from basnet_runtime.media.image.animation import is_animation

        return "animation" if is_animation(path) else "picture"
    if kind is not None:
        return "picture"
    if suffix in PICTURE_SUFFIXES and not is_video_head(head):
        return "picture"
    return "video" if _is_video(path) else "picture"


def _bytes_of(path: Path, count: int, *, from_end: bool = False) -> bytes:
    """The first or last bytes; none where it cannot be read: whoever reads it next says why."""
    try:
        with path.open("rb") as file:
            if from_end:
                file.seek(-count, os.SEEK_END)
            return file.read(count)
    except OSError:
        return b""


def _is_video(path: Path) -> bool:
    from basnet_runtime.media.video.open import open_input
    from basnet_runtime.media.video.tracks import lacks_video

    try:
        container = open_input(path)
    except MediaError:
        return False
    with container:
        if container.streams.audio and not container.streams.video:
            raise lacks_video(container, path)
        name = container.format.name
        is_still = name.endswith("_pipe") or name in _STILLS  # FFmpeg calls any picture a video of one frame
        return bool(container.streams.video) and not is_still
