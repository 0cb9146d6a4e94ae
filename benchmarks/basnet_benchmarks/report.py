"""Results for people and for machines: tables for a terminal, Markdown for a pull request, JSON.

Legend of a table's cells: `1.92 [1.88, 1.97]` is a median with its 95 % confidence interval.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basnet_benchmarks.accuracy import AccuracyReport, AccuracyRow
from basnet_benchmarks.gate import GateReport, GateRow
from basnet_benchmarks.latency import COVERS, LatencyReport, LatencyRow
from basnet_benchmarks.measurement import Estimate
from basnet_benchmarks.parity import ParityResult, ParityRow
from basnet_benchmarks.video import VideoReport
from basnet_runtime.parity import MEASURES
from basnet_torch.errors import UsageError

__all__ = ["Report", "Table", "check_output", "json_text", "markdown", "save", "table_of", "terminal"]

Report = AccuracyReport | GateReport | LatencyReport | ParityResult | VideoReport
_ACCURACY_HEADINGS = {
    "max_f": "maxF",
    "max_f_curve": "maxF of curves",
    "mean_f": "mean F",
    "weighted_f": "weighted F",
    "s_measure": "S",
    "e_max": "max E",
    "e_mean": "mean E",
    "mae": "MAE",
    "relaxed_boundary_f": "relaxF",
    "boundary_iou": "boundary IoU",
}
_NARROWEST = 150  # columns, where the output is no terminal and so has no width


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """What both a terminal and Markdown show.

    Attributes:
        title: In one line.
        columns: Headings; those in `numbers` are aligned right.
        numbers: Headings of numeric columns.
        rows: Cells.
        notes: Lines below.
        environment: Lines about where it was measured.
    """

    title: str
    columns: tuple[str, ...]
    numbers: frozenset[str]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    environment: tuple[str, ...]


def table_of(report: Report) -> Table:
    """The table of a report."""
    if isinstance(report, AccuracyReport):
        return _accuracy_table(report)
    if isinstance(report, GateReport):
        return _gate_table(report)
    if isinstance(report, LatencyReport):
        return _latency_table(report)
    return _parity_table(report) if isinstance(report, ParityResult) else _video_table(report)


def terminal(report: Report) -> str:
    """A table and notes for a terminal or a log, no wider than that."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    table = table_of(report)
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
    """The same for a pull request."""
    table = table_of(report)
    rule = ["---:" if column in table.numbers else "---" for column in table.columns]
    lines = [f"### {table.title}", "", *map(_line, (table.columns, rule, *table.rows)), ""]
    lines += [f"- {_escaped(note)}" for note in table.notes]
    lines += ["", "<details><summary>Environment</summary>", ""]
    lines += [f"- {_escaped(line)}" for line in table.environment]
    return "\n".join([*lines, "", "</details>", ""])


def json_text(report: Report) -> str:
    """Everything, raw times included; numbers that are not finite, which JSON lacks, become null."""
    return json.dumps(_finite(report.to_dict()), indent=1, allow_nan=False) + "\n"


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


def _latency_table(report: LatencyReport) -> Table:
    numbers = ("batch", "median ms", "p90 ms", "p99 ms", "pictures/s", "x PyTorch FP32", "idle ms")
    settings = report.config
    timed = f"{settings.rounds} interleaved rounds of {settings.calls} calls, {settings.warm_up} warm-up calls apart"
    idle = "idle: how long at most a backend's threads went on spinning after a turn, waited for before the next"
    notes = (
        f"A time covers {COVERS}.",
        f"{timed}; medians and ratios with their 95 % confidence interval over rounds; {idle}.",
        *(f"not run: {item.name}: {item.reason}" for item in report.not_run),
        *(f"warning: {warning}" for warning in report.warnings),
    )
    return Table(
        title="Latency of BASNet",
        columns=("model", "backend", *numbers),
        numbers=frozenset(numbers),
        rows=tuple(map(_latency_cells, report.rows)),
        notes=notes,
        environment=tuple(report.environment.lines()),
    )


def _latency_cells(row: LatencyRow) -> tuple[str, ...]:
    measured = row.measurement
    return (
        f"{row.model} (width {row.width}, {row.size[0]}x{row.size[1]})",
        row.runs_on,
        str(measured.pictures),
        _estimate(measured.median, 1000, 1),
        f"{1000 * measured.percentile(90):.1f}",
        f"{1000 * measured.percentile(99):.1f}",
        f"{measured.pictures_per_second:.2f}",
        _estimate(row.ratio, 1, 2) if row.ratio else "no reference",
        f"{1000 * max(measured.idle, default=0):.0f}",
    )


def _estimate(estimate: Estimate, factor: float, digits: int) -> str:
    text = f"{factor * estimate.value:.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{factor * estimate.low:.{digits}f}, {factor * estimate.high:.{digits}f}]"


def _parity_table(result: ParityResult) -> Table:
    numbers = ("pictures", "max", "99.9 %", "mean", "flips %", "boundary IoU", "MAE change", "maxF change")
    return Table(
        title=f"Parity with {result.reference} in PyTorch FP32 on {result.pictures}",
        columns=("candidate", *numbers, "verdict"),
        numbers=frozenset(numbers),
        rows=tuple(map(_parity_cells, result.rows)),
        notes=tuple(note for row in result.rows for note in _parity_notes(row)),
        environment=(f"reference: {result.reference_runs_on}", *result.environment.lines()),
    )


def _parity_cells(row: ParityRow) -> tuple[str, ...]:
    report = row.report
    if report is None:
        return (row.name, *("-",) * 8, row.verdict)
    return (
        row.name,
        str(report.pictures),
        f"{report.max_abs:.2g}",
        f"{report.p999_abs:.2g}",
        f"{report.mean_abs:.2g}",
        f"{100 * report.flips:.4f}",
        f"{report.boundary_iou:.4f}",
        _change(report.mae_change),
        _change(report.max_f_change),
        row.verdict,
    )


def _change(value: float | None) -> str:
    return "no truth" if value is None else f"{value:+.5f}"


def _parity_notes(row: ParityRow) -> list[str]:
    """The pictures to look at, and why it did not pass."""
    notes = [f"{row.name}: {row.verdict}: {remark}" for remark in row.remarks]
    if row.report is not None:
        worst = ", ".join(f"{name} {picture}" for name, picture in row.report.worst.items())
        notes.append(f"{row.name}: worst pictures: {worst}")
    return notes


def _accuracy_table(report: AccuracyReport) -> Table:
    numbers = ("pictures", *_ACCURACY_HEADINGS.values())
    notes = [f"{report.model} on {report.runs_on}; each mask {report.finishing}, at its picture's own size."]
    notes.append(
        "maxF: largest F of mean precision and mean recall per threshold, beta^2 = 0.3; maxF of curves: largest "
        "value of the mean F curve; relaxF: boundaries with 3 pixels of slack; E, S: enhanced-alignment and structure."
    )
    for row in report.rows:
        for kind, pictures in (("best", row.best), ("worst", row.worst)):
            named = ", ".join(f"{picture.name} (MAE {picture.mae:.3f})" for picture in pictures)
            notes.append(f"{row.dataset}, {kind}: {named}")
    return Table(
        title=f"Accuracy of {report.model}",
        columns=("data set", *numbers),
        numbers=frozenset(numbers),
        rows=tuple(map(_accuracy_cells, report.rows)),
        notes=tuple(notes),
        environment=tuple(report.environment.lines()),
    )


def _accuracy_cells(row: AccuracyRow) -> tuple[str, ...]:
    values = row.scores.to_dict()
    return (row.dataset, str(row.scores.pictures), *(f"{values[name]:.4f}" for name in _ACCURACY_HEADINGS))


def _gate_table(report: GateReport) -> Table:
    numbers = (*MEASURES, "x PyTorch FP32")
    notes = [f"{row.name} on {row.device}: {remark}" for row in report.rows for remark in row.remarks]
    notes += [f"{name} on {device}: is in the baseline and was not measured" for device, name in report.gone]
    notes += [f"the baseline {report.baseline} was written anew"] if report.updated else []
    return Table(
        title=f"Gate against {report.baseline}: {report.conclusion}",
        columns=("candidate", "device", *numbers, "verdict"),
        numbers=frozenset(numbers),
        rows=tuple(map(_gate_cells, report.rows)),
        notes=("Each cell: the baseline's value, then the one of now.", *notes),
        environment=tuple(report.environment.lines()),
    )


def _gate_cells(row: GateRow) -> tuple[str, ...]:
    before, now = (row.before.parity if row.before else {}), row.now()
    cells = (f"{_short(before.get(name))} -> {_short(now.get(name))}" for name in MEASURES)
    speed = f"{_ratio(row.before.speed if row.before else None)} -> {_ratio(row.speed)}"
    return (row.name, row.device, *cells, speed, row.verdict)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _ratio(estimate: Estimate | None) -> str:
    return "-" if estimate is None else _estimate(estimate, 1, 2)


def _video_table(report: VideoReport) -> Table:
    numbers = ("run", "frames", "seconds", "frames/s")
    stages = tuple(report.stages)
    rows = tuple(
        (str(index), str(run.frames), f"{run.seconds:.2f}", f"{run.frames_per_second:.2f}", *run.shares(stages))
        for index, run in enumerate(report.runs, start=1)
    )
    covers = "decoding, the network and encoding are in it, opening the model is not"
    notes = (
        f"{report.model} on {report.runs_on}",
        f"median {_estimate(report.frames_per_second, 1, 2)} frames per second; {covers}.",
        f"Shares of all processor time: {', '.join(stages)}.",
    )
    return Table(
        title=f"Frames per second of basnet-run on {report.source}",
        columns=(*numbers, *stages),
        numbers=frozenset((*numbers, *stages)),
        rows=rows,
        notes=notes,
        environment=tuple(report.environment.lines()),
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
