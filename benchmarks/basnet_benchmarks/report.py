"""Files of results: JSON, Markdown, and the HTML page with plots and pictures.

    save(values_of(result), Path("accuracy.html"), overwrite=False, panels=result.panels)
    save_all([Path("latency.json"), Path("accuracy.json")], Path("report.html"), overwrite=False)

The page sets speed against accuracy where the fingerprints of the networks agree, never by name. Thumbnails lie beside
the JSON as `NAME.panels.json`, because pictures of data sets are not ours to publish with the numbers.

Legend: H height, W width of the picture; photographs are uint8 RGB, masks float32 in 0..1.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from basnet_benchmarks.results import Values, brief, candidate_name, json_text, markdown, read_result, shown
from basnet_torch.arrays import Float32, UInt8
from basnet_torch.errors import BackendUnavailable, UsageError
from basnet_torch.json_values import from_plain, to_plain
from basnet_torch.options import option

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Panel", "page", "panels_path", "read_panels", "save", "save_all", "thumbnails"]

KEPT_ABOVE = "<!-- basnet-bench report writes everything below this line -->"
PANELS = option("Keep thumbnails of the worst pictures beside .json; .html always has them.", "--panels")
_SIDE = 224  # pixels of a thumbnail's longer side
_JPEG = "data:image/jpeg;base64,"
# Okabe and Ito's set, told apart by the color-blind
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c6bb1", "#7f7f7f")
_Plot = tuple[str, str]  # caption and SVG
_Bar = tuple[str, Values]  # label and estimate
_Line = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """Thumbnails of one picture, side by side."""

    group: str  # what it is shown under: a data set and `best` or `worst`, or a candidate
    name: str  # the picture's
    caption: str  # what is to be said of it, with numbers
    images: tuple[tuple[str, str], ...]  # labels with `data:` addresses of JPEG


def thumbnails(images: Mapping[str, NDArray[Any]]) -> tuple[tuple[str, str], ...]:
    """Shrink photographs uint8 H,W,3 and masks float32 H,W for a `Panel`."""
    import cv2

    found = []
    for label, image in images.items():
        factor = min(1.0, _SIDE / max(image.shape[:2]))
        height, width = (max(1, round(side * factor)) for side in image.shape[:2])
        pixels = image[..., ::-1] if image.ndim == 3 else _gray(image)
        small = cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=cv2.INTER_AREA)
        _, data = cv2.imencode(".jpg", small, (cv2.IMWRITE_JPEG_QUALITY, 82))
        found.append((label, _JPEG + base64.b64encode(data.tobytes()).decode("ascii")))
    return tuple(found)


def heat_map(reference_HW: Float32, candidate_HW: Float32) -> tuple[str, UInt8]:
    """Color the difference of two masks, scaled to its maximum, and label it."""
    import cv2

    difference_HW = np.abs(candidate_HW - reference_HW)
    largest = float(np.nanmax(difference_HW, initial=0.0))
    share_HW = np.nan_to_num(difference_HW / (largest or 1), nan=1.0, posinf=1.0)
    heat_HWC = cv2.applyColorMap(_gray(share_HW), cv2.COLORMAP_INFERNO)[..., ::-1]
    return f"difference, 0 (black) to {largest:.2g} (yellow)", np.asarray(heat_HWC, np.uint8)


def _gray(mask_HW: NDArray[Any]) -> UInt8:
    return np.asarray(np.rint(np.nan_to_num(mask_HW).clip(0, 1) * 255), np.uint8)


def panels_path(result: Path) -> Path:
    """Name the thumbnails of a JSON result: `parity.panels.json` for `parity.json`."""
    return result.with_name(f"{result.stem}.panels.json")


def read_panels(path: Path) -> tuple[Panel, ...]:
    """Read thumbnails; none where there is no such file.

    Raises:
        UsageError: The file is something else; an address that is no JPEG would go into a page as it stands.
    """
    if not path.exists():
        return ()
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        panels = from_plain(rows, tuple[Panel, ...])
        if not all(address.startswith(_JPEG) for panel in panels for _, address in panel.images):
            raise ValueError("an image is no JPEG")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: holds no pictures of a report ({error}); measure again with --panels") from error
    return panels


def save(values: Values, output: Path, *, overwrite: bool, panels: Sequence[Panel] = ()) -> None:
    """Write JSON (thumbnails beside it), Markdown or HTML by the file's suffix.

    Raises:
        MediaError: The file cannot be written.
    """
    if output.suffix == ".html":
        return _write(page([values], [panels]), output, overwrite=overwrite)
    if output.suffix == ".md":
        return _write(markdown(values), output, overwrite=overwrite)
    if panels:
        text = json.dumps(to_plain(panels), indent=1) + "\n"
        _write(text, panels_path(output), overwrite=overwrite)
    return _write(json_text(values), output, overwrite=overwrite)


def save_all(paths: Sequence[Path], output: Path, *, overwrite: bool, short: bool = False) -> None:
    """Write results as .html with thumbnails, .md below `KEPT_ABOVE`, or .json.

    `short` leaves single pictures and folder names out of JSON.

    Raises:
        UsageError: A file is no result.
        MediaError: The file cannot be written.
    """
    results = [read_result(path) for path in paths]
    if output.suffix == ".html":
        text = page(results, [read_panels(panels_path(path)) for path in paths])
    elif output.suffix == ".md":
        before, mark, _ = (output.read_text(encoding="utf-8") if output.exists() else "").partition(KEPT_ABOVE)
        named = bool(mark) or len(paths) > 1
        parts = [markdown(values, path.stem if named else "") for values, path in zip(results, paths, strict=True)]
        text = "\n".join([f"{before}{mark}\n" if mark else "", *parts]).lstrip("\n")
    else:
        found = [brief(values) if short else values for values in results]
        text = json_text(found[0] if len(found) == 1 else found)
    _write(text, output, overwrite=overwrite)


def _write(text: str, output: Path, *, overwrite: bool) -> None:
    from basnet_torch.files import atomic_write

    with atomic_write(output, overwrite=overwrite) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")  # a file's name may be any bytes


def page(results: Sequence[Values], panels: Sequence[Sequence[Panel]]) -> str:
    """Create the HTML page of results, in any order, with each one's panels.

    Raises:
        UsageError: A result is of an unknown command, or a part of it is missing.
        BackendUnavailable: jinja2 or matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401 - before anything is drawn
        from jinja2 import Environment, PackageLoader
    except ImportError as error:
        raise BackendUnavailable(f"page: needs {error.name}; pip install 'basnet-deploy[report]'") from error
    plots = tuple(_speed_against_accuracy(results))
    sections: list[dict[str, Any]] = [{"title": "Speed against accuracy", "plots": plots}] if plots else []
    for command in dict.fromkeys(str(values.get("command")) for values in results):
        own = [i for i, values in enumerate(results) if values.get("command") == command]
        tables = tuple(shown(results[i]) for i in own)
        draw: Callable[..., Iterator[_Plot]] = _PLOTS.get(command, lambda *_: iter(()))
        together = [[results[i] for i in own]] if command == "accuracy" else [[results[i]] for i in own]
        try:
            plots = tuple(chain.from_iterable(draw(*group) for group in together))
        except (KeyError, TypeError, IndexError) as error:
            raise UsageError(f"the {command} result lacks a value ({error!r}); measure it with this version") from error
        pictures = tuple(chain.from_iterable(panels[i] for i in own))
        sections.append({"title": command.capitalize(), "results": tables, "plots": plots, "panels": pictures})
    templates = Environment(loader=PackageLoader("basnet_benchmarks", "."), autoescape=True, trim_blocks=True)
    return templates.get_template("report.html.j2").render(sections=sections)


def _speed_against_accuracy(results: Sequence[Values]) -> Iterator[_Plot]:
    """Candidates that were timed, and whose masks were scored or compared in another result of the page."""

    def ran(row: Values) -> tuple[str, str]:
        return row.get("fingerprint", ""), re.sub(r", \d+ threads?$", "", row["runs_on"])

    latency, accuracy, parity = (
        [v for v in results if v.get("command") == name] for name in ("latency", "accuracy", "parity")
    )
    timed = [row for v in latency for row in v["results"] if row["pictures"] == 1]
    scores = {ran(v): v["datasets"][0]["max_f"] for v in accuracy}
    apart = {ran(row): row["report"]["mean_abs"] for v in parity for row in v["candidates"] if row["report"]}
    for what, unit, found, least in (
        ("maxF", "maxF, 0..1, higher is better", scores, 0.02),
        ("Mean difference from PyTorch FP32, worst picture", "mean difference, 0..1, lower is better", apart, None),
    ):
        points = {
            f"{row['model']} on {row['runs_on']}": (row["pictures_per_second"], found[ran(row)])
            for row in timed
            if row.get("fingerprint") and found.get(ran(row))
        }
        if len(points) > 1:
            yield f"{what} against speed", _points(points, x="pictures per second, batch 1", y=unit, least=least)


def _latency(values: Values) -> Iterator[_Plot]:
    where = f"on {values['settings']['device']}"
    networks = dict.fromkeys((row["width"], *row["size"], row["pictures"]) for row in values["results"])
    for network in networks:
        rows = [row for row in values["results"] if (row["width"], *row["size"], row["pictures"]) == network]
        what = "width {}, {} x {}, batch {}, {}".format(*network, where)
        times = [(candidate_name(row), row["median_s"]) for row in rows]
        yield f"Time of a call, {what}: medians with their 95 % interval", _bars(times, x="seconds per call")
        ratios = [(candidate_name(r), r["ratio_to_pytorch_fp32"]) for r in rows if r["ratio_to_pytorch_fp32"]]
        if len(ratios) > 1:
            yield f"Speed-up, {what}, with its 95 % interval", _bars(ratios, x="ratio to PyTorch eager FP32", line=1)
    lines = {
        candidate_name(row): (list(map(int, rates)), list(rates.values()))
        for row in values.get("throughput", ())
        if len(rates := row["pictures_per_second"]) > 1
    }
    if lines:
        yield f"Throughput over batch sizes, {where}", _curves(lines, x="pictures per call", y="pictures per second")
    steps = {
        candidate_name(row): {name: 1000 * part["median_s"]["value"] for name, part in row["stages"].items()}
        for row in values.get("stages", ())
    }
    if steps:
        yield "Time of one picture from file to file, medians", _stacked(steps, x="milliseconds per picture")


def _accuracy(*results: Values) -> Iterator[_Plot]:
    """Curves of all models and data sets together."""
    rows = {f"{v['model']}, {row['dataset']}": row["curves"] for v in results for row in v["datasets"]}
    levels = [level / 255 for level in range(256)]
    recall = {name: (own["recall"], own["precision"]) for name, own in rows.items()}
    yield "Precision against recall at 256 thresholds", _curves(recall, x="recall, 0..1", y="precision, 0..1")
    lines = {name: (levels, own["f"]) for name, own in rows.items()}
    drawn = _curves(lines, x="threshold of the mask, 0..1", y="F, beta^2 = 0.3, 0..1", peaks=True)
    yield "F of mean precision and mean recall; the dot is maxF", drawn


def _parity(values: Values) -> Iterator[_Plot]:
    """How near each candidate comes to its limits: 1 is the limit."""
    bars: list[_Bar] = []
    for row in (row for row in values["candidates"] if row["report"]):
        limits, report = row["report"]["tolerance"], row["report"]
        for name in ("max_abs", "mean_abs", "p999_abs", "flips", "boundary_iou"):
            limit, value = limits.get(name), report[name]
            if isinstance(limit, int | float) and value is not None:
                used = (1 - value) / (1 - limit) if name == "boundary_iou" else value / limit
                bars.append((f"{candidate_name(row)}: {name}", {"value": used, "low": None, "high": None}))
    if bars:
        caption = "What each candidate uses of its contract on its worst picture: beyond 1 it fails"
        yield caption, _bars(bars, x="measured value as a share of the limit", line=1)


def _video(values: Values) -> Iterator[_Plot]:
    rates = [(f"{row['model']} on {row['runs_on']}", row["frames_per_second"]) for row in values["results"]]
    if len(rates) > 1:
        yield f"Frames per second of {values['source']}, file to file", _bars(rates, x="frames per second")
    spent = {}
    for row in values["results"]:
        run = sorted(row["runs"], key=lambda own: own["frames_per_second"])[len(row["runs"]) // 2]
        cpu = run["cpu_seconds_by_stage"]
        spent[f"{row['model']} on {row['runs_on']}"] = {name: 1000 * cpu[name] / run["frames"] for name in cpu}
    caption = f"CPU time of each stage of {values['source']}, all threads together, of the median run"
    yield caption, _stacked(spent, x="milliseconds of CPU time per frame")


_PLOTS: dict[str, Callable[..., Iterator[_Plot]]] = {
    "accuracy": _accuracy,
    "latency": _latency,
    "parity": _parity,
    "video": _video,
}


def _curves(lines: Mapping[str, _Line], *, x: str, y: str, peaks: bool = False) -> str:
    """Lines from zero, one per name; `peaks` marks the largest value of each."""

    def draw(axes: Axes) -> None:
        for index, (name, (along, values)) in enumerate(lines.items()):
            color = _COLORS[index % len(_COLORS)]
            axes.plot(along, values, color=color, label=name)
            if peaks:
                top = int(np.argmax(values))
                axes.plot(along[top], values[top], "o", color=color)
        axes.set(xlabel=x, ylabel=y, ylim=(0, None), xlim=(0, None))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))

    return _svg(draw, width=4.2, height=3.4)


def _bars(items: Sequence[_Bar], *, x: str, line: float | None = None) -> str:
    """Horizontal bars from zero, each with its number and interval; `line` is marked across all."""

    def draw(axes: Axes) -> None:
        places = np.arange(len(items))[::-1]
        values = [estimate["value"] or 0.0 for _, estimate in items]
        ends = [estimate["high"] or value for (_, estimate), value in zip(items, values, strict=True)]
        axes.barh(places, values, height=0.6, color=_COLORS[0])
        for place, value, end, (_, estimate) in zip(places, values, ends, items, strict=True):
            if estimate["low"] is not None:
                axes.plot((estimate["low"], end), (place, place), color="black")
            axes.annotate(_short(value), (end, place), (5, 0), textcoords="offset points", va="center")
        if line is not None:
            axes.axvline(line, color="black", linewidth=1, linestyle=":")
        axes.set_yticks(places, [label for label, _ in items])
        axes.set(xlabel=x, xlim=(0, 1.15 * max(*ends, line or 1e-12)), ylim=(-0.6, len(items) - 0.4))

    return _svg(draw, width=8, height=1 + 0.36 * len(items))


def _stacked(rows: Mapping[str, Mapping[str, float]], *, x: str) -> str:
    """One horizontal bar per row, made of named parts."""

    def draw(axes: Axes) -> None:
        places, left = np.arange(len(rows))[::-1], np.zeros(len(rows))
        for index, part in enumerate(dict.fromkeys(part for values in rows.values() for part in values)):
            lengths = np.array([values.get(part, 0.0) for values in rows.values()])
            axes.barh(places, lengths, 0.6, left, color=_COLORS[index % len(_COLORS)], label=part)
            left += lengths
        for place, total in zip(places, left, strict=True):
            axes.annotate(_short(total), (total, place), (5, 0), textcoords="offset points", va="center")
        axes.set_yticks(places, list(rows))
        axes.set(xlabel=x, xlim=(0, 1.15 * max(*left, 1e-12)))
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))

    return _svg(draw, width=8, height=1 + 0.4 * len(rows))


def _points(points: Mapping[str, tuple[float, float]], *, x: str, y: str, least: float | None) -> str:
    """Points by their number; the upright axis shows `least` at least, and is logarithmic without it."""

    def draw(axes: Axes) -> None:
        for index, (name, (along, value)) in enumerate(points.items()):
            color = _COLORS[index % len(_COLORS)]
            axes.plot(along, value, "o", color=color, label=f"{index + 1}  {name}")
            axes.annotate(str(index + 1), (along, value), (6, 4), textcoords="offset points")
        axes.set(xlabel=x, ylabel=y, xlim=(0, 1.1 * max(along for along, _ in points.values())))
        if least is None:
            axes.set_yscale("log")
        else:
            low, high = axes.get_ylim()
            missing = max(0.0, least - (high - low)) / 2
            axes.set_ylim(low - missing, high + missing)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15))

    return _svg(draw, width=8, height=4)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _svg(draw: Callable[[Axes], None], *, width: float, height: float) -> str:
    """A figure of one pair of axes, in inches, which grow to hold all text."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "basnet", "font.size": 9}):
        axes = (figure := Figure(figsize=(width, height))).add_subplot()
        axes.grid(color="#ddd")
        axes.set_axisbelow(True)
        draw(axes)
        text = io.StringIO()
        none: Any = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", bbox_inches="tight", metadata=none)
    return text.getvalue()[text.getvalue().index("<svg") :]
