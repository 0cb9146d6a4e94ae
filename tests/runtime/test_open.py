"""Opening models: which backend a file gets, what is refused, and the one-line errors for files that are none."""

import shutil
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest

import basnet_runtime as bn
from basnet_runtime import open as opening
from basnet_runtime.api import load
from basnet_runtime.manifest import manifest_path, read_manifest, sha256_of
from basnet_runtime.open import open_model
from basnet_torch.device import Device
from basnet_torch.errors import BackendUnavailable, BasnetError, CheckpointError, ModelFileError, UsageError
from tests.models import checkpoint_file, discs, exported, needs_bf16

IMAGE = discs()[0].image_HWC


@pytest.mark.parametrize(
    ("options", "reason", "int8"),
    [
        ({}, None, True),
        ({"backend": "openvino"}, None, True),
        ({"precision": "int8"}, None, True),
        ({"precision": "int8"}, "no VNNI", True),  # asked for, so the backend says why not
        ({}, "no VNNI", False),
        ({"precision": "fp32"}, None, False),
        ({"precision": "bf16"}, None, False),
        ({"device": "openvino"}, None, True),
        ({"device": "cuda"}, None, False),
        ({"backend": "pytorch"}, None, False),
    ],
)
def test_the_builtin_model_is_int8_where_it_is_exact(options, reason, int8, tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "BUILTIN_INT8", tmp_path / "int8.onnx")
    monkeypatch.setattr(opening, "why_no_int8", lambda: reason)
    made = replace(read_manifest(opening.BUILTIN), quantization={"target": "cpu"})
    monkeypatch.setattr(opening, "read_manifest", lambda _: made)
    (tmp_path / "int8.onnx").touch()
    asked = {"backend": None, "device": "cpu", "precision": None, **options}
    asked["device"] = Device.parse(asked["device"])
    assert (opening.builtin_model(**asked) == tmp_path / "int8.onnx") == int8


@pytest.mark.parametrize(
    ("backend", "device", "installed", "int8"),
    [
        (None, "cpu", True, True),
        (None, "cpu", False, False),
        ("onnxruntime", "cpu", True, False),
        (None, "openvino", False, True),  # asked for, so the backend says what is missing
        ("onnxruntime", "openvino", True, True),
    ],
)
def test_the_builtin_model_is_int8_where_its_library_is(backend, device, installed, int8, tmp_path, monkeypatch):
    made = replace(read_manifest(opening.BUILTIN), quantization={"target": "openvino"})
    monkeypatch.setattr(opening, "BUILTIN_INT8", tmp_path / "int8.onnx")
    monkeypatch.setattr(opening, "why_no_int8", lambda: None)
    monkeypatch.setattr(opening, "read_manifest", lambda _: made)
    monkeypatch.setattr(opening, "find_spec", lambda _: object() if installed else None)
    (tmp_path / "int8.onnx").touch()
    assert (opening.builtin_model(backend, Device.parse(device), None) == tmp_path / "int8.onnx") == int8


@pytest.fixture(scope="module")
def fp32():
    return exported(precision="fp32", graph="tensor")


def test_load_is_the_short_way(fp32):
    with bn.load(fp32, threads=1) as model:
        mask = model(IMAGE)
        assert isinstance(model, bn.Predictor)
        assert model.description == model.model.backend.description
    assert mask.shape == IMAGE.shape[:2]
    assert mask.dtype == np.float32
    assert mask.max() > 0.9
    assert bn.load is load
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = bn.lode


@pytest.mark.parametrize(
    ("options", "name"),
    [({}, "onnxruntime"), ({"backend": "onnxruntime"}, "onnxruntime"), ({"backend": "openvino"}, "openvino")],
)
def test_the_backend_of_an_onnx_file(fp32, options, name):
    with open_model(fp32, threads=1, **options) as model:
        assert model.backend.name == name
        assert model.name == fp32.name


def test_what_is_not_installed_is_no_candidate(fp32, monkeypatch):
    monkeypatch.setattr(opening, "find_spec", lambda name: name == "openvino")
    with open_model(fp32, threads=1) as model:
        assert model.backend.name == "openvino"
    monkeypatch.setattr(opening, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailable, match=r"basnet-deploy\[cpu\]"):
        open_model(fp32)


def test_a_checkpoint_runs_in_pytorch(fp32):
    with open_model(str(checkpoint_file()), threads=1) as model, open_model(fp32, threads=1) as other:
        assert model.backend.name == "pytorch"
        assert model.preprocess == other.preprocess
        np.testing.assert_allclose(model.mask(IMAGE), other.mask(IMAGE), rtol=0, atol=1e-4)
    for backend in ("onnxruntime", "openvino", "tensorrt"):
        with pytest.raises(UsageError, match="a checkpoint runs in pytorch"):
            open_model(checkpoint_file(), backend=backend)


@needs_bf16
def test_bf16_is_given_to_who_can(fp32):
    with open_model(fp32, precision="bf16", threads=1) as model:
        assert model.backend.name == "openvino"
        assert "bf16" in model.backend.description
    with open_model(exported(precision="bf16", graph="tensor"), threads=1) as model:
        assert "bf16" in model.backend.description
    with pytest.raises(UsageError, match="--backend openvino computes an fp32 file in bf16"):
        open_model(fp32, backend="onnxruntime", precision="bf16")


def test_a_file_computes_in_what_it_was_written_in(fp32):
    with pytest.raises(UsageError, match="is fp32, not fp16; run 'basnet-export onnx --precision fp16'"):
        open_model(fp32, precision="fp16")
    with pytest.raises(UsageError, match="is fp16, not fp32"):
        open_model(exported(precision="fp16", graph="frame"), precision="fp32")
    with pytest.raises(UsageError, match="PyTorch runs the checkpoint"):
        open_model(fp32, backend="pytorch")
    with pytest.raises(UsageError, match="TensorRT runs a plan; run 'basnet-export engine"):
        open_model(fp32, backend="tensorrt")


def test_the_frame_graph_takes_pictures_as_they_are(fp32):
    with (
        open_model(exported(precision="fp32", graph="frame"), threads=1) as frames,
        open_model(fp32, threads=1) as other,
    ):
        assert frames.takes_frames
        assert not other.takes_frames
        assert np.abs(frames.mask(IMAGE) - other.mask(IMAGE)).max() <= 0.5 / 255 + 1e-4


def test_metadata_lost_in_another_tool_is_replaced_by_the_file_beside(fp32, tmp_path):
    path = tmp_path / "simplified.onnx"
    model = onnx.load(fp32)
    model.ClearField("metadata_props")
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match="has no manifest"):
        open_model(path)
    text = manifest_path(fp32).read_text().replace(sha256_of(fp32), sha256_of(path))
    manifest_path(path).write_text(text)
    with open_model(path, threads=1) as opened:
        assert opened.mask(IMAGE).max() > 0.9


@pytest.mark.parametrize("suffix", [".onnx", ".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html></html>", b"\x08\x01garbage" * 50])
def test_what_is_no_model_is_a_one_line_error(suffix, content, tmp_path):
    path = tmp_path / f"basnet{suffix}"
    path.write_bytes(content)
    with pytest.raises((ModelFileError, CheckpointError)) as caught:
        open_model(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_a_half_finished_download_is_told(fp32, share, tmp_path):
    whole = fp32.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ModelFileError, match="no complete ONNX file"):
        open_model(path)


def test_a_manifest_of_another_file_is_refused(fp32, tmp_path):
    path = tmp_path / "a.onnx"
    shutil.copy(fp32, path)
    shutil.copy(manifest_path(exported(precision="fp16", graph="frame")), manifest_path(path))
    with pytest.raises(ModelFileError, match="SHA-256 differs"):
        open_model(path)


@pytest.mark.parametrize(("name", "code"), [("a.plan", 1), ("a.engine", 1), ("a.tflite", 1), ("none.onnx", 1)])
def test_exit_codes(name, code, tmp_path):
    with pytest.raises(BasnetError) as caught:
        open_model(tmp_path / name)
    assert caught.value.exit_code == code


def test_the_built_in_model_opens_where_nothing_can_be_written(monkeypatch):
    """As in a container with a read-only root: neither a temporary folder nor a cache."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("tempfile.tempdir", "/proc/nonexistent")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nonexistent")
    with open_model(opening.BUILTIN, backend="onnxruntime") as model:
        assert model.mask(np.zeros((40, 60, 3), np.uint8)).shape == (40, 60)


def test_a_described_file_is_walked_twice(monkeypatch):
    from basnet_runtime.onnx_file import header

    walked = []
    whole = header._header
    monkeypatch.setattr(header, "_header", lambda view: walked.append(len(view)) or whole(view))
    open_model(opening.BUILTIN, threads=1).close()
    assert walked == 2 * [opening.BUILTIN.stat().st_size]  # to tell its kind, and to read it
