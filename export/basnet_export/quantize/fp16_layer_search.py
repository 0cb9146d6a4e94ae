"""FP32 layer search for FP16 and bf16 networks.

    kept = fp32_layers_of(fp16_graph, reference, "fp16", seconds=600)

Candidates are not exported: the network runs in PyTorch FP32, and but for the parts that stay FP32 its weights and
each layer's result are rounded to 16 bits. Runtimes sum in FP32 too, and round at most as often: not between layers
that they fuse.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from basnet_export.graph.fp32_layer_search import search_fp32_layers
from basnet_export.graph.half_precision import deployed_network, torch_dtype
from basnet_export.quantize.qdq import parts_of
from basnet_export.reference import CandidateJudge, Reference
from basnet_runtime.backends.pytorch import PyTorchBackend
from basnet_runtime.kinds import Precision
from basnet_runtime.model import SaliencyModel
from basnet_torch.checkpoint import model_from_checkpoint
from basnet_torch.device import CPU
from basnet_torch.errors import ParityError
from basnet_torch.model.basnet import SaliencyNetwork

if TYPE_CHECKING:
    import onnx

__all__ = ["RoundedNetwork", "fp32_layers_of"]


def fp32_layers_of(
    graph: onnx.ModelProto,
    reference: Reference,
    precision: Precision,
    *,
    seconds: float,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[str, ...]:
    """Find the parts that must stay FP32 for the contract to hold.

    Args:
        graph: The checkpoint's `tensor` graph with shapes inferred, for the parts and what each costs.
        reference: What the result must agree with.
        precision: `fp16` or `bf16`.
        seconds: When to stop.
        progress: Called with what is found.

    Raises:
        ParityError: When parts worth half of the arithmetic do not suffice, or the time is over.
    """
    judge = _RoundedNetworks(reference, precision, reference.pictures)
    found = search_fp32_layers(parts_of(graph.graph), judge, seconds=seconds, progress=progress)
    if not found.report:
        raise ParityError(found.failure)
    return found.kept


class _RoundedNetworks(CandidateJudge):
    """Candidates are networks in PyTorch."""

    def _candidate(self, kept: Collection[str]) -> SaliencyModel:
        checkpoint = self._reference.checkpoint
        network = RoundedNetwork(model_from_checkpoint(checkpoint), self._precision, kept)
        preprocess = checkpoint.preprocess
        size = (preprocess.height, preprocess.width)
        engine = PyTorchBackend(cast(SaliencyNetwork, network), size, CPU, "fp32", f"{self._precision}, rounded")
        return SaliencyModel(engine, preprocess, checkpoint.postprocess, "candidate")


class RoundedNetwork(nn.Module):
    """An FP32 network that rounds outputs to 16 bits, except in some parts.

    Args:
        model: The network as trained.
        precision: `fp16` or `bf16`.
        keep_fp32: Those parts, by the names of their modules.
    """

    def __init__(self, model: SaliencyNetwork, precision: Precision, keep_fp32: Collection[str]) -> None:
        super().__init__()
        self.network = deployed_network(model, precision, keep_fp32, casts=False).float()
        self._mode = _Rounding(torch_dtype(precision))
        for name in keep_fp32:
            part = self.network.get_submodule(name)
            part.register_forward_pre_hook(self._mode.enter)
            part.register_forward_hook(self._mode.leave)

    def mask(self, image: Tensor) -> Tensor:
        """The deployed map N,1,H,W in 0..1; the last sigmoid is FP32 in every precision."""
        with self._mode:
            logits = self.network(self._mode.rounded(image))[0]
        return torch.sigmoid(logits)


class _Rounding(TorchFunctionMode):
    """Rounds the results of all functions, except inside parts that stay FP32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._depth = 0

    def enter(self, _: nn.Module, __: Any) -> None:
        """Enter a part that stays FP32."""
        self._depth += 1

    def leave(self, _: nn.Module, __: Any, output: Any) -> Any:
        """Leave such a part and round its output."""
        self._depth -= 1
        return self.rounded(output)

    def rounded(self, value: Any) -> Any:
        """Round a tensor, or those of a list or tuple, outside of such parts."""
        if isinstance(value, (list, tuple)):
            return type(value)(self.rounded(one) for one in value)
        if self._depth or not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        return value.to(self._dtype).float()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self.rounded(func(*args, **(kwargs or {})))
