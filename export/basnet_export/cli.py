"""`basnet-export`: a checkpoint as a checked ONNX file or in another form, and what a model file is.

basnet-export onnx basnet.pth --precision fp16 --graph frame
basnet-export engine basnet.pth -o fp16.plan --batch 1,8,32
basnet-export checkpoint best.pth -o basnet.pth --layout authors
basnet-export inspect basnet-frame-fp16.onnx
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from basnet_export.config import CalibrationMethod, ExportConfig, Store, Target, parse_size
from basnet_export.convert import Layout
from basnet_export.engine.config import BuildConfig, Tiling, parse_range
from basnet_runtime.kinds import Precision
from basnet_runtime.manifest import Graph
from basnet_torch.console import progress_bar, say
from basnet_torch.errors import exit_on_error

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Deploy BASNet.")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


@app.command()
def onnx(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="A .pth, .pt or .safetensors checkpoint.")],
    precision: Annotated[Precision, typer.Option(help="What the network computes in.")] = "fp32",
    graph: Annotated[Graph, typer.Option(help="tensor: normalized floats; frame: bytes of any size.")] = "tensor",
    size: Annotated[str | None, typer.Option(metavar="H|HxW", help="Network input; else the checkpoint's.")] = None,
    store: Annotated[Store, typer.Option(help="What weights of FP32 layers are stored as.")] = "fp32",
    target: Annotated[Target, typer.Option(help="What runs an int8 or fp8 graph; cpu: ONNX Runtime.")] = "cpu",
    calibration: Annotated[
        Path | None, typer.Option(help="Folder or zip of real pictures that int8 ranges are taken from.")
    ] = None,
    calibration_count: Annotated[int, typer.Option(min=16, help="Most pictures to take from there.")] = 256,
    calibration_method: Annotated[
        CalibrationMethod, typer.Option(help="How ranges follow from values; auto measures all but entropy.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Which calibration pictures are drawn.")] = 0,
    keep_fp32: Annotated[
        list[str] | None,
        typer.Option(metavar="PART", help="Part of a reduced network to keep FP32; repeatable; none: no search."),
    ] = None,
    search_minutes: Annotated[float, typer.Option(min=0, help="How long to search for such parts.")] = 10.0,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File to write; else beside CKPT.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    pictures: Annotated[Path | None, typer.Option(help="Folder of pictures to prove parity on.")] = None,
    no_check: Annotated[bool, typer.Option("--no-check", help="Keep the file without proof of its masks.")] = False,
    as_json: Json = False,
) -> None:
    """Write CKPT as ONNX; the file is kept only when its masks are those of PyTorch FP32."""
    with exit_on_error():
        config = ExportConfig(
            checkpoint=checkpoint,
            output=output,
            precision=precision,
            graph=graph,
            store=store,
            size=parse_size(size) if size else None,
            int8_target=target,
            calibration=calibration,
            calibration_count=calibration_count,
            calibration_method=calibration_method,
            seed=seed,
            keep_fp32=None if keep_fp32 is None else tuple(part for part in keep_fp32 if part != "none"),
            search_minutes=search_minutes,
            pictures=pictures,
            check=not no_check,
            overwrite=overwrite,
        )
        from basnet_export.graph.onnx_graph import export_onnx

        _print_file(export_onnx(config, say), as_json=as_json)


@app.command()
def engine(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx, or a checkpoint, which is exported.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Plan to write; else beside MODEL.")] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Of a checkpoint's network. Default: fp16; an .onnx has its own.")
    ] = None,
    graph: Annotated[Graph | None, typer.Option(help="Of a checkpoint. Default: tensor.")] = None,
    size: Annotated[str | None, typer.Option(metavar="H|HxW", help="Network input; else the checkpoint's.")] = None,
    flavor: Annotated[
        Literal["auto", "tensorrt", "rtx"], typer.Option(help="Whose engine. Default: what is installed.")
    ] = "auto",
    batch: Annotated[str, typer.Option(metavar="RANGE", help="Pictures a run: N, or smallest,best,largest.")] = "1,1,8",
    height: Annotated[
        str | None, typer.Option(metavar="RANGE", help="Picture heights of a frame graph.  [default: 32,720,2160]")
    ] = None,
    width: Annotated[
        str | None, typer.Option(metavar="RANGE", help="Picture widths of a frame graph.  [default: 32,1280,3840]")
    ] = None,
    workspace: Annotated[int | None, typer.Option(min=1, help="Most memory for one layer's work, MiB.")] = None,
    level: Annotated[int, typer.Option(min=0, max=5, help="Optimization, 0 quick to 5 thorough.")] = 3,
    tiling: Annotated[Tiling, typer.Option(help="How hard to look for tilings.")] = "none",
    aux_streams: Annotated[int | None, typer.Option(min=0, help="Streams beside a run's own.")] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="For later releases too; tensorrt only.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="For every GPU from Ampere on; tensorrt only.")
    ] = False,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(metavar="M.N|current", help="Build for this device kind; repeatable; rtx only."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Real pictures that int8 and fp8 ranges of a checkpoint are taken from.")
    ] = None,
    keep_fp32: Annotated[
        list[str] | None,
        typer.Option(metavar="PART", help="Part of such a network to keep FP32; repeatable; none: no search."),
    ] = None,
    search_minutes: Annotated[float, typer.Option(min=0, help="How long to search for such parts.")] = 10.0,
    timing_cache: Annotated[Path | None, typer.Option(help="File of kernel timings; tensorrt only.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps finished engines.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder of pictures to prove parity on.")] = None,
    no_check: Annotated[bool, typer.Option("--no-check", help="Build a checkpoint's graph without proof.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Build a TensorRT engine of MODEL, with its manifest beside it."""
    with exit_on_error():
        config = BuildConfig(
            model=model,
            output=output,
            precision=precision,
            graph=graph,
            size=parse_size(size) if size else None,
            flavor=flavor,
            batch=parse_range("batch", batch),
            height=parse_range("height", height) if height else None,
            width=parse_range("width", width) if width else None,
            workspace_mib=workspace,
            optimization_level=level,
            tiling=tiling,
            aux_streams=aux_streams,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            compute_capabilities=tuple(compute_capability or ()),
            calibration=calibration,
            keep_fp32=None if keep_fp32 is None else tuple(part for part in keep_fp32 if part != "none"),
            search_minutes=search_minutes,
            timing_cache=timing_cache,
            cache=cache,
            pictures=pictures,
            check=not no_check,
            overwrite=overwrite,
        )
        _print_file(_built(config), as_json=as_json)


@app.command()
def checkpoint(
    source: Annotated[Path, typer.Argument(metavar="CKPT", help="A .pth, .pt or .safetensors checkpoint.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A .pth or .safetensors file to write.")],
    layout: Annotated[
        Layout, typer.Option(help="Whose parameter names: ours, or the authors' for their code.")
    ] = "ours",
    store: Annotated[Store, typer.Option(help="What the weights are kept as.")] = "fp32",
    size: Annotated[str | None, typer.Option(metavar="H|HxW", help="Network input to keep with the weights.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write CKPT in another form: safetensors, FP16 storage, or the authors' names."""
    with exit_on_error():
        from basnet_export.convert import convert_checkpoint

        path = convert_checkpoint(
            source,
            output,
            layout=layout,
            store=store,
            size=parse_size(size) if size else None,
            overwrite=overwrite,
            tell=say,
        )
        typer.echo(f"{path}: {path.stat().st_size:,} bytes")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A .pth, .pt, .safetensors, .onnx or .plan file.")],
    as_json: Json = False,
) -> None:
    """Say what FILE is and how to feed it."""
    with exit_on_error():
        from basnet_export.describe import describe

        description = describe(file)
        typer.echo(json.dumps(description.to_dict(), indent=1) if as_json else str(description))


def _built(config: BuildConfig) -> Path:
    """Build behind a progress bar."""
    from basnet_export.engine.build import build_engine
    from basnet_export.engine.progress import BuildProgress

    with progress_bar(counted=False) as bar:
        task = bar.add_task("building", total=1.0, visible=False)

        class Shown(BuildProgress):
            def say(self, what: str) -> None:
                say(what)

            def advanced(self, phase: str, share: float) -> None:
                bar.update(task, description=phase, completed=share, visible=True)

        return build_engine(config, Shown())


def _print_file(path: Path, *, as_json: bool) -> None:
    from basnet_export.describe import receipt

    facts = receipt(path)
    typer.echo(json.dumps(facts, indent=1) if as_json else f"{path}: {facts['bytes']:,} bytes, {facts['verdict']}")


def main() -> None:
    """Entry point."""
    app()
