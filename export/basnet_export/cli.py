"""`basnet-export`: ONNX export, TensorRT engines, conversion, inspection.

basnet-export onnx basnet.pth --precision fp16 --graph frame
basnet-export engine basnet.pth -o fp16.plan --batch 1,8,32
basnet-export checkpoint best.pth -o basnet.pth --layout authors
basnet-export adopt u2net.onnx --preset u2net
basnet-export triton basnet.onnx -o repository
basnet-export inspect basnet-frame-fp16.onnx
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from basnet_export.adopt import AdoptConfig, adopt_file
from basnet_export.config import SIZE, ExportConfig, Store
from basnet_export.convert import Layout
from basnet_export.engine.config import BuildConfig
from basnet_export.triton import TritonConfig, write_triton_model
from basnet_torch.console import progress_bar, say
from basnet_torch.errors import exit_on_error
from basnet_torch.json_values import to_plain
from basnet_torch.options import OVERWRITE, argument, build, option, takes

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Deploy BASNet.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Printed:
    """How a result is printed."""

    as_json: bool = field(default=False, metadata=option("Print the result as JSON on stdout.", "--json"))


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertConfig:
    """What to write of a checkpoint."""

    source: Path = field(metadata=argument("CKPT", "A .pth, .pt or .safetensors checkpoint."))
    output: Path = field(metadata=option("A .pth or .safetensors file to write.", "-o", "--output"))
    layout: Layout = field(
        default="ours", metadata=option("Whose parameter names: ours, or the authors' for their code.")
    )
    store: Store = field(default="fp32", metadata=option("Stored type of the weights."))
    size: tuple[int, int] | None = field(
        default=None, metadata={**SIZE, "help": "Network input to keep with the weights."}
    )
    overwrite: bool = field(default=False, metadata=OVERWRITE)


@app.command()
@takes(ExportConfig, Printed)
def onnx(**values: Any) -> None:
    """Write CKPT as ONNX; the file is kept only when its masks match PyTorch FP32."""
    with exit_on_error():
        config = build(ExportConfig, values)
        from basnet_export.onnx_export import export_onnx

        _print_file(export_onnx(config, say), as_json=values["as_json"])


@app.command()
@takes(BuildConfig, Printed)
def engine(**values: Any) -> None:
    """Build a TensorRT engine of MODEL, with its manifest beside it."""
    with exit_on_error():
        _print_file(_built_with_progress(build(BuildConfig, values)), as_json=values["as_json"])


@app.command()
@takes(AdoptConfig, Printed)
def adopt(**values: Any) -> None:
    """Describe a foreign FILE in a manifest, so that every command takes it."""
    with exit_on_error():
        _print_file(adopt_file(build(AdoptConfig, values), say), as_json=values["as_json"])


@app.command()
@takes(ConvertConfig)
def checkpoint(**values: Any) -> None:
    """Write CKPT in another form: safetensors, FP16 storage, or the authors' names."""
    with exit_on_error():
        from basnet_export.convert import convert_checkpoint

        config = build(ConvertConfig, values)
        path = convert_checkpoint(
            config.source,
            config.output,
            layout=config.layout,
            store=config.store,
            size=config.size,
            overwrite=config.overwrite,
            tell=say,
        )
        typer.echo(f"{path}: {path.stat().st_size:,} bytes")


@app.command()
@takes(TritonConfig)
def triton(**values: Any) -> None:
    """Write MODEL into a Triton model repository."""
    with exit_on_error():
        typer.echo(write_triton_model(build(TritonConfig, values), say))


@app.command()
@takes(Printed)
def inspect(
    file: Annotated[Path, typer.Argument(help="A .pth, .pt, .safetensors, .onnx or .plan file.")], **values: Any
) -> None:
    """Say what FILE is and how to feed it."""
    with exit_on_error():
        from basnet_export.describe import describe

        description = describe(file)
        typer.echo(json.dumps(to_plain(description), indent=1) if values["as_json"] else str(description))


def _built_with_progress(config: BuildConfig) -> Path:
    """Build an engine with a progress bar."""
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
