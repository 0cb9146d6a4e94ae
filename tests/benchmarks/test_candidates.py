"""Which libraries a file is measured in, and by which provider."""

import pytest

from basnet_benchmarks import candidates as module
from basnet_benchmarks.candidates import ModelSource, candidates_of, parse_choices, parse_device
from basnet_runtime.open import open_model
from basnet_torch.device import CPU, Device
from basnet_torch.errors import UsageError
from tests.models import exported, needs_int8, needs_openvino_plugin, says_int8


@pytest.mark.parametrize(
    ("target", "installed", "names"),
    [
        ("cpu", False, ["onnxruntime int8", "openvino int8"]),
        ("cpu", True, ["onnxruntime int8", "onnxruntime int8 openvino", "openvino int8"]),
        ("openvino", False, ["onnxruntime int8 openvino", "openvino int8"]),  # what is missing is a row that says so
        ("openvino", True, ["onnxruntime int8 openvino", "openvino int8"]),
    ],
)
def test_int8_is_measured_in_onnxruntime_by_both_its_providers(target, installed, names, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda _: object() if installed else None)
    source = ModelSource(str(says_int8(tmp_path, target=target)), tmp_path)
    found = candidates_of([source], (), CPU, threads=1)
    assert [str(candidate.variant) for candidate in found] == names
    assert {candidate.contract for candidate in found} == {"int8"}
    for candidate in found:
        assert candidates_of([source], [candidate.variant.choice], CPU, threads=1) == [candidate]
    assert candidates_of([source], parse_choices(["onnxruntime"]), CPU, threads=1) == found[:-1]


def test_what_is_quantized_for_openvino_runs_on_the_processor_alone(tmp_path):
    source = ModelSource(str(says_int8(tmp_path, target="openvino")), tmp_path)
    with pytest.raises(UsageError, match=r"small.onnx: is quantized for openvino, which runs on --device cpu"):
        candidates_of([source], (), Device("cuda"), threads=1)
    with pytest.raises(
        UsageError, match=r"onnxruntime:int8 runs none .*; there is onnxruntime:int8:openvino, openvino:int8"
    ):
        candidates_of([source], parse_choices(["onnxruntime:int8"]), CPU, threads=1)
    fp32 = ModelSource(str(exported(precision="fp32", graph="tensor")), tmp_path)
    (found,) = candidates_of([fp32, source], parse_choices(["onnxruntime:fp32"]), Device("cuda"), threads=1)
    assert found.source is fp32
    with pytest.raises(UsageError, match="runs none of the given models on cuda; there is none"):
        candidates_of([source], parse_choices(["openvino"]), Device("cuda"), threads=1)
    with pytest.raises(UsageError, match=r"small.onnx in ONNX Runtime on cuda: .* or take --device openvino"):
        open_model(source.file, device="cuda")


@pytest.mark.parametrize("text", ["onnxruntime", "openvino:bf16", "onnxruntime:int8:openvino"])
def test_choices_are_written_as_they_are_read(text):
    (choice,) = parse_choices([text])
    assert str(choice) == text


@pytest.mark.parametrize("text", ["", "onnx", "openvino:int4", "openvino:int8:openvino", "onnxruntime:openvino"])
def test_other_choices_are_one_line(text):
    with pytest.raises(UsageError, match=r"alone, as BACKEND:PRECISION .* or as onnxruntime:PRECISION:openvino"):
        parse_choices([text])


def test_devices_of_one_library_are_no_device_of_all():
    with pytest.raises(
        UsageError, match=r"device openvino: .*; INT8 files are measured in OpenVINO's provider with cpu"
    ):
        parse_device("openvino")


@needs_openvino_plugin
@needs_int8
def test_the_provider_is_what_runs(tmp_path):
    source = ModelSource(str(says_int8(tmp_path, target="openvino")), tmp_path)
    (found,) = candidates_of([source], parse_choices(["onnxruntime"]), CPU, threads=1)
    assert found.described()["device"] == "openvino"
    with found.open() as model:
        assert "OpenVINOExecutionProvider" in model.backend.description
