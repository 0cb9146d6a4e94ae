"""Results for people and for machines: tables for a terminal, Markdown for a pull request, JSON, one page of HTML.

Every form is made from the JSON values, so that a saved report can be shown again in any of them; see `tables`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from basnet_benchmarks.tables import escaped_markdown, markdown_rows, table_of
from basnet_torch.errors import UsageError

__all__ = ["Report", "SavedReport", "check_output", "json_text", "markdown", "save", "terminal", "values_of"]

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
        except (OSError, ValueError) as error:
            raise UsageError(f"report {path}: cannot be read ({error})") from error
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
    """Everything, raw times included; a list of plain values stays on its line."""
    return _compact(json.dumps(values_of(report), indent=1, allow_nan=False)) + "\n"


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


def check_output(output: Path | None, *, overwrite: bool) -> None:
    """Refuse a file that could not be written later, before anything is measured.

    Raises:
        UsageError: The suffix is unknown, or the file exists and may not be replaced.
    """
    if output is None:
        return
    if output.suffix not in (".json", ".md"):
        raise UsageError(f"output {output}: its name must end in .json or .md")
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists already; --overwrite replaces it")


def save(report: Report, output: Path, *, overwrite: bool) -> None:
    """Write JSON or Markdown by the file's suffix, whole or not at all.

    Raises:
        MediaError: The file cannot be written.
    """
    from basnet_runtime.media.files import whole_file

    text = json_text(report) if output.suffix == ".json" else markdown(report)
    with whole_file(output, overwrite=overwrite) as beside:
        beside.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def _compact(text: str) -> str:
    """The indented text with every list of plain numbers on one line; no JSON string holds a line's end."""
    return re.sub(r"\[\n[^\[\]{}\"]*\]", lambda found: f"[{' '.join(found[0][1:-1].split())}]", text)
