"""Names of devices, and what is asked of ONNX Runtime for each; no device is needed."""

from types import SimpleNamespace

import pytest
import torch

from basnet_runtime.backends import onnxruntime as ort
from basnet_runtime.backends import pytorch
from basnet_torch.device import Device
from basnet_torch.errors import UsageError


@pytest.mark.parametrize("device", ["cuda:abc", "cuda:", "cuda:-1", "cpu:0", "cudax", ""])
def test_pytorch_refuses_what_is_no_device(device):
    with pytest.raises(UsageError, match=f"device {device}: PyTorch runs on cpu, cuda or cuda:N"):
        pytorch._checked(torch, device, "fp32")


@pytest.mark.parametrize("kind", ["cuda", "tensorrt"])
def test_fp32_files_are_not_computed_in_tf32(kind):
    library = SimpleNamespace(get_available_providers=lambda: list(ort._PROVIDERS["tensorrt"]))
    *devices, last = ort._provider_options(library, Device(kind, 1))
    options = dict(devices)
    assert options["CUDAExecutionProvider"] == {"device_id": "1", "use_tf32": "0"}
    assert [name for name, _ in devices] + [last] == list(ort._PROVIDERS[kind])
    assert all(values["device_id"] == "1" for values in options.values())
