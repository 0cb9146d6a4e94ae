"""PyTorch on a CUDA device in the other ways that people deploy it: half precision with channels last, `torch.compile`.

backend = open_torch_variant(checkpoint, device="cuda", precision="fp16", mode="channels-last")

They stand beside the reference in a latency table, so that an engine is compared with more than eager FP32. Not proven:
no CUDA device has run this module yet; on the CPU its masks are tested.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from numpy.typing import NDArray

from basnet_runtime.backends.base import Backend, Precision
from basnet_torch.device import CPU, Device
from basnet_torch.errors import BackendUnavailable, UsageError
from basnet_torch.spec import TensorSpec

if TYPE_CHECKING:
    from basnet_torch.checkpoint import Checkpoint

__all__ = ["MODES", "Mode", "TorchVariant", "forward_of", "open_torch_variant"]

Mode = Literal["", "channels-last", "compiled"]
MODES: tuple[Mode, ...] = ("", "channels-last", "compiled")
_Forward = Callable[[Any], Any]


class TorchVariant:
    """Runs the `tensor` graph's contract."""

    name: Literal["pytorch"] = "pytorch"

    def __init__(self, forward: _Forward, size: tuple[int, int], device: str, description: str) -> None:
        """`forward`: float32 N,3,H,W on the device to float32 masks N,1,H,W there."""
        self.input = TensorSpec(name="image", dtype="float32", shape=(None, 3, *size))
        self.output = TensorSpec(name="mask", dtype="float32", shape=(None, 1, *size))
        self.description = description
        self.forward: _Forward | None = forward
        self._device = device

    def infer(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Masks float32 N,1,H,W in 0..1 of normalised pictures `batch` float32 N,3,H,W."""
        import torch

        if self.forward is None:
            raise ValueError("backend: it is closed; open the model again")
        with torch.inference_mode():
            masks: NDArray[Any] = self.forward(torch.from_numpy(batch).to(self._device)).cpu().numpy()
            return masks

    def close(self) -> None:
        """Give the weights back."""
        self.forward = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_torch_variant(
    checkpoint: Checkpoint, *, device: Device | str, precision: Precision, mode: Mode, compiler: str = "inductor"
) -> TorchVariant:
    """The network in this arithmetic and mode.

    Args:
        checkpoint: Weights.
        device: `cuda` or `cuda:N`; `cpu` for tests.
        precision: `fp32` or `fp16`; in `fp16` weights and activations are halves, the last sigmoid is FP32.
        mode: `channels-last`, or `compiled`: the same through `torch.compile`.
        compiler: Of `torch.compile`.

    Raises:
        BackendUnavailable: There is no such device.
        UsageError: Another precision or mode was asked.
    """
    import torch

    from basnet_torch.checkpoint import model_from_checkpoint

    device = Device.parse(device, of=("cpu", "cuda"))
    if precision not in ("fp32", "fp16") or mode not in MODES[1:]:
        raise UsageError(f"pytorch {precision} {mode}: variants are fp32 and fp16, channels-last or compiled")
    if device != CPU:
        if not torch.cuda.is_available():
            raise BackendUnavailable(f"device {device}: PyTorch {torch.__version__} finds no CUDA device")
        cudnn: Any = torch.backends.cudnn
        cudnn.conv.fp32_precision = "ieee"  # TF32, the default, keeps 10 bits
    dtype = torch.float16 if precision == "fp16" else torch.float32
    network = model_from_checkpoint(checkpoint).eval().to(device=device.for_torch(), dtype=dtype)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stubs leave it out

    def forward(images: Any) -> Any:
        return network.mask(images.to(dtype).contiguous(memory_format=torch.channels_last))

    called: _Forward = torch.compile(forward, backend=compiler, dynamic=False) if mode == "compiled" else forward
    where = "cpu" if device == CPU else torch.cuda.get_device_name(device.for_torch())
    how = "channels last" if mode == "channels-last" else "channels last, torch.compile"
    description = f"PyTorch {torch.__version__}, {device}, {precision}, {how}, {where}"
    size = (checkpoint.preprocess.height, checkpoint.preprocess.width)
    return TorchVariant(called, size, device.for_torch(), description)


def forward_of(backend: Backend) -> _Forward:
    """What a backend of PyTorch runs on the device, without its copies."""
    if isinstance(backend, TorchVariant) and backend.forward is not None:
        return backend.forward
    found: _Forward | None = getattr(backend, "forward", None)
    if found is None:
        raise UsageError(f"{backend.description}: is no backend of PyTorch whose network can be timed alone")
    return found
