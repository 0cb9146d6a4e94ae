"""Tables of results, made from the very values that the JSON holds, so that a saved report gives the same table again.

table = table_of(json.loads(Path("latency-cpu.json").read_text()))

Legend of a table's cells: `1.92 [1.88, 1.97]` is a median with its 95 % confidence interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import median
from typing import Any

from basnet_torch.errors import UsageError

__all__ = [
    "ACCURACY_HEADINGS",
    "COMMANDS",
    "Table",
    "Values",
    "environment_lines",
    "escaped_markdown",
    "estimate_text",
    "machine_line",
    "markdown_rows",
    "number",
    "table_of",
]

Values = Mapping[str, Any]
ACCURACY_HEADINGS = {
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
_CONVENTIONS = (
    "maxF: largest F of mean precision and mean recall per threshold, beta^2 = 0.3; maxF of curves: largest value of "
    "the mean F curve; relaxF: boundaries with 3 pixels of slack; E, S: enhanced-alignment and structure."
)
_BUSY = 0.5  # processes running before, from which on times are not to be trusted; as `Environment.warnings` has it
_RATIO_TO_FIRST = "x first model"
_NOT_FINITE = "not finite"  # JSON has no NaN and no infinity: such a value is null there


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """What a terminal, Markdown and HTML show alike.

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


def table_of(values: Values) -> Table:
    """The table of a report's JSON values.

    Raises:
        UsageError: The values are of no command that this version knows, or a part of them is missing.
    """
    command = values.get("command")
    if command not in _TABLES:
        raise UsageError(f"command is {command!r}; a report is of one of {', '.join(sorted(_TABLES))}")
    try:
        return _TABLES[command](values)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UsageError(
            f"the {command} report lacks what its table shows ({error!r}); write it with this version"
        ) from error


def number(value: float | None, form: str) -> str:
    """A number by its format.

    >>> number(0.12345, ".3f"), number(None, ".3f")
    ('0.123', 'not finite')
    """
    return _NOT_FINITE if value is None else format(value, form)


def estimate_text(estimate: Values, factor: float, digits: int) -> str:
    """A median with its interval, where there is one.

    >>> estimate_text({"value": 0.0019, "low": 0.0018, "high": 0.002}, 1000, 1)
    '1.9 [1.8, 2.0]'
    """
    text = number(None if estimate["value"] is None else factor * estimate["value"], f".{digits}f")
    if estimate["low"] is None or estimate["high"] is None:
        return text
    return f"{text} [{factor * estimate['low']:.{digits}f}, {factor * estimate['high']:.{digits}f}]"


def environment_lines(environment: Values) -> tuple[str, ...]:
    """Where something was measured, one fact a line."""
    libraries = ", ".join(f"{name} {release}" for name, release in environment["libraries"].items())
    flags = " ".join(environment["processor_flags"]) or "no flags"
    load = environment["load"]
    return (
        f"processor: {environment['processor']}, {environment['processors']} logical ({flags})",
        f"threads: {environment['threads']}",
        f"load before: {'unknown' if load is None else f'{load:.2f}'}",
        f"graphics: {'; '.join(environment['gpus']) or 'none'}",
        f"libraries: {libraries}",
        f"system: Python {environment['python']}, {environment['system']}",
        f"commit: {environment['commit']}",
        f"date: {environment['date']}",
    )


def machine_line(values: Values) -> str:
    """The machine in one line, to stand below a table: processor with what it can do, graphics card, threads, date."""
    found = values["environment"]
    flags, load = " ".join(found["processor_flags"]), found["load"] or 0.0
    parts = (
        f"{found['processor']}{f' ({flags})' if flags else ''}",
        f"{found['processors']} logical processor{'s' if found['processors'] != 1 else ''}",
        *found["gpus"],
        f"{found['threads']} thread{'s' if found['threads'] != 1 else ''}",
        *([f"load before: {load:.1f}"] if load >= _BUSY else []),
        found["date"][:10],
    )
    return "; ".join(parts)


def markdown_rows(table: Table) -> list[str]:
    """The table's lines in Markdown, headings first."""
    rule = ["---:" if column in table.numbers else "---" for column in table.columns]
    return [_markdown_line(cells) for cells in (table.columns, rule, *table.rows)]


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(escaped_markdown, cells))} |"


def escaped_markdown(text: str) -> str:
    """The text as it reads in Markdown, in a table's cell too."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _latency_table(values: Values) -> Table:
    numbers = ("batch", "median ms", "p90 ms", "p99 ms", "pictures/s", "x PyTorch FP32", "idle ms")
    settings = values["settings"]
    timed = f"{settings['rounds']} interleaved rounds of {settings['calls']} calls"
    apart = f"{settings['warm_up']} warm-up calls apart"
    idle = "idle: how long at most a backend's threads went on spinning after a turn, waited for before the next"
    notes = (
        f"A time covers {values['covers']}.",
        f"{timed}, {apart}; medians and ratios with their 95 % confidence interval over rounds; {idle}.",
        *_latency_notes(values),
        *(f"not run: {item['name']}: {item['reason']}" for item in values["not_run"]),
        *(f"warning: {warning}" for warning in values["warnings"]),
    )
    return Table(
        title=f"Latency of {_some([*dict.fromkeys(row['model'] for row in values['results'])])}",
        columns=("model", "backend", *numbers),
        numbers=frozenset(numbers),
        rows=tuple(map(_latency_cells, values["results"])),
        notes=notes,
        environment=environment_lines(values["environment"]),
    )


def _some(names: Sequence[str]) -> str:
    """Names for a heading, which has room for three."""
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def _latency_notes(values: Values) -> list[str]:
    """Throughput, the whole way of a picture, memory, the device's own times, clocks: what stands beside the table."""
    notes = [
        f"throughput: {_rates(row)}" for row in values.get("throughput", ()) if len(row["pictures_per_second"]) > 1
    ]
    notes += [f"whole way of {row['picture']}: {_steps(row)}" for row in values.get("stages", ())]
    notes += [line for row in values["results"] for line in (*_memory_lines(row), *_device_lines(row))]
    return [*notes, *_clock_lines(values.get("clocks", ()))]


def _rates(row: Values) -> str:
    rates = ", ".join(f"{rate:.2f} at batch {batch}" for batch, rate in row["pictures_per_second"].items())
    return f"{_candidate(row)}: {rates} pictures/s; most at batch {row['best_batch']}"


def _steps(row: Values) -> str:
    """The steps in milliseconds, medians, and each one's share."""
    medians = {step: stage["median_s"]["value"] for step, stage in row["stages"].items()}
    total = sum(medians.values())
    steps = ", ".join(f"{step.replace('_', ' ')} {1000 * s:.2f} ({s / total:.0%})" for step, s in medians.items())
    return f"{_candidate(row)}: {estimate_text(row['total_s'], 1000, 1)} ms: {steps}; {row['note']}"


def _memory_lines(row: Values) -> list[str]:
    found = row.get("memory")
    name = f"memory of {_candidate(row)}, batch {row['pictures']}, in a process of its own"
    if found is None:
        return [f"{name}: not measured: {row['no_memory']}"] if row.get("no_memory") else []
    on_device = "" if found["device_bytes"] is None else f", {found['device_bytes'] / 1e6:.0f} MB on the device"
    before, opened, most = (found[key] / 1e6 for key in ("before_bytes", "opened_bytes", "highest_bytes"))
    text = f"{before:.0f} MB before, {opened:.0f} MB opened, {most:.0f} MB at most{on_device}"
    return [f"{name}: {text}; {found['threads']} threads"]


def _device_lines(row: Values) -> list[str]:
    found = row.get("device")
    if found is None:
        return []
    parts = ("copy in", "compute", "graph", "copy out")
    medians = {part: found[f"{part.replace(' ', '_')}_s"] for part in parts}
    told = ", ".join(f"{part} {1000 * median(times):.3f} ms" for part, times in medians.items() if times)
    graph = f"; no graph: {found['no_graph']}" if found["no_graph"] else ""
    ratio = row["device_ratio_to_pytorch_fp32"]
    faster = "" if ratio is None else f"; {ratio:.2f} times PyTorch eager FP32 on the device"
    return [f"on the device: {_candidate(row)}, batch {row['pictures']}: {told}{graph}{faster}"]


def _clock_lines(moments: Sequence[Values]) -> list[str]:
    means = [sum(moment["mhz"]) / len(moment["mhz"]) for moment in moments if moment["mhz"]]
    lines = [f"processor clock: {min(means):.0f} to {max(means):.0f} MHz ({moments[0]['source']})"] if means else []
    cards = dict.fromkeys(card for moment in moments for card in moment["gpus"])
    return [*lines, *(f"graphics clock, memory clock, temperature, power, held back by: {card}" for card in cards)]


def _latency_cells(row: Values) -> tuple[str, ...]:
    ratio = row["ratio_to_pytorch_fp32"]
    return (
        f"{row['model']} (width {row['width']}, {row['size'][0]}x{row['size'][1]})",
        row["runs_on"],
        str(row["pictures"]),
        estimate_text(row["median_s"], 1000, 1),
        f"{1000 * row['p90_s']:.1f}",
        f"{1000 * row['p99_s']:.1f}",
        f"{row['pictures_per_second']:.2f}",
        estimate_text(ratio, 1, 2) if ratio else "no reference",
        f"{1000 * max(row['idle_s'], default=0):.0f}",
    )


def _parity_table(values: Values) -> Table:
    numbers = ("pictures", "max", "99.9 %", "mean", "flips %", "boundary IoU", "MAE change", "maxF change")
    rows = values["candidates"]
    return Table(
        title=f"Parity with {values['reference']} in PyTorch FP32 on {PurePath(values['pictures']).name}",
        columns=("candidate", *numbers, "verdict"),
        numbers=frozenset(numbers),
        rows=tuple(map(_parity_cells, rows)),
        notes=tuple(note for row in rows for note in _parity_notes(row)),
        environment=(f"reference: {values['reference_runs_on']}", *environment_lines(values["environment"])),
    )


def _candidate(row: Values) -> str:
    return f"{row['model']}, {row['backend']} {row['precision']}"


def _parity_cells(row: Values) -> tuple[str, ...]:
    report = row["report"]
    if report is None:
        return (_candidate(row), *("-",) * 8, row["verdict"])
    flips = report["flips"]
    return (
        _candidate(row),
        str(report["pictures"]),
        number(report["max_abs"], ".2g"),
        number(report["p999_abs"], ".2g"),
        number(report["mean_abs"], ".2g"),
        number(None if flips is None else 100 * flips, ".4f"),
        number(report["boundary_iou"], ".4f"),
        _change(report, "mae_change"),
        _change(report, "max_f_change"),
        row["verdict"],
    )


def _change(report: Values, name: str) -> str:
    if report[name] is not None:
        return f"{report[name]:+.5f}"
    return _NOT_FINITE if report["max_abs"] is None else "no truth"


def _parity_notes(row: Values) -> list[str]:
    """The pictures to look at, and why it did not pass."""
    notes = [f"{_candidate(row)}: {row['verdict']}: {remark}" for remark in row["remarks"]]
    if row["report"] is not None:
        worst = ", ".join(f"{name} {picture}" for name, picture in row["report"]["worst"].items())
        notes.append(f"{_candidate(row)}: worst pictures: {worst}")
    return notes


def _accuracy_table(values: Values) -> Table:
    numbers = ("pictures", *ACCURACY_HEADINGS.values())
    notes = [
        f"{values['model']} on {values['runs_on']}; each mask {values['finishing']}, at its picture's own size.",
        *(["edges are refined (--refine-edges)"] if values.get("refine_edges") else []),
        _CONVENTIONS,
    ]
    for row in values["datasets"]:
        for kind in ("best", "worst"):
            named = ", ".join(f"{picture['name']} (MAE {picture['mae']:.3f})" for picture in row[kind])
            notes.append(f"{row['dataset']}, {kind}: {named}")
        if row["empty"]:
            notes.append(f"{row['dataset']}: {row['empty']} pictures hold no object; their recall and F are 0.")
    return Table(
        title=f"Accuracy of {values['model']}",
        columns=("data set", *numbers),
        numbers=frozenset(numbers),
        rows=tuple(map(_accuracy_cells, values["datasets"])),
        notes=tuple(notes),
        environment=environment_lines(values["environment"]),
    )


def _accuracy_cells(row: Values) -> tuple[str, ...]:
    return (row["dataset"], str(row["pictures"]), *(number(row[name], ".4f") for name in ACCURACY_HEADINGS))


def _gate_table(values: Values) -> Table:
    rows, measures = values["rows"], tuple(values["measures"])
    numbers = (*measures, "x PyTorch FP32")
    notes = [f"{row['name']} on {row['device']}: {remark}" for row in rows for remark in row["remarks"]]
    notes += [f"{name} on {device}: is in the baseline and was not measured" for device, name in values["gone"]]
    notes += [f"the baseline {values['baseline']} was written anew"] if values["updated"] else []
    return Table(
        title=f"Gate against {values['baseline']}: {values['conclusion']}",
        columns=("candidate", "device", *numbers, "verdict"),
        numbers=frozenset(numbers),
        rows=tuple(_gate_cells(row, measures) for row in rows),
        notes=("Each cell: the baseline's value, then the one of now.", *notes),
        environment=environment_lines(values["environment"]),
    )


def _gate_cells(row: Values, measures: Iterable[str]) -> tuple[str, ...]:
    before, now = (row["before"] or {"parity": {}, "speed": None}), row["parity"]
    cells = (f"{_short(before['parity'].get(name))} -> {_short(now.get(name))}" for name in measures)
    speed = f"{_ratio(before['speed'])} -> {_ratio(row['speed'])}"
    return (row["name"], row["device"], *cells, speed, row["verdict"])


def _gpu_table(values: Values) -> Table:
    rows = tuple((bar["claim"], bar["asked"], bar["found"], bar["verdict"]) for bar in values["bars"])
    notes = [
        f"{step['name']}: {step['state']}{': ' if step['reason'] else ''}{step['reason']}"
        for step in values["steps"]
        if step["state"] != "done"
    ]
    done = [step["name"] for step in values["steps"] if step["state"] == "done"]
    return Table(
        title=f"Claims on {values['gpu'] or 'a CUDA device, of which this machine has none'}",
        columns=("claim", "asked", "found", "verdict"),
        numbers=frozenset({"asked", "found"}),
        rows=rows,
        notes=(f"done: {', '.join(done) or 'nothing'}", *notes),
        environment=environment_lines(values["environment"]),
    )


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _ratio(estimate: Values | None) -> str:
    return "-" if estimate is None else estimate_text(estimate, 1, 2)


def _video_table(values: Values) -> Table:
    results = values["results"]
    stages = tuple(results[0]["runs"][0]["cpu_seconds_by_stage"])
    ratio = (_RATIO_TO_FIRST,) if len(results) > 1 else ()
    numbers = ("run", "frames", "seconds", "frames/s", *ratio, "of the ceiling", *stages)
    return Table(
        title=f"Frames per second of basnet-run on {values['source']}",
        columns=("model", *numbers),
        numbers=frozenset(numbers),
        rows=tuple(row for result in results for row in _video_rows(result, stages, compared=bool(ratio))),
        notes=tuple(_video_notes(values, stages)),
        environment=environment_lines(values["environment"]),
    )


def _video_notes(values: Values, stages: Iterable[str]) -> Iterator[str]:
    results, processors = values["results"], values["environment"]["processors"]
    yield from (f"{result['model']} on {result['runs_on']}" for result in results)
    yield "Decoding, the network and encoding are in the frames per second, opening the model is not."
    if len(results) > 1:
        taken = f"{len(results[0]['runs'])} interleaved rounds, each model once per round"
        yield f"{taken}; {_RATIO_TO_FIRST}: median of the ratios of each round to {results[0]['model']}."
    yield f"Of the ceiling: of the frames per second that the stages' processor time allows on {processors} processors."
    yield f"Shares of all processor time: {', '.join(stages)}."


def _video_rows(result: Values, stages: Iterable[str], *, compared: bool) -> Iterator[tuple[str, ...]]:
    """Each run, then the medians over the runs."""
    runs, dash = result["runs"], ("-",) if compared else ()
    for index, run in enumerate(runs, start=1):
        speed = (f"{run['frames_per_second']:.2f}", *dash, f"{run['of_ceiling']:.0%}")
        yield (result["model"], str(index), *_video_size([run]), *speed, *_video_shares([run], stages))
    ratio = (_ratio(result["ratio_to_first"]),) if compared else ()
    speed = (estimate_text(result["frames_per_second"], 1, 2), *ratio, f"{result['of_ceiling']:.0%}")
    yield (result["model"], "median", *_video_size(runs), *speed, *_video_shares(runs, stages))


def _video_size(runs: Sequence[Values]) -> tuple[str, str]:
    return f"{median(run['frames'] for run in runs):.0f}", f"{median(run['seconds'] for run in runs):.2f}"


def _video_shares(runs: Sequence[Values], stages: Iterable[str]) -> Iterator[str]:
    """Each stage's part of the processor time, the median over the runs."""
    spent = [run["cpu_seconds_by_stage"] for run in runs]
    totals = [sum(seconds.values()) for seconds in spent]
    for stage in stages:
        shares = [seconds[stage] / total for seconds, total in zip(spent, totals, strict=True) if total > 0]
        yield f"{median(shares):.0%}" if shares else "-"


def _verdict_table(values: Values) -> Table:
    numbers = ("objects", "lost", "lost %", "backgrounds", "called salient", "called salient %", "AUC")
    how = f"chosen: {values['lost_allowed']:.1%} of the objects may be lost" if values["chosen"] else "the model's own"
    notes = (
        f"{values['model']} on {values['runs_on']}; its own threshold is {values['before']:.3f}.",
        "Objects: pictures that show one; lost: called nothing. Backgrounds: pieces of pictures clear of the object.",
        *([f"stored in {values['stored']}"] if values["stored"] else []),
    )
    return Table(
        title=f"Nothing salient below {values['threshold']:.3f} ({how})",
        columns=("pictures", *numbers),
        numbers=frozenset(numbers),
        rows=tuple(map(_verdict_cells, values["rows"])),
        notes=notes,
        environment=environment_lines(values["environment"]),
    )


def _verdict_cells(row: Values) -> tuple[str, ...]:
    auc = "-" if row["auc"] is None else f"{row['auc']:.3f}"
    lost, found = (_share(row[part], row[whole]) for part, whole in (("lost", "objects"), ("found", "empty")))
    return (row["name"], str(row["objects"]), str(row["lost"]), lost, str(row["empty"]), str(row["found"]), found, auc)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"


_TABLES: dict[str, Callable[[Values], Table]] = {
    "accuracy": _accuracy_table,
    "gate": _gate_table,
    "gpu": _gpu_table,
    "latency": _latency_table,
    "parity": _parity_table,
    "verdict": _verdict_table,
    "video": _video_table,
}
COMMANDS = frozenset(_TABLES)  # whose reports have a table
