"""ONNX export; the file is kept only if its masks match PyTorch's.

path = export_onnx(ExportConfig(checkpoint=Path("basnet.pth"), precision="fp16"))
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basnet_export.checks import check_batches, check_graph, measure_parity, measure_sizes
from basnet_export.config import ExportConfig, refuse_existing
from basnet_export.graph.free_size import free_size
from basnet_export.reference import Reference
from basnet_export.samples import load_pictures
from basnet_runtime.manifest import METADATA_KEY, Manifest, manifest_path, sha256_of
from basnet_runtime.model_files import model_kind
from basnet_runtime.onnx_file.content import graph_content
from basnet_torch import __version__
from basnet_torch.errors import BackendUnavailable, ExportError
from basnet_torch.files import atomic_write
from basnet_torch.model.structure import named
from basnet_torch.spec import TensorSpec

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    from torch import nn

    from basnet_export.quantize.int8 import Int8Plan
    from basnet_torch.checkpoint import Checkpoint

__all__ = ["export_onnx", "onnx_from_checkpoint"]

Progress = Callable[[str], None]


def export_onnx(config: ExportConfig, progress: Progress = lambda _: None) -> Path:
    """Write an ONNX file and its manifest; return the file's path.

    Args:
        config: What to write.
        progress: Receives progress messages.

    Raises:
        BackendUnavailable: torch, onnx, onnxscript, or a runtime to check with is not installed.
        CheckpointError: The checkpoint cannot be read.
        ExportError: The graph is not what it must be.
        ParityError: It does not compute what the checkpoint computes; no file is left.
        UsageError: The file exists already, or there are no pictures to check with.
    """
    missing = [name for name in ("torch", "onnx", "onnx_ir", "onnxscript") if find_spec(name) is None]
    if missing:
        raise BackendUnavailable(f"export needs {', '.join(missing)}; pip install 'basnet-deploy[export]'")
    if config.checkpoint.is_file() and model_kind(config.checkpoint) == "onnx":
        from basnet_export.adopted_onnx import export_adopted

        return export_adopted(config, progress)
    if config.checkpoint.is_file():  # otherwise the checkpoint's own message comes first
        refuse_existing(config.target, config.checkpoint, "checkpoint", overwrite=config.overwrite)
    from basnet_torch.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(config.checkpoint)
    if config.size is not None:
        height, width = config.size
        checkpoint = replace(checkpoint, preprocess=replace(checkpoint.preprocess, height=height, width=width))
    progress(
        f"exporting {named(checkpoint.arch)} on {checkpoint.encoder}, width {checkpoint.width}, "
        f"as {config.graph} graph, {config.precision}"
    )
    quantized = config.precision in ("int8", "fp8")
    cropped = config.precision in ("fp16", "bf16")
    pictures = load_pictures(config.pictures, cropped=cropped) if config.check or quantized else ()
    reference = Reference(checkpoint, pictures)
    with atomic_write(config.target, overwrite=config.overwrite) as beside:
        manifest = _written(config, reference, beside, progress)
        with atomic_write(manifest_path(config.target), overwrite=config.overwrite) as note:  # no graph without it
            note.write_text(manifest.to_json() + "\n", encoding="utf-8")
    return config.target


def _written(config: ExportConfig, reference: Reference, path: Path, progress: Progress) -> Manifest:
    """Write the file, check it and return its manifest."""
    if config.check and config.precision in ("fp16", "bf16") and config.keep_fp32 is None:
        config = replace(config, keep_fp32=_searched_fp32_layers(config, reference, progress))
    graph, manifest = _made(config, reference, progress)
    if config.check:
        _save(graph, manifest, path)
        progress("checking batches and parity with PyTorch FP32")
        manifest = replace(manifest, parity=_proven(graph, manifest, reference, path, progress))
        check_batches(path, manifest, reference.pictures)
    _save(graph, manifest, path)
    return replace(manifest, onnx_sha256=sha256_of(path))


def _proven(
    graph: onnx.ModelProto, manifest: Manifest, reference: Reference, path: Path, progress: Progress
) -> dict[str, Any]:
    """The receipt of the file.

    Raises:
        ParityError: It does not keep the contract.
    """
    from basnet_export.quantize.fp16_emulation import measure_rounded

    receipt = measure_parity(path, manifest, reference).receipt()
    if manifest.precision in ("fp16", "bf16"):
        receipt["rounded"] = measure_rounded(graph, manifest, reference, reference.pictures).receipt()
    if manifest.input.shape[-1] is None:
        receipt["sizes"] = measure_sizes(path, manifest, reference, progress)
    return receipt


def _made(config: ExportConfig, reference: Reference, progress: Progress) -> tuple[onnx.ModelProto, Manifest]:
    """Create the graph and its manifest without the parity receipt."""
    if config.precision in ("int8", "fp8"):
        graph, plan = _int8(config, reference, progress)
        kept, facts = plan.kept, plan.facts
    else:
        graph, kept, facts = onnx_from_checkpoint(reference.checkpoint, config), config.keep_fp32 or (), None
    if config.graph == "tensor" and not free_size(graph):
        graph = _with_symbolic_size(graph, config, reference.checkpoint, progress)
    manifest = replace(_manifest(config, reference.checkpoint, graph), keep_fp32=kept, quantization=facts)
    check_graph(graph, manifest)
    digest = graph_content(graph.SerializeToString(), config.target).sha256
    return graph, replace(manifest, graph_sha256=digest)


def _with_symbolic_size(
    graph: onnx.ModelProto, config: ExportConfig, checkpoint: Checkpoint, progress: Progress
) -> onnx.ModelProto:
    """Export once more for any size, where the graph holds sizes; keep it where that cannot be done."""
    import torch

    reason = "quantized graphs of this network hold it"
    if config.precision not in ("int8", "fp8"):
        try:
            traced = onnx_from_checkpoint(checkpoint, config, symbolic_size=True)
        except torch.onnx.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0]
        else:
            free_size(traced, traced=True)
            return traced
    progress(f"height and width are fixed at {checkpoint.preprocess.height}x{checkpoint.preprocess.width}: {reason}")
    return graph


def _searched_fp32_layers(config: ExportConfig, reference: Reference, progress: Progress) -> tuple[str, ...]:
    """Search the FP32 layers of a 16-bit network on its `tensor` graph."""
    import onnx

    from basnet_export.quantize.fp16_layer_search import fp32_layers_of

    tensor = onnx_from_checkpoint(reference.checkpoint, replace(config, graph="tensor", precision="fp32"))
    graph, seconds = onnx.shape_inference.infer_shapes(tensor), 60 * config.search_minutes
    return fp32_layers_of(graph, reference, config.precision, seconds=seconds, progress=progress)


def _int8(config: ExportConfig, reference: Reference, progress: Progress) -> tuple[onnx.ModelProto, Int8Plan]:
    """Quantize the requested graph by a plan found on the `tensor` graph."""
    import onnx

    from basnet_export.quantize.int8 import int8_plan

    checkpoint = reference.checkpoint
    fp32 = replace(config, precision="fp32", graph="tensor", store="fp32", calibration=None, keep_fp32=None)
    tensor = onnx.shape_inference.infer_shapes(onnx_from_checkpoint(checkpoint, fp32))
    plan = int8_plan(tensor, reference, config, progress)
    model = tensor if config.graph == "tensor" else onnx_from_checkpoint(checkpoint, replace(fp32, graph="frame"))
    graph = plan.graph_of(model, config.int8_target)
    if config.precision == "fp8":
        from basnet_export.quantize.fp8 import fp8_from_int8

        graph = fp8_from_int8(graph, plan.float_graph_of(model))
    return graph, plan


def onnx_from_checkpoint(
    checkpoint: Checkpoint, config: ExportConfig, *, symbolic_size: bool = False
) -> onnx.ModelProto:
    """Export a graph to memory, without a manifest.

    A `tensor` graph of the checkpoint's size, or a symbolic one.
    """
    import torch

    from basnet_export.graph.half_precision import deployed_network, scaled_network, torch_dtype
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
        free = {2: 32 * torch.export.Dim("rows"), 3: 32 * torch.export.Dim("columns")} if symbolic_size else {}
        axes = {0: torch.export.Dim("batch"), **free}
        graph = _exported(tensor, "image", torch.zeros(2, 3, height, width), axes, config)
    else:
        frame = FrameGraph(tensor, checkpoint.preprocess, checkpoint.postprocess).eval()
        example = torch.zeros(2, 48, 80, 3, dtype=torch.uint8)
        axes = {axis: torch.export.Dim(label) for axis, label in enumerate(("batch", "height", "width"))}
        graph = _exported(frame, "frame", example, axes, config)
    return store_as_fp16(graph) if config.store == "fp16" else graph


def _exported(
    module: nn.Module, name: str, example: Any, axes: dict[int, Any], config: ExportConfig
) -> onnx.ModelProto:
    import onnx_ir as ir
    import torch
    from onnx_ir.passes import common as passes

    from basnet_export.graph.half_precision import OPSETS, remove_round_trips

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
    model = program.model
    # The exporter's notes hold source lines and folders of this machine; the pass leaves those of values.
    passes.ClearMetadataAndDocStringPass()(model)
    made = (value for node in model.graph for value in node.outputs)
    for value in (*model.graph.inputs, *model.graph.initializers.values(), *made):
        value.metadata_props.clear()
    remove_round_trips(model.graph)
    _name_nodes(model.graph)
    if config.graph == "frame":
        _first_cast_only(model.graph)
    return ir.to_proto(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings and logs."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _name_nodes(graph: ir.Graph) -> None:
    """Name convolutions after their modules, other nodes after their producers.

    `predict.encoder.stage1.0.conv1`, `predict.encoder.stage1.0.conv1.relu`: a part of the network is a common prefix.
    Where several nodes of one kind read the same value first, as in DenseNet, the second ends in `.2`.
    """
    named: set[ir.Value] = set()
    times: Counter[str] = Counter()
    for node in graph:
        first = node.inputs[0] if node.inputs else None
        if node.op_type == "Conv" and node.inputs[1] is not None:
            node.name = str(node.inputs[1].name).partition("network.")[2].removesuffix(".weight")
        elif first in named and first is not None:
            node.name = f"{first.name}.{node.op_type.lower()}"
        times[str(node.name)] += 1
        if (count := times[str(node.name)]) > 1:
            node.name = f"{node.name}.{count}"
        if "." in str(node.name) and node.op_type != "Sigmoid":  # postprocessing is no part of the network
            node.outputs[0].name = node.name
            named.add(node.outputs[0])


def _first_cast_only(graph: ir.Graph) -> None:
    """Let only the leading cast read the bytes, as TensorRT requires."""
    frame = graph.inputs[0]
    cast = next(node for node in frame.consumers() if node.op_type == "Cast")
    for node, index in tuple(frame.uses()):
        if node is not cast:
            node.replace_input_with(index, cast.outputs[0])
    graph.remove(cast)
    graph.insert_before(graph[0], cast)


def _manifest(config: ExportConfig, checkpoint: Checkpoint, graph: onnx.ModelProto) -> Manifest:
    if config.graph == "tensor":
        size = tuple(axis.dim_value or None for axis in graph.graph.input[0].type.tensor_type.shape.dim[2:])
        tensors = tuple(
            TensorSpec(name=name, dtype="float32", shape=(None, channels, *size))
            for name, channels in (("image", 3), ("mask", 1))
        )
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
