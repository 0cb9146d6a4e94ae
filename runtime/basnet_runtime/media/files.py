"""Files that appear whole or not at all: written beside their final name, then renamed; an input is never touched."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from basnet_torch.errors import MediaError

__all__ = ["PendingFile", "reason", "whole_file"]


class PendingFile:
    """A file under a temporary name in its final folder, until `commit` gives it its own or `discard` removes it."""

    def __init__(self, target: Path, *, overwrite: bool) -> None:
        """Create the folder and an empty temporary file.

        Raises:
            MediaError: The folder cannot be written.
        """
        self.target = target
        self.path = target.with_name(f".{secrets.token_hex(6)}.partial{target.suffix}")
        self._overwrite = overwrite
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except OSError as error:
            raise MediaError(f"{target}: cannot be written: {reason(error)}") from error

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
def whole_file(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary path to write to; it becomes `target` when the block ends well and vanishes when it does not."""
    pending = PendingFile(target, overwrite=overwrite)
    try:
        yield pending.path
        pending.commit()
    finally:
        pending.discard()


def reason(error: OSError) -> str:
    """What the system says, in lower case and without the number and the path."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]
