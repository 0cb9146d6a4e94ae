"""Model options of every command: configurations inherit them for `open_model`.

with open_model(config.model, **config.model_options()) as model:
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from basnet_runtime.cuda.base import CudaName
from basnet_runtime.kinds import BackendName, Precision
from basnet_torch.device import CPU, Device
from basnet_torch.options import option

__all__ = ["ModelOptions"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """What to open and how to run it; each field's help says what it is."""

    model: Path | None = field(
        default=None, metadata=option(".pth, .onnx or .plan. Default: the built-in model.", "--engine", "--model")
    )
    backend: BackendName | None = field(
        default=None, metadata=option("Library to run with. Default: chosen by the file.")
    )
    device: Device = field(
        default=CPU, metadata=option("cpu, openvino, or cuda, tensorrt, rtx, alone or as cuda:N.", parse=Device.parse)
    )
    threads: int | None = field(default=None, metadata=option("Threads of the network. Default: all allowed.", min=1))
    precision: Precision | None = field(default=None, metadata=option("Precision. Default: that of the file."))
    cuda: CudaName = field(default="cuda-core", metadata=option("Library that moves an engine's data on the GPU."))

    def model_options(self) -> dict[str, Any]:
        """What `open_model` is given beside the file."""
        names = ("backend", "device", "threads", "precision", "cuda")
        return {name: getattr(self, name) for name in names}
