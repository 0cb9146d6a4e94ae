"""Triton model repository: `config.pbtxt`, model file, manifest and a client.

    write_triton_model(TritonConfig(sources=(Path("basnet.onnx"),), output=Path("repository")))

Layout: REPOSITORY/NAME/config.pbtxt, REPOSITORY/NAME/VERSION/model.onnx or model.plan, REPOSITORY/NAME/manifest.json,
REPOSITORY/NAME/client.py. Triton's schema checks the text where `tritonclient` is installed (extra `triton`); what it
does not know, such as that a plan's profile holds the largest batch, is checked here always.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from basnet_runtime.manifest import Manifest, adaptation_for, read_manifest
from basnet_runtime.model_files import model_kind
from basnet_runtime.onnx_file.adapt import adapted
from basnet_runtime.onnx_file.header import read_onnx_header
from basnet_torch.errors import ExportError, UsageError
from basnet_torch.files import atomic_write
from basnet_torch.json_values import to_plain
from basnet_torch.options import OVERWRITE, argument, check, option
from basnet_torch.spec import TensorSpec

__all__ = ["TritonConfig", "config_text", "write_triton_model"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8", "float16": "TYPE_FP16"}
_WARM_UP_SIDE = 64  # of a picture for the frame graph, whose sizes are free
_Plan = tuple[Path, Manifest]


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonConfig:
    """What to serve with Triton, and how; each field's help says what it is."""

    sources: Sequence[Path] = field(
        metadata=argument("MODEL...", "An .onnx, or .plan files of one model for several GPU types.", typed=list[Path])
    )
    output: Path = field(metadata=option("Model repository.", "-o", "--output"))
    name: str | None = field(default=None, metadata=option("Model name. Default: that of the file."))
    max_batch: int = field(default=8, metadata=option("Largest batch.", min=1))
    queue: int = field(default=64, metadata=option("Requests that may wait; more are rejected.", min=1))
    delay_us: int = field(default=2000, metadata=option("Wait for a full batch, microseconds.", min=0))
    instances: int = field(default=1, metadata=option("Instances on each device.", min=1))
    device: Literal["cpu", "gpu"] | None = field(
        default=None, metadata=option("Device of an .onnx. Default: cpu; plans run on gpu.")
    )
    version: int = field(default=1, metadata=option("Version folder.", min=1))
    overwrite: bool = field(default=False, metadata=OVERWRITE)

    def __post_init__(self) -> None:
        check(self)
        if not self.sources:
            raise UsageError("MODEL: none given. Give an .onnx or .plan file")
        if not _NAME.fullmatch(self.model_name):
            raise UsageError(f"name: {self.model_name!r}, must be letters, digits, '.', '_' and '-'. Give --name")

    @property
    def model_name(self) -> str:
        """Name under which the model is served."""
        return self.name or self.sources[0].stem


def write_triton_model(config: TritonConfig, tell: Callable[[str], None] = lambda _: None) -> Path:
    """Write one model into a repository; returns its folder.

    The model file comes before the configuration that names it.

    Raises:
        UsageError: The files cannot be served by Triton, or not together.
        MediaError: Something is there already, or cannot be written.
        ExportError: Triton's schema refuses the configuration.
    """
    plans = [(path, read_manifest_of(path)) for path in config.sources]
    _refuse_what_does_not_fit(config, plans)
    with ExitStack() as stack:
        return _write_repository(config, [_runnable(*plan, stack) for plan in plans], tell)


def _write_repository(config: TritonConfig, plans: Sequence[_Plan], tell: Callable[[str], None]) -> Path:
    manifest = plans[0][1]
    text = config_text(config, plans)
    _check_schema(text, tell)
    folder = config.output / config.model_name
    version = folder / str(config.version)
    if version.exists() and not config.overwrite:
        raise UsageError(f"{version}: is there already. Give another --version, or --overwrite")
    kept = folder / "config.pbtxt"
    if kept.exists() and not config.overwrite and kept.read_text() != text:
        raise UsageError(f"{kept}: differs from that of version {config.version}. Give another --name, or --overwrite")
    for path, own in plans:
        target = version / _file_name(own, alone=len(plans) == 1)
        with atomic_write(target, overwrite=config.overwrite) as temporary:
            shutil.copyfile(path, temporary)
    _write(folder / "manifest.json", manifest.to_json() + "\n")
    _write(folder / "client.py", _client(config.model_name, manifest))
    _write(kept, text)
    return folder


def _runnable(path: Path, manifest: Manifest, stack: ExitStack) -> _Plan:
    """The file to serve and its manifest: of an adopted network the copy that runs, which has its weights inside."""
    adaptation = adaptation_for(path, manifest) if manifest.kind == "onnx" else None
    if adaptation is None:
        return path, manifest
    copy = stack.enter_context(adapted(path, adaptation))
    header = read_onnx_header(copy)
    return copy, replace(manifest, input=header.inputs[0], output=header.outputs[0], activation="none")


def read_manifest_of(path: Path) -> Manifest:
    """The manifest of a file that Triton can serve.

    Raises:
        UsageError: It is a checkpoint.
        ModelFileError: It is no model file, or has no manifest.
    """
    kind = model_kind(path)
    if kind == "checkpoint":
        raise UsageError(f"{path}: is a checkpoint, must be .onnx or .plan. Run: basnet-export onnx {path}")
    if kind == "plan":
        from basnet_runtime.backends.tensorrt.preflight import read_plan_manifest

        return read_plan_manifest(path)[0]
    return read_manifest(path)


def _refuse_what_does_not_fit(config: TritonConfig, plans: Sequence[_Plan]) -> None:
    kinds = {manifest.kind for _, manifest in plans}
    if len(kinds) > 1 or (kinds == {"onnx"} and len(plans) > 1):
        raise UsageError("MODEL: must be one .onnx, or .plan files of one model. Call it once for each model")
    for path, manifest in plans:
        if manifest.engine is not None:
            _refuse_plan(config, path, manifest)
        elif config.max_batch > 1 and _takes_one(manifest):
            raise UsageError(
                f"max-batch: {config.max_batch}, must be 1: {path} takes one picture at a time. Give --max-batch 1"
            )
        elif manifest.quantized_for == "openvino":
            raise UsageError(
                f"{path}: is quantized for OpenVINO; Triton's ONNX Runtime would compute it in FP32. "
                "Give the FP32 file, or export with --precision int8 --target cpu"
            )
    if kinds == {"plan"}:
        if config.device == "cpu":
            raise UsageError("device: cpu, must be gpu for a plan. Leave --device out, or give the .onnx")
        _refuse_other_models(plans)


def _refuse_plan(config: TritonConfig, path: Path, manifest: Manifest) -> None:
    engine = manifest.engine
    assert engine is not None  # noqa: S101 - the caller asked
    if engine.flavor == "rtx":
        raise UsageError(f"{path}: is a TensorRT for RTX plan, which Triton does not load. Give the .onnx")
    largest = max(profile.largest[0] for profile in engine.profiles)
    if config.max_batch > largest:
        raise UsageError(
            f"max-batch: {config.max_batch}, must be at most {largest}, the largest of {path}. "
            f"Give --max-batch {largest}, or build with a larger --batch"
        )


def _refuse_other_models(plans: Sequence[_Plan]) -> None:
    first_path, first = plans[0]
    seen: dict[str, Path] = {}
    for path, manifest in plans:
        if (manifest.onnx_sha256, manifest.graph) != (first.onnx_sha256, first.graph):
            raise UsageError(f"{path}: is built from another network than {first_path}. Call it once for each model")
        for capability in _capabilities(manifest):
            if capability in seen:
                raise UsageError(f"{path}: is for compute capability {capability}, as {seen[capability]}. Give one")
            seen[capability] = path
        if len(plans) > 1 and not _capabilities(manifest):
            raise UsageError(f"{path}: does not say its compute capability. Give it alone")


def _capabilities(manifest: Manifest) -> tuple[str, ...]:
    return manifest.engine.compute_capabilities if manifest.engine else ()


def _file_name(manifest: Manifest, *, alone: bool) -> str:
    if manifest.kind == "onnx":
        return "model.onnx"
    return "model.plan" if alone else f"{'_'.join(_capabilities(manifest))}.plan"


def config_text(config: TritonConfig, plans: Sequence[_Plan]) -> str:
    """Text of `config.pbtxt`, protobuf's text format of Triton's ModelConfig."""
    manifest = plans[0][1]
    is_plan = manifest.kind == "plan"
    on_gpu = is_plan or config.device == "gpu"
    takes_one = _takes_one(manifest)
    group: dict[str, Any] = {"kind": _Word("KIND_GPU" if on_gpu else "KIND_CPU"), "count": config.instances}
    if is_plan:
        group["profile"] = [str(index) for index in range(len(manifest.engine.profiles if manifest.engine else ()))]
    message: dict[str, Any] = {
        "name": config.model_name,
        "backend": "tensorrt" if is_plan else "onnxruntime",
        "max_batch_size": 0 if takes_one else config.max_batch,  # 0: the batch axis is not Triton's
        "input": [_tensor(manifest, manifest.input)],
        "output": [_tensor(manifest, manifest.output)],
        # Written out: Triton takes 2 for ONNX Runtime on a CPU where it is left out.
        "instance_group": [group],
        "dynamic_batching": {
            "max_queue_delay_microseconds": config.delay_us,
            "default_queue_policy": {"timeout_action": _Word("REJECT"), "max_queue_size": config.queue},
        },
        "model_warmup": [_warm_up(manifest)],
    }
    if takes_one:
        del message["dynamic_batching"]
    if len(plans) > 1:
        message["cc_model_filenames"] = {
            capability: _file_name(own, alone=False) for _, own in plans for capability in _capabilities(own)
        }
    return _text(message)


def _takes_one(manifest: Manifest) -> bool:
    return manifest.kind == "onnx" and manifest.input.shape[0] == 1


def _axes(manifest: Manifest, spec: TensorSpec) -> tuple[int | None, ...]:
    """Those of the configuration: the batch axis is added by Triton, unless it is fixed."""
    shape = manifest.at_its_size(spec).shape
    return shape if _takes_one(manifest) else shape[1:]


def _tensor(manifest: Manifest, spec: TensorSpec) -> dict[str, Any]:
    dims = [-1 if axis is None else axis for axis in _axes(manifest, spec)]
    return {"name": spec.name, "data_type": _Word(_TYPES[spec.dtype]), "dims": dims}


def _warm_up(manifest: Manifest) -> dict[str, Any]:
    """One run at load, so that the first caller does not wait for memory and kernels."""
    if manifest.engine is not None:
        dims = list(manifest.engine.profiles[0].best[1:])
    else:
        dims = [_WARM_UP_SIDE if axis is None else axis for axis in _axes(manifest, manifest.input)]
    sample = {"data_type": _Word(_TYPES[manifest.input.dtype]), "dims": dims, "zero_data": True}
    return {"name": "one picture", "batch_size": 1, "inputs": {manifest.input.name: sample}}


class _Word(str):
    """An enum's name, which the text format writes without quotes."""


def _text(message: dict[str, Any], indent: str = "") -> str:
    lines = []
    for key, value in message.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            inner = ",\n".join(f"{indent}  {{\n{_text(item, indent + '    ')}{indent}  }}" for item in value)
            lines.append(f"{indent}{key} [\n{inner}\n{indent}]")
        elif isinstance(value, dict) and key in ("inputs", "cc_model_filenames"):  # maps
            lines += [f"{indent}{key} {{ key: {_value(k)} value{_inner(v, indent)} }}" for k, v in value.items()]
        elif isinstance(value, dict):
            lines.append(f"{indent}{key} {{\n{_text(value, indent + '  ')}{indent}}}")
        else:
            lines.append(f"{indent}{key}: {_value(value)}")
    return "\n".join(lines) + "\n"


def _inner(value: Any, indent: str) -> str:
    return f" {{\n{_text(value, indent + '  ')}{indent}}}" if isinstance(value, dict) else f": {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, _Word):
        return str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[ {', '.join(_value(item) for item in value)} ]"
    return json.dumps(value)


def _check_schema(text: str, tell: Callable[[str], None]) -> None:
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2
    except ImportError:
        tell(
            "config.pbtxt not checked by Triton's schema: tritonclient is not installed. "
            "pip install 'basnet-deploy[triton]'"
        )
        return
    try:
        text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise ExportError(f"config.pbtxt: Triton's schema refuses it: {error}. This is a defect; report it") from error


def _write(target: Path, text: str) -> None:
    with atomic_write(target, overwrite=True) as path:
        path.write_text(text, encoding="utf-8")


def _client(name: str, manifest: Manifest) -> str:
    template = _FRAME_CLIENT if manifest.graph == "frame" else _TENSOR_CLIENT
    plain = to_plain(manifest.preprocess)
    lanczos = manifest.preprocess.resample == "lanczos"
    values: dict[str, Any] = {"IMPORT": "from PIL import Image\n" if lanczos else ""}
    values["SMALL"] = _LANCZOS if lanczos else _BILINEAR
    values |= {"INPUT": manifest.input.name, "OUTPUT": manifest.output.name}
    values |= {"NAME": name, "HEIGHT": plain["height"], "WIDTH": plain["width"]}
    values |= {"MEAN": list(plain["mean"]), "STD": list(plain["std"])}
    stretch = "mask = (mask - mask.min()) / max(mask.max() - mask.min(), 1e-6)\n"
    values["STRETCH"] = stretch if manifest.postprocess.stretch else ""
    values["SCALE"] = "255" if plain["scale"] == "255" else "max(1, small.max())"
    for key, value in values.items():
        template = template.replace(f"@{key}@", str(value))
    return template


_BILINEAR = "cv2.resize(image.astype(np.float32), (@WIDTH@, @HEIGHT@), interpolation=cv2.INTER_LINEAR)"
_LANCZOS = "np.float32(Image.fromarray(image).resize((@WIDTH@, @HEIGHT@), Image.Resampling.LANCZOS))"
_FRAME_CLIENT = '''"""Mask of a picture by Triton: python client.py photo.jpg mask.png [HOST:PORT]"""

import sys

import cv2
import tritonclient.http as triton

source, target, *address = sys.argv[1:]
client = triton.InferenceServerClient(address[0] if address else "127.0.0.1:8000")
image = cv2.cvtColor(cv2.imread(source), cv2.COLOR_BGR2RGB)
frame = triton.InferInput("frame", [1, *image.shape], "UINT8")
frame.set_data_from_numpy(image[None])
cv2.imwrite(target, client.infer("@NAME@", [frame]).as_numpy("mask")[0])
'''
_TENSOR_CLIENT = '''"""Mask of a picture by Triton: python client.py photo.jpg mask.png [HOST:PORT]"""

import sys

import cv2
import numpy as np
import tritonclient.http as triton
@IMPORT@
source, target, *address = sys.argv[1:]
client = triton.InferenceServerClient(address[0] if address else "127.0.0.1:8000")
image = cv2.cvtColor(cv2.imread(source), cv2.COLOR_BGR2RGB)
height, width = image.shape[:2]
small = @SMALL@
normalized = ((small / @SCALE@ - np.float32(@MEAN@)) / np.float32(@STD@)).astype(np.float32)
tensor = triton.InferInput("@INPUT@", [1, 3, @HEIGHT@, @WIDTH@], "FP32")
tensor.set_data_from_numpy(np.ascontiguousarray(normalized.transpose(2, 0, 1)[None]))
mask = client.infer("@NAME@", [tensor]).as_numpy("@OUTPUT@").reshape(@HEIGHT@, @WIDTH@)
@STRETCH@mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)
cv2.imwrite(target, np.round(mask * 255).astype(np.uint8))
'''
