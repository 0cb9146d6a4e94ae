"""Which parts of an FP16 or bf16 network must stay FP32 for the contract to hold.

    kept = float_islands(fp16_graph, checkpoint, "fp16", check_pictures, seconds=600)

Candidates are not exported: the network runs in PyTorch FP32 with its weights and every layer's result rounded to 16
bits outside the islands. Runtimes sum in FP32 too, and round at most as often: not between layers that they fuse.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from basnet_export.graph.fp32_layer_search import search_islands
from basnet_export.graph.precision import deployed_network, torch_dtype
from basnet_export.quantize.qdq import parts_of
from basnet_export.reference import CandidateBench
from basnet_runtime.backends.pytorch import PyTorchBackend
from basnet_runtime.kinds import Precision
from basnet_runtime.model import SaliencyModel
from basnet_runtime.parity import Picture
from basnet_torch.checkpoint import model_from_checkpoint
from basnet_torch.device import CPU
from basnet_torch.model.basnet import SaliencyNetwork

if TYPE_CHECKING:
    import onnx

    from basnet_torch.checkpoint import Checkpoint

__all__ = ["RoundedNetwork", "float_islands"]


def float_islands(
    graph: onnx.ModelProto,
    checkpoint: Checkpoint,
    precision: Precision,
    pictures: Sequence[Picture],
    *,
    seconds: float,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[str, ...]:
    """Search as for INT8.

    Args:
        graph: The checkpoint's `tensor` graph with shapes inferred, for the parts and what each costs.
        checkpoint: What the result must agree with.
        precision: `fp16` or `bf16`.
        pictures: What the contract is checked on.
        seconds: When to stop.
        progress: Called with what is found.

    Raises:
        ParityError: When parts worth half of the arithmetic do not suffice, or the time is over.
    """
    bench = _Bench(checkpoint, precision, judged=pictures, ranked=pictures)
    return search_islands(parts_of(graph.graph), bench, seconds=seconds, progress=progress).kept


class _Bench(CandidateBench):
    """Candidates are networks in PyTorch."""

    def _candidate(self, kept: Collection[str]) -> SaliencyModel:
        network = RoundedNetwork(model_from_checkpoint(self._checkpoint), self._precision, kept)
        preprocess = self._checkpoint.preprocess
        size = (preprocess.height, preprocess.width)
        engine = PyTorchBackend(cast(SaliencyNetwork, network), size, CPU, "fp32", f"{self._precision}, rounded")
        return SaliencyModel(engine, preprocess, self._checkpoint.postprocess, "candidate")


class RoundedNetwork(nn.Module):
    """A network that computes in FP32 and rounds to 16 bits what its layers hand on, but for its islands.

    Args:
        model: The network as trained.
        precision: `fp16` or `bf16`.
        keep_fp32: Its islands, by the names of its modules.
    """

    def __init__(self, model: SaliencyNetwork, precision: Precision, keep_fp32: Collection[str]) -> None:
        super().__init__()
        self.network = deployed_network(model, precision, keep_fp32, casts=False).float()
        self._mode = _Rounding(torch_dtype(precision))
        for name in keep_fp32:
            island = self.network.get_submodule(name)
            island.register_forward_pre_hook(self._mode.enter)
            island.register_forward_hook(self._mode.leave)

    def mask(self, image: Tensor) -> Tensor:
        """The deployed map N,1,H,W in 0..1; the last sigmoid is FP32 in every precision."""
        with self._mode:
            logits = self.network(self._mode.rounded(image))[0]
        return torch.sigmoid(logits)


class _Rounding(TorchFunctionMode):
    """Rounds what every function returns, except inside islands."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._islands = 0

    def enter(self, _: nn.Module, __: Any) -> None:
        """An island begins."""
        self._islands += 1

    def leave(self, _: nn.Module, __: Any, output: Any) -> Any:
        """An island ends; what it hands on is 16 bits wide again."""
        self._islands -= 1
        return self.rounded(output)

    def rounded(self, value: Any) -> Any:
        """A tensor, or tensors in a list or tuple, in FP32 with values exact in 16 bits; as it is inside islands."""
        if isinstance(value, (list, tuple)):
            return type(value)(self.rounded(one) for one in value)
        if self._islands or not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        return value.to(self._dtype).float()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self.rounded(func(*args, **(kwargs or {})))
