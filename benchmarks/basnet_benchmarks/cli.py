"""`basnet-bench`: latency, parity, accuracy, video and the gate for changes.

    basnet-bench latency random:64 random:16
    basnet-bench parity basnet.pth basnet.onnx --pictures dev
    basnet-bench video clip.mp4 --engine basnet.onnx
    basnet-bench accuracy basnet.onnx DUTS-TE ECSSD
    basnet-bench threshold basnet.pth DUTS-TE --store basnet.safetensors
    basnet-bench gate benchmarks/baseline.json
    basnet-bench report latency.json parity.json -o report.html

Options are the fields of each command's config. Heavy libraries load when a command runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from basnet_benchmarks.accuracy import AccuracyConfig, measure_accuracy
from basnet_benchmarks.gate import GateConfig, run_gate
from basnet_benchmarks.latency import LatencyConfig, measure_latency
from basnet_benchmarks.parity import ParityConfig, measure_parity
from basnet_benchmarks.report import panels_path, save, save_all
from basnet_benchmarks.results import json_text, terminal, values_of
from basnet_benchmarks.threshold import ThresholdConfig, measure_threshold
from basnet_benchmarks.video import VideoConfig, measure_video
from basnet_torch.console import say
from basnet_torch.errors import BackendUnavailable, UsageError, exit_on_error
from basnet_torch.options import argument, build, option, takes

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """Where a result goes."""

    as_json: bool = field(default=False, metadata=option("Print JSON on stdout instead of a table.", "--json"))
    output: Path | None = field(
        default=None, metadata=option("Write .json, .md or .html (page with plots) too.", "-o", "--output")
    )
    overwrite: bool = field(default=False, metadata=option("Replace an existing output.", "--overwrite"))


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """What to show in one file."""

    reports: tuple[Path, ...] = field(metadata=argument("JSON...", "Files that the other commands wrote."))
    output: Path = field(metadata=option("The .html, .md or .json to write.", "-o", "--output"))
    brief: bool = field(
        default=False, metadata=option("Leave single pictures and folder names out of .json.", "--brief")
    )
    overwrite: bool = field(default=False, metadata=option("Replace an existing output.", "--overwrite"))


def _add(name: str, config: type[Any], measure: Callable[..., Any], text: str) -> None:
    """Add a command that measures what its options, the config's fields, say."""

    @app.command(name, help=text)
    @takes(config, Output)
    def command(**values: Any) -> None:
        with exit_on_error():
            to = build(Output, values)
            if "panels" in values:
                values["panels"] |= to.output is not None and to.output.suffix == ".html"
            made = build(config, values)
            _check(to.output, overwrite=to.overwrite)
            if to.output is not None and to.output.resolve() == getattr(made, "baseline", to.output / "x").resolve():
                raise UsageError(f"output {to.output}: is the baseline, which --update writes; name another file")
            result = measure(made, say)
            shown = values_of(result)
            typer.echo(json_text(shown) if to.as_json else terminal(shown), nl=not to.as_json)
            if to.output is not None:  # last, so that a file that cannot be written does not lose what was measured
                save(shown, to.output, overwrite=to.overwrite, panels=getattr(result, "panels", ()))
        if getattr(result, "exit_code", 0):
            say(f"error: {result.complaint}")
            raise SystemExit(result.exit_code)


_add(
    "latency",
    LatencyConfig,
    measure_latency,
    "Time every backend on the same network, each as a ratio to PyTorch eager FP32 of the same run.",
)
_add(
    "parity",
    ParityConfig,
    measure_parity,
    "Compare masks with PyTorch FP32 under the parity contract. Exit code 4 when a candidate fails.",
)
_add(
    "video",
    VideoConfig,
    measure_video,
    """Run basnet-run's whole pipeline on a video: frames per second, each stage's share of CPU time.

    Several engines run in interleaved rounds, each once per round. Their ratios to the first engine are medians over
    the rounds, so that a machine that drifts slows both sides of each; six runs or more give confidence intervals.
    """,
)
_add(
    "accuracy",
    AccuracyConfig,
    measure_accuracy,
    "Score masks where the truth is known: F, S and E measures, MAE, boundaries; .html shows curves and pictures.",
)
_add(
    "gate",
    GateConfig,
    run_gate,
    "Pass or fail a change: masks by the contract, speed against BASELINE. Exit code 4 when something fails.",
)
_add(
    "threshold",
    ThresholdConfig,
    measure_threshold,
    "Choose the score below which nothing salient is found, count wrong decisions, and store it with the weights.",
)


@app.command()
@takes(ReportConfig)
def report(**values: Any) -> None:
    """Show results as one HTML page with plots and pictures, Markdown, or JSON."""
    with exit_on_error():
        config = build(ReportConfig, values)
        _check(config.output, overwrite=config.overwrite)
        save_all(config.reports, config.output, overwrite=config.overwrite, short=config.brief)


def _check(output: Path | None, *, overwrite: bool) -> None:
    """Refuse an output that could not be written later, before anything is measured."""
    if output is None:
        return
    if output.suffix not in (".json", ".md", ".html"):
        raise UsageError(f"output {output}: its name must end in .json, .md or .html")
    missing = [name for name in ("matplotlib", "jinja2") if find_spec(name) is None]
    if output.suffix == ".html" and missing:
        raise BackendUnavailable(f"{output}: needs {' and '.join(missing)}; pip install 'basnet-deploy[report]'")
    beside = [panels_path(output)] if output.suffix == ".json" else []
    existing = next((path for path in (output, *beside) if path.exists()), None)
    if existing and not overwrite:
        raise UsageError(f"{existing} exists already; --overwrite replaces it")


def main() -> None:
    """Run the command; usage errors end with 2, Ctrl-C with 130."""
    app()
