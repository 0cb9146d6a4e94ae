"""Numbers of a Markdown file that come from committed reports: rewritten, or checked, between markers.

    <!-- table: benchmarks/reports/latency-cpu.json columns="model,median ms" rows="lite" -->
    ... a table, and the machine in a line below it ...
    <!-- end -->

    <!-- value: benchmarks/reports/video-cpu.json results.0.frames_per_second.value .2f -->7.65<!-- end --> frames

`columns` names the columns to show, `rows` keeps rows whose text holds one of the words; without them all is shown. A
value is found by its keys and list places, joined by points; a list's entry may also be named as `[key=text]`.
Paths start at the file's folder or at one of its parents, so that the same text works in every file of a repository.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from basnet_benchmarks.report import SavedReport
from basnet_benchmarks.tables import Table, machine_line, markdown_rows, table_of
from basnet_torch.errors import DataError, UsageError

__all__ = ["refreshed", "rewrite"]

_BLOCK = re.compile(
    r"(?P<head><!-- (?P<kind>table|value): (?P<what>[^\n]*?) -->)(?P<body>.*?)(?P<end><!-- end -->)", re.DOTALL
)
_STEP = re.compile(r"\[(?P<key>\w+)=(?P<text>[^\]]*)\]|(?P<name>[^.\[\]]+)")


def rewrite(path: Path, *, check: bool = False) -> bool:
    """Put the reports' present numbers between the markers of a Markdown file; returns whether it changed.

    Args:
        path: The file.
        check: Write nothing.

    Raises:
        UsageError: The file cannot be read, has no marker, or a marker names what is not there.
        MediaError: The file cannot be written.
    """
    from basnet_runtime.media.files import whole_file

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is no text in UTF-8; save it as that") from error
    new = refreshed(text, path)
    if new != text and not check:
        with whole_file(path, overwrite=True) as beside:
            beside.write_text(new, encoding="utf-8")
    return new != text


def refreshed(text: str, path: Path) -> str:
    """The text of the file `path` with all blocks written anew.

    Raises:
        UsageError: There is no marker, one is not closed, or one names what is not there.
    """
    heads, ends = len(re.findall(r"<!-- (?:table|value): ", text)), text.count("<!-- end -->")
    if not heads:
        raise UsageError(f"{path}: has no marker; put '<!-- table: REPORT.json -->' and '<!-- end -->' into it")
    if heads != ends or heads != len(_BLOCK.findall(text)):
        raise UsageError(f"{path}: {heads} markers begin and {ends} end; each needs its own '<!-- end -->'")
    return _BLOCK.sub(lambda found: f"{found['head']}{_body(found, path)}{found['end']}", text)


def _body(found: re.Match[str], path: Path) -> str:
    try:
        file, *words = shlex.split(found["what"])
    except ValueError as error:
        raise UsageError(f"{path}: marker {found['head']} cannot be read ({error})") from error
    values = SavedReport.read(_report(file, path)).values
    if found["kind"] == "value":
        if len(words) != 2:
            raise UsageError(f"{path}: marker {found['head']}: give the value's keys and its format, as 'seconds .2f'")
        value = _value(values, words[0], file)
        try:
            return format(value, words[1])
        except ValueError as error:
            raise UsageError(f"{path}: marker {found['head']}: {value!r} has no format {words[1]} ({error})") from error
    options = dict(word.partition("=")[::2] for word in words)
    if set(options) - {"columns", "rows"}:
        raise UsageError(f"{path}: marker {found['head']}: only columns= and rows= are known")
    table = _narrowed(table_of(values), options.get("columns"), options.get("rows"), file)
    return "\n" + "\n".join([*markdown_rows(table), "", f"<sub>{machine_line(values)}; `{file}`</sub>", ""])


def _report(file: str, document: Path) -> Path:
    for folder in document.resolve().parents:
        if (folder / file).is_file():
            return folder / file
    raise UsageError(
        f"{document}: names {file}, which is in none of its parent folders; measure it, or mend the marker"
    )


def _value(values: Any, keys: str, file: str) -> Any:
    found = values
    for step in _STEP.finditer(keys):
        try:
            if step["key"]:
                found = next(item for item in found if str(item[step["key"]]) == step["text"])
            else:
                found = found[int(step["name"])] if isinstance(found, list) else found[step["name"]]
        except (KeyError, IndexError, TypeError, ValueError, StopIteration) as error:
            raise DataError(f"{file}: has no {keys} ({step[0]} is not there)") from error
    if not isinstance(found, int | float | str):
        raise DataError(f"{file}: {keys} is no number and no text")
    return found


def _narrowed(table: Table, columns: str | None, rows: str | None, file: str) -> Table:
    """Only the named columns, in the named order, and only rows that hold one of the words."""
    chosen = [name.strip() for name in columns.split(",")] if columns else list(table.columns)
    missing = [name for name in chosen if name not in table.columns]
    if missing:
        raise UsageError(f"{file}: has no column {', '.join(missing)}; there are {', '.join(table.columns)}")
    words = [word.strip() for word in rows.split(",")] if rows else [""]
    kept = [row for row in table.rows if any(word in cell for word in words for cell in row)]
    if not kept:
        raise UsageError(f"{file}: no row holds {rows}")
    places = [table.columns.index(name) for name in chosen]
    return replace(table, columns=tuple(chosen), rows=tuple(tuple(row[i] for i in places) for row in kept))
