"""Triton repositories: their text, what is refused, and what is there already."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from basnet_export import triton
from basnet_export.cli import app
from basnet_export.triton import TritonConfig, config_text, write_triton_model
from basnet_runtime.engine_facts import EngineFacts, Profile
from basnet_runtime.manifest import read_manifest
from basnet_runtime.open import BUILTIN, BUILTIN_INT8, open_model
from basnet_torch.errors import ExportError, UsageError
from basnet_torch.spec import TensorSpec
from tests.foreign import foreign_network
from tests.models import disc_folder, discs

TENSOR = """\
name: "lite"
backend: "onnxruntime"
max_batch_size: 8
input [
  {
    name: "image"
    data_type: TYPE_FP32
    dims: [ 3, 256, 256 ]
  }
]
output [
  {
    name: "mask"
    data_type: TYPE_FP32
    dims: [ 1, 256, 256 ]
  }
]
instance_group [
  {
    kind: KIND_CPU
    count: 1
  }
]
dynamic_batching {
  max_queue_delay_microseconds: 2000
  default_queue_policy {
    timeout_action: REJECT
    max_queue_size: 64
  }
}
model_warmup [
  {
    name: "one picture"
    batch_size: 1
    inputs { key: "image" value {
      data_type: TYPE_FP32
      dims: [ 3, 256, 256 ]
      zero_data: true
    } }
  }
]
"""


def config(*sources, output=Path("repository"), **options):
    return TritonConfig(sources=sources or (BUILTIN,), output=output, **options)


def plan(capabilities=("9.0",), largest=8, graph="tensor", flavor="tensorrt", **changes):
    manifest = read_manifest(BUILTIN)
    ends = (None, None, 3) if graph == "frame" else (3, 256, 256)
    shape = (480, 640, 3) if graph == "frame" else ends
    engine = EngineFacts(
        flavor=flavor,
        version="10.16",
        gpu="",
        compute_capabilities=capabilities,
        driver="",
        cuda="",
        plan_sha256="0" * 64,
        plan_bytes=1,
        profiles=(Profile(smallest=(1, *shape), best=(1, *shape), largest=(largest, *shape)),),
        build_seconds=1.0,
        typed_layers=1.0,
        typed_flops=1.0,
        typed_by="network",
    )
    dtype, name = ("uint8", "frame") if graph == "frame" else ("float32", "image")
    return replace(
        manifest,
        kind="plan",
        graph=graph,
        input=TensorSpec(name=name, dtype=dtype, shape=(None, *ends)),
        engine=engine,
        **changes,
    )


def test_the_text_of_a_tensor_graph():
    assert config_text(config(name="lite"), [(BUILTIN, read_manifest(BUILTIN))]) == TENSOR


def test_the_text_of_a_frame_graph_has_free_sizes():
    free = TensorSpec(name="frame", dtype="uint8", shape=(None, None, None, 3))
    mask = TensorSpec(name="mask", dtype="uint8", shape=(None, None, None))
    manifest = replace(read_manifest(BUILTIN), graph="frame", input=free, output=mask)
    text = config_text(config(device="gpu", instances=2), [(BUILTIN, manifest)])
    assert "data_type: TYPE_UINT8\n    dims: [ -1, -1, 3 ]" in text
    assert "dims: [ -1, -1 ]" in text
    assert "kind: KIND_GPU\n    count: 2" in text
    assert "dims: [ 64, 64, 3 ]" in text  # the warm-up's


def test_the_text_of_plans_for_several_gpus():
    plans = [(Path("a.plan"), plan(("8.6",))), (Path("b.plan"), plan(("9.0",)))]
    text = config_text(config(Path("a.plan"), Path("b.plan"), name="lite"), plans)
    assert 'backend: "tensorrt"' in text
    assert 'profile: [ "0" ]' in text
    assert 'cc_model_filenames { key: "8.6" value: "8.6.plan" }' in text
    assert 'cc_model_filenames { key: "9.0" value: "9.0.plan" }' in text


FOREIGN = {"dtype": "float16", "sigmoid": False, "external": True, "squeezed": True}


@pytest.mark.parametrize("batch", [1, None])
def test_an_adopted_network_is_served_as_it_runs(batch, tmp_path):
    """FP32 to masks in 0..1, weights inside, whatever its own file takes and gives; the client knows its names."""
    ort = pytest.importorskip("onnxruntime")
    path = foreign_network(tmp_path / "net.onnx", batch=batch, **FOREIGN)
    recipe = ("--mean", "0.5", "--std", "0.5", "--activation", "sigmoid", "--stretch", "--pictures", disc_folder())
    assert CliRunner().invoke(app, ["adopt", *map(str, (path, *recipe))]).exit_code == 0
    if batch == 1:
        with pytest.raises(UsageError, match=r"^max-batch: 8, must be 1: .*net.onnx takes one picture at a time. Give"):
            write_triton_model(config(path, output=tmp_path / "repository"))
    folder = write_triton_model(config(path, output=tmp_path / "repository", max_batch=1 if batch else 8))
    text = (folder / "config.pbtxt").read_text()
    axis = "1, " if batch else ""
    assert f"dims: [ {axis}3, 48, 80 ]" in text
    assert f"dims: [ {axis}48, 80 ]" in text
    assert f"max_batch_size: {0 if batch else 8}\n" in text
    assert ("dynamic_batching" in text) is (batch is None)  # Triton has none where the batch axis is fixed
    session = ort.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.type, given.type) == ("tensor(float)", "tensor(float)")
    assert f'name: "{taken.name}"' in text
    image = discs()[0].image_HWC
    with open_model(path, backend="onnxruntime") as model:
        fed = model.prepare(image)[None]
        masks = session.run(None, {taken.name: fed})[0]
        assert np.abs(masks - model.infer(list(fed)).reshape(masks.shape)).max() <= 1e-6
    client = (folder / "client.py").read_text()
    assert f'InferInput("{taken.name}", [1, 3, 48, 80]' in client
    assert f'as_numpy("{given.name}").reshape(48, 80)\nmask = (mask - mask.min())' in client
    compile(client, "client.py", "exec")


@pytest.mark.parametrize(
    "plans", [[(BUILTIN, None)], [(Path("a.plan"), plan(("8.6",))), (Path("b.plan"), plan(("9.0",), graph="tensor"))]]
)
def test_tritons_schema_takes_the_text(plans):
    pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs the extra triton")
    from google.protobuf import text_format

    plans = [(path, manifest or read_manifest(path)) for path, manifest in plans]
    text = config_text(config(*(path for path, _ in plans), name="lite"), plans)
    parsed = text_format.Parse(text, pb2.ModelConfig())
    assert parsed.max_batch_size == 8
    assert list(parsed.input[0].dims) == [3, 256, 256]
    assert parsed.dynamic_batching.default_queue_policy.max_queue_size == 64
    assert parsed.model_warmup[0].inputs["image"].zero_data
    assert dict(parsed.cc_model_filenames) == ({"8.6": "8.6.plan", "9.0": "9.0.plan"} if len(plans) > 1 else {})


def test_text_that_the_schema_refuses_is_an_error(monkeypatch, tmp_path):
    pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs the extra triton")
    monkeypatch.setattr(triton, "config_text", lambda *_: "nonsense: 1\n")
    with pytest.raises(ExportError, match="Triton's schema refuses it"):
        write_triton_model(config(output=tmp_path))


def test_without_the_schema_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    said = []
    write_triton_model(config(output=tmp_path), said.append)
    assert "pip install 'basnet-deploy[triton]'" in said[0]


def test_what_is_written(tmp_path):
    folder = write_triton_model(config(output=tmp_path, name="lite"))
    assert folder == tmp_path / "lite"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "config.pbtxt",
        "client.py",
        "manifest.json",
        "1/model.onnx",
    }
    assert (folder / "1" / "model.onnx").read_bytes() == BUILTIN.read_bytes()
    assert json.loads((folder / "manifest.json").read_text())["onnx_sha256"] == read_manifest(BUILTIN).onnx_sha256
    subprocess.run([sys.executable, "-m", "py_compile", str(folder / "client.py")], check=True)


def test_another_version_stands_beside_the_first_and_nothing_is_replaced(tmp_path):
    write_triton_model(config(output=tmp_path))
    with pytest.raises(UsageError, match="is there already"):
        write_triton_model(config(output=tmp_path))
    folder = write_triton_model(config(output=tmp_path, version=2))
    assert (folder / "1" / "model.onnx").exists()
    assert (folder / "2" / "model.onnx").exists()
    with pytest.raises(UsageError, match="differs from that of version 3"):
        write_triton_model(config(output=tmp_path, version=3, max_batch=4))
    write_triton_model(config(output=tmp_path, version=3, max_batch=4, overwrite=True))


@pytest.mark.parametrize(
    ("manifest", "options", "said"),
    [
        (plan(flavor="rtx"), {}, "TensorRT for RTX plan"),
        (plan(largest=4), {}, "max-batch: 8, must be at most 4"),
        (plan(), {"device": "cpu"}, "device: cpu, must be gpu"),
    ],
)
def test_plans_that_are_refused(manifest, options, said, monkeypatch, tmp_path):
    monkeypatch.setattr(triton, "read_manifest_of", lambda _: manifest)
    with pytest.raises(UsageError, match=said):
        write_triton_model(config(Path("a.plan"), output=tmp_path, **options))


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (plan(("9.0",)), "is for compute capability 9.0, as a.plan"),
        (plan(("8.6",), onnx_sha256="1"), "is built from another network than a.plan"),
        (plan(()), "does not say its compute capability"),
        (read_manifest(BUILTIN), "must be one .onnx, or .plan files"),
    ],
)
def test_files_that_do_not_go_together(second, said, monkeypatch, tmp_path):
    found = {"a.plan": plan(), "b": second}
    monkeypatch.setattr(triton, "read_manifest_of", lambda path: found[path.name])
    with pytest.raises(UsageError, match=said):
        write_triton_model(config(Path("a.plan"), Path("b"), output=tmp_path))


def test_mistakes_on_the_command_line_are_one_line(tmp_path):
    checkpoint = BUILTIN.with_suffix(".safetensors")
    named = shutil.copy(BUILTIN, tmp_path / "my model.onnx")
    repository = str(tmp_path / "repository")
    for arguments, said in (
        ([checkpoint], "is a checkpoint, must be .onnx or .plan. Run: basnet-export onnx"),
        ([BUILTIN_INT8], "is quantized for OpenVINO"),
        ([named], "name: 'my model', must be letters"),
        ([BUILTIN, BUILTIN], "must be one .onnx"),
        ([BUILTIN, "--max-batch", 0], "max-batch"),
    ):
        result = CliRunner().invoke(app, ["triton", *map(str, arguments), "-o", repository])
        assert (result.exit_code, said in result.output) == (2, True), result.output
    result = CliRunner().invoke(app, ["triton", str(BUILTIN), "-o", repository])
    assert (result.exit_code, result.stdout.strip()) == (0, f"{repository}/basnet-lite")
