"""`basnet-bench`: how fast each backend is, whether its masks are the trained model's, and whether a change passes.

    basnet-bench latency random:64 random:16
    basnet-bench parity basnet.pth basnet.onnx --pictures dev
    basnet-bench video clip.mp4 --engine basnet.onnx
    basnet-bench accuracy basnet.onnx DUTS-TE ECSSD
    basnet-bench threshold basnet.pth DUTS-TE --store basnet.safetensors
    basnet-bench gate benchmarks/baseline.json
    basnet-bench report latency.json parity.json -o report.html

An option stands in its config's field: help text, flags and limits are the field's metadata, from which the command's
signature is made. Heavy libraries load when a command runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from importlib.util import find_spec
from inspect import Parameter, Signature
from operator import not_
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

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

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Write .json, .md or .html (page with plots) too.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]


def _parameter(own: Field[Any], kind: Any) -> Parameter:
    """Make the argument or option of a config's field."""
    given = dict(own.metadata)
    default = Parameter.empty if given.pop("required", False) or own.default is MISSING else own.default
    kind, parse = given.pop("type", kind), given.pop("parse", None)
    if parse is not_:  # a flag that turns off what is on
        default = not default
    elif get_origin(kind) is tuple:
        kind, default = list[get_args(kind)[0]], default or None  # type: ignore[misc]
    elif parse and default is not Parameter.empty:  # as it is typed: a device's name, sizes with commas
        kind, default = str, ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    if "argument" in given:
        info = typer.Argument(metavar=given.pop("argument"), **given)
    else:
        info = typer.Option(*given.pop("flags", ()), **given)
    kind = kind | None if default is None else kind
    return Parameter(own.name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=Annotated[kind, info])


def _add(name: str, config: type[Any], measure: Callable[..., Any], text: str) -> None:
    """Add a command that measures what its options, the config's fields, say."""
    hints = get_type_hints(config)
    options = [own for own in fields(config) if own.metadata]

    def command(*, as_json: bool, output: Path | None, overwrite: bool, **given: Any) -> None:
        with exit_on_error():
            for own in options:
                parse = own.metadata.get("parse", tuple if get_origin(hints[own.name]) is tuple else None)
                if parse:
                    given[own.name] = parse(given[own.name] or ())
            if "overwrite" in hints:
                given["overwrite"] = overwrite
            if "panels" in hints:
                given["panels"] |= output is not None and output.suffix == ".html"
            made = config(**given)
            _check(output, overwrite=overwrite)
            if output is not None and output.resolve() == getattr(made, "baseline", output / "other").resolve():
                raise UsageError(f"output {output}: is the baseline, which --update writes; name another file")
            result = measure(made, say)
            values = values_of(result)
            typer.echo(json_text(values) if as_json else terminal(values), nl=not as_json)
            if output is not None:  # last, so that a file that cannot be written does not lose what was measured
                save(values, output, overwrite=overwrite, panels=getattr(result, "panels", ()))
        if getattr(result, "exit_code", 0):
            say(f"error: {result.complaint}")
            raise SystemExit(result.exit_code)

    shared = ((AsJson, "as_json", False), (Output, "output", None), (Overwrite, "overwrite", False))
    common = (Parameter(n, Parameter.KEYWORD_ONLY, default=d, annotation=a) for a, n, d in shared)
    parameters = [_parameter(own, hints[own.name]).replace(kind=Parameter.KEYWORD_ONLY) for own in options]
    command.__signature__ = Signature([*parameters, *common])  # type: ignore[attr-defined]
    app.command(name, help=text)(command)


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
    "Choose the score below which nothing salient is found, count wrong verdicts, and store it with the weights.",
)


@app.command()
def report(
    reports: Annotated[list[Path], typer.Argument(metavar="JSON...", help="Files that the other commands wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .html, .md or .json to write.")],
    brief: Annotated[
        bool, typer.Option("--brief", help="Leave single pictures and folder names out of .json.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Show saved results in one file: a page with plots and pictures, Markdown for a pull request, or JSON."""
    with exit_on_error():
        _check(output, overwrite=overwrite)
        save_all(reports, output, overwrite=overwrite, short=brief)


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
