"""Names of devices: one reading for all commands, and the PyTorch device that each stands for."""

import subprocess
import sys

import pytest

from basnet_torch.device import CPU, Device
from basnet_torch.errors import UsageError


@pytest.mark.parametrize(
    ("text", "kind", "number", "torch_name"),
    [
        ("cpu", "cpu", 0, "cpu"),
        ("openvino", "openvino", 0, "cpu"),
        ("cuda", "cuda", 0, "cuda"),
        ("cuda:0", "cuda", 0, "cuda:0"),
        ("cuda:12", "cuda", 12, "cuda:12"),
        ("tensorrt", "tensorrt", 0, "cuda"),
        ("tensorrt:1", "tensorrt", 1, "cuda:1"),
        ("rtx", "rtx", 0, "cuda"),
        ("rtx:2", "rtx", 2, "cuda:2"),
    ],
)
def test_a_name_is_read_and_written_the_same(text, kind, number, torch_name):
    device = Device.parse(text)
    assert (device.kind, device.number, str(device), device.for_torch()) == (kind, number, text, torch_name)
    assert device.on_cpu == (torch_name == "cpu")
    assert Device.parse(device) is device


def test_a_named_first_gpu_is_not_the_unnamed_one():
    """With torchrun `cuda` is the process's own GPU, and `cuda:0` is what it says."""
    assert Device.parse("cuda") != Device.parse("cuda:0")
    assert Device.parse("cpu") == CPU


@pytest.mark.parametrize(
    "text",
    ["", "gpu", "CPU", "cuda:", "cuda:x", "cuda:-1", "cuda: 1", "cuda:1:2", "cuda:\u0663", "cpu:0", "openvino:1", ":1"],
)
def test_what_is_no_device_is_one_line(text):
    with pytest.raises(UsageError) as caught:
        Device.parse(text)
    assert str(caught.value) == f"device {text}: give cpu or openvino, or cuda, tensorrt or rtx, alone or as cuda:N"


def test_kinds_that_are_not_taken_are_refused_with_the_callers_rule():
    for asked in ("rtx:1", Device("rtx", 1)):
        with pytest.raises(UsageError, match=r"^device rtx:1: PyTorch runs on cpu, cuda or cuda:N$"):
            Device.parse(asked, of=("cpu", "cuda"), rule="PyTorch runs on cpu, cuda or cuda:N")


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("basnet_runtime.command.cli", ["photo.jpg", "--device", "gpu:1"]),
        ("basnet_torch.train.cli", ["--data", "duts", "--run", "r", "--device", "gpu:1"]),
        ("basnet_benchmarks.cli", ["latency", "random:4", "--device", "gpu:1"]),
        ("basnet_benchmarks.cli", ["parity", "m.pth", "--device", "gpu:1"]),
        ("basnet_benchmarks.cli", ["accuracy", "lite", "duts", "--device", "gpu:1"]),
        ("basnet_benchmarks.cli", ["video", "clip.mp4", "--device", "gpu:1"]),
    ],
)
def test_every_command_says_it_in_one_line(program, arguments):
    code = f"import sys; from {program} import main; sys.argv = ['basnet', *{arguments!r}]; main()"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.startswith("error: device gpu:1: ")
    assert "Traceback" not in answer.stderr
