"""An ONNX graph as a TensorRT network, and how much of its arithmetic is in the precision it is named after."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from basnet_runtime.backends.base import Precision
from basnet_runtime.manifest import Manifest
from basnet_runtime.tensorrt_library import TensorRT
from basnet_torch.errors import EngineBuildError

__all__ = ["ParsedNetwork", "PrecisionShare", "parse_onnx", "precision_share"]

_TYPES: dict[Precision, str] = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionShare:
    """Of all convolutions, those that compute in the named precision: by number and by arithmetic, 0..1."""

    layers: float
    flops: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedNetwork:
    """A network and the parser that owns its weights, which must live as long."""

    network: Any
    parser: Any


def parse_onnx(library: TensorRT, builder: Any, graph: bytes, manifest: Manifest) -> ParsedNetwork:
    """A strongly typed network: every type is the graph's own, and no flag of the builder changes it.

    Raises:
        EngineBuildError: The parser refuses a node, which is named, or the network is not what the manifest says.
    """
    trt = library.trt
    # TensorRT 10 has to be told; 11 and RTX know nothing else and keep the flag for old callers.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse(graph):
        raise EngineBuildError(f"{library} cannot parse the graph: {_errors(parser)}")
    for wanted, tensor in ((manifest.input, network.get_input(0)), (manifest.output, network.get_output(0))):
        found = tuple(axis if axis >= 0 else None for axis in tensor.shape)
        if (network.num_inputs, network.num_outputs, tensor.name, found) != (1, 1, wanted.name, wanted.shape):
            raise EngineBuildError(f"{library} read {tensor.name} {found} where the manifest says {wanted}")
    return ParsedNetwork(network=network, parser=parser)


def _errors(parser: Any) -> str:
    """What the parser found, with the nodes' names."""
    found = []
    for index in range(min(parser.num_errors, 3)):
        problem = parser.get_error(index)
        node = f"node {problem.node_name()} ({problem.node_operator()}): " if problem.node_name() else ""
        found.append(node + " ".join(problem.desc().split())[:200])
    return "; ".join(found) or "no reason given"


def precision_share(library: TensorRT, network: Any, precision: Precision) -> PrecisionShare:
    """Read from the typed network, whose types the builder must keep.

    A convolution's arithmetic is its output's size times its kernel; axes that are free count as 1 alike for all.
    """
    trt = library.trt
    costs: list[tuple[bool, int]] = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type != trt.LayerType.CONVOLUTION:
            continue
        layer.__class__ = trt.IConvolutionLayer  # the bindings give every layer its base class
        reads, gives = layer.get_input(0), layer.get_output(0)
        kind = getattr(trt.DataType, _TYPES[precision])
        pixels = prod(max(axis, 1) for axis in gives.shape)
        cost = pixels * prod(layer.kernel_size_nd) * reads.shape[1]
        costs.append((reads.dtype == gives.dtype == kind, cost))
    if not costs:
        raise EngineBuildError("the network has no convolution, so it is no BASNet")
    typed = [cost for fits, cost in costs if fits]
    return PrecisionShare(layers=len(typed) / len(costs), flops=sum(typed) / sum(cost for _, cost in costs))
