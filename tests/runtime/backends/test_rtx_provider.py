"""TensorRT for RTX as a plug-in of ONNX Runtime: what a machine without an RTX GPU can show of it."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from basnet_runtime import doctor
from basnet_runtime.backends import plugins, rtx_provider
from basnet_runtime.backends.onnxruntime import open_onnxruntime
from basnet_runtime.backends.openvino import open_openvino
from basnet_runtime.backends.rtx_provider import why_no_rtx
from basnet_runtime.machine.installed import has_nvidia_driver
from basnet_torch.errors import BackendUnavailable
from tests.models import SIZE, exported

PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
NAME = "NvTensorRTRTXExecutionProvider"


def test_without_the_package_one_line_names_it(monkeypatch):
    monkeypatch.setattr(rtx_provider, "installed_version", lambda _: None)
    with pytest.raises(BackendUnavailable, match=r"^device rtx: .*no NvTensorRTRTX.*basnet-deploy\[rtx-ep\]") as caught:
        open_onnxruntime(exported(precision="fp32", graph="tensor"), device="rtx")
    assert "\n" not in str(caught.value)


def test_without_a_driver_nothing_is_imported(monkeypatch):
    """The import alone writes into the package's folder and loads 234 MB."""
    monkeypatch.setattr(rtx_provider, "installed_version", lambda name: "0.5.0" if name.endswith("rtx") else None)
    monkeypatch.setattr(rtx_provider, "has_nvidia_driver", lambda: False)
    monkeypatch.setitem(sys.modules, PLUGIN, None)  # importing it now would fail in another way
    found = why_no_rtx(onnxruntime)
    assert "this machine has no NVIDIA driver" in found.reason
    assert not found.is_fault


@pytest.mark.skipif(has_nvidia_driver(), reason="an NVIDIA driver is there")
def test_basnet_run_ends_with_3(tmp_path):
    code = "from basnet_runtime.command.cli import main; main()"
    picture = tmp_path / "a.png"
    picture.write_bytes(b"")
    command = [sys.executable, "-c", code, str(picture), "--device", "rtx", "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert (done.returncode, "device rtx:" in done.stderr) == (3, True), done.stderr
    assert "Traceback" not in done.stderr


class Device(SimpleNamespace):
    """As ONNX Runtime lists one."""


@pytest.fixture
def plugin(monkeypatch, tmp_path):
    """A package that registers and offers two GPUs; ONNX Runtime's own sessions stand for the compiled network."""
    exported(precision="fp32", graph="tensor")  # before what its export needs is replaced
    module = ModuleType(PLUGIN)
    module.get_ep_name, module.get_library_path = lambda: NAME, lambda: str(tmp_path / "plugin.so")
    seen = SimpleNamespace(registered=[], devices=[], options=[], compiled=[], opened=[])
    monkeypatch.setitem(sys.modules, PLUGIN, module)
    monkeypatch.setattr(plugins, "_answers", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(rtx_provider, "installed_version", lambda name: "0.5.0" if name.endswith("rtx") else None)
    monkeypatch.setattr(rtx_provider, "has_nvidia_driver", lambda: True)

    def register(name, path):
        seen.registered.append((name, path))
        seen.devices = [Device(ep_name=NAME, ep_metadata={"gpu": str(i)}) for i in range(2)]

    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", register)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: seen.devices)
    session = onnxruntime.InferenceSession

    class Options(onnxruntime.SessionOptions):
        def add_provider_for_devices(self, devices, options):
            seen.options.append((devices, options))

        def add_session_config_entry(self, key, value):
            if "fallback" not in key:  # there is only the CPU here
                super().add_session_config_entry(key, value)

    class Compiler:
        def __init__(self, options, graph, *, embed_compiled_data_into_model):
            assert embed_compiled_data_into_model
            self.graph = graph

        def compile_to_file(self, target):
            seen.compiled.append(target)
            Path(target).write_bytes(Path(self.graph).read_bytes())

    class Session:
        def __init__(self, graph, options, **_):
            seen.opened.append(str(graph))
            self.inner = session(str(graph), options, providers=["CPUExecutionProvider"])

        def __getattr__(self, name):
            return (lambda: [NAME]) if name == "get_providers" else getattr(self.inner, name)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    monkeypatch.setattr(onnxruntime, "ModelCompiler", Compiler)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return seen


def test_it_is_registered_once_and_what_it_compiled_is_kept(plugin, tmp_path):
    path = exported(precision="fp32", graph="tensor")
    batch = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    with open_openvino(path, keep=False) as plain:
        want = plain.infer(batch)
    for start in range(2):
        with open_onnxruntime(path, device="rtx:1") as backend:
            assert f"{NAME} 0.5.0" in backend.description
            np.testing.assert_allclose(backend.infer(batch), want, atol=1e-4)
        assert (len(plugin.registered), len(plugin.compiled)) == (1, 1), f"start {start}"
    assert {devices[0].ep_metadata["gpu"] for devices, _ in plugin.options} == {"1"}
    assert all(str(tmp_path / "cache") in options["nv_runtime_cache_path"] for _, options in plugin.options)
    (kept,) = set(plugin.opened)
    assert kept.startswith(str(tmp_path / "cache"))  # the compiled context runs, not the model
    content = bytearray(Path(kept).read_bytes())
    content[200:206] = b"damage"  # one that was damaged is compiled again
    Path(kept).write_bytes(content)
    with open_onnxruntime(path, device="rtx:1") as backend:
        np.testing.assert_allclose(backend.infer(batch), want, atol=1e-4)
    assert len(plugin.compiled) == 2


def test_a_context_that_cannot_be_kept_costs_time_only(plugin, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no context for this GPU")

    monkeypatch.setattr(onnxruntime.ModelCompiler, "compile_to_file", fails)
    path = exported(precision="fp32", graph="tensor")
    with open_onnxruntime(path, device="rtx"):
        pass
    assert plugin.opened == [str(path)]


def test_a_gpu_that_is_not_there(plugin):
    with pytest.raises(BackendUnavailable, match="offers 2 GPUs"):
        open_onnxruntime(exported(precision="fp32", graph="tensor"), device="rtx:2")


def test_a_gpu_of_another_kind_is_one_line(plugin, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list)
    with pytest.raises(BackendUnavailable, match=r"offers no GPU here.*8.6, 8.9.*; use --device cuda"):
        open_onnxruntime(exported(precision="fp32", graph="tensor"), device="rtx")


def test_a_plugin_that_does_not_load_is_a_fault(plugin, monkeypatch):
    def fails(*_):
        raise RuntimeError("[x] : 1 : FAIL : libcudart.so.13: cannot open\nmore")

    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", fails)
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match=r"cannot load its plug-in \(libcudart.so.13: cannot open\); pip"):
            open_onnxruntime(exported(precision="fp32", graph="tensor"), device="rtx")
    assert why_no_rtx(onnxruntime).is_fault


def test_doctor_has_a_row(monkeypatch):
    assert doctor._examine_library(doctor._RTX_PROVIDER).state in ("ok", "missing")
    monkeypatch.setattr(doctor, "installed_version", lambda _: None)
    found = doctor._examine_library(doctor._RTX_PROVIDER)
    assert (found.name, found.state, found.fix) == ("rtx provider", "missing", "pip install 'basnet-deploy[rtx-ep]'")
