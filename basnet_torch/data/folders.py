"""Folder walks that follow links and visit each folder once, so that cycles end."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from basnet_torch.errors import DataError

__all__ = ["files_below"]


def files_below(root: Path) -> list[Path]:
    """List all files below a folder, sorted, under its own name.

    A folder is identified by device and inode.

    Raises:
        DataError: A folder cannot be read, which would leave its files out without a word.
    """
    found: list[Path] = []
    links: deque[Path] = deque()
    known = {_identity(root)}
    _walk(root, known, found, links)
    while links:  # after all folders that are none, so that a file is named by its own place
        link = links.popleft()
        identity = _identity(link)
        if identity not in known:
            known.add(identity)
            _walk(link, known, found, links)
    return sorted(found)


def _walk(folder: Path, known: set[tuple[int, int]], found: list[Path], links: deque[Path]) -> None:
    """Add the files of a folder and of those in it; folders that are links are put aside."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); see who may read it") from error
    for entry in entries:
        path = Path(entry.path)
        if not entry.is_dir():  # also a link to a file, and one to nothing, which its reader names
            found.append(path)
        elif entry.is_symlink():
            links.append(path)
        elif (identity := _identity(path)) not in known:
            known.add(identity)
            _walk(path, known, found, links)


def _identity(folder: Path) -> tuple[int, int]:
    try:
        told = folder.stat()
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); see who may read it") from error
    return told.st_dev, told.st_ino
