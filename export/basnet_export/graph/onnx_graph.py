"""From a checkpoint to an ONNX file that is kept only when it computes what the checkpoint computes.

path = export_onnx(ExportConfig(checkpoint=Path("basnet.pth"), precision="fp16"))
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basnet_export.checks import check_batches, check_graph, check_parity
from basnet_export.config import ExportConfig
from basnet_runtime.manifest import METADATA_KEY, Manifest, manifest_path, sha256_of
from basnet_torch import __version__
from basnet_torch.errors import BackendUnavailable, ExportError, ParityError, UsageError
from basnet_torch.files import atomic_write
from basnet_torch.model.structure import named
from basnet_torch.spec import TensorSpec

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from basnet_export.quantize.int8 import Int8Plan
    from basnet_torch.checkpoint import Checkpoint

__all__ = ["export_onnx", "onnx_from_checkpoint"]

Progress = Callable[[str], None]


def export_onnx(config: ExportConfig, progress: Progress = lambda _: None) -> Path:
    """Write the ONNX file and its manifest; returns the file's path.

    Args:
        config: What to write.
        progress: Called with what is being done, for people.

    Raises:
        BackendUnavailable: torch, onnx, onnxscript, or a runtime to check with is not installed.
        CheckpointError: The checkpoint cannot be read.
        ExportError: The graph is not what it must be.
        ParityError: It does not compute what the checkpoint computes; no file is left.
        UsageError: The file exists already, or there are no pictures to check with.
    """
    _require_libraries()
    _refuse_existing(config)
    from basnet_torch.checkpoint import load_checkpoint

    checkpoint = _resized(load_checkpoint(config.checkpoint), config.size)
    progress(
        f"exporting {named(checkpoint.arch)} on {checkpoint.encoder}, width {checkpoint.width}, "
        f"as {config.graph} graph, {config.precision}"
    )
    with atomic_write(config.target, overwrite=config.overwrite) as beside:
        try:
            manifest = _written(config, checkpoint, beside, progress)
        except ParityError as error:
            if config.precision not in ("fp16", "bf16") or config.keep_fp32 is not None:
                raise
            progress(f"{error}")
            kept = _float_islands(config, checkpoint, progress)
            manifest = _written(replace(config, keep_fp32=kept), checkpoint, beside, progress)
        with atomic_write(manifest_path(config.target), overwrite=config.overwrite) as note:  # no graph without it
            note.write_text(manifest.to_json() + "\n", encoding="utf-8")
    return config.target


def _written(config: ExportConfig, checkpoint: Checkpoint, path: Path, progress: Progress) -> Manifest:
    """Make the file, check it, and say what it is.

    Raises:
        ParityError: It does not compute what the checkpoint computes.
    """
    if config.precision in ("int8", "fp8"):
        graph, plan = _int8(config, checkpoint, progress)
        manifest = replace(_manifest(config, checkpoint, graph), keep_fp32=plan.kept, quantization=plan.facts)
    else:
        graph = onnx_from_checkpoint(checkpoint, config)
        manifest = replace(_manifest(config, checkpoint, graph), keep_fp32=config.keep_fp32 or ())
    check_graph(graph, manifest)
    _save(graph, manifest, path)
    if config.check:
        progress("checking batches and parity with PyTorch FP32")
        manifest = replace(manifest, parity=_proven(config, checkpoint, manifest, path))
        _save(graph, manifest, path)
    return replace(manifest, onnx_sha256=sha256_of(path))


def _float_islands(config: ExportConfig, checkpoint: Checkpoint, progress: Progress) -> tuple[str, ...]:
    """What must stay FP32 in a 16-bit network; found on the `tensor` graph, whichever was asked for."""
    import onnx

    from basnet_export.graph.half_precision import float_islands
    from basnet_export.samples import load_pictures

    tensor = onnx_from_checkpoint(checkpoint, replace(config, graph="tensor"))
    return float_islands(
        onnx.shape_inference.infer_shapes(tensor),
        checkpoint,
        config.precision,
        load_pictures(config.pictures),
        seconds=60 * config.search_minutes,
        progress=progress,
    )


def _int8(config: ExportConfig, checkpoint: Checkpoint, progress: Progress) -> tuple[onnx.ModelProto, Int8Plan]:
    """The quantized graph; what it needs to know is found on the `tensor` graph, whichever was asked for."""
    import onnx

    from basnet_export.quantize.int8 import int8_plan
    from basnet_export.samples import load_pictures

    pictures = load_pictures(config.pictures)
    fp32 = replace(config, precision="fp32", graph="tensor", store="fp32", calibration=None, keep_fp32=None)
    tensor = onnx.shape_inference.infer_shapes(onnx_from_checkpoint(checkpoint, fp32))
    plan = int8_plan(tensor, checkpoint, config, pictures, progress)
    model = tensor if config.graph == "tensor" else onnx_from_checkpoint(checkpoint, replace(fp32, graph="frame"))
    graph = plan.graph_of(model, config.int8_target)
    if config.precision == "fp8":
        from basnet_export.quantize.fp8 import fp8_from_int8

        graph = fp8_from_int8(graph, plan.float_graph_of(model))
    return graph, plan


def onnx_from_checkpoint(checkpoint: Checkpoint, config: ExportConfig) -> onnx.ModelProto:
    """The graph in memory, without its manifest."""
    import torch

    from basnet_export.graph.precision import deployed_network, scaled_network, torch_dtype
    from basnet_export.graph.storage import exact_kernels, store_as_fp16
    from basnet_export.graph.wrappers import FrameGraph, TensorGraph
    from basnet_torch.checkpoint import model_from_checkpoint

    if config.store == "fp16":
        exact_kernels(checkpoint.state)
    model = model_from_checkpoint(checkpoint)
    if config.store == "fp16":
        network = scaled_network(model)
    else:
        network = deployed_network(model, config.precision, config.keep_fp32 or ())
    tensor = TensorGraph(network, torch_dtype(config.precision)).eval()
    height, width = checkpoint.preprocess.height, checkpoint.preprocess.width
    # A batch of 2, because the exporter takes a batch of 1 for a constant.
    if config.graph == "tensor":
        graph = _exported(tensor, "image", torch.zeros(2, 3, height, width), ("batch",), config)
    else:
        frame = FrameGraph(tensor, checkpoint.preprocess, checkpoint.postprocess).eval()
        example = torch.zeros(2, 48, 80, 3, dtype=torch.uint8)
        graph = _exported(frame, "frame", example, ("batch", "height", "width"), config)
        _first_cast_only(graph)
    return store_as_fp16(graph) if config.store == "fp16" else graph


def _exported(
    module: nn.Module, name: str, example: Any, dynamic: tuple[str, ...], config: ExportConfig
) -> onnx.ModelProto:
    import torch

    from basnet_export.graph.precision import OPSETS

    axes = {axis: torch.export.Dim(label) for axis, label in enumerate(dynamic)}
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=(axes,),
            input_names=[name],
            output_names=["mask"],
            opset_version=OPSETS[config.precision],
            verbose=False,
        )
    if program is None:
        raise ExportError(f"{config.checkpoint}: torch.onnx.export returned no program")
    graph = program.model_proto
    _strip(graph)
    _name_nodes(graph.graph)
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about its own insides from a user's terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _strip(graph: onnx.ModelProto) -> None:
    """Drop the exporter's notes, which hold source lines and folders of the machine it ran on."""
    parts = (graph.graph, *graph.graph.node, *graph.graph.input, *graph.graph.output)
    for part in (graph, *parts, *graph.graph.value_info, *graph.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Call each convolution what the checkpoint calls it, and what follows it after it, instead of by numbers.

    `predict.encoder.stage1.0.conv1`, `predict.encoder.stage1.0.conv1.relu`: a part of the network is a common start.
    """
    maker: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Conv":
            node.name = node.input[1].partition("network.")[2].removesuffix(".weight")
        elif node.input and node.input[0] in maker:
            node.name = f"{maker[node.input[0]]}.{node.op_type.lower()}"
        if "." in node.name and node.op_type != "Sigmoid":  # what finishes the map is no part of the network
            maker[node.output[0]] = node.name
    names = [node.name for node in graph.node]
    if len(set(names)) < len(names):
        raise ExportError("two nodes of the graph have one name")
    for node in graph.node:
        node.input[:] = [maker.get(name, name) for name in node.input]
        node.output[:] = [maker.get(name, name) for name in node.output]
    for value in graph.value_info:
        value.name = maker.get(value.name, value.name)


def _first_cast_only(graph: onnx.ModelProto) -> None:
    """Let the leading cast alone read the bytes; the picture's size is read from its result."""
    nodes = list(graph.graph.node)
    cast = next(node for node in nodes if node.op_type == "Cast" and node.input[0] == "frame")
    for node in nodes:
        if node is not cast and "frame" in node.input:
            node.input[:] = [cast.output[0] if name == "frame" else name for name in node.input]
    rest = [node for node in nodes if node is not cast]
    del graph.graph.node[:]
    graph.graph.node.extend([cast, *rest])


def _manifest(config: ExportConfig, checkpoint: Checkpoint, graph: onnx.ModelProto) -> Manifest:
    size = (checkpoint.preprocess.height, checkpoint.preprocess.width)
    if config.graph == "tensor":
        tensors = checkpoint.preprocess.tensor_spec(), TensorSpec(name="mask", dtype="float32", shape=(None, 1, *size))
    else:
        free = (None, None, None)
        tensors = (
            TensorSpec(name="frame", dtype="uint8", shape=(*free, 3)),
            TensorSpec(name="mask", dtype="uint8", shape=free),
        )
    return Manifest(
        kind="onnx",
        graph=config.graph,
        precision=config.precision,
        store=config.store if config.precision == "fp32" else config.precision,
        arch=checkpoint.arch,
        encoder=checkpoint.encoder,
        width=checkpoint.width,
        preprocess=checkpoint.preprocess,
        postprocess=checkpoint.postprocess,
        input=tensors[0],
        output=tensors[1],
        opset=max(entry.version for entry in graph.opset_import if not entry.domain),
        checkpoint=config.checkpoint.name,
        checkpoint_sha256=sha256_of(config.checkpoint),
        origin=checkpoint.origin,
        exporter=_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _versions() -> dict[str, str]:
    import onnx
    import onnxscript
    import torch

    versions = {module.__name__: str(module.__version__) for module in (onnx, onnxscript, torch)}
    return {"basnet-deploy": __version__, **versions}


def _save(graph: onnx.ModelProto, manifest: Manifest, path: Path) -> None:
    import onnx

    onnx.helper.set_model_props(graph, {METADATA_KEY: manifest.to_json()})
    graph.producer_name, graph.producer_version = "basnet-deploy", __version__
    onnx.save(graph, path)


def _proven(config: ExportConfig, checkpoint: Checkpoint, manifest: Manifest, path: Path) -> dict[str, Any]:
    """The receipt of the checks on the file as it lies there."""
    from basnet_export.samples import load_pictures

    pictures = load_pictures(config.pictures)
    check_batches(path, manifest, pictures)
    return check_parity(path, manifest, checkpoint, pictures)


def _resized(checkpoint: Checkpoint, size: tuple[int, int] | None) -> Checkpoint:
    if size is None:
        return checkpoint
    return replace(checkpoint, preprocess=replace(checkpoint.preprocess, height=size[0], width=size[1]))


def _refuse_existing(config: ExportConfig) -> None:
    if not config.checkpoint.is_file():
        return  # the checkpoint's own message comes first
    if config.target.exists() and config.target.samefile(config.checkpoint):
        raise UsageError(f"{config.target}: is the checkpoint itself; name another file with -o")
    for path in (config.target, manifest_path(config.target)):
        if path.is_dir():
            raise UsageError(f"{path} is a folder; name a file")
        if path.exists() and not config.overwrite:
            raise UsageError(f"{path} exists already; --overwrite replaces it")


def _require_libraries() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise BackendUnavailable(f"export needs {', '.join(missing)}; pip install 'basnet-deploy[export]'")
