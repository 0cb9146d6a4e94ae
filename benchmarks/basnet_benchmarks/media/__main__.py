"""`python -m basnet_benchmarks.media kills|odd|fuzz`: each writes a table (.md) and its values (.json)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from basnet_benchmarks.environment import environment
from basnet_benchmarks.tables import Table, environment_lines, escaped_markdown, markdown_rows
from basnet_runtime.console import say
from basnet_torch.errors import exit_on_error

__all__: list[str] = []

_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)
Output = Annotated[Path, typer.Option("-o", "--output", help="Report without suffix; .md and .json are written.")]
_LIMITS = {"peak_mb": 1000.0, "seconds": 20.0}


@_app.command()
def kills(
    folder: Annotated[Path, typer.Argument(help="Inputs.")],
    output: Output,
    count: Annotated[int, typer.Option("--kills", help="Processes to kill.")] = 50,
    seed: int = 0,
    option: Annotated[list[str] | None, typer.Option("--option", help="Further words for basnet-run.")] = None,
) -> None:
    """Kill a folder job at random moments and compare what it leaves with an undisturbed run."""
    from basnet_benchmarks.media.kills import KillConfig, kill_folder_job

    with exit_on_error(), tempfile.TemporaryDirectory(prefix="basnet-kills-") as work:
        config = KillConfig(folder=folder, work=Path(work), kills=count, seed=seed, options=tuple(option or ()))
        report = kill_folder_job(config)
    values = {**report.to_dict(), "options": list(option or ())}
    columns = ("inputs", "kills", "jobs", "half_written", "redone", "seconds")
    rows = [tuple(str(values[name]) for name in columns)]
    notes = (
        "half_written: kills that left a temporary file, which the next run removed; redone: results made twice.",
        "After every kill each file under its final name is compared, byte by byte, with the undisturbed run's.",
        *(report.problems or ("No problem was found.",)),
    )
    _write(output, "kill -9 in a folder job", columns, columns, rows, notes, values)
    raise SystemExit(0 if report else 1)


@_app.command()
def odd(
    folder: Annotated[Path, typer.Argument(help="Odd pictures.")],
    output: Output,
    kind: str = "cutout",
) -> None:
    """Give every file of a folder to a basnet-run of its own: what came out, time, memory."""
    from basnet_benchmarks.media.odd import measure_odd

    files = []
    with tempfile.TemporaryDirectory(prefix="basnet-odd-") as work:
        for path in sorted(folder.iterdir()):
            files.append(measure_odd(path, Path(work), kind=kind))
            say(f"{files[-1].name}: {files[-1].outcome}")
    over = [file.name for file in files if file.peak_mb > _LIMITS["peak_mb"] or file.seconds > _LIMITS["seconds"]]
    columns = ("file", "outcome", "s", "cpu s", "MB")
    rows = [(file.name, file.outcome, f"{file.seconds}", f"{file.cpu_seconds}", f"{file.peak_mb}") for file in files]
    notes = (
        f"{sum(file.exit_code == 0 for file in files)} of {len(files)} gave a result (--kind {kind}).",
        f"Largest: {max(file.peak_mb for file in files)} MB, {max(file.seconds for file in files)} s, start included.",
        f"Over 1 GB or 20 s: {', '.join(over) or 'none'}.",
    )
    values = {"kind": kind, "files": [file.to_dict() for file in files]}
    _write(output, "Odd pictures, file by file", columns, columns[2:], rows, notes, values)
    raise SystemExit(1 if over else 0)


@_app.command()
def fuzz(output: Output, inputs: int = 1000, seed: int = 0) -> None:
    """Read files with damaged headers, in a process that is watched."""
    from basnet_benchmarks.media.fuzz import FuzzConfig, fuzz_pictures

    report = fuzz_pictures(FuzzConfig(inputs=inputs, seed=seed))
    names = sorted({*report.read, *report.refused})
    rows = [(name, str(report.read.get(name, 0)), str(report.refused.get(name, 0))) for name in names]
    notes = (
        f"{inputs} inputs, seed {seed}; at most {report.peak_mb} MB and {report.slowest_seconds} s for one.",
        *(report.problems or ("No crash, no hang, no error but one line.",)),
    )
    values = {**report.to_dict(), "inputs": inputs, "seed": seed}
    _write(
        output, "Damaged headers of pictures", ("format", "read", "refused"), ("read", "refused"), rows, notes, values
    )
    raise SystemExit(0 if report else 1)


def _write(
    output: Path,
    title: str,
    columns: Sequence[str],
    numbers: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    values: dict[str, Any],
) -> None:
    where = environment().to_dict()
    table = Table(
        title=title,
        columns=tuple(columns),
        numbers=frozenset(numbers),
        rows=tuple(tuple(row) for row in rows),
        notes=tuple(notes),
        environment=environment_lines(where),
    )
    lines = [f"### {title}", "", *markdown_rows(table), "", *(f"- {escaped_markdown(note)}" for note in notes), ""]
    lines += ["<details><summary>Environment</summary>", "", *(f"- {line}" for line in table.environment)]
    output.with_suffix(".md").write_text("\n".join([*lines, "", "</details>", ""]), encoding="utf-8")
    values = {**values, "environment": where}
    output.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    for note in notes:
        say(note)


if __name__ == "__main__":
    _app()
