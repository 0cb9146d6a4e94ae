"""Unexpected errors of one input: one line on stderr, the traceback in a log.

    try:
        make(path)
    except Exception as error:
        failures.append(unexpected(path, error))    # and the next input is done

KeyboardInterrupt and SystemExit are no `Exception`: they end the job. MemoryError is one: it fails the input that
needed the memory.
"""

from __future__ import annotations

import fcntl
import os
import sys
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

__all__ = ["log_path", "unexpected"]

_MOST_BYTES = 1 << 20  # of the log; what is older is kept once, as unexpected.log.1
_MOST_TEXT = 200


def unexpected(what: str | os.PathLike[str], error: BaseException) -> str:
    """Append the traceback to the log and return the line that fails this input.

    Args:
        what: The input, as the user named it.
        error: What was raised while it was read, computed or written.
    """
    text = " ".join(str(error).split())
    if not text and isinstance(error, MemoryError):
        text = "there is not enough memory"
    if len(text) > _MOST_TEXT:
        text = f"{text[:_MOST_TEXT]}..."
    said = f"{os.fspath(what)}: unexpected: {type(error).__name__}{': ' if text else ''}{text}"
    return f"{said}; {_logged(said, error)}"


def log_path() -> Path:
    """The log, under XDG_STATE_HOME, or ~/.local/state.

    Raises:
        OSError: The user has no home folder, as in some containers.
    """
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise FileNotFoundError(str(error)) from error
    return Path(state) / "basnet-deploy" / "unexpected.log"


def _logged(said: str, error: BaseException) -> str:
    """Where the traceback stands now; the temporary folder takes it where the user's own does not."""
    head = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, process {os.getpid()}: {' '.join(sys.argv)}\n{said}\n"
    entry = os.fsencode(head + "".join(traceback.format_exception(error)) + "\n")
    for place in (log_path, _temporary_log):
        with suppress(OSError):
            path = place()
            _append(path, entry)
            return f"traceback in {path}"
    return "its traceback could not be written"


@lru_cache(maxsize=1)
def _temporary_log() -> Path:
    import tempfile  # a start without a defect has no use for it, nor for what it loads

    descriptor, name = tempfile.mkstemp(prefix="basnet-unexpected-", suffix=".log")
    os.close(descriptor)
    return Path(name)


def _append(path: Path, entry: bytes) -> None:
    """Append as a whole, whatever other threads and processes do; a log that has grown is put aside first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("ab", buffering=0) as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_still(path, file.fileno()):
                continue  # another process has put it aside meanwhile
            if 0 < os.fstat(file.fileno()).st_size > _MOST_BYTES - len(entry):
                path.replace(path.with_name(f"{path.name}.1"))
                continue
            file.write(entry)
            return


def _is_still(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False
