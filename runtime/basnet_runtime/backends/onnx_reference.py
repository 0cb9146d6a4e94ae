"""ONNX's reference evaluator, slow; the only backend that imports onnx.

with open_onnx_reference(Path("u2net.onnx")) as backend:
    masks_N1HW = backend.infer(batch_N3HW)

It is for proofs: each operation is NumPy, in the graph's own types, so that FP16 overflows where a GPU's does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.backends.workers import run_checked
from basnet_runtime.kinds import Precision
from basnet_runtime.onnx_file.adapt import Adaptation, adapted
from basnet_runtime.onnx_file.header import read_onnx_header
from basnet_torch.device import CPU, Device
from basnet_torch.errors import BackendUnavailable, ModelFileError
from basnet_torch.files import Closing

__all__ = ["OnnxReferenceBackend", "open_onnx_reference"]


class OnnxReferenceBackend(Closing):
    """Runs either graph, one operation after the other."""

    name: Literal["onnx-reference"] = "onnx-reference"

    def __init__(self, evaluator: Any, path: Path, description: str) -> None:
        """Wrap an `onnx.reference.ReferenceEvaluator` of the graph that `path` holds."""
        header = read_onnx_header(path)
        (self.input,), (self.output,) = header.inputs, header.outputs
        self.description = description
        self._evaluator = evaluator

    def infer(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Masks of `batch`."""
        if self._evaluator is None:
            raise ValueError("backend: it is closed; open the model again")
        with np.errstate(all="ignore"):  # what overflows is found in the masks
            return run_checked(self._run, batch, self.input)

    def _run(self, batch: NDArray[Any]) -> NDArray[Any]:
        try:
            return cast(NDArray[Any], self._evaluator.run([self.output.name], {self.input.name: batch})[0])
        except (NotImplementedError, RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
            line = str(error).strip().split("\n", maxsplit=1)[0][:160]
            raise BackendUnavailable(
                f"{self.description}: cannot run this graph ({line}); use another --backend"
            ) from error

    def close(self) -> None:
        """Release the graph."""
        self._evaluator = None


def open_onnx_reference(
    path: Path, *, device: Device = CPU, stored: Precision = "fp32", adaptation: Adaptation | None = None
) -> OnnxReferenceBackend:
    """The reference evaluator on a file.

    Args:
        path: An `.onnx` file with one input and one output, at least where it is adapted.
        device: `cpu`.
        stored: What the file computes in.
        adaptation: What to change in the copy that runs.

    Raises:
        BackendUnavailable: onnx is not installed, or has no such operation.
        ModelFileError: The file is no graph that onnx can read.
        UsageError: Another device was asked.
    """
    Device.parse(device, of=("cpu",), rule="--backend onnx-reference runs on cpu")
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise BackendUnavailable("onnx is not installed; pip install 'basnet-deploy[export]'") from error
    with adapted(path, adaptation) as graph:
        try:
            evaluator = ReferenceEvaluator(onnx.load(graph))
        except (DecodeError, onnx.checker.ValidationError) as error:
            raise ModelFileError(f"{path}: onnx cannot read it ({error}); get it again") from error
        except (NotImplementedError, RuntimeError, KeyError) as error:
            raise BackendUnavailable(f"{path}: the reference evaluator cannot run it ({error})") from error
        return OnnxReferenceBackend(evaluator, graph, f"ONNX {onnx.__version__} reference evaluator, {stored}")
