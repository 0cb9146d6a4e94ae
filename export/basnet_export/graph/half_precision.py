"""Cast networks to their deployed precision, batch norm folded.

Casting the network before it is exported, instead of rewriting the ONNX file afterwards, leaves every type decided by
one `.to(dtype)` and the FP32 edges (scaling, resizing to and from the picture, last sigmoid) where
the graph states them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from basnet_runtime.kinds import Precision
from basnet_torch.errors import UsageError
from basnet_torch.model.basnet import SaliencyNetwork

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "OPSETS",
    "deployed_network",
    "remove_round_trips",
    "rounded_kernels",
    "scaled_network",
    "torch_dtype",
]

# The lowest that has what is used, because readers of old opsets are many. FP16 skips 18: onnx describes Relu as a
# function of other operators for that one alone, and ONNX Runtime, which has no FP16 Relu on a CPU, then fuses no Relu
# with its convolution. Convolution takes bfloat16 from 22 on.
OPSETS: dict[Precision, int] = {"fp32": 18, "fp16": 19, "bf16": 22}
Join = Callable[[nn.Conv2d, nn.BatchNorm2d], nn.Module]
_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def torch_dtype(precision: Precision) -> torch.dtype:
    """The torch dtype of a precision."""
    return _DTYPES[precision]


def deployed_network(model: SaliencyNetwork, precision: Precision, keep_fp32: Collection[str] = ()) -> SaliencyNetwork:
    """Copy the network with batch norm folded, cast to `precision`.

    Args:
        model: The network as trained.
        precision: What it is to compute in.
        keep_fp32: Modules, by name, that stay FP32 and cast what they take and give.

    Raises:
        UsageError: When `keep_fp32` names what is no module, or one without a convolution.
    """
    network = copy.deepcopy(model).double().eval()
    _replace_norms(network, fuse_conv_bn_eval)
    named = [part for name in keep_fp32 for part in _called(_fp32_module(network, name))]
    inner = {module for part in named for module in part.modules() if module is not part}
    fp32_modules = [part for part in dict.fromkeys(named) if part not in inner]
    kept = {module for part in fp32_modules for module in part.modules()}
    dtype = torch_dtype(precision)
    for module in network.modules():
        if module in kept:
            _cast_own(module, torch.float32)
            continue
        if isinstance(module, nn.Conv2d) and dtype.itemsize == 2:
            module.weight.data = rounded_kernels(module.weight.data, dtype)
        _cast_own(module, dtype)
    for module in fp32_modules if dtype != torch.float32 else ():
        module.register_forward_pre_hook(lambda _, taken: _cast(taken, torch.float32))
        module.register_forward_hook(lambda _, __, given: _cast(given, dtype))
    return network


def remove_round_trips(graph: ir.Graph) -> None:
    """Let FP32 parts read each other, and the input, without rounding to 16 bits on the way."""
    import onnx_ir as ir

    for node in tuple(graph):
        value = node.inputs[0] if node.op_type == "Cast" else None
        short = value.producer() if value is not None else None
        if short is None or short.op_type != "Cast" or node.attributes["to"].as_int() != ir.DataType.FLOAT:
            continue
        exact = short.inputs[0]
        halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        if exact is not None and exact.dtype == ir.DataType.FLOAT and short.attributes["to"].as_int() in halves:
            for user, index in tuple(node.outputs[0].uses()):
                user.replace_input_with(index, exact)
            if node.outputs[0] not in graph.outputs:
                graph.remove(node, safe=True)
            if not short.outputs[0].uses() and short.outputs[0] not in graph.outputs:
                graph.remove(short, safe=True)


def _fp32_module(network: SaliencyNetwork, name: str) -> nn.Module:
    found: nn.Module | None = dict(network.named_modules()).get(name) if name else None
    if found is None or not any(isinstance(module, nn.Conv2d) for module in found.modules()):
        parts = ", ".join(part for part, _ in network.named_modules() if part.count(".") == 1)
        raise UsageError(f"keep-fp32 {name}: the network has no such part; its parts are {parts}, and those in them")
    return found


def _called(module: nn.Module) -> list[nn.Module]:
    """Resolve module lists to the modules that are called."""
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return [part for child in module.children() for part in _called(child)]
    return [module]


def _cast_own(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast the module's own parameters, not its children's."""
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast a tensor, or all tensors of a list or tuple."""
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(one, dtype) for one in value)
    return value.to(dtype)


def rounded_kernels(weight_OIKK: Tensor, dtype: torch.dtype) -> Tensor:
    """Round kernels by error diffusion, so that each keeps its sum.

    A rounding error is the same at every pixel, and neighboring pixels are much alike, so that nine independent errors
    add up to a shift of the whole map. Taps are taken from the largest to the smallest, whose own step is what remains.

    Args:
        weight_OIKK: Weights of any shape with the kernel in the last two axes, in higher precision.
        dtype: `torch.float16` or `torch.bfloat16`.

    Returns:
        Values exact in `dtype`, as float64.

    >>> kernel = torch.full((1, 1, 3, 3), 0.1, dtype=torch.float64)
    >>> rounded = rounded_kernels(kernel, torch.half)
    >>> lost = [(k.sum() - kernel.sum()).abs().item() for k in (kernel.half().double(), rounded)]
    >>> lost[1] < lost[0] / 4
    True
    """
    taps = weight_OIKK.double().flatten(-2)
    order = taps.abs().argsort(dim=-1, descending=True)
    ordered = taps.gather(-1, order)
    lost = torch.zeros_like(ordered[..., 0])
    for tap in ordered.unbind(-1):
        wanted = tap + lost
        tap.copy_(wanted.to(dtype))
        lost = wanted - tap
    return torch.empty_like(taps).scatter_(-1, order, ordered).reshape(weight_OIKK.shape)


def scaled_network(model: SaliencyNetwork) -> SaliencyNetwork:
    """Copy the network with batch norm as scale and shift per channel.

    For files that keep weights in FP16: folding would change the weights, and they would no longer be exact in FP16.
    """
    network = copy.deepcopy(model).eval()
    _replace_norms(network, _ScaledConv)
    return network


class _ScaledConv(nn.Module):
    """A convolution without bias, then scale and shift per channel."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv = copy.deepcopy(conv)
        self.conv.bias = None
        mean, var = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
        scale = norm.weight.double() / torch.sqrt(var + norm.eps)
        bias = conv.bias.double() if conv.bias is not None else torch.zeros_like(mean)
        shift = norm.bias.double() + (bias - mean) * scale
        self.scale = nn.Parameter(scale.float().reshape(1, -1, 1, 1), requires_grad=False)
        self.shift = nn.Parameter(shift.float().reshape(1, -1, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x)) * self.scale + self.shift


class _Scale(nn.Module):
    """A batch norm as scale and shift per channel."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        mean, var = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
        scale = norm.weight.double() / torch.sqrt(var + norm.eps)
        shift = norm.bias.double() - mean * scale
        dtype = norm.weight.dtype
        self.scale = nn.Parameter(scale.to(dtype).reshape(1, -1, 1, 1), requires_grad=False)
        self.shift = nn.Parameter(shift.to(dtype).reshape(1, -1, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def _replace_norms(network: SaliencyNetwork, join: Join) -> None:
    """Replace each convolution by `join(conv, norm)`, its norm by what remains."""
    for conv_name, norm_name in _norms_after_convolutions(network):
        conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_name)
        _put(network, conv_name, join(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm)))
        # timm's batch norms carry their activation
        rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
        _put(network, norm_name, nn.Sequential(*rest) if rest else nn.Identity())
    for name, norm in [each for each in network.named_modules() if isinstance(each[1], nn.BatchNorm2d)]:
        # It stands before its convolution, as in DenseNet, behind an activation that keeps it from being folded.
        rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
        _put(network, name, nn.Sequential(_Scale(norm), *rest))


def _norms_after_convolutions(network: SaliencyNetwork) -> list[tuple[str, str]]:
    """Pair convolutions with their batch norms, by running on the meta device."""
    probe = copy.deepcopy(network).to("meta").eval()
    names = {module: name for name, module in probe.named_modules()}
    made: list[tuple[Tensor, nn.Module]] = []  # kept alive, so that no two tensors are taken for one
    pairs: list[tuple[str, str]] = []

    def after_convolution(module: nn.Module, _: object, output: Tensor) -> None:
        made.append((output, module))

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        conv = next((conv for output, conv in made if output is inputs[0]), None)
        if conv is not None:
            pairs.append((names[conv], names[module]))

    for module in probe.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(after_convolution)
        elif isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(before_norm)
    with torch.no_grad():
        probe(torch.zeros(2, 3, 64, 64, device="meta", dtype=next(probe.parameters()).dtype))
    return pairs


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(owner), leaf, module)
