"""Results as JSON, and tables from that JSON for a terminal or Markdown.

    print(terminal(values_of(measure_latency(config))))
    print(markdown(read_result(Path("latency.json"))))

A cell `1.92 [1.88, 1.97]` is a median with its 95 % confidence interval.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path, PurePath
from statistics import median
from typing import Any

from basnet_torch.errors import UsageError
from basnet_torch.json_values import from_plain, keys, list_of

__all__ = ["ACCURACY", "Shown", "Table", "json_text", "markdown", "read_result", "shown", "terminal", "values_of"]

Values = Mapping[str, Any]
_DIGITS = 6  # significant, of every number: what is beyond is noise of any measurement made here
_NARROWEST = 150  # columns, where the output is no terminal and so has no width
_MOST_WARNINGS = 5  # shown; the JSON has all
_NOT_FINITE = "not finite"  # JSON has no NaN and no infinity: such a value is null there
ACCURACY = {
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


_TEXTS, _FLOATS, _SHARES = list[str], list[float], dict[str, float | None]
_NAMED = "model backend precision"
_MEDIAN = keys("", "value low high")
_MEMORY = keys("", "before_bytes opened_bytes highest_bytes device_bytes", "threads")
_DEVICE = keys("no_graph", "", "", **dict.fromkeys(("copy_in_s", "compute_s", "graph_s", "copy_out_s"), _FLOATS))
_DIFFERENCES = "max_abs p999_abs mean_abs flips boundary_iou mae_change max_f_change"
_SCORED = list_of(keys("name", "mae"))
_RUN = keys("", "seconds frames_per_second of_ceiling", "frames", cpu_seconds_by_stage=_SHARES)
_LISTS = {"libraries": dict[str, str], "processor_flags": _TEXTS, "gpus": _TEXTS}
_ENVIRONMENT = keys("processor python system commit date", "load", "processors threads", **_LISTS)
_TIMED = {"size": tuple[int, int], "idle_s": _FLOATS, "median_s": _MEDIAN, "ratio_to_pytorch_fp32": _MEDIAN | None}
_COMPARED = {"report": keys("", _DIFFERENCES, "pictures", worst=dict[str, str]) | None, "remarks": _TEXTS}
_GATED = {"parity": _SHARES, "speed": _MEDIAN | None}
_ROWS: dict[str, tuple[str, Any]] = {  # of each command's result: the key of its rows, and their keys
    "latency": (
        "results",
        keys(
            f"{_NAMED} runs_on",
            "p90_s p99_s pictures_per_second",
            "width pictures",
            **{**_TIMED, "memory": _MEMORY | None, "device": _DEVICE | None},
        ),
    ),
    "parity": ("candidates", keys(f"{_NAMED} verdict", **_COMPARED)),
    "accuracy": ("datasets", keys("dataset", " ".join(ACCURACY), "pictures empty", best=_SCORED, worst=_SCORED)),
    "gate": ("rows", keys("name device verdict", remarks=_TEXTS, before=keys("", **_GATED) | None, **_GATED)),
    "video": (
        "results",
        keys("model runs_on", "of_ceiling", runs=list_of(_RUN), frames_per_second=_MEDIAN, ratio_to_first=_MEDIAN),
    ),
    "threshold": ("rows", keys("name", "auc", "objects lost empty found")),
}


@dataclass(frozen=True, slots=True)
class Table:
    """One table: headings and rows of text cells."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Which columns hold numbers, and are aligned right."""
        number = re.compile(r"[-+]?\d|-$|no |not ")
        return tuple(all(number.match(row[i]) for row in self.rows) for i in range(len(self.columns)))


@dataclass(frozen=True, slots=True)
class Shown:
    """A result for people: title, tables, notes, and lines about the machine."""

    title: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    environment: tuple[str, ...]


def values_of(result: Any) -> dict[str, Any]:
    """Return the JSON values of a dataclass: the fields in its `JSON`, or all.

    Numbers get six significant digits; what JSON lacks becomes null. A value with `to_dict` says itself what it is.
    """
    values = _plain(result)
    assert isinstance(values, dict)  # noqa: S101 - for the type checker
    return values


def json_text(values: Any) -> str:
    """Dump values as indented JSON with every innermost list and object on one line."""

    def one_line(found: re.Match[str]) -> str:
        return found[0][0] + re.sub(r"\s*\n\s*", " ", found[0][1:-1]).strip() + found[0][-1]

    text = json.dumps(values, indent=1, allow_nan=False)
    return re.sub(r"[\[{]\n[^\[\]{}]*[\]}]", one_line, text) + "\n"


def read_result(path: Path) -> dict[str, Any]:
    """Read the JSON file of a result.

    Raises:
        UsageError: The file cannot be read, is not JSON, or is not a result.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"result {path}: cannot be read ({error.strerror})") from error
    except ValueError:
        values = None
    if not isinstance(values, dict) or "command" not in values:
        raise UsageError(f"result {path}: is no result; give JSON that a command of basnet-bench wrote")
    return values


def brief(values: Values) -> dict[str, Any]:
    """Drop lists of single pictures, and this machine's folders."""
    short = {key: item for key, item in values.items() if key != "reference_file"}
    if isinstance(short.get("candidates"), list):
        dropped = ("pictures", "file")
        short["candidates"] = [{k: v for k, v in row.items() if k not in dropped} for row in short["candidates"]]
    if isinstance(short.get("pictures"), str):
        short["pictures"] = PurePath(short["pictures"]).name
    return short


def shown(values: Values) -> Shown:
    """Make a result's tables and notes.

    Raises:
        UsageError: The values are of an unknown command, or a part of them is missing.
    """
    command = values.get("command")
    if command not in _SHOWN:
        raise UsageError(f"command is {command!r}; a result is of one of {', '.join(sorted(_SHOWN))}")
    try:
        name, row = _ROWS[command]
        from_plain(dict(values), keys("", environment=_ENVIRONMENT, **{name: list_of(row)}))
        title, tables, notes = _SHOWN[command](values)
        return Shown(title, tuple(tables), tuple(notes), _environment_lines(values["environment"]))
    except (ValueError, LookupError, TypeError) as error:
        raise UsageError(f"the {command} result lacks a value ({error}); measure it with this version") from error


def terminal(values: Values) -> str:
    """Format a result for a terminal or a log."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    found = shown(values)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _NARROWEST)
    with console.capture() as capture:
        for table in found.tables:
            grid = RichTable(title=Text(table.title or found.title), title_justify="left")
            for column, numeric in zip(table.columns, table.numeric, strict=True):
                grid.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
            for row in table.rows:
                grid.add_row(*map(Text, row))
            console.print(grid)
        for line in (*found.notes, *found.environment):
            console.print(Text(line), soft_wrap=True)
    return capture.get().rstrip("\n")


def markdown(values: Values, name: str = "") -> str:
    """Format a result as Markdown, under its title or under `name`."""
    found = shown(values)
    lines = [f"### {name}", "", f"{found.title}:"] if name else [f"### {found.title}"]
    for table in found.tables:
        lines += ["", f"{table.title}:"] if table.title else []
        rule = ["---:" if numeric else "---" for numeric in table.numeric]
        lines += ["", *(f"| {' | '.join(map(_escaped, cells))} |" for cells in (table.columns, rule, *table.rows))]
    lines += ["", *(f"- {_escaped(note)}" for note in found.notes)] if found.notes else []
    return "\n".join([*lines, "", f"<sub>{'<br>'.join(map(_escaped, found.environment))}</sub>", ""])


def candidate_name(row: Values) -> str:
    """Name a row's file, library and arithmetic."""
    return f"{row['model']}, {row['backend']} {row['precision']}"


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    if is_dataclass(value):
        names = getattr(value, "JSON", None) or [field.name for field in fields(value)]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _number(value: float | None, form: str, factor: float = 1) -> str:
    return _NOT_FINITE if value is None else format(factor * value, form)


def _estimate(estimate: Values | None, factor: float = 1, digits: int = 2) -> str:
    """A median with its interval, where there is one."""
    if estimate is None:
        return "-"
    text = _number(estimate["value"], f".{digits}f", factor)
    if estimate["low"] is None or estimate["high"] is None:
        return text
    return f"{text} [{factor * estimate['low']:.{digits}f}, {factor * estimate['high']:.{digits}f}]"


def _environment_lines(found: Values) -> tuple[str, ...]:
    flags = " ".join(found["processor_flags"]) or "no flags"
    load = "unknown" if found["load"] is None else f"{found['load']:.1f}"
    machine = (f"{found['processor']} ({flags})", f"{found['processors']} logical CPUs", *found["gpus"])
    libraries = (f"{name} {release}" for name, release in found["libraries"].items())
    return (
        f"{', '.join(machine)}, {found['threads']} threads, load before: {load}",
        f"Python {found['python']}, {found['system']}, {', '.join(libraries)}",
        f"commit {found['commit']}, {found['date']}",
    )


_Parts = tuple[str, Iterable[Table], Iterable[str]]


def _latency(values: Values) -> _Parts:
    rows = values["results"]
    names = [*dict.fromkeys(row["model"] for row in rows)]
    title = f"Latency of {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
    adopted = any(row.get("ratio_to_reference") and not row["ratio_to_pytorch_fp32"] for row in rows)
    ratio = "x reference" if adopted else "x PyTorch FP32"
    timed = Table(
        ("model", "backend", "batch", "median ms", "p90 ms", "p99 ms", "pictures/s", ratio, "idle ms"),
        tuple(map(_latency_cells, rows)),
    )
    parts = (timed, _stages(values.get("stages", ())), _memory(rows), _on_device(rows))
    return title, (table for table in parts if table.rows), _latency_notes(values)


def _latency_cells(row: Values) -> tuple[str, ...]:
    ratio = row.get("ratio_to_reference") or row["ratio_to_pytorch_fp32"]
    return (
        f"{row['model']} ({'width {width}, '.format(**row) if row['width'] else ''}{row['size'][0]}x{row['size'][1]})",
        row["runs_on"],
        str(row["pictures"]),
        _estimate(row["median_s"], 1000, 1),
        f"{1000 * row['p90_s']:.1f}",
        f"{1000 * row['p99_s']:.1f}",
        f"{row['pictures_per_second']:.2f}",
        _estimate(ratio) if ratio else "no reference",
        f"{1000 * max(row['idle_s'], default=0):.0f}",
    )


def _stages(rows: Sequence[Values]) -> Table:
    """Medians of each step of one picture's way from file to file."""
    steps = tuple(rows[0]["stages"]) if rows else ()
    cells = (
        (
            candidate_name(row),
            _estimate(row["total_s"], 1000, 1),
            *(_number(row["stages"][step]["median_s"]["value"], ".2f", 1000) for step in steps),
        )
        for row in rows
    )
    title = f"From file to file, {rows[0]['picture']}, ms" if rows else ""
    return Table(("candidate", "total", *(step.replace("_", " ") for step in steps)), tuple(cells), title)


def _memory(rows: Sequence[Values]) -> Table:
    keys = ("before_bytes", "opened_bytes", "highest_bytes", "device_bytes")
    found = ((row, row["memory"]) for row in rows if row.get("memory"))
    cells = (
        (
            candidate_name(row),
            str(row["pictures"]),
            *("-" if memory[key] is None else f"{memory[key] / 1e6:.0f}" for key in keys),
            str(memory["threads"]),
        )
        for row, memory in found
    )
    columns = ("candidate", "batch", "before", "opened", "at most", "on the device", "threads")
    return Table(columns, tuple(cells), "Memory in a process of its own, MB")


def _on_device(rows: Sequence[Values]) -> Table:
    """Medians by events on a CUDA device."""
    parts = ("copy_in_s", "compute_s", "graph_s", "copy_out_s")
    found = ((row, row["device"]) for row in rows if row.get("device"))
    cells = (
        (
            candidate_name(row),
            str(row["pictures"]),
            *(f"{1000 * median(times[part]):.3f}" if times[part] else "-" for part in parts),
            _number(row["device_ratio_to_pytorch_fp32"], ".2f") if row["device_ratio_to_pytorch_fp32"] else "-",
            times["no_graph"],
        )
        for row, times in found
    )
    columns = ("candidate", "batch", "copy in", "compute", "graph", "copy out", "x PyTorch FP32", "why no graph")
    return Table(columns, tuple(cells), "On the device, by events, ms")


def _latency_notes(values: Values) -> Iterator[str]:
    settings, warnings = values["settings"], values["warnings"]
    yield f"A time covers {values['covers']}."
    yield (
        f"{settings['rounds']} interleaved rounds of {settings['calls']} calls, {settings['warm_up']} warm-up calls "
        "apart; medians and ratios with their 95 % confidence interval over rounds; idle: how long at most a "
        "backend's threads went on spinning after a turn, waited for before the next."
    )
    yield from dict.fromkeys(row["note"] for row in values.get("stages", ()))
    for row in values["results"]:
        if row.get("no_memory"):
            yield f"memory of {candidate_name(row)}, batch {row['pictures']}: not measured: {row['no_memory']}"
    moments = values.get("clocks", ())
    means = [sum(moment["mhz"]) / len(moment["mhz"]) for moment in moments if moment["mhz"]]
    if means:
        yield f"CPU clock: {min(means):.0f} to {max(means):.0f} MHz ({moments[0]['source']})"
    for card in dict.fromkeys(card for moment in moments for card in moment["gpus"]):
        yield f"graphics clock, memory clock, temperature, power, held back by: {card}"
    yield from (f"not run: {item['name']}: {item['reason']}" for item in values["not_run"])
    yield from (f"warning: {warning}" for warning in warnings[:_MOST_WARNINGS])
    if len(warnings) > _MOST_WARNINGS:
        yield f"{len(warnings) - _MOST_WARNINGS} more warnings are in the JSON"


def _parity(values: Values) -> _Parts:
    columns = ("candidate", "pictures", "max", "99.9 %", "mean", "flips %", "boundary IoU", "MAE change", "maxF change")
    rows = values["candidates"]
    notes = [f"reference: {values['reference_runs_on']}"]
    for row in rows:
        notes += [f"{candidate_name(row)}: {row['verdict']}: {remark}" for remark in row["remarks"]]
        if row["report"] is not None:
            worst = ", ".join(f"{name} {picture}" for name, picture in row["report"]["worst"].items())
            notes.append(f"{candidate_name(row)}: worst pictures: {worst}")
    library = "PyTorch" if values["reference_runs_on"].startswith("PyTorch") else "ONNX Runtime"
    title = f"Parity with {values['reference']} in {library} on {PurePath(values['pictures']).name}"
    return title, [Table((*columns, "verdict"), tuple(map(_parity_cells, rows)))], notes


def _parity_cells(row: Values) -> tuple[str, ...]:
    report = row["report"]
    if report is None:
        return (candidate_name(row), *("-",) * 8, row["verdict"])
    changes = (
        f"{report[name]:+.5f}" if report[name] is not None else _NOT_FINITE if report["max_abs"] is None else "no truth"
        for name in ("mae_change", "max_f_change")
    )
    return (
        candidate_name(row),
        str(report["pictures"]),
        *(_number(report[name], ".2g") for name in ("max_abs", "p999_abs", "mean_abs")),
        _number(report["flips"], ".4f", 100),
        _number(report["boundary_iou"], ".4f"),
        *changes,
        row["verdict"],
    )


def _accuracy(values: Values) -> _Parts:
    how = values.get("postprocessing", values.get("finishing"))  # reports of before call it so
    how = f"{how}{', its edges refined' if values.get('refine_edges') else ''}"
    notes = [f"{values['model']} on {values['runs_on']}; each mask {how}, at its picture's own size."]
    notes.append(
        "maxF: largest F of mean precision and mean recall per threshold, beta^2 = 0.3; maxF of curves: largest value "
        "of the mean F curve; relaxF: boundaries with 3 pixels of slack; E, S: enhanced-alignment and structure."
    )
    for row in values["datasets"]:
        for kind in ("best", "worst"):
            named = ", ".join(f"{picture['name']} (MAE {picture['mae']:.3f})" for picture in row[kind])
            notes.append(f"{row['dataset']}, {kind}: {named}")
        notes += [f"{row['dataset']}: not scored: {failure['error']}" for failure in row.get("failures", ())]
        if row["empty"]:
            notes.append(f"{row['dataset']}: {row['empty']} pictures hold no object; their recall and F are 0.")
    cells = (
        (row["dataset"], str(row["pictures"]), *(_number(row[name], ".4f") for name in ACCURACY))
        for row in values["datasets"]
    )
    table = Table(("data set", "pictures", *ACCURACY.values()), tuple(cells))
    return f"Accuracy of {values['model']}", [table], notes


def _gate(values: Values) -> _Parts:
    rows, measures = values["rows"], tuple(values["measures"])

    def cells(row: Values) -> tuple[str, ...]:
        before, now = (row["before"] or {"parity": {}, "speed": None}), row["parity"]
        pairs = ((before["parity"].get(name), now.get(name)) for name in measures)
        moved = (" -> ".join("-" if value is None else f"{value:.3g}" for value in pair) for pair in pairs)
        speed = f"{_estimate(before['speed'])} -> {_estimate(row['speed'])}"
        return (row["name"], row["device"], *moved, speed, row["verdict"])

    notes = ["Each cell: the baseline's value, then the one of now."]
    notes += [f"{row['name']} on {row['device']}: {remark}" for row in rows for remark in row["remarks"]]
    notes += [f"{name} on {device}: is in the baseline and was not measured" for device, name in values["gone"]]
    notes += [f"the baseline {values['baseline']} was written anew"] if values["updated"] else []
    table = Table(("candidate", "device", *measures, "x PyTorch FP32", "verdict"), tuple(map(cells, rows)))
    return f"Gate against {values['baseline']}: {values['conclusion']}", [table], notes


def _video(values: Values) -> _Parts:
    results, processors = values["results"], values["environment"]["processors"]
    stages = tuple(results[0]["runs"][0]["cpu_seconds_by_stage"])
    compared = len(results) > 1
    ratio = ("x first model",) if compared else ()
    columns = ("model", "run", "frames", "seconds", "frames/s", *ratio, "of the ceiling", *stages)
    rows = (row for result in results for row in _video_rows(result, stages, compared=compared))
    notes = [f"{result['model']} on {result['runs_on']}" for result in results]
    notes.append("Decoding, the network and encoding are in the frames per second, opening the model is not.")
    if compared:
        taken = f"{len(results[0]['runs'])} interleaved rounds, each model once per round"
        notes.append(f"{taken}; x first model: median of the ratios of each round to {results[0]['model']}.")
    notes.append(f"Of the ceiling: of the frames per second that the stages' CPU time allows on {processors} CPUs.")
    notes.append(f"Shares of all CPU time: {', '.join(stages)}.")
    return f"Frames per second of basnet-run on {values['source']}", [Table(columns, tuple(rows))], notes


def _video_rows(result: Values, stages: Sequence[str], *, compared: bool) -> Iterator[tuple[str, ...]]:
    """Each run, then the medians over the runs."""

    def row(name: str, runs: Sequence[Values], speed: str, ratio: str, ceiling: float) -> tuple[str, ...]:
        size = f"{median(run['frames'] for run in runs):.0f}", f"{median(run['seconds'] for run in runs):.2f}"
        spent = [run["cpu_seconds_by_stage"] for run in runs if sum(run["cpu_seconds_by_stage"].values()) > 0]
        shares = ([each[stage] / sum(each.values()) for each in spent] for stage in stages)
        told = (f"{median(share):.0%}" if share else "-" for share in shares)
        return (result["model"], name, *size, speed, *((ratio,) if compared else ()), f"{ceiling:.0%}", *told)

    for index, run in enumerate(result["runs"], start=1):
        yield row(str(index), [run], f"{run['frames_per_second']:.2f}", "-", run["of_ceiling"])
    speed, ratio = _estimate(result["frames_per_second"]), _estimate(result["ratio_to_first"])
    yield row("median", result["runs"], speed, ratio, result["of_ceiling"])


def _threshold(values: Values) -> _Parts:
    def share(part: int, whole: int) -> str:
        return f"{100 * part / whole:.1f}" if whole else "-"

    def cells(row: Values) -> tuple[str, ...]:
        lost, found = share(row["lost"], row["objects"]), share(row["found"], row["empty"])
        counts = tuple(str(row[name]) for name in ("objects", "lost", "empty", "found"))
        auc = "-" if row["auc"] is None else f"{row['auc']:.3f}"
        return (row["name"], *counts[:2], lost, *counts[2:], found, auc)

    columns = ("pictures", "objects", "lost", "lost %", "backgrounds", "called salient", "called salient %", "AUC")
    how = f"chosen: {values['lost_allowed']:.1%} of the objects may be lost" if values["chosen"] else "the model's own"
    notes = [
        f"{values['model']} on {values['runs_on']}; its own threshold is {values['before']:.3f}.",
        "Objects: pictures that show one; lost: called nothing. Backgrounds: pieces of pictures clear of the object.",
        *([f"stored in {values['stored']}"] if values["stored"] else []),
    ]
    table = Table(columns, tuple(map(cells, values["rows"])))
    return f"Nothing salient below {values['threshold']:.3f} ({how})", [table], notes


_SHOWN: dict[str, Callable[[Values], _Parts]] = {
    "accuracy": _accuracy,
    "gate": _gate,
    "latency": _latency,
    "parity": _parity,
    "threshold": _threshold,
    "video": _video,
}
