"""The manifest of a deployed file: input, output, validation.

It is stored in the file and beside it.

An ONNX file carries its manifest in its metadata under the key `basnet`; a copy with the file's own SHA-256 stands
beside it as `FILE.json`. Either is enough, and two that contradict each other are refused. A file that lost its
metadata in another tool runs again with a `FILE.json` whose `onnx_sha256` is that of the new file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from basnet_runtime.engine_facts import EngineFacts
from basnet_runtime.kinds import Precision
from basnet_runtime.onnx_file.adapt import Activation, Adaptation, adaptation_of
from basnet_runtime.onnx_file.content import read_graph_content
from basnet_runtime.onnx_file.header import OnnxHeader, read_onnx_header
from basnet_torch.errors import ModelFileError
from basnet_torch.json_values import from_plain, to_plain
from basnet_torch.spec import Postprocess, Preprocess, TensorSpec

__all__ = [
    "ADOPTED",
    "METADATA_KEY",
    "Graph",
    "Kind",
    "Manifest",
    "adaptation_for",
    "manifest_path",
    "read_manifest",
    "read_manifest_beside",
    "sha256_of",
]

METADATA_KEY = "basnet"
ADOPTED = "adopted"
FORMAT = 1
_DIGEST = "preprocess_digest"  # tells at a glance whether two files are fed alike
_RECEIPT = {"pictures", "max_abs", "mean_abs", "flips", "boundary_iou", "ran"}  # what a receipt says at least
Kind = Literal["onnx", "plan"]
Graph = Literal["tensor", "frame"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """One deployed file.

    Attributes:
        format: Version of this record.
        kind: What the file is.
        graph: `tensor` or `frame`, see design of the graphs in the README.
        precision: Precision of the network.
        store: What its weights are kept as.
        width: Channels at full resolution; 64 is the paper's network.
        arch: Which network, as `basnet-train --arch` names it.
        encoder: Which encoder, as `basnet-train --encoder` names it.
        preprocess: Preprocessing of pictures (inside the `frame` graph).
        postprocess: Postprocessing of maps (inside the `frame` graph).
        input: What the file takes.
        output: What it returns.
        opset: Version of the ONNX operators.
        checkpoint: Name of the checkpoint's file.
        checkpoint_sha256: Its digest.
        onnx_sha256: Digest of the ONNX file; empty inside the file itself, which cannot hold its own. For a plan, that
            of the file it was built from.
        origin: Whose weights these are: "basnet-deploy" or "authors".
        exporter: Name and version of every library that took part.
        parity: The receipt of the checks it passed; None when they were switched off.
        created: When, ISO 8601, UTC.
        engine: What a plan was built for; None for an ONNX file.
        quantization: How an int8 file was calibrated; None for others.
        keep_fp32: Parts of the network that stay FP32 in a reduced precision, because the contract needs it.
        activation: What the runtime computes of the output; of an adopted file, whose graph is never changed.
        graph_sha256: Digest of what the graph computes, see `onnx_file.content`; empty in older files.
        changed: Whether another tool changed the graph after its export, so that its types and tensors were read anew.
        refused: Backends that read an adopted file but give other masks, with the measured difference.
    """

    MAY_LACK: ClassVar = (  # older files
        *("engine", "arch", "encoder", "quantization", "keep_fp32"),
        *("activation", "graph_sha256", "changed", "refused"),
    )
    kind: Kind
    graph: Graph
    precision: Precision
    width: int
    preprocess: Preprocess
    postprocess: Postprocess
    input: TensorSpec
    output: TensorSpec
    opset: int
    checkpoint: str
    checkpoint_sha256: str
    origin: str
    created: str
    store: Precision = "fp32"
    arch: str = "basnet"
    encoder: str = "resnet34"
    onnx_sha256: str = ""
    exporter: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, Any] | None = None
    engine: EngineFacts | None = None
    quantization: Mapping[str, Any] | None = None
    keep_fp32: tuple[str, ...] = ()
    activation: Activation = "none"
    graph_sha256: str = ""
    changed: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.parity is None:
            return
        if missing := sorted(_RECEIPT - set(self.parity)):
            raise ValueError(f"parity lacks {', '.join(missing)}")
        for name in _RECEIPT - {"ran"}:
            if not isinstance(self.parity[name], int | float):
                raise ValueError(f"parity.{name} is {self.parity[name]!r}; it must be a number")

    @property
    def adopted(self) -> bool:
        """Whether it is someone else's network, described by `basnet-export adopt`."""
        return self.origin == ADOPTED

    @property
    def original(self) -> bool:
        """Tell whether it is an adopted file as it came.

        Converted or changed ones are compared with that one.
        """
        as_it_came = self.kind == "onnx" and not self.changed and self.onnx_sha256 == self.checkpoint_sha256
        return self.adopted and as_it_came

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return self.preprocess.height, self.preprocess.width

    def at_its_size(self, tensor: TensorSpec) -> TensorSpec:
        """Return one of the tensors, free height and width as they were validated."""
        if self.graph == "frame" or self.adopted or tensor.shape[2:] != (None, None):
            return tensor
        return replace(tensor, shape=(*tensor.shape[:2], *self.size))

    @property
    def quantized_for(self) -> str | None:
        """Return the target an int8 or fp8 file was quantized for; None for others."""
        return None if self.quantization is None else str(self.quantization.get("target", "")) or None

    def to_json(self) -> str:
        """The record as text, the same for equal manifests."""
        return json.dumps({**to_plain(self), _DIGEST: self.preprocess.digest()}, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`.

        Raises:
            ValueError: For another format version, unknown or missing fields, values that do not fit, or a digest that
                is not that of the preprocessing beside it.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            found = values.get("format") if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"format is {found!r}; this version reads {FORMAT}")
        said = values.pop(_DIGEST, None)
        made = from_plain(values, cls)
        if said != (found := made.preprocess.digest()):
            raise ValueError(f"{_DIGEST} is {said!r}, but that of its preprocess is {found!r}: it was changed by hand")
        return made


def read_manifest(path: Path, header: OnnxHeader | None = None) -> Manifest:
    """Read the manifest of an ONNX file, from the file and from `FILE.json`.

    `header` saves reading the file twice.

    Where another tool changed the graph, precision, input and output are the graph's own, and no parity is proven.

    Raises:
        ModelFileError: When there is none, when it cannot be read, or when two contradict each other or the file.
    """
    header = header or read_onnx_header(path)
    text = header.metadata.get(METADATA_KEY)
    inside = None if text is None else _parsed(f"{path}: its manifest", text)
    beside = read_manifest_beside(path)
    manifest = inside or beside
    if manifest is None:
        raise ModelFileError(
            f"{path}: has no manifest, so how to feed it is unknown (written by {header.producer}; "
            f"takes {_listed(header.inputs)}; returns {_listed(header.outputs)}); "
            f"export the checkpoint with 'basnet-export onnx', or describe another network with 'basnet-export adopt'"
        )
    digest = sha256_of(path) if beside is not None else ""
    if beside is not None and inside is not None and beside.onnx_sha256 == digest:
        _refuse_contradiction(path, inside, beside)
    weighed = header.external and bool(manifest.graph_sha256)  # the file's digest says nothing of weights beside it
    if beside is None or beside.onnx_sha256 != digest or weighed:
        found = replace(_by_graph(path, header, inside, beside), onnx_sha256=digest)
        # An adopted file that another tool wrote again is still what was adopted.
        return replace(found, checkpoint_sha256=digest) if beside is not None and beside.original else found
    _check_tensors(path, manifest, header)
    return replace(manifest, onnx_sha256=digest)


def _by_graph(path: Path, header: OnnxHeader, inside: Manifest | None, beside: Manifest | None) -> Manifest:
    """The manifest of a file whose bytes no `FILE.json` vouches for: its graph decides."""
    content = read_graph_content(path)
    manifest = inside or beside
    assert manifest is not None  # noqa: S101 - the caller has one
    if beside is not None:
        # Of one export, when inside and beside agree; else a stranger lies where the described file lay.
        known = inside is not None and bool(inside.graph_sha256) and not _differing(inside, beside)
        if not known and content.sha256 != beside.graph_sha256:
            name = manifest_path(path).name
            way = f"remove {name} or export again"
            if beside.original:
                way = f"describe it with 'basnet-export adopt {path.name} ... --overwrite'"
            raise ModelFileError(f"{path}: is not the file that {name} describes (SHA-256 differs); {way}")
    if content.sha256 == manifest.graph_sha256:
        return _fed_by_graph(path, manifest, header)
    if not manifest.graph_sha256 and content.precision == manifest.precision:
        _check_tensors(path, manifest, header)  # an older file: what it says is taken, unless it was converted since
        return manifest
    fed = replace(_fed_by_graph(path, manifest, header), opset=header.opset, parity=None, changed=True)
    if content.precision == manifest.precision:
        return fed  # what it was quantized for still holds
    return replace(fed, precision=content.precision, store=content.store, quantization=None, keep_fp32=())


def _fed_by_graph(path: Path, manifest: Manifest, header: OnnxHeader) -> Manifest:
    """With the input, output and size that the graph has."""
    outputs = [tensor for tensor in header.outputs if tensor.name == manifest.output.name] or header.outputs
    types = ("uint8",) if manifest.graph == "frame" else ("float32", "float16")
    rank = len(manifest.input.shape)
    taken = header.inputs[0] if len(header.inputs) == 1 else None
    if taken is None or len(outputs) != 1 or taken.dtype not in types or len(taken.shape) != rank:
        raise ModelFileError(
            f"{path}: was changed after its export and has {_listed(header.inputs)} to {_listed(header.outputs)} "
            f"where {manifest.input} to {manifest.output} was; export it again"
        )
    height, width = manifest.size
    if manifest.graph == "tensor":
        height, width = taken.shape[2] or height, taken.shape[3] or width
    size = replace(manifest.preprocess, height=height, width=width)
    return replace(manifest, input=taken, output=outputs[0], preprocess=size)


def adaptation_for(path: Path, manifest: Manifest, header: OnnxHeader | None = None) -> Adaptation | None:
    """Return the changes an ONNX file needs to run; None where it runs as it is.

    `header` saves reading the file twice.
    """
    if manifest.graph == "frame":
        return None
    found = adaptation_of(header or read_onnx_header(path), manifest.output, manifest.size, manifest.activation)
    return found and replace(found, output=manifest.at_its_size(found.output))


def manifest_path(path: Path) -> Path:
    """Where the copy beside a file stands: `FILE.json`."""
    return path.with_name(f"{path.name}.json")


def sha256_of(path: Path) -> str:
    """The file's digest, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest_beside(path: Path) -> Manifest | None:
    """Read the manifest in `FILE.json`, unchecked against the file, or None.

    Raises:
        ModelFileError: When it cannot be read.
    """
    beside = manifest_path(path)
    try:
        text = beside.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{beside}: cannot be read ({error})") from error
    return _parsed(str(beside), text)


def _parsed(where: str, text: str) -> Manifest:
    try:
        return Manifest.from_json(text)
    except ValueError as error:
        raise ModelFileError(f"{where} cannot be read ({error}); export the model again") from error


def _refuse_contradiction(path: Path, inside: Manifest, beside: Manifest) -> None:
    if differ := _differing(inside, beside):
        name = manifest_path(path).name
        raise ModelFileError(f"{path}: contradicts {name} in {', '.join(differ)}; remove {name} or export again")


def _differing(one: Manifest, other: Manifest) -> list[str]:
    """Names of the fields in which two differ, but for the file's digest."""
    ours, theirs = (asdict(replace(m, onnx_sha256="")) for m in (one, other))
    return [key for key in ours if ours[key] != theirs[key]]


def _check_tensors(path: Path, manifest: Manifest, header: OnnxHeader) -> None:
    outputs = header.outputs
    if manifest.adopted:  # the others are cut in the copy that runs
        outputs = tuple(tensor for tensor in outputs if tensor.name == manifest.output.name) or outputs
    for said, found in (((manifest.input,), header.inputs), ((manifest.output,), outputs)):
        if said != found:
            raise ModelFileError(
                f"{path}: its graph has {_listed(found)} where its manifest says {_listed(said)}; export it again"
            )


def _listed(tensors: tuple[TensorSpec, ...]) -> str:
    return ", ".join(map(str, tensors)) or "nothing"
