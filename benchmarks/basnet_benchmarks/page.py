"""One self-contained page of HTML: sections with tables, drawings and pictures; nothing is fetched from anywhere.

page("Report", [Section(title="Latency", parts=(table_part(table), drawing("Times", svg)))])

Every text is escaped; drawings are SVG that `plots` made, pictures are `data:` addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from basnet_benchmarks.panels import Panel
from basnet_benchmarks.tables import Table

__all__ = ["Section", "drawing", "folded", "gallery", "page", "paragraph", "side_by_side", "table_part"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --paper: #ffffff; --faint: #d9d9de; --soft: #6a6a72; --fill: #f5f5f7;
  --good: #0a7a4b; --bad: #b3261e; --open: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececf0; --paper: #17171a; --faint: #3a3a42; --soft: #a5a5b0;
  --fill: #222228; --good: #4cc38a; --bad: #ff7b72; --open: #e3b341; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--faint); } h3 { font-size: 1.02rem; margin: 1.5rem 0 .5rem; }
nav a { margin-right: 1rem; } a { color: inherit; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid var(--faint); vertical-align: top; }
th { background: var(--fill); font-weight: 600; } .number { text-align: right; white-space: nowrap; }
.passed { color: var(--good); } .failed { color: var(--bad); font-weight: 600; } .open { color: var(--open); }
ul { padding-left: 1.2rem; font-size: .88rem; } p.note, ul { color: var(--soft); }
li { overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figcaption { font-size: .88rem; color: var(--soft); margin-bottom: .35rem; }
figure svg { max-width: 100%; height: auto; display: block; }
.side { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-start; }
.side figure { width: min-content; max-width: 100%; } .side figure svg { max-width: none; }
.panel { margin: 0 0 1.1rem; } .panel > p { margin: 0 0 .3rem; font-size: .88rem; overflow-wrap: anywhere; }
.panel .images { display: flex; flex-wrap: wrap; gap: .6rem; }
.panel figure { margin: 0; } .panel figcaption { font-size: .76rem; margin: 0; max-width: 14rem; }
.panel img { display: block; max-width: 14rem; max-height: 14rem; border: 1px solid var(--faint); }
details { margin: .75rem 0; } summary { cursor: pointer; }
"""
_VERDICTS = {"passed": "passed", "failed": "failed", "not proven": "open"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the page under its own heading; `parts` are HTML as this module's functions give it."""

    title: str
    parts: tuple[str, ...]


def page(title: str, sections: Sequence[Section], notes: Iterable[str] = ()) -> str:
    """The whole document."""
    links = "".join(f'<a href="#s{i}">{escape(section.title)}</a>' for i, section in enumerate(sections))
    bodies = "\n".join(
        f'<section id="s{i}"><h2>{escape(section.title)}</h2>{"".join(section.parts)}</section>'
        for i, section in enumerate(sections)
    )
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    top = f"<h1>{escape(title)}</h1>{''.join(map(paragraph, notes))}<nav>{links}</nav>"
    style = f"<style>{_STYLE}</style>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}{style}</head>\n<body>{top}\n{bodies}\n</body></html>\n'


def paragraph(text: str) -> str:
    """A remark."""
    return f'<p class="note">{escape(text)}</p>'


def table_part(table: Table, *, title: bool = True) -> str:
    """A table with its notes and, folded away, where it was measured."""
    heads = "".join(f"<th{_align(column, table)}>{escape(column)}</th>" for column in table.columns)
    rows = "\n".join(
        f"<tr>{''.join(_cell(cell, column, table) for cell, column in zip(row, table.columns, strict=True))}</tr>"
        for row in table.rows
    )
    heading = f"<h3>{escape(table.title)}</h3>" if title else ""
    grid = f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    notes = folded("Notes", _list(table.notes)) if len(table.notes) > 4 else _list(table.notes)
    return f"{heading}{grid}{notes}{folded('Environment', _list(table.environment))}"


def drawing(caption: str, svg: str) -> str:
    """A plot under what it shows."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"


def side_by_side(*parts: str) -> str:
    """Parts beside each other where the window is wide enough."""
    return f'<div class="side">{"".join(parts)}</div>'


def folded(summary: str, content: str) -> str:
    """What opens on a click; nothing when there is nothing in it."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>" if content else ""


def gallery(panels: Sequence[Panel]) -> str:
    """Pictures group by group."""
    parts = []
    for group in dict.fromkeys(panel.group for panel in panels):
        own = "".join(_panel(panel) for panel in panels if panel.group == group)
        parts.append(f"<h3>{escape(group)}</h3>{own}")
    return "".join(parts)


def _panel(panel: Panel) -> str:
    images = "".join(
        f'<figure><img src="{escape(address)}" alt="{escape(label)} of {escape(panel.name)}" loading="lazy">'
        f"<figcaption>{escape(label)}</figcaption></figure>"
        for label, address in panel.images
    )
    said = f"<strong>{escape(panel.name)}</strong> {escape(panel.caption)}"
    return f'<div class="panel"><p>{said}</p><div class="images">{images}</div></div>'


def _align(column: str, table: Table) -> str:
    return ' class="number"' if column in table.numbers else ""


def _cell(text: str, column: str, table: Table) -> str:
    style = f' class="{_VERDICTS[text]}"' if text in _VERDICTS else _align(column, table)
    return f"<td{style}>{escape(text)}</td>"


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""
