"""Jobs on buckets: planned as files, run in scratch, journaled as objects.

Objects have the paths of `cluster.buckets`, so plans, collisions and the journal's rules are those of files. What
cannot be told of an object by its name (moving pictures, a video's streams) is looked up in a copy while planning.
"""

from __future__ import annotations

import glob
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from basnet_runtime.cluster import buckets
from basnet_runtime.cluster.buckets import is_bucket, path_of, shown, url_of
from basnet_runtime.command.config import RunConfig
from basnet_runtime.command.jobs import (
    Failure,
    FoundFile,
    Job,
    LocalFiles,
    Media,
    Plan,
    failure_of,
    media_of,
    plan_jobs,
    without_finished,
)
from basnet_runtime.command.journal import Journal, lines_of, run_settings
from basnet_runtime.command.run import Result, Summary, check_job, checked, result_suffix
from basnet_runtime.media.formats import PICTURE_SUFFIXES
from basnet_runtime.media.video.write.numbered_pictures import is_sequence
from basnet_torch.errors import BasnetError, UsageError
from basnet_torch.files import RUN, file_identity, scratch_folder

__all__ = ["JOURNAL_FOLDER", "on_copies", "plan_in_buckets", "uses_buckets"]

JOURNAL_FOLDER = ".basnet-run"
_HEAD_BYTES = 1 << 20
_MAY_MOVE = (".gif", ".webp", ".avif", ".heic", ".heif")
_AT_ONCE = 8  # transfers


def uses_buckets(config: RunConfig) -> bool:
    """Whether an input or the output is a bucket."""
    return any(is_bucket(text) for text in (*config.inputs, config.output or ""))


class _Objects(LocalFiles):
    """Local files and objects of buckets, as planning asks for them; each prefix is listed once.

    Copies are in `scratch`, one at a time.
    """

    def __init__(self, config: RunConfig, output: str | None, scratch: Path) -> None:
        self._config = config
        self._beside = output is None
        self._scratch = scratch
        self._copied: tuple[Path, int | None] | None = None
        self.sources: dict[Path, tuple[int, str]] = {}
        self.targets: dict[Path, int] = {}
        self._folders: set[str] = set()
        self._complete: set[Path] = set()  # prefixes of which every object is known
        if output is not None and url_of(root := Path(output)):
            try:
                self.targets = {path: size for path, size, _ in buckets.listed(root, recursive=True)}
            except FileNotFoundError:
                bucket = Path(*root.parts[:3])
                if not buckets.is_prefix(bucket):
                    raise UsageError(f"{shown(bucket)}: no such bucket; create it, or name another with -o") from None
            if buckets.is_whole(root) or self.targets.keys() - {root}:
                self._folders.add(output)

    def files_of(self, text: str, *, recursive: bool) -> Iterator[FoundFile]:
        root = Path(text)
        if url_of(root) is None:
            yield from super().files_of(text, recursive=recursive)
            return
        found = list(_there(buckets.listed(root, recursive=recursive)))
        named = bool(found) and found[0][0] == root
        if not found and glob.has_magic(text):
            found = list(_there(buckets.matching_objects(root)))
            root = Path(*root.parts[: next(i for i, part in enumerate(root.parts) if glob.has_magic(part))])
            if self._beside:
                for folder in {path.parent for path, _, _ in found}:
                    self.targets |= {path: size for path, size, _ in _there(buckets.listed(folder, recursive=False))}
                    self._complete.add(folder)
        elif not named and (found or buckets.is_prefix(root)):
            self._folders.add(text)
            self._complete |= {path.parent for path, _, _ in found}
        for path, size, tag in found:
            if named or not any(part.startswith(".") for part in path.relative_to(root).parts):
                self.sources[path] = size, tag
                self.targets.setdefault(path, size)
                yield FoundFile(path=path, root=path.parent if named else root, named=named)

    def is_folder(self, text: str) -> bool:
        return text in self._folders or super().is_folder(text)

    def is_special(self, path: Path) -> bool:
        return path not in self.sources and super().is_special(path)

    def media_of(self, path: Path) -> Media:
        suffix = path.suffix.lower()
        if path not in self.sources:
            return super().media_of(path)
        if suffix in PICTURE_SUFFIXES and suffix not in _MAY_MOVE:
            return "picture"
        with self._copy(path, None if suffix not in _MAY_MOVE else _HEAD_BYTES) as local:
            return media_of(local)

    def suffix_of(self, path: Path, media: Media) -> str:
        """Choose the format of a result, by a copy where its content decides."""
        if path not in self.sources or media == "picture":
            return result_suffix(self._config, path, media)
        with self._copy(path, None if media == "video" else _HEAD_BYTES) as local:
            return result_suffix(self._config, local, media)

    def check(self, config: RunConfig, job: Job) -> None:
        """Refuse an output as `check_job`; of a video only while its copy is here, since it is checked again."""
        with _shown(job.target, job.target):
            if job.media != "video" or job.source not in self.sources:
                check_job(config, replace(job, source=shown(job.source)))
            elif self._copied == (job.source, None):
                with self._copy(job.source, None) as local:
                    check_job(config, replace(job, source=local))

    @contextmanager
    def _copy(self, path: Path, most: int | None) -> Iterator[Path]:
        """A copy of an object or of its first `most` bytes; the last one is kept, for the next question."""
        local = self._scratch / path.name
        if self._copied != (path, most):
            if self._copied is not None:
                (self._scratch / self._copied[0].name).unlink(missing_ok=True)
            self._copied = None
            size, _ = self.sources[path]
            buckets.fetch(path, local, most=most if most is not None and size > most else None)
            self._copied = path, most
        with _shown(local, path):
            yield local

    def exists(self, path: Path) -> bool:
        return self.size(path) is not None if url_of(path) else super().exists(path)

    def size(self, path: Path) -> int | None:
        """Bytes of a target; beside an object that was named alone, the store is asked for each."""
        if self._beside and path not in self.targets and path.parent not in self._complete:
            self.targets |= {found: size for found, size, _ in _there(buckets.listed(path, recursive=False))}
        return self.targets.get(path)

    def identity(self, path: Path) -> list[Any]:
        """Name, size and ETag of an object."""
        if path in self.sources:
            return [url_of(path), *self.sources[path]]
        try:
            return file_identity(path)
        except OSError:
            return [str(path.absolute())]


def _there(objects: Iterator[tuple[Path, int, str]]) -> Iterator[tuple[Path, int, str]]:
    try:
        yield from objects
    except FileNotFoundError:
        return  # planning says that nothing is there


@contextmanager
def _shown(local: Path, path: Path) -> Iterator[None]:
    """Errors call an object by its URL, not by the file or path that stands for it."""
    try:
        yield
    except BasnetError as error:
        raise type(error)(str(error).replace(str(local), str(shown(path)))) from error


def plan_in_buckets(config: RunConfig) -> tuple[Plan, Journal | None, Callable[[Path], bool]]:
    """Find what is left to do, its record, and what tells whether a target is there.

    Raises:
        UsageError: The plan cannot be carried out.
        MediaError: The store does not answer.
    """
    if config.video.resume:
        raise UsageError("--resume does not go with buckets, whose videos are done whole; leave it out")
    if config.output is not None and is_sequence(Path(config.output)):
        raise UsageError(f"--output {config.output}: numbered pictures go into a folder here, not into a bucket")
    for text in filter(is_bucket, (*config.inputs, config.output or "")):
        if glob.has_magic(bucket := text.split("/")[2]):
            raise UsageError(f"{text}: {bucket!r} is a pattern, which a bucket's name cannot be; name one bucket")
    inputs = [str(path_of(text)) if is_bucket(text) else text for text in config.inputs]
    output = config.output
    if output is not None and is_bucket(output):
        output = str(path_of(output)) + ("/" if output.endswith("/") else "")
    with scratch_folder() as scratch:
        return _planned(config, inputs, output, _Objects(config, output, scratch))


def _planned(
    config: RunConfig, inputs: Sequence[str], output: str | None, within: _Objects
) -> tuple[Plan, Journal | None, Callable[[Path], bool]]:
    plan = plan_jobs(
        inputs,
        kind=config.kind,
        suffix_of=within.suffix_of,
        output=output,
        recursive=config.recursive,
        keep_suffix=config.keep_suffix,
        within=within,
    )
    journal = _journal(plan.folder, config, within)
    finished = frozenset[Path]() if journal is None else journal.finished(plan.jobs)
    plan = without_finished(
        plan, overwrite=config.overwrite, skip_existing=config.skip_existing, finished=finished, exists=within.exists
    )
    plan = checked(config, plan, within.check)
    failures = tuple(Failure(source=shown(item.source), error=_told(item.error)) for item in plan.failures)
    return replace(plan, failures=failures), journal, within.exists


def _told(error: str) -> str:
    """An error with URLs, where it names the paths that stand for them."""
    head, _, rest = error.partition(": ")
    url = url_of(Path(head))
    return error if url is None else f"{url}: {rest}"


def _journal(folder: Path | None, config: RunConfig, within: _Objects) -> Journal | None:
    if folder is None:
        return None
    settings = run_settings(config)
    if url_of(folder) is None:
        return Journal(folder, settings, overwrite=config.overwrite, identity=within.identity)
    return _ObjectJournal(folder, settings, within, overwrite=config.overwrite)


class _ObjectJournal(Journal):
    """A journal of objects below the output prefix: each flush is one, since nothing can be appended to."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], within: _Objects, *, overwrite: bool) -> None:
        self._objects = folder / JOURNAL_FOLDER
        self._within = within
        self._pending: list[str] = []
        self._began = f"{time.time_ns():020d}"
        self._count = 0
        super().__init__(folder, settings, overwrite=overwrite, identity=within.identity)

    @contextmanager
    def writing(self, jobs: Sequence[Job]) -> Iterator[None]:  # noqa: ARG002 - nothing half written is visible
        """Note the run's beginning and end; a store has no locks, and put-if-absent guards each result."""
        self._write({"state": "run", "run": RUN, "version": 1, "settings": self._settings})
        yield
        self._write({"state": "end"})
        self.flush()

    def flush(self) -> None:
        """Put what was noted."""
        if self._pending:
            self._count += 1
            name = f"{self._began}-{RUN}-{self._count:08d}.jsonl"
            buckets.put_text(self._objects / name, "".join(self._pending))
            self._pending.clear()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._pending.append(json.dumps(line) + "\n")

    def _lines(self) -> Iterator[dict[str, Any]]:
        found = _there(buckets.listed(self._objects, recursive=False))
        names = sorted(path for path, _, _ in found if path.suffix == ".jsonl")
        if names and (latest := names[-1].name.partition("-")[0]).isdigit():  # by another machine's clock
            self._began = max(self._began, f"{int(latest) + 1:020d}")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for text in pool.map(buckets.read_text, names):
                yield from lines_of(text)

    def _size(self, target: Path) -> int | None:
        return self._within.size(target)


def on_copies(
    config: RunConfig, jobs: Sequence[Job], run: Callable[[list[Job]], Summary]
) -> tuple[Summary, dict[str, int]]:
    """Run jobs on copies in scratch and put the results in place.

    Args:
        config: How; with `overwrite`, what is there is replaced.
        jobs: What, with paths of objects or files.
        run: Runs jobs on local files.

    Returns:
        What `run` says, in the paths of `jobs`; and the bytes of each result, by target.
    """
    sizes: dict[str, int] = {}

    def put(result: Result) -> Result | Failure:
        job, made = by_source[Path(result.source)], Path(result.target)
        try:
            sizes[str(job.target)] = made.stat().st_size
            if url_of(job.target):
                buckets.put(made, job.target, replace=config.overwrite)
            return replace(result, source=job.source, target=job.target)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this result's alone
            return failure_of(job.source, error)

    def original(failure: Failure) -> Failure:
        job = by_source[failure.source]
        error = failure.error.replace(str(failure.source), str(shown(job.source)))
        return Failure(source=job.source, error=error.replace(str(targets[job]), str(shown(job.target))))

    with scratch_folder() as scratch, ThreadPoolExecutor(_AT_ONCE) as pool:
        fetched = list(pool.map(partial(_fetched, config, scratch), range(len(jobs)), jobs))
        by_source = {own.source: job for job, own in zip(jobs, fetched, strict=True) if isinstance(own, Job)}
        targets = {job: own.target for job, own in zip(jobs, fetched, strict=True) if isinstance(own, Job)}
        summary = run([own for own in fetched if isinstance(own, Job)])
        failures = [own for own in fetched if isinstance(own, Failure)] + [original(each) for each in summary.failures]
        put_in_place = list(pool.map(put, summary.results))
        summary.results = [each for each in put_in_place if isinstance(each, Result)]
        summary.failures = failures + [each for each in put_in_place if isinstance(each, Failure)]
        return summary, sizes


def _fetched(config: RunConfig, scratch: Path, number: int, job: Job) -> Job | Failure:
    """The job on local files; its objects each have a folder of their own."""
    source, target = job.source, job.target
    try:
        if url_of(source):
            source = scratch / "in" / str(number) / source.name
            source.parent.mkdir(parents=True)
            buckets.fetch(job.source, source)
        if url_of(target):
            target = scratch / "out" / str(number) / target.name
        own = replace(job, source=source, target=target, media=media_of(source))
        with _shown(target, job.target), _shown(source, job.source):
            check_job(config, own)
        return own
    except Exception as error:
        if isinstance(error, BasnetError) and error.exit_code != 1:
            raise
        failure = failure_of(job.source, error)
        return replace(failure, error=failure.error.replace(str(source), str(shown(job.source))))
