"""FP16 and INT8 of an adopted network, validated against the original.

The original runs in ONNX Runtime FP32; a file that fails is not kept.

path = export_adopted(ExportConfig(checkpoint=Path("u2net.onnx"), precision="fp16"))
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basnet_export.checks import check_batches, measure_parity
from basnet_export.config import ExportConfig, refuse_existing
from basnet_export.reference import Reference
from basnet_export.samples import load_pictures
from basnet_runtime.backends.onnxruntime import write_folded_graph
from basnet_runtime.manifest import METADATA_KEY, Manifest, adaptation_for, manifest_path, read_manifest, sha256_of
from basnet_runtime.model import SaliencyModel
from basnet_runtime.onnx_file.adapt import adapted
from basnet_runtime.onnx_file.content import read_graph_content
from basnet_runtime.onnx_file.header import read_onnx_header
from basnet_runtime.open import open_model
from basnet_runtime.parity import Picture
from basnet_torch import __version__
from basnet_torch.device import CPU
from basnet_torch.errors import ExportError, UsageError
from basnet_torch.files import atomic_write, scratch_folder
from basnet_torch.spec import Postprocess, Preprocess

if TYPE_CHECKING:
    import onnx

__all__ = ["AdoptedReference", "export_adopted"]

Progress = Callable[[str], None]
# FP16 convolutions fuse with ReLU in ONNX Runtime but at opset 18, and INT8 has scales by channel from 13 on.
_OPSET = 19


class AdoptedReference(Reference):
    """An adopted FP32 file in ONNX Runtime that remembers its masks."""

    def __init__(self, path: Path, manifest: Manifest, pictures: Sequence[Picture]) -> None:
        self.path = path
        self.manifest = manifest
        self.pictures = pictures
        self.device = CPU

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing of pictures."""
        return self.manifest.preprocess

    @property
    def postprocess(self) -> Postprocess:
        """Postprocessing of maps."""
        return self.manifest.postprocess

    @property
    def has_network(self) -> bool:
        """Whether there is a network in PyTorch."""
        return False

    @cached_property
    def _model(self) -> SaliencyModel:
        return open_model(self.path, backend="onnxruntime")


def export_adopted(config: ExportConfig, progress: Progress = lambda _: None) -> Path:
    """Write an adopted network in FP16 or INT8 with its manifest; return its path.

    Raises:
        BackendUnavailable: What converts or checks is not installed.
        ExportError: The graph cannot be converted.
        ModelFileError: The file has no manifest.
        ParityError: The masks differ by more than the contract allows; no file is left.
        UsageError: The file is no adopted FP32 network, or an option is for a checkpoint.
    """
    source = config.checkpoint
    manifest = read_manifest(source)
    _refuse_what_does_not_fit(config, manifest)
    refuse_existing(config.target, source, "network", overwrite=config.overwrite)
    progress(f"converting {source.name}, adopted, to {config.precision}")
    pictures = load_pictures(config.pictures, cropped=config.precision == "fp16")
    reference = AdoptedReference(source, manifest, pictures)
    graph = folded_graph(source, manifest)
    with atomic_write(config.target, overwrite=config.overwrite) as beside:
        made = _written(config, graph, reference, beside, progress)
        with atomic_write(manifest_path(config.target), overwrite=config.overwrite) as note:
            note.write_text(made.to_json() + "\n", encoding="utf-8")
    return config.target


def _refuse_what_does_not_fit(config: ExportConfig, manifest: Manifest) -> None:
    name = config.checkpoint.name
    if not manifest.adopted:
        raise UsageError(f"{name}: is an export already, must be a checkpoint or an adopted file. Give the checkpoint")
    if manifest.precision != "fp32":
        raise UsageError(f"{name}: computes in {manifest.precision}, must be fp32 to be converted. Give its FP32 file")
    if config.precision not in ("fp16", "int8"):
        raise UsageError(f"precision {config.precision}: {name} is adopted, and converts to fp16 or int8")
    for option, value, usual in (
        ("graph", config.graph, "tensor"),
        ("size", config.size, None),
        ("store", config.store, "fp32"),
    ):
        if value != usual:
            raise UsageError(f"{option}: is for a checkpoint, {name} is adopted. Leave --{option} out")


def folded_graph(path: Path, manifest: Manifest) -> onnx.ModelProto:
    """Return the adapted copy of an adopted graph.

    Constants are folded, nodes named and shapes inferred.

    Raises:
        ExportError: onnx cannot bring it to an opset that has what conversion needs.
    """
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes import common as passes

    with scratch_folder() as folder, adapted(path, adaptation_for(path, manifest)) as runnable:
        write_folded_graph(runnable, folder / "folded.onnx")
        model = onnx.load(folder / "folded.onnx")
    try:
        if max(entry.version for entry in model.opset_import if not entry.domain) < _OPSET:
            model = onnx.version_converter.convert_version(model, _OPSET)
        found = ir.from_proto(model)
        passes.RemoveUnusedOpsetsPass()(found)
        passes.ClearMetadataAndDocStringPass()(found)
        taken: set[str] = set()
        for index, node in enumerate(found.graph):
            # Names with dots tell the parts of a network: /stage1/conv/Conv becomes stage1.conv.Conv
            name = (node.name or f"{node.op_type}_{index}").strip("/").replace("/", ".")
            node.name = name if name not in taken else f"{name}.{index}"
            taken.add(node.name)
        made: onnx.ModelProto = ir.to_proto(found)
        made.ir_version = max(made.ir_version, 9)
        return onnx.shape_inference.infer_shapes(made, data_prop=True)
    except (RuntimeError, ValueError, IndexError) as error:  # its converter raises all of these
        line = str(error).strip().split("\n", maxsplit=1)[0][:160]
        raise ExportError(f"{path}: cannot be brought to opset {_OPSET} ({line}). Export it at {_OPSET}") from error


def _written(
    config: ExportConfig, graph: onnx.ModelProto, reference: AdoptedReference, path: Path, progress: Progress
) -> Manifest:
    if config.check and config.precision == "fp16" and config.keep_fp32 is None:
        from basnet_export.quantize.fp16_layer_search import fp32_layers_of

        seconds = 60 * config.search_minutes
        kept = fp32_layers_of(graph, reference, "fp16", seconds=seconds, progress=progress)
        config = replace(config, keep_fp32=kept)
    model, manifest = _made(config, graph, reference, path, progress)
    if config.check:
        progress("checking parity with ONNX Runtime FP32")
        manifest = replace(manifest, parity=_proven(model, manifest, reference, path))
        check_batches(path, manifest, reference.pictures)
    _save(model, manifest, path)
    return replace(manifest, onnx_sha256=sha256_of(path))


def _made(
    config: ExportConfig, graph: onnx.ModelProto, reference: AdoptedReference, path: Path, progress: Progress
) -> tuple[onnx.ModelProto, Manifest]:
    """Convert the graph, write it, and describe it."""
    import onnx

    kept, facts = config.keep_fp32 or (), None
    if config.precision == "fp16":
        model = _half(graph, kept)
    else:
        from basnet_export.quantize.int8 import int8_plan

        plan = int8_plan(graph, reference, config, progress)
        model, kept, facts = plan.graph_of(graph, config.int8_target), plan.kept, plan.facts
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the graph is no valid ONNX: {str(error).strip().splitlines()[0]}") from error
    onnx.save(model, path)
    header, content, source = read_onnx_header(path), read_graph_content(path), reference.manifest
    if content.precision != config.precision:
        raise ExportError(
            f"precision {config.precision}: the graph computes in {content.precision}, no layer that counts is in "
            f"{config.precision}. Keep fewer parts FP32"
        )
    manifest = replace(
        source,
        precision=config.precision,
        store=config.precision,
        activation="none",
        input=header.inputs[0],
        output=header.outputs[0],
        opset=header.opset,
        onnx_sha256="",
        graph_sha256=content.sha256,
        quantization=facts,
        keep_fp32=tuple(kept),
        exporter={**source.exporter, "basnet-deploy": __version__, "onnx": str(onnx.__version__)},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    _save(model, manifest, path)
    return model, manifest


def _save(model: onnx.ModelProto, manifest: Manifest, path: Path) -> None:
    import onnx

    onnx.helper.set_model_props(model, {METADATA_KEY: manifest.to_json()})
    model.producer_name, model.producer_version = "basnet-deploy", __version__
    onnx.save(model, path)


def _half(graph: onnx.ModelProto, kept: Collection[str]) -> onnx.ModelProto:
    """FP16 weights and values; input, output, the last sigmoid and `kept` parts stay FP32."""
    import onnx
    import onnx_ir as ir
    import torch
    from onnx import numpy_helper
    from onnx_ir.passes import common as passes
    from onnxruntime.transformers import float16

    from basnet_export.graph.half_precision import remove_round_trips, rounded_kernels
    from basnet_export.quantize.qdq import nodes_of

    model = onnx.ModelProto()
    model.CopyFrom(graph)
    last = {node.name for node in model.graph.node if set(node.output) & {output.name for output in model.graph.output}}
    fp32 = {*last, *nodes_of(model.graph, kept)}
    kernels = {node.input[1] for node in model.graph.node if node.op_type == "Conv" and node.name not in fp32}
    for tensor in model.graph.initializer:
        if tensor.name in kernels and tensor.data_type == onnx.TensorProto.FLOAT:
            exact = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            rounded = rounded_kernels(exact, torch.half).float().numpy()
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is rounded to zero or overflows, which the check finds
        made = float16.convert_float_to_float16(
            model,
            keep_io_types=True,
            min_positive_val=2.0**-24,
            max_finite_val=65_504.0,
            op_block_list=[kind for kind in float16.DEFAULT_OP_BLOCK_LIST if kind not in ("Resize", "Upsample")],
            node_block_list=sorted(fp32),
        )
    found = ir.from_proto(made)
    passes.TopologicalSortPass()(found)  # the converter puts its casts at the end
    remove_round_trips(found.graph)
    passes.ClearMetadataAndDocStringPass()(found)
    sorted_graph: onnx.ModelProto = ir.to_proto(found)
    sorted_graph.graph.ClearField("value_info")  # of the types before
    return sorted_graph


def _proven(model: onnx.ModelProto, manifest: Manifest, reference: AdoptedReference, path: Path) -> dict[str, Any]:
    """The receipt of the file.

    Raises:
        ParityError: It does not keep the contract.
    """
    from basnet_export.quantize.fp16_emulation import measure_rounded

    receipt = measure_parity(path, manifest, reference).receipt()
    if manifest.precision == "fp16":
        receipt["rounded"] = measure_rounded(model, manifest, reference, reference.pictures).receipt()
    return receipt
