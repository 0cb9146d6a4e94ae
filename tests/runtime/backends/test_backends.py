"""Every backend gives the network's masks, takes what it says, and fails loud when it is not what was asked."""

import importlib.metadata
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from basnet_runtime.backends import onnxruntime as ort
from basnet_runtime.backends import openvino, pytorch
from basnet_torch.checkpoint import model_from_checkpoint
from basnet_torch.errors import BackendUnavailable, ModelFileError, UsageError
from basnet_torch.spec import TensorSpec
from tests.models import (
    OPENVINO_PLUGIN,
    SIZE,
    disc_checkpoint,
    discs,
    exported,
    has_openvino_plugin,
    needs_bf16,
    needs_openvino_plugin,
)

PROVIDER = pytest.param("provider", marks=needs_openvino_plugin)


def opened(name, path=None, **options):
    if name == "pytorch":
        return pytorch.open_pytorch(disc_checkpoint(), threads=1, **options)
    path = path or exported(precision="fp32", graph="tensor")
    if name == "openvino":
        return openvino.open_openvino(path, threads=1, **options)
    return ort.open_onnxruntime(path, threads=1, **({"device": "openvino"} if name == "provider" else {}), **options)


@pytest.fixture(scope="module")
def batch():
    preprocess = disc_checkpoint().preprocess
    return np.stack([preprocess.apply(picture.image_HWC) for picture in discs()])


@pytest.fixture(scope="module")
def masks(batch):
    with torch.no_grad():
        return model_from_checkpoint(disc_checkpoint()).mask(torch.from_numpy(batch)).numpy()


@pytest.mark.parametrize("name", ["pytorch", "onnxruntime", "openvino", PROVIDER])
def test_masks_are_the_networks(name, batch, masks):
    with opened(name) as backend:
        assert backend.name == {"provider": "onnxruntime"}.get(name, name)
        size = (SIZE, SIZE) if name == "pytorch" else (None, None)  # of the file itself, which leaves them free
        assert backend.input == TensorSpec(name="image", dtype="float32", shape=(None, 3, *size))
        assert backend.output == TensorSpec(name="mask", dtype="float32", shape=(None, 1, *size))
        before = batch.copy()
        found = backend.infer(batch)
        kept = found.copy()
        backend.infer(batch[::-1].copy())
    np.testing.assert_array_equal(batch, before)
    np.testing.assert_array_equal(found, kept)  # the result is the caller's own, not the next call's buffer
    np.testing.assert_allclose(found, masks, rtol=0, atol=1e-4)
    assert found.dtype == np.float32


@needs_bf16
@pytest.mark.parametrize("name", ["pytorch", "openvino"])
def test_bf16_is_near_and_not_fp32_by_another_name(name, batch, masks):
    with opened(name, precision="bf16") as backend:
        found = backend.infer(batch)
        assert "bf16" in backend.description
    assert found.dtype == np.float32
    assert 1e-5 < np.abs(found - masks).mean() < 5e-3


@pytest.mark.parametrize("name", ["pytorch", "onnxruntime", "openvino", PROVIDER])
def test_description_says_what_runs(name):
    package = {"pytorch": "torch", "provider": "onnxruntime"}
    with opened(name) as backend:
        version = importlib.metadata.version(package.get(name, name)).split("+")[0]
        assert (name == "provider") == ("OpenVINOExecutionProvider" in backend.description)
        assert version in backend.description
        assert "1 threads" in backend.description


@pytest.mark.parametrize("name", ["pytorch", "onnxruntime", "openvino", PROVIDER])
def test_closing_twice_is_fine_and_using_after_is_an_error(name, batch):
    backend = opened(name)
    backend.close()
    backend.close()
    with pytest.raises(ValueError, match="it is closed"):
        backend.infer(batch)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor alone")
@pytest.mark.parametrize("name", ["pytorch", "onnxruntime", "openvino", PROVIDER])
def test_no_thread_is_bound_to_a_processor(name, batch):
    """Else each process takes the same ones: two at once were as slow as one after the other."""
    with opened(name) as backend, ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: [backend.infer(batch) for _ in range(50)])
        bound = set()
        while not running.done():  # a thread may be bound for the time of a batch alone
            for thread in Path("/proc/self/task").iterdir():
                with suppress(ProcessLookupError):
                    bound.add(frozenset(os.sched_getaffinity(int(thread.name))))
        running.result()
    assert bound == {frozenset(os.sched_getaffinity(0))}


def test_a_batch_that_is_not_contiguous_is_read_right(batch, masks):
    """A slice whose rows lie apart in memory."""
    for name in ("pytorch", "onnxruntime", "openvino"):
        with opened(name) as backend:
            np.testing.assert_allclose(backend.infer(batch[::2]), masks[::2], rtol=0, atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_is_never_replaced_by_the_cpu():
    with pytest.raises(BackendUnavailable, match="finds no CUDA device"):
        opened("pytorch", device="cuda")
    with pytest.raises(BackendUnavailable, match=r"no CUDAExecutionProvider; .*basnet-deploy\[gpu\]"):
        opened("onnxruntime", device="cuda:1")
    with pytest.raises(BackendUnavailable, match="no TensorrtExecutionProvider"):
        opened("onnxruntime", device="tensorrt")
    with pytest.raises(BackendUnavailable, match=r"no NvTensorRTRTXExecutionProvider; .*--flavor rtx"):
        opened("onnxruntime", device="rtx:0")


def test_a_provider_that_fell_back_is_an_error(monkeypatch):
    """onnxruntime-gpu without its CUDA libraries lists the provider, and then runs on the CPU."""
    import onnxruntime

    session = SimpleNamespace(
        get_providers=lambda: ["CPUExecutionProvider"], get_inputs=lambda: [0], get_outputs=lambda: [0]
    )
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: session)
    with pytest.raises(BackendUnavailable, match="runs CPUExecutionProvider instead of CUDAExecutionProvider"):
        opened("onnxruntime", device="cuda")


def test_both_onnxruntime_wheels_are_an_error(monkeypatch):
    monkeypatch.setattr(ort, "version", lambda _: "1.0")
    with pytest.raises(BackendUnavailable, match="overwrite each other's files; pip uninstall -y"):
        opened("onnxruntime")


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("pytorch", "torch", "train"),
        ("onnxruntime", "onnxruntime", "cpu"),
        ("openvino", "openvino", "openvino"),
        ("provider", OPENVINO_PLUGIN, "openvino-ep"),
        ("provider", "onnxruntime", "cpu,openvino-ep"),
    ],
)
def test_a_missing_library_names_its_extra(name, module, extra, monkeypatch):
    arguments = exported(precision="fp32", graph="tensor"), disc_checkpoint()
    assert all(arguments)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendUnavailable, match=rf"basnet-deploy\[{extra}\]") as caught:
        opened(name)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("installed", [True, False])
def test_who_has_the_provider_alone_is_told_of_it(installed, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(openvino, "find_spec", lambda _: object() if installed else None)
    with pytest.raises(BackendUnavailable) as caught:
        opened("openvino")
    assert str(caught.value).endswith(", or take --device openvino") == installed


@pytest.mark.parametrize("device", ["gpu", "cpu:1", "openvino:0", "cuda:x", ""])
def test_unknown_devices_are_refused(device):
    for name in ("onnxruntime", "openvino"):
        with pytest.raises(UsageError, match="device"):
            opened(name, device=device)


@pytest.mark.parametrize("name", ["pytorch", "openvino"])
def test_other_precisions_are_refused(name):
    with pytest.raises(UsageError, match="precision int8"):
        opened(name, precision="int8")


def test_onnxruntime_says_that_it_has_no_bf16(batch):
    with pytest.raises(BackendUnavailable, match="try --backend openvino"):
        ort.open_onnxruntime(exported(precision="bf16", graph="tensor", check=False), threads=1)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", PROVIDER])
def test_garbage_is_a_one_line_error(name, tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"no model at all")
    with pytest.raises(ModelFileError) as caught:
        opened(name, path)
    assert "\n" not in str(caught.value)


def _older(monkeypatch, onnxruntime, plugin, folder):
    monkeypatch.delattr(onnxruntime, "register_execution_provider_library")


def _broken(monkeypatch, onnxruntime, plugin, folder):
    (folder / "empty.so").touch()
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list)
    monkeypatch.setattr(plugin, "get_library_path", lambda: str(folder / "empty.so"))
    monkeypatch.setattr(plugin, "get_ep_name", lambda: "EmptyExecutionProvider")


def _old(monkeypatch, onnxruntime, plugin, folder):
    """1.22 registers plug-ins and cannot give a session their devices."""
    monkeypatch.setattr(onnxruntime, "__version__", "1.22.1")
    monkeypatch.delattr(onnxruntime.SessionOptions, "add_provider_for_devices")


def _elsewhere(monkeypatch, onnxruntime, plugin, folder):
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list)
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda *_: None)


@has_openvino_plugin
@pytest.mark.parametrize(
    ("state", "line"),
    [
        (_older, "needs ONNX Runtime 1.24, this is .*; pip install --upgrade onnxruntime"),
        (_broken, r"cannot load its plug-in \(.*empty.so.*\); pip install --force-reinstall onnxruntime-ep-openvino"),
        (_old, "needs ONNX Runtime 1.24, this is 1.22.1; pip install --upgrade onnxruntime"),
        (_elsewhere, "runs on CPUs of Intel alone and offers nothing on this one; use --backend openvino, which has"),
    ],
)
def test_a_plugin_that_does_not_work_is_one_line(state, line, monkeypatch, tmp_path):
    import onnxruntime
    import onnxruntime_ep_openvino as plugin

    path = exported(precision="fp32", graph="tensor")
    state(monkeypatch, onnxruntime, plugin, tmp_path)
    for _ in range(2):  # the second time is no other
        with pytest.raises(BackendUnavailable, match=f"^device openvino: .*{line}") as caught:
            opened("provider", path)
        assert "\n" not in str(caught.value)


@has_openvino_plugin
@pytest.mark.parametrize("first", ["registered by the program around", "asked by several at once"])
def test_the_plugin_is_registered_once_in_a_process(first):
    """Whatever it offers here, it offers again."""
    around = "ort.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())"
    program = f"""
import onnxruntime as ort, onnxruntime_ep_openvino as plugin
from concurrent.futures import ThreadPoolExecutor
from basnet_runtime.backends.openvino_provider import why_no_devices
{around if "around" in first else ""}
with ThreadPoolExecutor(4) as pool:
    answers = list(pool.map(lambda _: why_no_devices(ort), range(4)))
assert len(set(answers)) == 1, answers
assert answers[0] is None or not answers[0].is_fault, answers
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_where_there_is_no_plugin_none_is_to_be_installed(monkeypatch):
    path = exported(precision="fp32", graph="tensor")
    monkeypatch.setitem(sys.modules, OPENVINO_PLUGIN, None)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(BackendUnavailable, match="no plug-in for ONNX Runtime on this platform; use --device cpu"):
        opened("provider", path)


@needs_openvino_plugin
def test_a_provider_that_does_not_start_is_one_line_and_no_other_runs_instead(monkeypatch, capfd):
    monkeypatch.setattr(ort, "openvino_options", lambda **_: {"load_config": '{"CPU": {"NUM_STREAMS": "many"}}'})
    with pytest.raises(BackendUnavailable, match=r"provider does not start here .*; use --device cpu") as caught:
        opened("provider")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


def test_a_batch_that_fails_is_one_line_and_no_other_provider_takes_it(batch, monkeypatch, capfd):
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    with opened("onnxruntime") as backend:
        failing = SimpleNamespace(
            run=lambda *_: (_ for _ in ()).throw(state.EPFail("[x] : 11 : EP_FAIL : lost\nwhere"))
        )
        monkeypatch.setattr(backend, "_session", failing)
        with pytest.raises(BackendUnavailable, match=r"cannot run this batch \(lost\); try a smaller one, or cpu"):
            backend.infer(batch)
    assert capfd.readouterr().out == ""


def test_the_provider_computes_no_bf16():
    path = exported(precision="bf16", graph="tensor", check=False)
    with pytest.raises(BackendUnavailable, match="computes in FP32 here, not in bf16; use --backend openvino"):
        ort.open_onnxruntime(path, device="openvino", stored="bf16", threads=1)


@needs_openvino_plugin
def test_what_openvino_cannot_run_is_not_run_by_other_kernels(tmp_path, capfd):
    """A determinant, which ONNX Runtime has and OpenVINO has not."""
    node = helper.make_node("Det", ["image"], ["mask"])
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 3])]
    graph = helper.make_graph([node], "odd", inputs, outputs)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "odd.onnx"
    )
    with ort.open_onnxruntime(tmp_path / "odd.onnx", threads=1) as backend:
        assert "CPUExecutionProvider" in backend.description
    with pytest.raises(
        BackendUnavailable, match=r"odd.onnx: OpenVINO's provider runs only a part of it; use --device cpu"
    ):
        opened("provider", tmp_path / "odd.onnx")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "code",
    [
        "import basnet_runtime",
        "import basnet_runtime.open, basnet_runtime.parity, basnet_runtime.manifest",
        "import basnet_runtime.backends.pytorch, basnet_runtime.backends.onnxruntime, basnet_runtime.backends.openvino",
        "import basnet_export.cli as cli; cli.app(['onnx', '--help'], standalone_mode=False)",
        "import basnet_runtime.command.cli as cli; cli.app(['--help'], standalone_mode=False)",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code):
    heavy = "{'torch', 'onnx', 'onnxruntime', 'openvino', 'tensorrt', 'onnxscript'}"
    program = f"{code}\nimport sys\nfound = {heavy} & set(sys.modules)\nassert not found, found"
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_several_threads_may_ask_openvino_at_once():
    batch = np.zeros((1, 3, SIZE, SIZE), np.float32)
    with opened("openvino") as backend:
        expected = backend.infer(batch)
        with ThreadPoolExecutor(4) as pool:
            for mask in pool.map(lambda _: backend.infer(batch), range(40)):
                assert np.array_equal(mask, expected)
