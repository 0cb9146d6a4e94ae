"""`basnet-bench`: how fast each backend is, whether its masks are the trained model's, and whether a change passes.

basnet-bench latency random:64 random:16
basnet-bench parity basnet.pth basnet.onnx --pictures dev
basnet-bench video clip.mp4 --model basnet.onnx
basnet-bench accuracy basnet.onnx DUTS-TE ECSSD
basnet-bench gate benchmarks/baseline.json
basnet-bench gpu --pictures DUTS-TE
basnet-bench report latency.json parity.json -o report.html
basnet-bench tables README.md

This module only translates: options to a configuration, a report to a table or JSON. Heavy libraries load inside.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from basnet_runtime.backends.base import BackendName, Precision
from basnet_runtime.console import say
from basnet_torch.device import Device
from basnet_torch.errors import UsageError, exit_on_error

if TYPE_CHECKING:
    from basnet_benchmarks.report import Report

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
    from basnet_benchmarks.report import check_output

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
        check_output(output, overwrite=overwrite)
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
    from basnet_benchmarks.report import check_output

    with exit_on_error():
        config = ParityConfig(
            reference=reference,
            candidates=tuple(candidates or ()),
            pictures=pictures,
            backends=tuple(backend or ()),
            threads=threads,
            device=parse_device(device),
            panels=panels or _is_page(output),
        )
        check_output(output, overwrite=overwrite)
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
    from basnet_benchmarks.report import check_output
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
        check_output(output, overwrite=overwrite)
        _show(measure_video(config, say), as_json, output, overwrite)


@app.command()
def accuracy(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=".pth, .onnx or .plan; 'lite' is the built-in model.")],
    datasets: Annotated[list[Path], typer.Argument(metavar="DATASET...", help="Folders or zips with masks.")],
    backend: Annotated[BackendName | None, typer.Option(help="Default: chosen by the file.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="Default: the file's own.")] = None,
    threads: Threads = None,
    device: RunDevice = "cpu",
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
    from basnet_benchmarks.report import check_output

    with exit_on_error():
        config = AccuracyConfig(
            model=None if model == "lite" else Path(model),
            datasets=tuple(datasets),
            backend=backend,
            precision=precision,
            threads=threads,
            device=Device.parse(device),
            refine_edges=refine_edges,
            panels=panels or _is_page(output),
        )
        check_output(output, overwrite=overwrite)
        _show(measure_accuracy(config, say), as_json, output, overwrite)


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
    from basnet_benchmarks.report import check_output

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
        check_output(output, overwrite=overwrite)
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
    from basnet_benchmarks.report import check_output, save_all

    with exit_on_error():
        check_output(output, overwrite=overwrite)
        save_all(reports, output, overwrite=overwrite, brief=brief)


@app.command()
def gpu(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="New folder. Default: in reports.")] = None,
    plans: Annotated[Path | None, typer.Option(help="Folder that keeps the engines. Default: none are kept.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Trained weights of width 64. Default: random.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="To show parity on. Default: five photographs.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Pictures that INT8 is calibrated on.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Steps whose names begin so; repeatable.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny networks, few rounds: tries this itself.")] = False,
) -> None:
    """Prove on a CUDA device all that can be proven: engines, tests, latency, parity, video, memory."""
    from basnet_benchmarks.gpu_report import default_output, run_gpu_report
    from basnet_benchmarks.gpu_steps import GpuConfig

    with exit_on_error():
        config = GpuConfig(
            output=output or default_output(),
            plans=plans,
            checkpoint=checkpoint,
            pictures=pictures,
            calibration=calibration,
            only=tuple(only or ()),
            quick=quick,
        )
        failed = run_gpu_report(config)
    raise SystemExit(1 if failed else 0)


@app.command()
def tables(
    documents: Annotated[list[Path], typer.Argument(metavar="MARKDOWN...", help="Files with marked blocks.")],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 4 when a number is out of date.")
    ] = False,
) -> None:
    """Rewrite the tables and numbers of Markdown files, between their markers, from committed JSON reports."""
    from basnet_benchmarks.documents import rewrite

    with exit_on_error():
        changed = [path for path in documents if rewrite(path, check=check)]
    for path in changed:
        say(f"{path}: {'is out of date; run basnet-bench tables' if check else 'written anew'}")
    raise SystemExit(4 if check and changed else 0)


@app.command()
def verdict(
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
    threads: Threads = None,
    as_json: AsJson = False,
    output: Output = None,
    overwrite: Overwrite = False,
) -> None:
    """Choose the score below which nothing salient is found, count wrong verdicts, and store it with the weights."""
    from basnet_benchmarks.report import check_output
    from basnet_benchmarks.verdict import VerdictConfig, measure_verdict

    with exit_on_error():
        config = VerdictConfig(
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
            threads=threads,
        )
        check_output(output, overwrite=overwrite)
        _show(measure_verdict(config, say), as_json, output, overwrite)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"batch {text!r}: give numbers with commas between, as in 1,4") from None


def _is_page(output: Path | None) -> bool:
    return output is not None and output.suffix == ".html"


def _show(result: Report, as_json: bool, output: Path | None, overwrite: bool) -> None:
    from basnet_benchmarks.report import json_text, save, terminal

    typer.echo(json_text(result) if as_json else terminal(result), nl=not as_json)
    if output is not None:  # last, so that a file that cannot be written does not lose what was measured
        save(result, output, overwrite=overwrite)


def main() -> None:
    """Run the command; usage errors end with 2, Ctrl-C with 130."""
    app()
