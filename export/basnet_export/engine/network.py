"""Parse ONNX into a TensorRT network; measure the share of a precision."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from basnet_runtime.backends.tensorrt.library import TensorRT
from basnet_runtime.kinds import Precision
from basnet_runtime.manifest import Manifest
from basnet_torch.errors import EngineBuildError

__all__ = ["Convolution", "ParsedNetwork", "PrecisionShare", "convolutions_of", "parse_onnx", "precision_share"]

# Of warnings: a zero point or scale that is not taken as it is written cuts off half of a range without a word.
_RANGES = re.compile(r"zero.?point|quantiz", re.IGNORECASE)
_TYPES: dict[str, Precision] = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Convolution:
    """One convolution of the typed network.

    Attributes:
        name: The ONNX node's.
        cost: Multiplications for one picture; free axes count as 1.
        precision: What its types say; None where they differ.
    """

    name: str
    cost: int
    precision: Precision | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionShare:
    """The share of convolutions that compute in a precision.

    Attributes:
        layers: By number, 0..1.
        flops: By arithmetic, 0..1.
        source: The typed network, or the inspector of the finished engine.
    """

    layers: float
    flops: float
    source: Literal["network", "inspector"] = "network"


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedNetwork:
    """A network, the parser that owns its weights, and the parser's warnings."""

    network: Any
    parser: Any
    warnings: tuple[str, ...] = ()


def parse_onnx(library: TensorRT, builder: Any, graph: bytes, manifest: Manifest) -> ParsedNetwork:
    """Parse a graph into a strongly typed network.

    Raises:
        EngineBuildError: The parser refuses a node, which is named, changes what is quantized or pooled, or the
            network is not what the manifest says.
    """
    trt = library.trt
    library.messages.clear()
    # TensorRT 10 has to be told; 11 and RTX know nothing else and keep the flag for old callers.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse(graph):
        raise EngineBuildError(f"{library} cannot parse the graph: {_errors(parser)}")
    warnings = tuple(dict.fromkeys(" ".join(text.split())[:300] for text in library.messages.warnings))
    if changed := [text for text in warnings if _RANGES.search(text)]:
        raise EngineBuildError(
            f"{library} would quantize over other ranges than the graph: {changed[0]} Export the model again with "
            "--precision int8 --target tensorrt"
        )
    _refuse_windows_behind_the_map(library, network)
    for wanted, tensor in ((manifest.input, network.get_input(0)), (manifest.output, network.get_output(0))):
        found = tuple(axis if axis >= 0 else None for axis in tensor.shape)
        # A free axis of the output may be one that the parser computes from the input's.
        fits = len(found) == len(wanted.shape) and all(w in (None, f) for w, f in zip(wanted.shape, found, strict=True))
        if (network.num_inputs, network.num_outputs, tensor.name, fits) != (1, 1, wanted.name, True):
            raise EngineBuildError(f"{library} read {tensor.name} {found} where the manifest says {wanted}")
    return ParsedNetwork(network=network, parser=parser, warnings=warnings)


def _refuse_windows_behind_the_map(library: TensorRT, network: Any) -> None:
    """Refuse what the parser makes of pooling with ceil_mode: one window too many where it begins behind the map."""
    trt = library.trt
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type != trt.LayerType.POOLING:
            continue
        layer.__class__ = trt.IPoolingLayer  # the bindings give every layer its base class
        taken, given = tuple(layer.get_input(0).shape), tuple(layer.get_output(0).shape)
        spatial = len(layer.stride_nd)
        axes = zip(taken[-spatial:], given[-spatial:], layer.stride_nd, layer.pre_padding, strict=True)
        if any(size > 0 and (windows - 1) * step >= size + pad for size, windows, step, pad in axes):
            raise EngineBuildError(
                f"{library} pools {taken} to {given} in node {layer.name}: the last window begins behind the map, and "
                "ceil_mode of ONNX leaves it out. Export the network again without ceil_mode"
            )


def _errors(parser: Any) -> str:
    """The parser's first errors with node names."""
    found = []
    for index in range(min(parser.num_errors, 3)):
        problem = parser.get_error(index)
        node = f"node {problem.node_name()} ({problem.node_operator()}): " if problem.node_name() else ""
        found.append(node + " ".join(problem.desc().split())[:200])
    return "; ".join(found) or "no reason given"


def convolutions_of(library: TensorRT, network: Any) -> tuple[Convolution, ...]:
    """List the convolutions of a typed network.

    Raises:
        EngineBuildError: There is none.
    """
    trt = library.trt
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(0).name: layer for layer in layers if layer.num_outputs}
    found = tuple(_convolution(trt, layer, makers) for layer in layers if layer.type == trt.LayerType.CONVOLUTION)
    if not found:
        raise EngineBuildError("the network has no convolution, so it is no BASNet")
    return found


def _convolution(trt: Any, layer: Any, makers: Mapping[str, Any]) -> Convolution:
    name, weights = layer.name, layer.get_input(1)
    layer.__class__ = trt.IConvolutionLayer  # the bindings give every layer its base class
    reads, gives = layer.get_input(0), layer.get_output(0)
    pixels = prod(max(axis, 1) for axis in gives.shape)
    types = {_computed(trt, tensor, makers) for tensor in (reads, weights) if tensor is not None}
    if weights is None or not types & {"INT8", "FP8"}:  # what a quantized one gives is the type of what follows it
        types.add(str(gives.dtype.name))
    return Convolution(
        name=name,
        cost=pixels * prod(layer.kernel_size_nd) * reads.shape[1],
        precision=_TYPES.get(types.pop()) if len(types) == 1 else None,
    )


def _computed(trt: Any, tensor: Any, makers: Mapping[str, Any]) -> str:
    """The type of an operand before the DequantizeLinear that TensorRT folds."""
    maker = makers.get(tensor.name)
    if maker is not None and maker.type == trt.LayerType.DEQUANTIZE:
        tensor = maker.get_input(0)
    return str(tensor.dtype.name)


def precision_share(
    convolutions: Iterable[Convolution], precision: Precision, inspected: Mapping[str, Precision] | None = None
) -> PrecisionShare:
    """Measure the share of a precision; `inspected` ones, by name, take precedence."""
    known = inspected or {}
    costs = [(known.get(each.name, each.precision) == precision, each.cost) for each in convolutions]
    typed = [cost for fits, cost in costs if fits]
    return PrecisionShare(
        layers=len(typed) / len(costs),
        flops=sum(typed) / sum(cost for _, cost in costs),
        source="inspector" if known else "network",
    )
