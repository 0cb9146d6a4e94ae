"""Distributed training by torchrun: each process computes part of a batch.

What they compute is what one process computes on the whole batch: gradients are averaged by DistributedDataParallel,
and batch norm takes its statistics over all processes, on the CPU too, where PyTorch's own SyncBatchNorm does not run.

    torchrun --nproc-per-node 2 -m basnet_torch --data DUTS-TR --run-dir runs/first

(`--run` would be taken by torchrun itself, as an abbreviation of its own `--run-path`.)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from basnet_torch.data.batches import Share
from basnet_torch.device import CPU, Device
from basnet_torch.errors import UsageError

__all__ = ["SyncedBatchNorm2d", "World", "synchronize_norms", "world_from_environment"]


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The processes of a run, and which of them this is.

    Attributes:
        rank: From 0; that process alone writes files and prints.
        size: How many there are.
        local_rank: Which of those on this machine, and so which of its GPUs.
        local_size: How many run on this machine and share its cores.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """This process's part of every batch."""
        return Share(rank=self.rank, size=self.size)

    @contextmanager
    def joined(self, device: Device) -> Iterator[None]:
        """Join the process group, over NCCL for CUDA and gloo for the CPU, until the end."""
        if self.size == 1:
            yield
            return
        distributed.init_process_group("gloo" if device == CPU else "nccl")
        try:
            yield
            self.wait()
        finally:
            distributed.destroy_process_group()

    def leave(self) -> None:
        """End this process with exit code 0 if it is one of several.

        The interpreter is not torn down.

        Gloo's threads outlive `destroy_process_group` (torch 2.13), and now and then the interpreter's end aborts on
        them, which torchrun takes for a failed training.
        """
        if self.size > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            distributed.barrier()

    def mean(self, values: Tensor) -> Tensor:
        """Over all processes, elementwise."""
        if self.size > 1:
            distributed.all_reduce(values)
            values /= self.size
        return values

    def any(self, value: bool, device: torch.device) -> bool:  # noqa: FBT001 - it is the value itself
        """Whether it holds in any process."""
        if self.size == 1:
            return value
        flag = torch.tensor(float(value), device=device)
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        return bool(flag.item())

    def wrapped(self, model: nn.Module) -> nn.Module:
        """Return the network with gradients and batch norm shared by all processes.

        A process that is alone gets the network itself.
        """
        if self.size == 1:
            return model
        synchronize_norms(model)
        device = next(model.parameters()).device
        return DistributedDataParallel(
            model, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
        )

    @contextmanager
    def holding_back(self, network: nn.Module, *, holds: bool) -> Iterator[None]:
        """Skip averaging of gradients, for all parts of an accumulated step but the last."""
        inner = getattr(network, "_orig_mod", network)
        with inner.no_sync() if holds and isinstance(inner, DistributedDataParallel) else nullcontext():
            yield


def world_from_environment() -> World:
    """As torchrun tells it; alone without it.

    Raises:
        UsageError: When its variables are no numbers.
    """
    names = {"rank": "RANK", "size": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "local_size": "LOCAL_WORLD_SIZE"}
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World()
    try:
        return World(
            **{
                name: int(os.environ.get(key, default))
                for (name, key), default in zip(names.items(), "0101", strict=True)
            }
        )
    except ValueError as error:
        raise UsageError(f"{', '.join(names.values())}: torchrun sets these to numbers ({error})") from error


class _Sum(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the pictures of all processes, with the same number each.

    Mean and variance take two passes.
    """

    def forward(self, x: Tensor) -> Tensor:
        """N,C,H,W to the same shape and type."""
        if not self.training or not distributed.is_initialized():
            return super().forward(x)
        size = distributed.get_world_size()
        wide = x.float()
        mean = _summed(wide.mean((0, 2, 3))) / size
        centered = wide - mean.view(1, -1, 1, 1)
        variance = _summed(centered.square().mean((0, 2, 3))) / size
        self._follow(mean.detach(), variance.detach(), size * x.numel() // x.shape[1])
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centered * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics as `nn.BatchNorm2d` does, with the unbiased variance."""
        momentum = 0.1 if self.momentum is None else self.momentum
        cast(Tensor, self.num_batches_tracked).add_(1)
        cast(Tensor, self.running_mean).lerp_(mean, momentum)
        cast(Tensor, self.running_var).lerp_(variance * (count / max(1, count - 1)), momentum)


def _summed(values: Tensor) -> Tensor:
    return cast(Tensor, _Sum.apply(values))  # type: ignore[no-untyped-call]


def synchronize_norms(model: nn.Module) -> None:
    """Make every batch norm a `SyncedBatchNorm2d`, in place.

    Names and values stay as they are.
    """
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm2d
