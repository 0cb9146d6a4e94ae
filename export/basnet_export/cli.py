"""`basnet-export`: a checkpoint as a checked ONNX file or in another form, and what a model file is.

basnet-export onnx basnet.pth --precision fp16 --graph frame
basnet-export checkpoint best.pth -o basnet.pth --layout authors
basnet-export inspect basnet-frame-fp16.onnx
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from basnet_export.checkpoints import Layout
from basnet_export.config import ExportConfig, Store, parse_size
from basnet_runtime.backends.base import Precision
from basnet_runtime.console import say
from basnet_runtime.manifest import Graph
from basnet_torch.errors import exit_on_error

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Deploy BASNet.")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


@app.command()
def onnx(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="A .pth, .pt or .safetensors checkpoint.")],
    precision: Annotated[Precision, typer.Option(help="What the network computes in.")] = "fp32",
    graph: Annotated[Graph, typer.Option(help="tensor: normalised floats; frame: bytes of any size.")] = "tensor",
    size: Annotated[str | None, typer.Option(metavar="H|HxW", help="Network input; else the checkpoint's.")] = None,
    store: Annotated[Store, typer.Option(help="What an fp32 graph's weights are kept as.")] = "fp32",
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
            pictures=pictures,
            check=not no_check,
            overwrite=overwrite,
        )
        from basnet_export.onnx_graph import export_onnx

        _print_file(export_onnx(config, say), as_json=as_json)


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
        from basnet_export.checkpoints import convert_checkpoint

        path = convert_checkpoint(
            source, output, layout=layout, store=store, size=parse_size(size) if size else None, overwrite=overwrite
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


def _print_file(path: Path, *, as_json: bool) -> None:
    from basnet_export.describe import receipt

    facts = receipt(path)
    typer.echo(json.dumps(facts, indent=1) if as_json else f"{path}: {facts['bytes']:,} bytes, {facts['verdict']}")


def main() -> None:
    """Entry point."""
    app()
