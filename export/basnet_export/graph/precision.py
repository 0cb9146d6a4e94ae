"""The network in the arithmetic it is deployed in: batch norm folded in float64, then rounded, edges left in FP32.

Casting the network before it is exported, instead of rewriting the ONNX file afterwards, leaves every type decided by
one `.to(dtype)` and the FP32 edges (scaling, resizing to and from the picture, last sigmoid) where
the graph states them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from basnet_runtime.kinds import Precision
from basnet_torch.errors import UsageError
from basnet_torch.model.basnet import SaliencyNetwork

__all__ = ["OPSETS", "deployed_network", "rounded_kernels", "scaled_network", "torch_dtype"]

# The lowest that has what is used, because readers of old opsets are many; convolution takes bfloat16 from 22 on.
OPSETS: dict[Precision, int] = {"fp32": 18, "fp16": 18, "bf16": 22}
Join = Callable[[nn.Conv2d, nn.BatchNorm2d], nn.Module]
_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def torch_dtype(precision: Precision) -> torch.dtype:
    """The type of weights and activations."""
    return _DTYPES[precision]


def deployed_network(
    model: SaliencyNetwork, precision: Precision, keep_fp32: Collection[str] = (), *, casts: bool = True
) -> SaliencyNetwork:
    """A copy in evaluation mode with batch norm folded into the convolutions, cast to `precision`.

    Args:
        model: The network as trained.
        precision: What it is to compute in.
        keep_fp32: Modules, by name, that stay FP32.
        casts: Whether those cast what they take and give; without, the caller sees to it.

    Raises:
        UsageError: When `keep_fp32` names what is no module, or one without a convolution.
    """
    network = copy.deepcopy(model).double().eval()
    _replace_norms(network, _folded)
    islands = _outermost([part for name in keep_fp32 for part in _called(_island(network, name))])
    kept = {module for island in islands for module in island.modules()}
    dtype = torch_dtype(precision)
    for module in network.modules():
        if module in kept:
            _cast_own(module, torch.float32)
            continue
        if isinstance(module, nn.Conv2d) and dtype.itemsize == 2:
            module.weight.data = rounded_kernels(module.weight.data, dtype)
        _cast_own(module, dtype)
    for island in islands if casts and dtype != torch.float32 else ():
        island.register_forward_pre_hook(lambda _, taken: _cast(taken, torch.float32))
        island.register_forward_hook(lambda _, __, given: _cast(given, dtype))
    return network


def _island(network: SaliencyNetwork, name: str) -> nn.Module:
    found: nn.Module | None = dict(network.named_modules()).get(name) if name else None
    if found is None or not any(isinstance(module, nn.Conv2d) for module in found.modules()):
        parts = ", ".join(part for part, _ in network.named_modules() if part.count(".") == 1)
        raise UsageError(f"keep-fp32 {name}: the network has no such part; its parts are {parts}, and those in them")
    return found


def _called(island: nn.Module) -> list[nn.Module]:
    """What takes and gives tensors: not a list of modules, but those in it."""
    if isinstance(island, (nn.ModuleList, nn.ModuleDict)):
        return [part for child in island.children() for part in _called(child)]
    return [island]


def _outermost(islands: list[nn.Module]) -> list[nn.Module]:
    """Each once, without those that lie in another one."""
    inner = {module for island in islands for module in island.modules() if module is not island}
    return [island for island in dict.fromkeys(islands) if island not in inner]


def _cast_own(module: nn.Module, dtype: torch.dtype) -> None:
    """The module's own parameters, not those of modules in it."""
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """A tensor, or all that a list or tuple holds."""
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(one, dtype) for one in value)
    return value.to(dtype)


def rounded_kernels(weight_OIKK: Tensor, dtype: torch.dtype) -> Tensor:
    """Kernels rounded to `dtype` so that each keeps its sum: what rounding one tap loses, the next one gets.

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
    """A copy whose batch norms became one scale and shift per channel; its convolutions' weights are left as they are.

    For files that keep weights in FP16: folding would change the weights, and they would no longer be exact in FP16.
    """
    network = copy.deepcopy(model).eval()
    _replace_norms(network, _scaled)
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


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Module:
    return fuse_conv_bn_eval(conv, norm)


def _scaled(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Module:
    return _ScaledConv(conv, norm)


def _replace_norms(network: SaliencyNetwork, join: Join) -> None:
    """Put `join(conv, norm)` in the convolution's place, and in the norm's what it does beside normalizing."""
    for conv_name, norm_name in _norms_after_convolutions(network):
        conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_name)
        _put(network, conv_name, join(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm)))
        # timm's batch norms carry their activation
        rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
        _put(network, norm_name, nn.Sequential(*rest) if rest else nn.Identity())


def _norms_after_convolutions(network: SaliencyNetwork) -> list[tuple[str, str]]:
    """The names of each convolution and the batch norm that alone reads it, found by running shapes through a copy."""
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
