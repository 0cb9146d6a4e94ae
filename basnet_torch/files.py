"""Atomic file writes: into a temporary file beside the target, then renamed.

An input is never overwritten.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, Self

from basnet_torch.errors import MediaError

__all__ = [
    "RUN",
    "Closing",
    "PendingFile",
    "atomic_write",
    "disk_errors",
    "file_identity",
    "fitting_name",
    "host_token",
    "reason",
    "remove_partials",
    "remove_scratch",
    "scratch_folder",
    "try_lock",
]

_BOOT = Path("/proc/sys/kernel/random/boot_id")
RUN = os.urandom(6).hex()  # in the name of every temporary file of this process
_NUMBERS = itertools.count()
_DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_LONGEST_NAME = 255  # bytes, on every common file system


@cache
def host_token(boot: Path = _BOOT) -> str:
    """Return eight hex digits that identify the host.

    Process ids alone repeat between hosts, most of all in containers.
    """
    import hashlib  # OpenSSL, which a start that writes nothing need not load

    try:
        booted = boot.read_text().strip()
    except OSError:
        booted = ""
    return hashlib.sha256(f"{os.uname().nodename} {booted}".encode()).hexdigest()[:8]


class Closing:
    """Mixin for owners of files, devices or memory: leaving a `with` calls `close`."""

    def close(self) -> None:
        """Release what is held."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PendingFile:
    """A file under a temporary name in its final folder.

    `commit` renames it to its target, `discard` removes it.
    """

    def __init__(self, target: Path, *, overwrite: bool) -> None:
        """Create the folder and an empty temporary file.

        Raises:
            MediaError: The folder cannot be written.
        """
        self.target = target
        self.path = target.with_name(f".{RUN}-{host_token()}-{os.getpid()}-{next(_NUMBERS)}.partial{target.suffix}")
        self._overwrite = overwrite
        with disk_errors(f"{target}: cannot be written"):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))

    def commit(self, target: Path | None = None) -> None:
        """Give the file its name, or another one.

        Raises:
            MediaError: Something of that name appeared meanwhile and overwriting was not asked.
        """
        self.target = target or self.target
        try:
            if self._overwrite:
                self.path.replace(self.target)
            else:
                self._rename_to_new()
        except FileExistsError as error:
            raise MediaError(f"{self.target} exists already; --overwrite replaces it") from error
        except OSError as error:
            raise MediaError(f"{self.target}: cannot be written: {reason(error)}") from error
        finally:
            self.discard()

    def _rename_to_new(self) -> None:
        # A hard link fails when the name is taken, which rename does not; some file systems have none.
        try:
            self.target.hardlink_to(self.path)
        except FileExistsError:
            raise
        except OSError:
            if self.target.exists():
                raise FileExistsError from None
            self.path.rename(self.target)

    def discard(self) -> None:
        """Remove the temporary file if it is still there."""
        with suppress(FileNotFoundError):
            self.path.unlink()


@contextmanager
def atomic_write(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary path; rename it to `target` on success, remove it on failure.

    Raises:
        MediaError: It cannot be written, for example because the disk is full.
    """
    pending = PendingFile(target, overwrite=overwrite)
    try:
        yield pending.path
        pending.commit()
    except OSError as error:
        if isinstance(error, MediaError) or error.errno not in _DISK_REFUSES:
            raise
        raise MediaError(f"{target}: cannot be written: {reason(error)}") from error
    finally:
        pending.discard()


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn the system's errors into one line that begins with `what`.

    Raises:
        MediaError: With the system's reason.
    """
    try:
        yield
    except MediaError:
        raise
    except OSError as error:
        raise MediaError(f"{what}: {reason(error)}") from error


def file_identity(path: Path) -> list[str | int]:
    """Return absolute path, size and modification time, to notice a changed file."""
    stat = path.stat()
    return [str(path.absolute()), stat.st_size, stat.st_mtime_ns]


def try_lock(file: IO[Any] | int, *, shared: bool = False) -> bool:
    """Lock an open file until it is closed, exclusively or `shared`.

    Returns False on a file system without locks.

    Raises:
        BlockingIOError: Another process holds the lock.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def remove_partials(folders: Iterable[Path], runs: Iterable[str], *, own: bool = False) -> None:
    """Remove partial files of killed runs, named by their `RUN`, in these folders.

    `own`: also what carries this process's `RUN`, for a driver whose workers have it and have ended.
    """
    killed = {run for run in runs if run and (own or run != RUN)}
    if not killed:
        return
    for folder in folders:
        with suppress(OSError):
            for path in folder.glob(".*-*.partial*"):
                if path.name[1:].partition("-")[0] in killed:
                    path.unlink(missing_ok=True)


@contextmanager
def scratch_folder(within: Path | None = None) -> Iterator[Path]:
    """Yield a new folder for temporary files; remove those of killed processes first.

    It is in the folder `within`, or in the system's temporary one where that is None.

    It is locked while it is in use, by the open folder itself: a lock ends with its process, however that ends.
    """
    import tempfile  # most starts need none

    remove_scratch(within)
    new = Path(tempfile.mkdtemp(prefix="basnet-new-", dir=within))
    descriptor = os.open(new, os.O_RDONLY)
    try:
        try_lock(descriptor)  # before it has the name by which `remove_scratch` finds it
        folder = new.rename(new.with_name(new.name.replace("new", host_token(), 1)))
        try:
            yield folder
        finally:
            _remove_tree(folder)
    finally:
        os.close(descriptor)


def remove_scratch(within: Path | None = None) -> None:
    """Remove the scratch folders of this host that no process has in use; `within` as of `scratch_folder`."""
    import tempfile

    with suppress(OSError):
        for folder in (within or Path(tempfile.gettempdir())).glob(f"basnet-{host_token()}-*"):
            with suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY)
                try:
                    if try_lock(descriptor):
                        _remove_tree(folder)
                finally:
                    os.close(descriptor)


def _remove_tree(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def fitting_name(stem: str, ending: str) -> str:
    """Return `stem` + `ending`, shortened to what file systems accept.

    A hash keeps shortened names apart.

    >>> fitting_name("photo", ".mask.png")
    'photo.mask.png'
    >>> len(fitting_name("é" * 126, ".mask.png").encode()) <= 255
    True
    """
    if len(os.fsencode(stem + ending)) <= _LONGEST_NAME:
        return stem + ending
    import hashlib

    mark = f"~{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}"
    room = _LONGEST_NAME - len(os.fsencode(mark + ending))
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return stem + mark + ending


def reason(error: OSError) -> str:
    """What the system says, in lower case and without the number and the path."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]
