"""The page of one or several reports: tables, plots of what they measured, and the pictures to look at.

html = report_page([SavedReport.read(path).values ...], panels={0: read_panels(...)})

Reports of one kind share a section; networks that were both timed and scored are shown as speed against accuracy,
joined by their fingerprint and never by name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from basnet_benchmarks import page, plots
from basnet_benchmarks.page import Section
from basnet_benchmarks.panels import Panel
from basnet_benchmarks.tables import Values, table_of
from basnet_torch.errors import UsageError

__all__ = ["report_page"]

_MILLI = 1000.0
_LEAST_SPAN = 0.02  # of maxF
_Panels = Sequence[Panel]
_Drawn = Iterator[str]
_TITLES = {
    "accuracy": "Accuracy",
    "latency": "Latency",
    "parity": "Parity",
    "video": "Video",
    "verdict": "Verdict on a picture",
    "gate": "Gate",
    "gpu": "On a CUDA device",
}


def report_page(reports: Sequence[Values], panels: Mapping[int, _Panels] | None = None) -> str:
    """One document of HTML.

    Args:
        reports: JSON values of reports, of any commands, in any order.
        panels: Pictures of the reports, by their place in `reports`.

    Raises:
        UsageError: A report is of no command that this version knows, or a part of it is missing.
        BackendUnavailable: matplotlib is not installed.
    """
    known = panels or {}
    sections = list(_speed_against_accuracy(reports))
    for command in sorted({str(report.get("command")) for report in reports}, key=_order):
        own = [(report, known.get(i, ())) for i, report in enumerate(reports) if report.get("command") == command]
        tables = [page.table_part(table_of(report), title=len(own) > 1 or command != "runs") for report, _ in own]
        parts = [*tables, *_drawings(command, [report for report, _ in own])]
        parts += [page.gallery(pictures) for _, pictures in own if pictures]
        sections.append(Section(title=_TITLES.get(command, command), parts=tuple(parts)))
    measured = (report["environment"] for report in reports if report.get("command") != "runs")
    machines = dict.fromkeys(f"{found['processor']}, {found['processors']} logical processors" for found in measured)
    return page.page("BASNet report", sections, [f"Measured on {'; '.join(machines)}."] if machines else [])


def _drawings(command: str, reports: Sequence[Values]) -> list[str]:
    draw = _DRAWN.get(command)
    try:
        return list(draw(reports)) if draw else []
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UsageError(
            f"the {command} report lacks what its plots show ({error!r}); write it with this version"
        ) from error


def _order(command: str) -> int:
    names = list(_TITLES)
    return names.index(command) if command in names else len(names)


def _ran(row: Values) -> tuple[str, str]:
    """What a row has in common with those of another command: the network and what ran it."""
    return row.get("fingerprint", ""), re.sub(r", \d+ threads?$", "", row["runs_on"])


def _candidate(row: Values) -> str:
    return f"{row['model']}, {row['backend']} {row['precision']}"


def _speed_against_accuracy(reports: Sequence[Values]) -> Iterator[Section]:
    """Candidates that were timed, and whose masks were scored or compared in a report of the same page."""
    rows = [row for report in reports if report.get("command") == "latency" for row in report["results"]]
    timed = {(row["model"], *_ran(row)): row for row in reversed(rows) if row["pictures"] == 1}
    drawn = (
        ("maxF", "maxF, 0..1, higher is better", _max_f(reports), False),
        (
            "Mean difference from PyTorch FP32, worst picture,",
            "mean difference, 0..1, lower is better",
            _apart(reports),
            True,
        ),
    )
    parts = []
    for what, axis, values, logarithmic in drawn:
        points = [
            plots.Point(label=_labelled(row), group=row["backend"], x=row["pictures_per_second"], y=found)
            for row in reversed(timed.values())
            if row.get("fingerprint") and (found := values.get(_ran(row))) is not None
        ]
        if len(points) > 1:
            svg = plots.scatter(points, x="pictures per second, batch 1", y=axis, y_log=logarithmic, y_span=_LEAST_SPAN)
            parts.append(page.drawing(f"{what} against speed", svg))
    if parts:
        yield Section(title="Speed against accuracy", parts=tuple(parts))


def _labelled(row: Values) -> str:
    return f"{row['model']} on {row['runs_on']}"


def _max_f(reports: Sequence[Values]) -> dict[tuple[str, str], float]:
    """Score on the first data set, by network and by what ran it."""
    found = [report for report in reports if report.get("command") == "accuracy"]
    return {_ran(report): report["datasets"][0]["max_f"] for report in found}


def _apart(reports: Sequence[Values]) -> dict[tuple[str, str], float]:
    """Mean difference on the worst picture, by network and by what ran it; what is exactly equal has none to show."""
    rows = [row for report in reports if report.get("command") == "parity" for row in report["candidates"]]
    return {_ran(row): row["report"]["mean_abs"] for row in rows if row["report"] and row["report"]["mean_abs"]}


def _latency(reports: Sequence[Values]) -> _Drawn:
    """Report by report, because two may have timed the same candidate."""
    for report in reports:
        where = f" on {report['settings']['device']}" if len(reports) > 1 else ""
        for network, rows in _grouped(report["results"]).items():
            yield from _times(rows, "width {}, {} x {}, batch {}".format(*network) + where)
        yield from _throughput(report)
        yield from _stages(report)


def _times(rows: Sequence[Values], what: str) -> _Drawn:
    """Every call's time, and the ratio to PyTorch."""
    calls = {_candidate(row): [_MILLI * s for turn in row["turns_s"] for s in turn] for row in rows}
    yield page.drawing(
        f"Time of every call, {what}: boxes are quartiles, whiskers the 5th and 95th percentile",
        plots.boxes(calls, x="milliseconds per call"),
    )
    ratios = [
        _bar(_candidate(row), row["ratio_to_pytorch_fp32"]) for row in rows if _known(row["ratio_to_pytorch_fp32"])
    ]
    if len(ratios) > 1:
        yield page.drawing(
            f"Times as fast as PyTorch eager FP32, {what}, with the 95 % confidence interval",
            plots.bars(ratios, x="ratio to PyTorch eager FP32", line=1),
        )


def _throughput(report: Values) -> _Drawn:
    """Pictures per second by batch size, where several were timed."""
    lines = {
        _candidate(row): ([int(batch) for batch in rates], list(rates.values()))
        for row in report.get("throughput", ())
        if len(rates := row["pictures_per_second"]) > 1
    }
    if lines:
        top = 1.1 * max(max(rates) for _, rates in lines.values())
        svg = plots.curves(lines, x="pictures per call", y="pictures per second", y_limits=(0, top))
        yield page.drawing("Throughput over batch sizes", svg)


def _grouped(rows: Sequence[Values]) -> dict[tuple[int, int, int, int], list[Values]]:
    groups: dict[tuple[int, int, int, int], list[Values]] = {}
    for row in rows:
        groups.setdefault((row["width"], *row["size"], row["pictures"]), []).append(row)
    return groups


def _known(estimate: Values | None) -> bool:
    return estimate is not None and estimate["value"] is not None


def _bar(label: str, estimate: Values) -> plots.Bar:
    return plots.Bar(label=label, value=estimate["value"], low=estimate["low"], high=estimate["high"])


def _stages(report: Values) -> _Drawn:
    """Model by model, so that a small one's stages are not lost beside a large one's."""
    rows = report.get("stages", ())
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {
            _candidate(row): {name: _MILLI * part["median_s"]["value"] for name, part in row["stages"].items()}
            for row in rows
            if row["model"] == model
        }
        yield page.drawing(
            f"Where the time of one picture goes with {model}, from file to file: medians of each stage",
            plots.stacked_bars(own, x="milliseconds per picture"),
        )


def _accuracy(reports: Sequence[Values]) -> _Drawn:
    """Precision against recall, and F by threshold, a line for each model and data set."""
    rows = {f"{report['model']}, {row['dataset']}": row["curves"] for report in reports for row in report["datasets"]}
    share, levels = (0.0, 1.02), [level / 255 for level in range(256)]
    recall = {name: (own["recall"], own["precision"]) for name, own in rows.items()}
    mean = {name: (levels, own["f"]) for name, own in rows.items()}
    pictures = {name: (levels, own["f_of_pictures"]) for name, own in rows.items()}
    peaks = {name: _peak(levels, own["f"]) for name, own in rows.items()}
    tops = {name: _peak(levels, own["f_of_pictures"]) for name, own in rows.items()}
    unit = "threshold of the mask, 0..1"
    yield page.side_by_side(
        page.drawing(
            "Precision against recall, means over pictures at 256 thresholds",
            plots.curves(recall, x="recall, 0..1", y="precision, 0..1", x_limits=share, y_limits=share),
        ),
        page.drawing(
            "F of mean precision and mean recall; the dot is maxF",
            plots.curves(mean, x=unit, y="F, beta^2 = 0.3, 0..1", x_limits=share, y_limits=share, marks=peaks),
        ),
        page.drawing(
            "Mean of the pictures' own F; the dot is maxF of curves",
            plots.curves(pictures, x=unit, y="F, beta^2 = 0.3, 0..1", x_limits=share, y_limits=share, marks=tops),
        ),
    )


def _peak(along: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    best = max(range(len(values)), key=values.__getitem__)
    return along[best], values[best]


def _parity(reports: Sequence[Values]) -> _Drawn:
    """How near each candidate comes to its limits: 1 is the limit."""
    for report in reports:
        bars = [bar for row in report["candidates"] if row["report"] for bar in _shares(row)]
        if bars:
            yield page.drawing(
                "What each candidate uses of its contract on its worst picture: beyond 1 it fails",
                plots.bars(bars, x="measured value as a share of the limit", line=1),
            )


def _shares(row: Values) -> Iterator[plots.Bar]:
    limits, report = row["report"]["tolerance"], row["report"]
    for name in ("max_abs", "mean_abs", "p999_abs", "flips", "boundary_iou"):
        limit, value = limits.get(name), report[name]
        if not isinstance(limit, int | float) or value is None:
            continue
        used = (1 - value) / (1 - limit) if name == "boundary_iou" else value / limit
        yield plots.Bar(label=f"{_candidate(row)}: {name}", value=used)


def _video(reports: Sequence[Values]) -> _Drawn:
    """Processor time of each stage per frame, of the median run, and frames per second."""
    named = [(_video_name(report, result), result) for report in reports for result in report["results"]]
    results = dict(_numbered(named))
    rows = {}
    for label, result in results.items():
        run = sorted(result["runs"], key=lambda own: own["frames_per_second"])[len(result["runs"]) // 2]
        seconds = run["cpu_seconds_by_stage"]
        rows[label] = {name: _MILLI * value / run["frames"] for name, value in seconds.items()}
    yield page.drawing(
        "Processor time of each stage, all threads together, of the median run",
        plots.stacked_bars(rows, x="milliseconds of processor time per frame"),
    )
    if len(results) > 1:
        bars = [_bar(label, result["frames_per_second"]) for label, result in results.items()]
        yield page.drawing("Frames per second, file to file", plots.bars(bars, x="frames per second"))


def _numbered(named: Sequence[tuple[str, Values]]) -> Iterator[tuple[str, Values]]:
    """The same, with a number behind labels that come again, as of a film before and after a change."""
    count = Counter[str]()
    for label, values in named:
        count[label] += 1
        yield (f"{label} ({count[label]})" if count[label] > 1 else label), values


def _video_name(report: Values, result: Values) -> str:
    return f"{report['source']}: {result['model']} on {result['runs_on']}"


_DRAWN: dict[str, Callable[[Sequence[Values]], _Drawn]] = {
    "accuracy": _accuracy,
    "latency": _latency,
    "parity": _parity,
    "video": _video,
}
