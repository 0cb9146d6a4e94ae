"""`basnet-bench`: how fast each backend is, whether its masks are the trained model's, and whether a change passes.

basnet-bench latency random:64 random:16
basnet-bench parity basnet.pth basnet.onnx --pictures dev
basnet-bench video clip.mp4 --model basnet.onnx
basnet-bench accuracy basnet.onnx DUTS-TE ECSSD
basnet-bench gate benchmarks/baseline.json
basnet-bench report latency.json parity.json -o report.html

This module only translates: options to a configuration, a report to a table or JSON. Heavy libraries load inside.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from basnet_runtime.backends.base import BackendName, Precision
from basnet_runtime.console import say
from basnet_torch.config import MaskValues
from basnet_torch.device import Device
from basnet_torch.errors import BackendUnavailable, UsageError, exit_on_error

if TYPE_CHECKING:
    from basnet_benchmarks.results import Result

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)

Threads = Annotated[int | None, typer.Option(min=1, help="Threads of every backend. Default: all allowed.")]
MeasuredDevice = Annotated[str, typer.Option(help="cpu, or cuda, tensorrt or rtx, alone or as cuda:N.")]
RunDevice = Annotated[str, typer.Option(help="cpu, openvino, or cuda, tensorrt, rtx, alone or as cuda:N.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Write .json, .md or .html (page with plots) too.")]
Panels = Annotated[
    bool, typer.Option("--panels", help="Keep thumbnails of the worst pictures beside .json; .html always has them.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Masks = Annotated[
    MaskValues,
    typer.Option(help="Values of masks: gray; labels (not 0 is object, 255 left out); auto: gray, label maps refused."),
]
Backends = Annotated[
    list[str] | None,
    typer.Option(
        "--backend",
        metavar="BACKEND[:PRECISION]",
        help="Run only this; repeatable. onnxruntime:int8:openvino is its provider of OpenVINO. Default: all.",
    ),
]


@app.command()
def latency(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help=".pth, .safetensors, .onnx, .plan, or random:WIDTH.")
    ],
    batch: Annotated[str, typer.Option(help="Pictures per call; several sizes with commas.")] = "1",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each candidate.")] = 10,
    calls: Annotated[int, typer.Option(min=1, help="Timed calls in a turn.")] = 3,
    warm_up: Annotated[int, typer.Option(min=1, help="Calls before the first round.")] = 2,
    threads: Threads = None,
    backend: Backends = None,
    device: MeasuredDevice = "cpu",
    picture: Annotated[
        Path | None, typer.Option(help="Picture to split the whole way with. Default: a photograph.")
    ] = None,
    no_stages: Annotated[bool, typer.Option("--no-stages", help="Time the network alone.")] = False,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Start no processes to measure memory.")] = False,
    as_json: AsJson = False,
    output: Output = None,
    overwrite: Overwrite = False,
) -> None:
    """Time every backend on the same network, each as a ratio to PyTorch eager FP32 of the same run."""
    from basnet_benchmarks.candidates import parse_device
    from basnet_benchmarks.latency import LatencyConfig, measure_latency

    with exit_on_error():
        config = LatencyConfig(
            models=tuple(models),
            batches=_numbers(batch),
            rounds=rounds,
            calls=calls,
            warm_up=warm_up,
            threads=threads,
            backends=tuple(backend or ()),
            device=parse_device(device),
            stages=not no_stages,
            picture=picture,
            memory=not no_memory,
        )
        _check(output, overwrite=overwrite)
        _show(measure_latency(config, say), as_json, output, overwrite)


@app.command()
def parity(
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", help="Checkpoint; it runs in PyTorch FP32.")],
    candidates: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[CANDIDATE]...", help=".onnx, .plan or checkpoint. Default: REFERENCE, exported."),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of pictures, or data set with masks. Default: five photographs.")
    ] = None,
    mask_values: Masks = "auto",
    threads: Threads = None,
    backend: Backends = None,
    device: MeasuredDevice = "cpu",
    panels: Panels = False,
    as_json: AsJson = False,
    output: Output = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare masks with PyTorch FP32 under the parity contract. Exit code 4 when a candidate fails."""
    from basnet_benchmarks.candidates import parse_device
    from basnet_benchmarks.parity import ParityConfig, measure_parity

    with exit_on_error():
        config = ParityConfig(
            reference=reference,
            candidates=tuple(candidates or ()),
            pictures=pictures,
            mask_values=mask_values,
            backends=tuple(backend or ()),
            threads=threads,
            device=parse_device(device),
            panels=panels or _is_page(output),
        )
        _check(output, overwrite=overwrite)
        result = measure_parity(config, say)
        _show(result, as_json, output, overwrite)
    if result.exit_code:
        say(f"error: {result.conclusion}")
    raise SystemExit(result.exit_code)


@app.command()
def video(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Video file.")],
    models: Annotated[
        list[Path] | None,
        typer.Option("--engine", "--model", help="Repeatable; ratios are to the first. Default: the built-in model."),
    ] = None,
    kind: Annotated[str, typer.Option(help="mask, cutout, overlay, color:#rrggbb, image:FILE or blur.")] = "mask",
    runs: Annotated[int, typer.Option(min=1, help="Runs of each engine; several engines take turns.")] = 3,
    batch: Annotated[int, typer.Option(min=1, help="Frames per network run.")] = 1,
    backend: Annotated[BackendName | None, typer.Option(help="Default: chosen by the file.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="Default: the file's own.")] = None,
    threads: Threads = None,
    device: RunDevice = "cpu",
    as_json: AsJson = False,
    output: Output = None,
    overwrite: Overwrite = False,
) -> None:
    """Run basnet-run's whole pipeline on a video: frames per second, each stage's share of processor time.

    Several engines run in interleaved rounds, each once per round. Their ratios to the first engine are medians over
    the rounds, so that a machine that drifts slows both sides of each; six runs or more give confidence intervals.
    """
    from basnet_benchmarks.video import VideoConfig, measure_video

    with exit_on_error():
        config = VideoConfig(
            source=source,
            models=tuple(models or ()),
            kind=kind,
            runs=runs,
            batch=batch,
            backend=backend,
            precision=precision,
            threads=threads,
            device=Device.parse(device),
        )
        _check(output, overwrite=overwrite)
        _show(measure_video(config, say), as_json, output, overwrite)


@app.command()
def accuracy(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=".pth, .onnx or .plan; 'lite' is the built-in model.")],
    datasets: Annotated[list[Path], typer.Argument(metavar="DATASET...", help="Folders or zips with masks.")],
    backend: Annotated[BackendName | None, typer.Option(help="Default: chosen by the file.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="Default: the file's own.")] = None,
    threads: Threads = None,
    device: RunDevice = "cpu",
    mask_values: Masks = "auto",
    refine_edges: Annotated[
        bool, typer.Option("--refine-edges", help="Score masks with refined edges, as basnet-run has them.")
    ] = False,
    panels: Panels = False,
    as_json: AsJson = False,
    output: Output = None,
    overwrite: Overwrite = False,
) -> None:
    """Score masks where the truth is known: F, S and E measures, MAE, boundaries; .html shows curves and pictures."""
    from basnet_benchmarks.accuracy import AccuracyConfig, measure_accuracy

    with exit_on_error():
        config = AccuracyConfig(
            model=None if model == "lite" else Path(model),
            datasets=tuple(datasets),
            backend=backend,
            precision=precision,
            threads=threads,
            device=Device.parse(device),
            mask_values=mask_values,
            refine_edges=refine_edges,
            panels=panels or _is_page(output),
        )
        _check(output, overwrite=overwrite)
        result = measure_accuracy(config, say)
        _show(result, as_json, output, overwrite)
    if result.exit_code:
        say(f"error: {result.conclusion}")
    raise SystemExit(result.exit_code)


@app.command()
def gate(
    baseline: Annotated[Path, typer.Argument(metavar="BASELINE", help="JSON: what to measure, and what it gave.")],
    update: Annotated[bool, typer.Option("--update", help="Write what is measured into BASELINE.")] = False,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Compare masks only.")] = False,
    candidate: Annotated[
        list[Path] | None, typer.Option(help="Measure this .onnx too; with --update it stays. Repeatable.")
    ] = None,
    require_all: Annotated[bool, typer.Option("--require-all", help="What cannot run here fails too.")] = False,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of pictures, or data set with masks. Default: five photographs.")
    ] = None,
    threads: Threads = None,
    as_json: AsJson = False,
    output: Output = None,
    overwrite: Overwrite = False,
) -> None:
    """Pass or fail a change: masks by the contract, speed against BASELINE. Exit code 4 when something fails."""
    from basnet_benchmarks.gate import GateConfig, run_gate

    with exit_on_error():
        config = GateConfig(
            baseline=baseline,
            update=update,
            speed=not no_speed,
            require_all=require_all,
            pictures=pictures,
            threads=threads,
            candidates=tuple(candidate or ()),
        )
        _check(output, overwrite=overwrite)
        if output is not None and output.resolve() == baseline.resolve():
            raise UsageError(f"output {output}: is the baseline, which --update writes; name another file")
        result = run_gate(config, say)
        _show(result, as_json, output, overwrite)
    if result.exit_code:
        say(f"error: {result.complaint}")
    raise SystemExit(result.exit_code)


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
    from basnet_benchmarks.report import save_all

    with exit_on_error():
        _check(output, overwrite=overwrite)
        save_all(reports, output, overwrite=overwrite, short=brief)


@app.command()
def threshold(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=".pth, .onnx or .plan; 'lite' is the built-in model.")],
    choose: Annotated[Path, typer.Argument(metavar="DATASET", help="Its every second picture chooses the threshold.")],
    report: Annotated[list[Path] | None, typer.Argument(metavar="[DATASET]...", help="Further ones report.")] = None,
    lost: Annotated[float, typer.Option(help="Share of objects that may be called nothing.")] = 0.02,
    keep: Annotated[bool, typer.Option("--keep", help="Count errors at the model's own threshold.")] = False,
    nothing: Annotated[Path | None, typer.Option(help="Folder of pictures without an object; they report.")] = None,
    store: Annotated[Path | None, typer.Option(help="Write the checkpoint MODEL with the threshold here.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Most pictures of each data set.")] = None,
    backend: Annotated[BackendName | None, typer.Option(help="Default: chosen by the file.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="Default: the file's own.")] = None,
    mask_values: Masks = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
    output: Output = None,
    overwrite: Overwrite = False,
) -> None:
    """Choose the score below which nothing salient is found, count wrong verdicts, and store it with the weights."""
    from basnet_benchmarks.threshold import ThresholdConfig, measure_threshold

    with exit_on_error():
        config = ThresholdConfig(
            model=None if model == "lite" else Path(model),
            choose=choose,
            report=tuple(report or ()),
            nothing=nothing,
            lost=lost,
            keep=keep,
            store=store,
            overwrite=overwrite,
            limit=limit,
            backend=backend,
            precision=precision,
            mask_values=mask_values,
            threads=threads,
        )
        _check(output, overwrite=overwrite)
        _show(measure_threshold(config, say), as_json, output, overwrite)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"batch {text!r}: give numbers with commas between, as in 1,4") from None


def _is_page(output: Path | None) -> bool:
    return output is not None and output.suffix == ".html"


def _check(output: Path | None, *, overwrite: bool) -> None:
    """Refuse an output that could not be written later, before anything is measured."""
    from basnet_benchmarks.report import panels_path

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


def _show(result: Result, as_json: bool, output: Path | None, overwrite: bool) -> None:
    from basnet_benchmarks.report import save
    from basnet_benchmarks.results import json_text, terminal, values_of

    values = values_of(result)
    typer.echo(json_text(values) if as_json else terminal(values), nl=not as_json)
    if output is not None:  # last, so that a file that cannot be written does not lose what was measured
        save(values, output, overwrite=overwrite, panels=getattr(result, "panels", ()))


def main() -> None:
    """Run the command; usage errors end with 2, Ctrl-C with 130."""
    app()
