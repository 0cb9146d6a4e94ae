"""Results for people and for machines: tables for a terminal, Markdown for a pull request, JSON, one page of HTML.

Every form is made from the JSON values, so that a saved report can be shown again in any of them; see `tables`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any, Protocol, Self

from basnet_benchmarks.panels import Panel, panels_path, read_panels, write_panels
from basnet_benchmarks.tables import escaped_markdown, markdown_rows, table_of
from basnet_torch.errors import BackendUnavailable, UsageError

__all__ = [
    "Report",
    "SavedReport",
    "check_output",
    "html",
    "json_text",
    "markdown",
    "panels_of",
    "save",
    "save_all",
    "terminal",
    "values_of",
    "write_text",
]

_DIGITS = 6  # significant, of every number: what is beyond is noise of any measurement made here
_NARROWEST = 150  # columns, where the output is no terminal and so has no width


class Report(Protocol):
    """What a command measured."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with `command` and `environment` among them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedReport:
    """A report that was read back from its JSON."""

    values: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file that `save` wrote.

        Raises:
            UsageError: The file cannot be read, is no JSON, or is no report.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"report {path}: cannot be read ({error.strerror})") from error
        except ValueError:
            values = None
        if not isinstance(values, dict) or "command" not in values:
            raise UsageError(f"report {path}: is no report; give JSON that a command of basnet-bench wrote")
        return cls(values=values)

    def to_dict(self) -> dict[str, Any]:
        """The values as they were read."""
        return self.values


def values_of(report: Report) -> dict[str, Any]:
    """The JSON values of a report: numbers of six significant digits; those that JSON lacks become null."""
    values = _plain(report.to_dict())
    assert isinstance(values, dict)  # noqa: S101 - for the type checker
    return values


def json_text(report: Report) -> str:
    """Everything, raw times included; a list or object of plain values stays on its line."""
    return _dumped(values_of(report))


def terminal(report: Report) -> str:
    """A table and notes for a terminal or a log, no wider than that."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    table = table_of(values_of(report))
    grid = RichTable(title=Text(table.title), title_justify="left")
    for column in table.columns:
        grid.add_column(Text(column), justify="right" if column in table.numbers else "left", overflow="fold")
    for row in table.rows:
        grid.add_row(*map(Text, row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _NARROWEST)
    with console.capture() as capture:
        console.print(grid)
        for line in (*table.notes, *table.environment):
            console.print(Text(line), soft_wrap=True)
    return capture.get().rstrip("\n")


def markdown(report: Report) -> str:
    """The same for a pull request: a table, its notes, and where it was measured."""
    table = table_of(values_of(report))
    lines = [f"### {table.title}", "", *markdown_rows(table), ""]
    lines += [f"- {escaped_markdown(note)}" for note in table.notes]
    lines += ["", "<details><summary>Environment</summary>", ""]
    lines += [f"- {escaped_markdown(line)}" for line in table.environment]
    return "\n".join([*lines, "", "</details>", ""])


def html(reports: Sequence[Report], panels: Mapping[int, Sequence[Panel]] | None = None) -> str:
    """One page of all reports, with plots; pictures are those of the reports, or given by place.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    from basnet_benchmarks.report_page import report_page

    own = {place: panels_of(report) for place, report in enumerate(reports)}
    return report_page([values_of(report) for report in reports], {**own, **(panels or {})})


def panels_of(report: Report) -> tuple[Panel, ...]:
    """The pictures that a report kept; most keep none."""
    return tuple(getattr(report, "panels", ()))


def check_output(output: Path | None, *, overwrite: bool, suffixes: Sequence[str] = (".json", ".md", ".html")) -> None:
    """Refuse a file that could not be written later, before anything is measured.

    Raises:
        UsageError: The suffix is unknown, or the file exists and may not be replaced.
        BackendUnavailable: The file holds plots, which need matplotlib, and that is not installed.
    """
    if output is None:
        return
    if output.suffix not in suffixes:
        known = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}" if len(suffixes) > 1 else suffixes[0]
        raise UsageError(f"output {output}: its name must end in {known}")
    if output.suffix in (".html", ".svg") and find_spec("matplotlib") is None:
        raise BackendUnavailable(f"{output}: its plots need matplotlib; pip install 'basnet-deploy[report]'")
    beside = [panels_path(output)] if output.suffix == ".json" else []
    existing = next((path for path in (output, *beside) if path.exists()), None)
    if existing and not overwrite:
        raise UsageError(f"{existing} exists already; --overwrite replaces it")


def save(report: Report, output: Path, *, overwrite: bool) -> None:
    """Write JSON, Markdown or HTML by the file's suffix, whole or not at all; pictures lie beside the JSON.

    Raises:
        MediaError: The file cannot be written.
    """
    text = html([report]) if output.suffix == ".html" else _text_of(report, output)
    if output.suffix == ".json" and panels_of(report):
        write_panels(panels_of(report), panels_path(output), overwrite=overwrite)
    write_text(text, output, overwrite=overwrite)


def save_all(paths: Sequence[Path], output: Path, *, overwrite: bool, brief: bool = False) -> None:
    """Show saved reports again, in one file: HTML with the pictures that lie beside them, Markdown, or JSON.

    Args:
        paths: Reports, as `save` wrote them to JSON.
        output: Its suffix says what is written. JSON of one report is that report, of several a list of them.
        overwrite: Whether an existing file may be replaced.
        brief: Leave lists of single pictures and folder names out of JSON.

    Raises:
        UsageError: A file is no report.
        MediaError: The file cannot be written.
    """
    reports = [SavedReport.read(path) for path in paths]
    if output.suffix == ".html":
        panels = {place: read_panels(panels_path(path)) for place, path in enumerate(paths)}
        write_text(html(reports, panels), output, overwrite=overwrite)
    elif output.suffix == ".md":
        write_text("\n".join(map(markdown, reports)), output, overwrite=overwrite)
    else:
        own = [_brief(report.values) if brief else report.values for report in reports]
        write_text(_dumped(own[0] if len(own) == 1 else own), output, overwrite=overwrite)


def write_text(text: str, output: Path, *, overwrite: bool) -> None:
    """Write a file whole or not at all.

    Raises:
        MediaError: The file cannot be written.
    """
    from basnet_runtime.media.files import whole_file

    with whole_file(output, overwrite=overwrite) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")  # a file's name may be any bytes


def _text_of(report: Report, output: Path) -> str:
    return json_text(report) if output.suffix == ".json" else markdown(report)


def _brief(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without the lists of single pictures, which grow with the data set, and without this machine's folders."""
    dropped = ("pictures", "file")
    short = {key: item for key, item in values.items() if key != "reference_file"}
    for name in {"candidates", "ways"} & short.keys():
        short[name] = [_without(dropped, row) if isinstance(row, Mapping) else row for row in short[name]]
    if isinstance(short.get("pictures"), str):
        short["pictures"] = PurePath(short["pictures"]).name
    return short


def _without(dropped: Collection[str], row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in row.items() if key not in dropped}


def _dumped(values: Any) -> str:
    return _compact(json.dumps(values, indent=1, allow_nan=False)) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def _compact(text: str) -> str:
    """The indented text with every innermost list and object on one line; no JSON string holds a line's end."""
    return re.sub(r"[\[{]\n[^\[\]{}]*[\]}]", lambda found: _one_line(found[0]), text)


def _one_line(text: str) -> str:
    inner = re.sub(r"\s*\n\s*", " ", text[1:-1]).strip()
    return f"{text[0]}{inner}{text[-1]}"
