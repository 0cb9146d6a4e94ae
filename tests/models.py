"""Tiny networks that find something, since flat masks would prove nothing, and their exports, each made once."""

from __future__ import annotations

import atexit
import shutil
import struct
import tempfile
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

from basnet_export.config import ExportConfig
from basnet_export.onnx_export import export_onnx
from basnet_runtime.backends.onnxruntime import open_onnxruntime
from basnet_runtime.backends.openvino import open_openvino
from basnet_runtime.backends.openvino_provider import why_no_devices
from basnet_runtime.machine.cpu_features import why_no_bf16, why_no_int8
from basnet_runtime.manifest import METADATA_KEY, read_manifest
from basnet_runtime.media.image.pictures import write_picture
from basnet_runtime.parity import Picture
from basnet_torch.checkpoint import Checkpoint, save_checkpoint
from basnet_torch.model.basnet import BASNet
from basnet_torch.spec import Postprocess, Preprocess

__all__ = [
    "OPENERS",
    "OPENVINO_PLUGIN",
    "SIZE",
    "calibration_folder",
    "checkpoint_file",
    "disc_checkpoint",
    "disc_folder",
    "discs",
    "draw_discs",
    "exported",
    "fixed_graph",
    "graph_made_before",
    "has_openvino_plugin",
    "needs_bf16",
    "needs_int8",
    "needs_openvino_plugin",
    "says_int8",
    "settle_statistics",
    "widened",
    "with_weights",
]

SIZE = 64
OPENVINO_PLUGIN = "onnxruntime_ep_openvino"
has_openvino_plugin = pytest.mark.skipif(
    find_spec(OPENVINO_PLUGIN) is None, reason="OpenVINO's plug-in for ONNX Runtime is not installed"
)


def _skipped(reason: str | None) -> pytest.MarkDecorator:
    """A mark that skips with the reason why this machine lacks something; None where it has it."""
    return pytest.mark.skipif(reason is not None, reason=reason or "it is here")


def _why_no_openvino_plugin() -> str | None:
    import onnxruntime

    found = why_no_devices(onnxruntime)
    return found and f"device openvino: {found.reason}"


needs_bf16 = _skipped(why_no_bf16())
needs_int8 = _skipped(why_no_int8())
needs_openvino_plugin = _skipped(_why_no_openvino_plugin())
OPENERS = [  # of `.onnx` files on the processor
    open_onnxruntime,
    open_openvino,
    pytest.param(partial(open_onnxruntime, device="openvino"), marks=needs_openvino_plugin, id="openvino_provider"),
]


def draw_discs(count, size=SIZE, seed=0):
    """Bright discs on dark noise, and their masks: uint8 N,S,S,3 and float32 N,S,S in 0..1."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 90, (count, size, size, 3), dtype=np.uint8)
    masks = np.zeros((count, size, size), np.uint8)
    for image, mask in zip(images, masks, strict=True):
        center = tuple(int(v) for v in rng.integers(size // 3, 2 * size // 3, 2))
        cv2.circle(mask, center, int(rng.integers(size // 6, size // 4)), 1, -1)
        image[mask > 0] = rng.integers(170, 255, 3, dtype=np.uint8)
    return images, masks.astype(np.float32)


@cache
def discs(count=4, size=80, seed=7) -> tuple[Picture, ...]:
    """Pictures with truth that the network has not seen, of another size than its input."""
    images, masks = draw_discs(count, size, seed)
    return tuple(Picture(name=f"disc{i}", image_HWC=images[i], truth_HW=masks[i]) for i in range(count))


@cache
def disc_checkpoint(width=4, steps=30, seed=0) -> Checkpoint:
    """A network trained just enough to tell disc from ground; its weights are exact in FP16."""
    torch.manual_seed(seed)
    preprocess = Preprocess(height=SIZE, width=SIZE)
    images, masks = draw_discs(32, seed=seed)
    inputs = torch.from_numpy(np.stack([preprocess.apply(image) for image in images])).split(8)
    truth = torch.from_numpy(masks)[:, None].split(8)
    model = BASNet(width).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(steps):
        maps = model(inputs[step % 4])
        loss = sum(F.binary_cross_entropy_with_logits(logits, truth[step % 4]) for logits in maps[:2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    settle_statistics(model, inputs)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    trained = Checkpoint(
        width=width, state=state, preprocess=preprocess, postprocess=Postprocess(), origin="basnet-deploy"
    )
    return with_weights(trained, lambda _, value: value.half().float() if value.is_floating_point() else value)


@torch.no_grad()
def settle_statistics(model, inputs):
    """Running statistics of the final weights; those gathered on the way belong to weights long gone."""
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = None
        norm.reset_running_stats()
    for batch in inputs:
        model(batch)


def with_weights(checkpoint: Checkpoint, change) -> Checkpoint:
    """The checkpoint with `change(name, tensor)` applied to every tensor."""
    return replace(checkpoint, state={name: change(name, value.clone()) for name, value in checkpoint.state.items()})


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="basnet-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def checkpoint_file(*, authors_recipe=False) -> Path:
    """`disc_checkpoint` on disk, stored as FP16; `authors_recipe` divides by the largest value and stretches."""
    path = _folder() / ("discs-authors.safetensors" if authors_recipe else "discs.safetensors")
    checkpoint = disc_checkpoint()
    if authors_recipe:
        preprocess = replace(checkpoint.preprocess, scale="image_max")
        checkpoint = replace(checkpoint, preprocess=preprocess, postprocess=Postprocess(stretch=True))
    save_checkpoint(path, checkpoint, dtype=torch.float16)
    return path


@cache
def calibration_folder() -> Path:
    """As many more as a calibration takes at least."""
    folder = _folder() / "calibration"
    for picture in discs(count=16, size=SIZE, seed=11):
        write_picture(folder / f"{picture.name}.png", picture.image_HWC)
    return folder


@cache
def disc_folder() -> Path:
    """The pictures on disk, for `--pictures`."""
    folder = _folder() / "pictures"
    for picture in discs():
        write_picture(folder / f"{picture.name}.png", picture.image_HWC)
    return folder


@cache
def exported(*, authors_recipe=False, **options) -> Path:
    """The checked ONNX file of `checkpoint_file` with these export options."""
    name = "-".join(["discs", *(["authors"] if authors_recipe else []), *map(str, options.values())]) + ".onnx"
    config = ExportConfig(
        checkpoint=checkpoint_file(authors_recipe=authors_recipe),
        output=_folder() / name,
        pictures=disc_folder(),
        **options,
    )
    return export_onnx(config)


def fixed_graph() -> onnx.ModelProto:
    """The FP32 `tensor` graph of `exported` with its size and all shapes, as the export quantizes it."""
    model = onnx.load(exported(precision="fp32", graph="tensor"))
    for tensor in (model.graph.input[0], model.graph.output[0]):
        for axis in tensor.type.tensor_type.shape.dim[2:]:
            axis.dim_value = SIZE
    return onnx.shape_inference.infer_shapes(model)


def says_int8(folder: Path, *, target: str = "cpu") -> Path:
    """An FP32 graph whose manifest says INT8: for who may run such a file, where no INT8 kernel has to."""
    made = exported(precision="fp32", graph="tensor")
    told = replace(read_manifest(made), precision="int8", quantization={"target": target}, onnx_sha256="", parity=None)
    model = onnx.load(made)
    onnx.helper.set_model_props(model, {METADATA_KEY: told.to_json()})
    onnx.save(model, folder / "small.onnx")
    return folder / "small.onnx"


def widened(source: Path, width: int) -> Path:
    """The exported graph of the same network at another width, with weights of noise: what a builder works on alike."""
    path = _folder() / f"{source.stem}-width{width}.onnx"
    if path.is_file():
        return path
    model, manifest = onnx.load(source), read_manifest(source)
    factor, rng = width // manifest.width, np.random.default_rng(0)
    kernels = {name for node in model.graph.node if node.op_type == "Conv" for name in node.input[1:]}
    kernels |= {n for node in model.graph.node if node.output[0] in kernels for n in node.input}  # quantized ones
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.name not in kernels or not values.ndim:
            continue
        # Channels grow; the picture's three, a map's one, and the window of the kernel do not.
        shape = [n * factor if axis < 2 and n not in (1, 3) else n for axis, n in enumerate(values.shape)]
        grown = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]) or 1)
        if tensor.name.endswith("_scale"):  # of a quantized kernel; TensorRT takes positive ones alone
            grown = np.abs(grown) + 0.001
        grown = grown if values.dtype.kind == "f" else np.zeros(shape)
        tensor.CopyFrom(onnx.numpy_helper.from_array(grown.astype(values.dtype), tensor.name))
    model.graph.ClearField("value_info")
    kept = replace(manifest, width=width, onnx_sha256="", parity=None)
    onnx.helper.set_model_props(model, {"basnet": kept.to_json()})
    onnx.save(model, path)
    return path


def graph_made_before(change=lambda _, values: values):
    """Stands for `onnx_from_checkpoint` without its seconds: the exported FP32 `tensor` graph, its weights changed."""
    made = fixed_graph()  # now, because what it calls is about to be patched

    def graph(_checkpoint, _config):
        model = onnx.ModelProto()
        model.CopyFrom(made)
        model.ClearField("metadata_props")
        for tensor in model.graph.initializer:
            values = change(tensor.name, onnx.numpy_helper.to_array(tensor))
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return model

    return graph


def with_exif(jpeg: bytes, orientation: int) -> bytes:
    """A JPEG file with a tag that says how it is to be turned."""
    tag = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    body = b"Exif\0\0" + b"II*\0" + struct.pack("<IH", 8, 1) + tag + struct.pack("<I", 0)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]
