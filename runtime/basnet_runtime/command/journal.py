"""Journal of a folder job: a run that was killed continues where it was.

    journal = Journal.of(plan, config)
    done = journal.finished(jobs)
    with journal.writing():
        journal.begin(job)
        ...                          # the target appears whole, by renaming
        journal.done(job)

One JSON object a line, in a file of the output folder. A result counts as done when its own `done` line is there, or
when it was begun and its file is there: it did not exist before that, and file writes are atomic.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Self

from basnet_runtime.command.config import RunConfig
from basnet_runtime.command.jobs import Job, Plan
from basnet_torch.errors import UsageError
from basnet_torch.files import RUN, disk_errors, file_identity, remove_partials, try_lock

__all__ = ["JOURNAL_NAME", "Journal", "lines_of", "noted", "run_settings"]

JOURNAL_NAME = ".basnet-run.jsonl"
_VERSION = 1
_NO_SETTINGS = (
    *("inputs", "output", "recursive", "overwrite", "skip_existing", "keep_suffix", "max_pixels", "threads"),
    *("cluster", "workers", "chunk", "same_bytes"),
)


def run_settings(config: RunConfig) -> dict[str, Any]:
    """List what results depend on beside their source."""
    plain = asdict(replace(config, video=replace(config.video, resume=False)))
    settings = {name: str(value) for name, value in plain.items() if name not in _NO_SETTINGS}
    if config.model is not None and config.model.is_file():
        settings["model"] = " ".join(map(str, file_identity(config.model)))
    return {**settings, "kind": config.kind.identity}


@dataclass(kw_only=True, slots=True)
class _Entry:
    """The last that is known of one target; `fresh` is what the runs since the last finished one have written."""

    source: list[Any]
    settings: str
    overwrite: bool
    state: str = "begun"
    size: int = -1
    fresh: bool = True


class Journal:
    """The record of one output folder; at most one run writes it at a time.

    Attributes:
        path: The journal's file.
        broken_off: Whether the last run did not reach its end.
        buffered: Whether lines wait for `flush`, which the caller then owes before the work that they announce.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        identity: Callable[[Path], list[Any]] | None = None,
    ) -> None:
        """Read what earlier runs left.

        Args:
            folder: The output folder.
            settings: Everything that changes the results' bytes; what was made with others does not count as done.
            overwrite: This run replaces results: only what a run that was broken off has replaced already is done.
            identity: What changes when a source does; None is a file's path, size and time.

        Raises:
            MediaError: The journal cannot be read.
        """
        self.path = folder / JOURNAL_NAME
        self._settings = json.dumps(settings, sort_keys=True)
        self._overwrite = overwrite
        self._entries: dict[str, _Entry] = {}
        self._runs: list[str] = []
        self._file: IO[str] | None = None
        self._identity = identity or _identity
        self._run_settings = ""
        self._below = f"{folder}{os.sep}"
        self.buffered = False
        self.broken_off = False
        for line in self._lines():
            with suppress(KeyError, TypeError):  # a line that is not ours
                self._take(line)

    @classmethod
    def of(cls, plan: Plan, config: RunConfig) -> Self | None:
        """Open the journal of a plan; None where it has no folder."""
        return None if plan.folder is None else cls(plan.folder, run_settings(config), overwrite=config.overwrite)

    def _take(self, line: dict[str, Any]) -> None:
        name = line.get("target")
        match line.get("state"):
            case "run":
                self._runs.append(str(line["run"]))
                self._run_settings = str(line["settings"])
                if not (self.broken_off and line["settings"] == self._settings):
                    for entry in self._entries.values():
                        entry.fresh = False
                self.broken_off = True
            case "end":
                self.broken_off = False
            case "begun" if isinstance(name, str):
                self._entries[name] = _Entry(
                    source=line["source"],
                    settings=line.get("settings", self._run_settings),
                    overwrite=line["overwrite"],
                )
            case "done" | "failed" as state if name in self._entries:
                self._entries[name].state = state
                self._entries[name].size = line.get("size", -1)

    def finished(self, jobs: Iterable[Job]) -> frozenset[Path]:
        """Find targets that an earlier run made of the same sources and settings."""
        return frozenset(job.target for job in jobs if self._is_finished(job))

    def _is_finished(self, job: Job) -> bool:
        entry = self._entries.get(self._name(job.target))
        if entry is None or entry.settings != self._settings or entry.source != self._identity(job.source):
            return False
        if self._overwrite and not (self.broken_off and entry.fresh):
            return False
        size = self._size(job.target)
        if size is None:
            return False
        if entry.state == "begun":
            return not entry.overwrite  # where something was replaced, the file may be the old one
        return entry.state == "done" and entry.size == size

    def was_begun(self, job: Job) -> bool:
        """Tell whether an earlier run like this one ended with the target begun.

        Alike are the sources and the settings.
        """
        entry = self._entries.get(self._name(job.target))
        alike = entry is not None and entry.settings == self._settings and entry.source == self._identity(job.source)
        return alike and entry is not None and entry.state == "begun"

    @contextmanager
    def writing(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Lock the journal, remove partial files of a killed run, note the end.

        Raises:
            UsageError: Another run is writing this folder.
            MediaError: The folder cannot be written.
        """
        with disk_errors(f"{self.path}: cannot be written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        try:
            self._lock(self._file)
            remove_partials({job.target.parent for job in jobs}, self._runs)
            del jobs  # a caller that hands out a million lets go of them one by one
            self._write({"state": "run", "run": RUN, "version": _VERSION, "settings": self._settings})
            yield
            self._write({"state": "end"})
        finally:
            with suppress(OSError):  # a full disk, once more; it was said by the line that did not fit
                self._file.close()
            self._file = None

    def _lock(self, file: IO[str]) -> None:
        try:
            locked = try_lock(file)
        except BlockingIOError:
            raise UsageError(f"{self.path.parent}: another run is writing this folder; wait for it") from None
        if locked and self.path.read_bytes()[-1:] not in (b"", b"\n"):
            file.write("\n")  # a line that the kill cut short stays a line of its own

    def begin(self, job: Job) -> None:
        """Note that this target is about to appear."""
        source = self._identity(job.source)
        line = {"state": "begun", "target": self._name(job.target), "source": source, "overwrite": self._overwrite}
        self._write(line)

    def done(self, job: Job, size: int | None = None) -> None:
        """Note that it has; `size` where that is known."""
        size = self._size(job.target) if size is None else size
        if size is not None:
            self._write({"state": "done", "target": self._name(job.target), "size": size})

    def failed(self, job: Job) -> None:
        """Note that it never will."""
        self._write({"state": "failed", "target": self._name(job.target)})

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            with disk_errors(f"{self.path}: cannot be written"):
                self._file.write(json.dumps(line) + "\n")
                if not self.buffered:
                    self._file.flush()

    def flush(self) -> None:
        """See that what was noted outlives this process."""
        if self._file is not None:
            with disk_errors(f"{self.path}: cannot be written"):
                self._file.flush()

    def _lines(self) -> Iterator[dict[str, Any]]:
        text = ""
        with disk_errors(f"{self.path}: cannot be read"), suppress(FileNotFoundError):
            text = self.path.read_text(encoding="utf-8", errors="replace")
        return lines_of(text)

    def _size(self, target: Path) -> int | None:
        """Bytes of a result that is there."""
        try:
            return target.stat().st_size
        except OSError:
            return None

    def _name(self, target: Path) -> str:
        text = str(target)
        if text.startswith(self._below) and ".." not in text:  # of a million targets
            return text[len(self._below) :]
        return os.path.relpath(target, self.path.parent)


@contextmanager
def noted(journal: Journal | None, job: Job) -> Iterator[None]:
    """Journal one result: begun, then done or failed; an interrupt leaves it begun."""
    if journal is None:
        yield
        return
    journal.begin(job)
    try:
        yield
    except Exception:
        journal.failed(job)
        raise
    journal.done(job)


def _identity(source: Path) -> list[Any]:
    """What changes when a file does; absolute, because the next run may start elsewhere."""
    try:
        return file_identity(source)
    except OSError:
        return [str(source.absolute())]


def lines_of(text: str) -> Iterator[dict[str, Any]]:
    """Read the lines of a journal; what a kill cut short is left out."""
    for line in text.splitlines():
        with suppress(ValueError, KeyError, TypeError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield value
