"""Describe model files and exports in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basnet_runtime.backends.tensorrt.preflight import read_plan_manifest
from basnet_runtime.engine_facts import EngineFacts, gpus_of
from basnet_runtime.manifest import METADATA_KEY, Manifest, manifest_path, read_manifest
from basnet_runtime.model_files import model_kind
from basnet_runtime.onnx_file.header import read_onnx_header
from basnet_torch.model.structure import named
from basnet_torch.spec import STRIDE, Postprocess, Preprocess

__all__ = ["Description", "describe", "receipt"]

_Described = tuple[str, dict[str, Any], str]  # kind, facts, feed


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """One file.

    Attributes:
        file: Its path.
        kind: What it is, in a few words.
        facts: Its properties, by name.
        feed: How to feed it; empty where that is unknown.
    """

    file: str
    kind: str
    facts: Mapping[str, Any]
    feed: str

    def __str__(self) -> str:
        width = max(map(len, self.facts), default=0)
        rows = [f"  {name:<{width}}  {value}" for name, value in self.facts.items()]
        return "\n".join([f"{self.file}: {self.kind}", *rows, *([f"  {self.feed}"] if self.feed else [])])


def describe(path: Path) -> Description:
    """Describe a checkpoint, an ONNX graph or a plan, whatever its suffix.

    Raises:
        ModelFileError: For a missing, damaged or unknown file.
        CheckpointError: For a checkpoint that is none.
        BackendUnavailable: When a checkpoint is given and torch is not installed.
    """
    read = {"checkpoint": _checkpoint, "onnx": _onnx}.get(model_kind(path), _plan)
    kind, facts, feed = read(path)
    return Description(file=str(path), kind=kind, facts=facts, feed=feed)


def receipt(path: Path) -> dict[str, Any]:
    """Summarize an export: path, size, manifest and check results in words."""
    manifest = read_manifest(path) if path.suffix == ".onnx" else read_plan_manifest(path)[0]
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "verdict": _verdict(manifest),
        "manifest": json.loads(manifest.to_json()),
    }


def _checkpoint(path: Path) -> _Described:
    from basnet_runtime.backends.pytorch import read_checkpoint

    checkpoint = read_checkpoint(path)
    trained = (name for name in checkpoint.state if not name.endswith(("num_batches_tracked", "_mean", "_var")))
    facts: dict[str, Any] = {
        "bytes": f"{path.stat().st_size:,}",
        "origin": checkpoint.origin,
        "encoder": checkpoint.encoder,
        "width": checkpoint.width,
        "parameters": f"{sum(checkpoint.state[name].numel() for name in trained):,}",
        **_recipe(checkpoint.preprocess, checkpoint.postprocess),
        **checkpoint.metadata,
    }
    feed = f"run: basnet-run --model {path} PICTURE; deploy: basnet-export onnx {path}"
    return f"PyTorch checkpoint of {named(checkpoint.arch)}", facts, feed


def _onnx(path: Path) -> _Described:
    header = read_onnx_header(path)
    facts: dict[str, Any] = {
        "bytes": f"{path.stat().st_size:,}",
        "input": ", ".join(map(str, header.inputs)),
        "output": ", ".join(map(str, header.outputs)),
        "opset": header.opset,
        "nodes": header.nodes,
        "written by": header.producer,
    }
    if METADATA_KEY not in header.metadata and not manifest_path(path).exists():
        return "ONNX graph without a manifest: not of basnet-export", facts, ""
    manifest = read_manifest(path, header)
    if manifest.changed:
        facts["changed after export"] = "precision, input and output are read from the graph"
    if manifest.adopted:
        return _adopted(path, manifest, facts)
    facts |= {
        "precision": manifest.precision + (f", stored as {manifest.store}" if manifest.store != "fp32" else ""),
        **_source(manifest),
    }
    return f"ONNX, {manifest.graph} graph of {named(manifest.arch)}", facts, _feed(manifest)


def _adopted(path: Path, manifest: Manifest, facts: dict[str, Any]) -> _Described:
    first = {"sigmoid": "sigmoid, then "}.get(manifest.activation, "")
    recipe = _recipe(manifest.preprocess, manifest.postprocess)
    facts |= {
        "mask": f"output {manifest.output.name}; others are cut in the copy that runs",
        "precision": f"{manifest.precision}, stored as {manifest.store}"
        + (", read from the graph" if manifest.original else ""),
        "recipe": f"as given to basnet-export adopt: {manifest.arch}",
        **recipe,
        "postprocess": first + recipe["postprocess"],
        "not known": "whose weights, trained on what, license, accuracy",
        "parity": _verdict(manifest),
        **{f"not for {name}": reason for name, reason in manifest.refused.items()},
        "created": f"manifest {manifest.created}",
    }
    feed = f"run: basnet-run --model {path} PICTURE; measure: basnet-bench accuracy {path} DATASET"
    return "ONNX, adopted, not BASNet", facts, feed


def _plan(path: Path) -> _Described:
    if path.is_file() and not manifest_path(path).is_file():
        feed = f"{manifest_path(path).name} is missing, so how to feed it is unknown"
        facts: dict[str, Any] = {"bytes": f"{path.stat().st_size:,}"}
        return f"a file called {path.suffix}, unproven", facts, feed
    manifest, engine = read_plan_manifest(path)
    facts = {
        "bytes": f"{engine.plan_bytes:,}",
        "library": engine.library,
        "built on": _built_on(engine),
        "runs on": gpus_of(engine),
        "input": str(manifest.input),
        "output": str(manifest.output),
        "shapes": "; ".join(map(str, engine.profiles)) + " (smallest / best / largest)",
        "precision": f"{manifest.precision}: {engine.typed_flops:.1%} of the convolutions' arithmetic, "
        f"{engine.typed_layers:.1%} of the layers, by the {engine.typed_by}",
        "flags": ", ".join(f"{name} {value}" for name, value in engine.flags.items()),
        "build time": f"{engine.build_seconds} s",
        **_source(manifest),
    }
    what = "adopted, not BASNet" if manifest.adopted else f"{manifest.graph} graph of {named(manifest.arch)}"
    return f"TensorRT engine, {what}", facts, _feed(manifest)


def _built_on(engine: EngineFacts) -> str:
    if not engine.gpu:
        return "a machine without a GPU, ahead of time"
    driver = f", driver {engine.driver}" if engine.driver else ""
    return f"{engine.gpu}{driver}" + (f", CUDA {engine.cuda}" if engine.cuda else "")


def _source(manifest: Manifest) -> dict[str, Any]:
    """Facts of every deployed file: source, recipe, parity."""
    return {
        **_quantization(manifest),
        "encoder": manifest.encoder,
        "width": manifest.width,
        "origin": manifest.origin,
        "checkpoint": f"{manifest.checkpoint} (SHA-256 {manifest.checkpoint_sha256[:12]})",
        **_recipe(manifest.preprocess, manifest.postprocess),
        "parity": _verdict(manifest),
        "created": f"{manifest.created} by {', '.join(f'{k} {v}' for k, v in manifest.exporter.items())}",
    }


def _quantization(manifest: Manifest) -> dict[str, str]:
    """Calibration facts of a quantized file, and its FP32 parts."""
    facts = manifest.quantization
    if facts is None:
        return {"stay FP32": ", ".join(manifest.keep_fp32)} if manifest.keep_fp32 else {}
    kept = (*facts["always_fp32"], *manifest.keep_fp32)
    return {
        "INT8": f"{facts['int8_share']:.1%} of the arithmetic, for {facts['target']}; ranges by {facts['method']} "
        f"on {facts['pictures']} pictures",
        "stay FP32": ", ".join(kept),
    }


def _recipe(preprocess: Preprocess, postprocess: Postprocess) -> dict[str, str]:
    divisor = "255" if preprocess.scale == "255" else "the picture's largest value"
    postprocessing = "stretched to its own range, then resized" if postprocess.stretch else "resized to the picture"
    return {
        "preprocess": f"RGB, {preprocess.resample} to {preprocess.height}x{preprocess.width}, divided by {divisor}, "
        f"minus {preprocess.mean}, over {preprocess.std}",
        "postprocess": postprocessing,
    }


def _feed(manifest: Manifest) -> str:
    if manifest.graph == "frame":
        return "feed: uint8 RGB pictures N,H,W,3 of any size as they are; masks come back as uint8 N,H,W"
    free = manifest.input.shape[2:] == (None, None) and not manifest.adopted
    size = f" (proven at {manifest.size[0]}x{manifest.size[1]}, takes multiples of {STRIDE})" if free else ""
    taken, given = f"{manifest.input}{size}", f"{manifest.output} in 0..1"
    return f"feed: preprocessed pictures as {taken}; masks come back as {given}, to be postprocessed"


def _verdict(manifest: Manifest) -> str:
    parity = manifest.parity
    if manifest.original:
        return "adopted, not BASNet: it is its own reference, in ONNX Runtime"
    if parity is None and manifest.engine is not None:
        return "not proven: run 'basnet-bench parity' on the GPU it is for"
    if manifest.changed:
        return "not proven: changed after export"
    exact = f"PyTorch {'FP64' if parity and parity.get('pytorch_fp32') else 'FP32'}"
    if manifest.adopted:
        exact = f"{manifest.checkpoint} in ONNX Runtime FP32"
    if parity is None:
        return f"masks not checked against {exact} (--no-check)"
    return (
        f"{manifest.precision} parity with {exact} proven on {parity['pictures']} pictures: "
        f"max {parity['max_abs']:.2g}, mean {parity['mean_abs']:.2g}, "
        f"{100 * parity['flips']:.3f} % of pixels change side, "
        f"boundary IoU {parity['boundary_iou']:.4f} ({parity['ran']})"
        + (f", and with each value rounded to {manifest.precision}" if "rounded" in parity else "")
    )
