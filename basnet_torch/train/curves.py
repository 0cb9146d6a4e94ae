"""Training curves as one self-contained HTML file: losses, rate, scores.

write_curves(Path("runs/first"))  # runs/first/curves.html from runs/first/log.jsonl
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from basnet_torch.files import atomic_write

__all__ = ["curves_html", "write_curves"]

_WIDTH, _HEIGHT, _EDGE = 760, 220, 48
_POINTS = 200  # each the mean of its stretch
_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em;max-width:820px}svg{background:#fafafa;border:1px solid #ddd}"
    "polyline{fill:none;stroke:#1565c0;stroke-width:1.5}text{font-size:11px;fill:#555}line{stroke:#ddd}"
)


def write_curves(run: Path) -> Path:
    """Draw `run/log.jsonl` as `run/curves.html`; returns its path."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if line.strip()]
    target = run / "curves.html"
    with atomic_write(target, overwrite=True) as beside:
        beside.write_text(curves_html(run.name, records), encoding="utf-8")
    return target


def curves_html(title: str, records: Sequence[Mapping[str, Any]]) -> str:
    """The page: one drawing for each number that the records hold, against the step."""
    series: dict[str, dict[int, float]] = {}
    for record in records:
        for name, value in record.items():
            if name not in ("kind", "step", "seconds") and isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(f"{record['kind']}: {name}", {})[int(record["step"])] = float(value)
    drawings = "\n".join(_drawing(name, sorted(points.items())) for name, points in series.items())
    head = f"<meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html>{head}<h1>{escape(title)}</h1>\n{drawings}\n"


def _drawing(name: str, points: Sequence[tuple[int, float]]) -> str:
    """One curve: the mean over each stretch of steps, so that a long run stays a small file."""
    stretch = math.ceil(len(points) / _POINTS)
    parts = (points[i : i + stretch] for i in range(0, len(points), stretch))
    points = [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]
    steps, values = [p[0] for p in points], [p[1] for p in points]
    low, high = min(values), max(values)
    span_x, span_y = max(1, steps[-1] - steps[0]), (high - low) or 1.0
    right, bottom = _WIDTH - 12, _HEIGHT - 24
    path = " ".join(
        f"{_EDGE + (right - _EDGE) * (x - steps[0]) / span_x:.1f},{bottom - (bottom - 12) * (y - low) / span_y:.1f}"
        for x, y in points
    )
    marks = (
        f"<line x1={_EDGE} y1={bottom} x2={right} y2={bottom} /><line x1={_EDGE} y1=12 x2={_EDGE} y2={bottom} />"
        f"<text x=2 y=16>{high:.4g}</text><text x=2 y={bottom}>{low:.4g}</text>"
        f"<text x={_EDGE} y={_HEIGHT - 8}>step {steps[0]}</text>"
        f"<text x={right} y={_HEIGHT - 8} text-anchor=end>step {steps[-1]}</text>"
    )
    last = f"last {values[-1]:.5g}, lowest {low:.5g}, highest {high:.5g}"
    label = escape(name)
    frame = f'<svg width={_WIDTH} height={_HEIGHT} role=img aria-label="{label}">'
    return f'<h2>{label}</h2><p>{last}</p>{frame}{marks}<polyline points="{path}"/></svg>'
