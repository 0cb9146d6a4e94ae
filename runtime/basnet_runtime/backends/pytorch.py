"""PyTorch, eager, FP32 or bfloat16 convolutions; the only importer of torch.

with open_pytorch(read_checkpoint(Path("basnet.pth"))) as backend:
    masks_N1HW = backend.infer(batch_N3HW)
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from basnet_runtime.kinds import Precision
from basnet_runtime.machine.cpu_features import why_no_bf16
from basnet_runtime.machine.threads import allowed_threads
from basnet_torch.device import CPU, Device
from basnet_torch.errors import BackendUnavailable, UsageError
from basnet_torch.files import Closing
from basnet_torch.spec import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from basnet_torch.checkpoint import Checkpoint
    from basnet_torch.model.basnet import SaliencyNetwork

__all__ = ["PyTorchBackend", "open_pytorch", "read_checkpoint"]


class PyTorchBackend(Closing):
    """Runs the `tensor` graph's contract with the network itself."""

    name: Literal["pytorch"] = "pytorch"

    def __init__(
        self, model: SaliencyNetwork, size: tuple[int, int], device: Device, precision: str, description: str
    ) -> None:
        """`model`: in evaluation mode on `device`; `size`: its input height and width."""
        self.input = TensorSpec(name="image", dtype="float32", shape=(None, 3, *size))
        self.output = TensorSpec(name="mask", dtype="float32", shape=(None, 1, *size))
        self.description = description
        self._model: SaliencyNetwork | None = model
        self._device = device.for_torch()
        self._bf16 = precision == "bf16"
        self._fp64 = precision == "fp64"

    def infer(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Masks float32 N,1,H,W in 0..1 of normalized pictures `batch` float32 N,3,H,W."""
        import torch

        with torch.inference_mode():
            return self.forward(torch.from_numpy(batch).to(self._device)).cpu().numpy()

    def forward(self, images: Tensor) -> Tensor:
        """Return masks on the device of pictures on the device; the caller's own."""
        import torch

        if self._model is None:
            raise ValueError("backend: it is closed; open the model again")
        layout = torch.channels_last if self._bf16 else torch.contiguous_format
        images = images.double() if self._fp64 else images
        with torch.autocast(torch.device(self._device).type, torch.bfloat16, self._bf16):
            return self._model.mask(images.contiguous(memory_format=layout))

    def close(self) -> None:
        """Give the weights back."""
        self._model = None


def read_checkpoint(path: Path) -> Checkpoint:
    """The checked weights of a `.pth`, `.pt` or `.safetensors` file.

    Raises:
        BackendUnavailable: PyTorch is not installed.
        CheckpointError: The file is not a BASNet checkpoint.
    """
    _import_torch()
    from basnet_torch.checkpoint import load_checkpoint

    return load_checkpoint(path)


def open_pytorch(
    checkpoint: Checkpoint,
    *,
    device: Device | str = CPU,
    threads: int | None = None,
    precision: Precision | Literal["fp64"] = "fp32",
) -> PyTorchBackend:
    """The network of a checkpoint, ready to run.

    Args:
        checkpoint: Weights, from `read_checkpoint`.
        device: `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads for the whole process; None takes what the container allows.
        precision: `fp32`; `bf16`: convolutions in bfloat16 with channels last, batch norm and sigmoid in FP32; `fp64`:
            which validates FP32 masks.

    Raises:
        BackendUnavailable: The device, or bfloat16 on this CPU, is not there.
        UsageError: Another precision was asked.
    """
    torch = _import_torch()
    from basnet_torch.checkpoint import model_from_checkpoint

    device = _checked(torch, device, precision)
    threads = threads or allowed_threads()
    torch.set_num_threads(threads)
    model = model_from_checkpoint(checkpoint).to(device.for_torch())
    if precision == "bf16":
        _convolutions_to_bf16(model)
    elif precision == "fp64":
        model.double()
    elif device != CPU:
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # TF32, the default, keeps 10 bits: no FP32 reference
    size = (checkpoint.preprocess.height, checkpoint.preprocess.width)
    where = f"{threads} threads" if device == CPU else torch.cuda.get_device_name(device.for_torch())
    description = f"PyTorch {torch.__version__}, {device}, {precision}, {where}"
    return PyTorchBackend(model, size, device, precision, description)


def _import_torch() -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise BackendUnavailable(
            "PyTorch is not installed, and .pth and .safetensors checkpoints need it; "
            "pip install 'basnet-deploy[train]', or run an exported .onnx"
        ) from error
    return torch


def _checked(torch: ModuleType, asked: Device | str, precision: str) -> Device:
    if precision not in ("fp32", "bf16", "fp64"):
        raise UsageError(
            f"precision {precision}: PyTorch runs a checkpoint in fp32 or bf16; export to ONNX for {precision}"
        )
    device = Device.parse(asked, of=("cpu", "cuda"), rule="PyTorch runs on cpu, cuda or cuda:N")
    if device == CPU:
        reason = why_no_bf16() if precision == "bf16" else None
        if reason:
            raise BackendUnavailable(f"bf16 on the CPU: {reason}; use --precision fp32")
        return device
    if not torch.cuda.is_available():
        raise BackendUnavailable(f"device {device}: PyTorch {torch.__version__} finds no CUDA device; use --device cpu")
    count = torch.cuda.device_count()
    if device.number >= count:
        raise BackendUnavailable(f"device {device}: there are {count} CUDA devices, cuda:0 to cuda:{count - 1}")
    return device


def _convolutions_to_bf16(model: SaliencyNetwork) -> None:
    """Convert the weights once; autocast alone would convert all of them in every call."""
    import torch
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(torch.bfloat16)
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
