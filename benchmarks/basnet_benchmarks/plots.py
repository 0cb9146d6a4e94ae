"""Plots for a page: inline SVG whose text and axes take the page's own colour, so that it reads in light and dark.

svg = curves({"dev": (recall, precision)}, x="recall", y="precision")

Bars begin at zero. Every axis says its unit.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from basnet_torch.errors import BackendUnavailable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Bar", "Point", "bars", "boxes", "curves", "scatter", "stacked_bars", "standalone"]

# Of Okabe and Ito's set, told apart by the colour-blind, those that stand out from white and from near black alike.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c6bb1", "#7f7f7f")
_DASHES = ("-", "--", ":", "-.")
_INK, _FAINT = "#010203", "#040506"  # stand for the page's colours until the SVG is written
_INCH = 2.54
_Series = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One bar with its interval, where there is one."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One point: `label` beside it, `group` decides its colour."""

    label: str
    group: str
    x: float
    y: float


def curves(
    series: Mapping[str, _Series],
    *,
    x: str,
    y: str,
    x_limits: tuple[float, float] | None = None,
    y_limits: tuple[float, float] | None = None,
    marks: Mapping[str, tuple[float, float]] | None = None,
    width: float = 10.4,
    height: float = 8.6,
) -> str:
    """Lines, one per name.

    Args:
        series: Name to the values along both axes.
        x: What the horizontal axis is, with its unit.
        y: What the vertical axis is, with its unit.
        x_limits: Ends of the axis; None fits them.
        y_limits: The same.
        marks: Name of a line to a point of it that is made visible.
        width: Centimetres.
        height: Centimetres.
    """

    def draw(axes: Axes) -> None:
        for index, (name, (along, values)) in enumerate(series.items()):
            colour, dash = COLOURS[index % len(COLOURS)], _DASHES[index // len(COLOURS) % len(_DASHES)]
            axes.plot(along, values, color=colour, linestyle=dash, linewidth=1.7, label=name)
            if marks and name in marks:
                axes.plot(*marks[name], "o", color=colour, markersize=5)
        axes.set(xlabel=x, ylabel=y, xlim=x_limits, ylim=y_limits)
        if series:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2 if len(series) > 3 else 1)

    return _svg(draw, width=width, height=height)


def boxes(calls: Mapping[str, Sequence[float]], *, x: str) -> str:
    """Distributions as boxes (quartiles; whiskers to the 5th and 95th percentile) over every single value.

    Args:
        calls: Name to its values.
        x: What the axis is, with its unit.
    """

    def draw(axes: Axes) -> None:
        names, values = list(calls), [np.asarray(v, np.float64) for v in calls.values()]
        places = np.arange(len(names))[::-1]
        generator = np.random.default_rng(0)
        inked: Any = {part: {"color": _INK} for part in ("boxprops", "whiskerprops", "capprops", "medianprops")}
        for index, (place, own) in enumerate(zip(places, values, strict=True)):
            shift = generator.uniform(-0.22, 0.22, len(own))
            axes.plot(own, place + shift, ".", color=COLOURS[index % len(COLOURS)], markersize=4, alpha=0.7)
        axes.boxplot(
            values,
            positions=places,
            orientation="horizontal",
            widths=0.6,
            whis=(5, 95),
            showfliers=False,
            manage_ticks=False,
            **inked,
        )
        axes.set_yticks(places, [_wrapped(name) for name in names])
        axes.set(xlabel=x, xlim=(0, 1.05 * max(float(own.max()) for own in values)), ylim=(-0.6, len(names) - 0.4))

    return _svg(draw, width=22, height=2.2 + 1.15 * len(calls))


def bars(items: Sequence[Bar], *, x: str, line: float | None = None) -> str:
    """Horizontal bars from zero, each with its number and its interval.

    Args:
        items: From top to bottom.
        x: What the axis is, with its unit.
        line: A value to mark across all bars, as 1 for "as fast as the reference".
    """

    def draw(axes: Axes) -> None:
        places = np.arange(len(items))[::-1]
        axes.barh(places, [item.value for item in items], height=0.6, color=COLOURS[0])
        ends = [item.value if item.high is None else item.high for item in items]
        for place, item, end in zip(places, items, ends, strict=True):
            if item.low is not None and item.high is not None:
                axes.plot((item.low, item.high), (place, place), color=_INK, linewidth=1.4)
            axes.annotate(
                _short(item.value), (max(end, 0), place), (5, 0), textcoords="offset points", va="center", color=_INK
            )
        if line is not None:
            axes.axvline(line, color=_INK, linewidth=1, linestyle=":")
        axes.set_yticks(places, [_wrapped(item.label) for item in items])
        right = 1.15 * max(*ends, line or 1e-12)
        axes.set(xlabel=x, xlim=(min(0.0, *ends, 0.0), right), ylim=(-0.6, len(items) - 0.4))

    return _svg(draw, width=22, height=2.2 + 0.95 * len(items))


def stacked_bars(rows: Mapping[str, Mapping[str, float]], *, x: str) -> str:
    """One bar from zero per row, made of named parts.

    Args:
        rows: Name to part to value; parts of one name have one colour.
        x: What the axis is, with its unit.
    """
    parts = list(dict.fromkeys(part for values in rows.values() for part in values))

    def draw(axes: Axes) -> None:
        places = np.arange(len(rows))[::-1]
        left = np.zeros(len(rows))
        for index, part in enumerate(parts):
            lengths = np.array([values.get(part, 0.0) for values in rows.values()])
            colour = COLOURS[index % len(COLOURS)]
            axes.barh(places, lengths, 0.6, left, color=colour, label=part, edgecolor=_FAINT, linewidth=0.4)
            left += lengths
        for place, total in zip(places, left, strict=True):
            axes.annotate(_short(total), (total, place), (5, 0), textcoords="offset points", va="center", color=_INK)
        axes.set_yticks(places, [_wrapped(name) for name in rows])
        axes.set(xlabel=x, xlim=(0, 1.15 * max(*left, 1e-12)), ylim=(-0.6, len(rows) - 0.4))
        axes.legend(loc="upper left", bbox_to_anchor=(0, -1.3 / (0.95 * len(rows) + 0.4)), ncols=4)

    return _svg(draw, width=22, height=3.6 + 0.95 * len(rows))


def scatter(points: Sequence[Point], *, x: str, y: str, y_log: bool = False, y_span: float = 0.0) -> str:
    """Points with their labels; the horizontal axis begins at zero.

    Args:
        points: What to show.
        x: What the horizontal axis is, with its unit.
        y: What the vertical axis is, with its unit.
        y_log: Whether the vertical axis is logarithmic.
        y_span: What it shows at least, so that a difference of no importance does not fill it.
    """
    groups = list(dict.fromkeys(point.group for point in points))

    def draw(axes: Axes) -> None:
        for group in groups:
            own = [point for point in points if point.group == group]
            colour = COLOURS[groups.index(group) % len(COLOURS)]
            axes.plot([p.x for p in own], [p.y for p in own], "o", color=colour, markersize=8, label=group)
        axes.set(xlabel=x, ylabel=y, xlim=(0, 1.1 * max(point.x for point in points)))
        axes.margins(y=0.15)
        if y_log:
            axes.set_yscale("log")
        else:
            low, high = axes.get_ylim()
            missing = max(0.0, y_span - (high - low)) / 2
            axes.set_ylim(low - missing, high + missing)
            axes.ticklabel_format(axis="y", useOffset=False)
        _label_points(axes, points)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))

    return _svg(draw, width=24, height=11)


def standalone(svg: str) -> str:
    """A drawing as a file of its own, in greys that read on white and on black: it cannot know its page's colours."""
    return svg.replace("var(--ink)", "#808080").replace("var(--faint)", "#8080804d") + "\n"


def _label_points(axes: Axes, points: Sequence[Point]) -> None:
    """Numbers beside the points and what they mean below, because names would lie over each other."""
    for number, point in enumerate(points, start=1):
        axes.annotate(str(number), (point.x, point.y), (7, 5), textcoords="offset points", color=_INK)
    text = "\n".join(f"{number}  {point.label}" for number, point in enumerate(points, start=1))
    axes.annotate(text, (0, 0), (0, -46), xycoords="axes fraction", textcoords="offset points", va="top", color=_INK)


def _short(value: float) -> str:
    """A number of three digits, or of all its whole ones."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _wrapped(name: str, width: int = 44) -> str:
    """A long name in several lines, broken at spaces and underscores."""
    import textwrap

    return "\n".join(textwrap.wrap(name, width, break_long_words=True)) or name


def _svg(draw: Callable[[Axes], None], *, width: float, height: float) -> str:
    """A figure of one pair of axes as SVG; sizes in centimetres, which grow to hold all text."""
    with _style() as figure_of:
        figure = figure_of(figsize=(width / _INCH, height / _INCH))
        axes = figure.add_subplot()
        axes.grid(visible=True, color=_FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        text = io.StringIO()
        figure.savefig(
            text, format="svg", bbox_inches="tight", pad_inches=0.06, transparent=True, metadata=_NO_METADATA
        )
    return _inline(text.getvalue())


_NO_METADATA: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@contextmanager
def _style() -> Iterator[type[Figure]]:
    """Matplotlib's figure with this module's looks, without touching what the caller set."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendUnavailable("plots need matplotlib; pip install 'basnet-deploy[report]'") from error
    looks: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "basnet",
        "font.family": "sans-serif",
        "font.size": 9,
        "legend.frameon": False,
        **{f"{part}.color": _INK for part in ("text", "xtick", "ytick")},
        **{f"axes.{part}color": _INK for part in ("label", "edge")},
    }
    with mpl.rc_context(looks):
        yield Figure


def _inline(svg: str) -> str:
    """Without the XML head, with the page's colours and with names that no other drawing of the page has."""
    body = svg[svg.index("<svg") :]
    body = body.replace(_INK, "var(--ink)").replace(_FAINT, "var(--faint)")
    names = sorted(set(re.findall(r'id="([^"]+)"', body)), key=len, reverse=True)
    mark = f"{zlib.crc32(body.encode('utf-8')):08x}"
    for name in names:
        body = re.sub(rf'(id="|#){re.escape(name)}(?=["\)])', rf"\g<1>{mark}-{name}", body)
    return re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', r'style="width:\1pt"', body, count=1)
