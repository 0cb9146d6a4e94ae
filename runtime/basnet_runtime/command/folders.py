"""Walk folders: each one once, whatever symbolic links lead to it.

Folders that are links are entered after all others: files are found under the name of the folder that holds them, and
under a link's name only where nothing else leads there.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

__all__ = ["Entered", "files_below", "folders_below", "matching"]

_Identity = tuple[int, int]


class Entered:
    """Remember under which name each folder was met first, over several inputs."""

    def __init__(self) -> None:
        self._names: dict[_Identity, Path] = {}
        self._known: dict[Path, bool] = {}

    def first_name(self, folder: Path) -> bool:
        """Whether this is the name under which the folder was met first."""
        if folder not in self._known:
            identity = _identity(folder)
            self._known[folder] = identity is None or self._names.setdefault(identity, folder) == folder
        return self._known[folder]


def files_below(folder: Path, *, recursive: bool) -> Iterator[Path]:
    """List files of a folder, with `recursive` of those below it; no hidden ones."""
    for parent in folders_below(folder) if recursive else (folder,):
        yield from (parent / entry.name for entry in _entries(parent) if not entry.is_dir())


def folders_below(folder: Path) -> Iterator[Path]:
    """List a folder and those below it, each once, parents first."""
    seen: set[_Identity] = set()
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        stack = [waiting.pop(0)]
        while stack:
            parent = stack.pop()
            identity = _identity(parent)
            if identity is None or identity in seen:
                continue
            seen.add(identity)
            yield parent
            inside = [entry for entry in _entries(parent) if entry.is_dir()]
            links += [parent / entry.name for entry in inside if entry.is_symlink()]
            stack += [parent / entry.name for entry in reversed(inside) if not entry.is_symlink()]
        waiting += links


def matching(pattern: str, *, recursive: bool) -> Iterator[Path]:
    """Expand a glob such as in/**/*.jpg; `recursive` enters folders that match."""
    parts = Path(pattern).parts
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    found: dict[Path, None] = {}
    for path in _matches(Path(*parts[:first]), parts[first:]):
        if not path.is_dir():
            found[path] = None
        elif recursive:
            found |= dict.fromkeys(files_below(path, recursive=True))
    yield from _from_each_folder_once(list(found))


def _matches(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    head, rest = parts[0], parts[1:]
    if head == "**":
        for parent in folders_below(folder):
            yield from _matches(parent, rest or ("*",))
    elif not glob.has_magic(head):
        path = folder / head
        if rest and path.is_dir():
            yield from _matches(path, rest)
        elif not rest and os.path.lexists(path):
            yield path
    else:
        for entry in _entries(folder, hidden=head.startswith(".")):
            if not fnmatchcase(entry.name, head):
                continue
            if not rest:
                yield folder / entry.name
            elif entry.is_dir():
                yield from _matches(folder / entry.name, rest)


def _from_each_folder_once(paths: list[Path]) -> list[Path]:
    """Where several names lead to one folder, the files under one of them: one without links, else the first."""
    chosen: dict[_Identity | None, Path] = {}
    for parent in sorted({path.parent for path in paths}):
        identity = _identity(parent)
        known = chosen.get(identity)
        if known is None or (_has_links(known) and not _has_links(parent)):
            chosen[identity] = parent
    folders = set(chosen.values())
    return sorted(path for path in paths if path.parent in folders)


def _has_links(folder: Path) -> bool:
    return any(each.is_symlink() for each in (folder, *folder.parents))


def _entries(folder: Path, *, hidden: bool = False) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name; nothing where it may not be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (entry for entry in entries if hidden or not entry.name.startswith(".")), key=lambda entry: entry.name
            )
    except OSError:
        return []


def _identity(folder: Path) -> _Identity | None:
    try:
        stat = folder.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino
