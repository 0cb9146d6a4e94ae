"""Engines, built by the real library where no GPU is: what is in them, what is refused; nothing half-done stays."""

import json
import os
import re
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from basnet_export.describe import describe
from basnet_export.engine import build as engine
from basnet_export.engine.build import build_engine, cannot_build_here
from basnet_export.engine.config import BuildConfig, parse_range
from basnet_export.engine.network import convolutions_of, parse_onnx, precision_share
from basnet_export.engine.progress import BuildProgress
from basnet_runtime.backends.tensorrt import library as tensorrt_library
from basnet_runtime.backends.tensorrt.library import open_tensorrt
from basnet_runtime.backends.tensorrt.preflight import read_plan_manifest
from basnet_runtime.engine_facts import Profile
from basnet_runtime.manifest import manifest_path, read_manifest, sha256_of
from basnet_runtime.open import BUILTIN
from basnet_torch.errors import BackendUnavailable, EngineBuildError, MediaError, ParityError, UsageError
from tests.models import SIZE, checkpoint_file, disc_folder, exported, widened
from tests.runtime.backends.fake_cuda import FakeCuda

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed; pip install 'basnet-deploy[rtx]'")

TENSOR16 = {"precision": "fp16", "graph": "tensor"}
FRAME16 = {"precision": "fp16", "graph": "frame"}
PARAMETERS = {16: 5_450_000, 64: 87_060_000}


class Recorded(BuildProgress):
    def __init__(self):
        self.said, self.shares = [], []

    def say(self, what):
        self.said.append(what)

    def advanced(self, phase, share):
        self.shares.append((phase, share))


def config(tmp_path, model=None, **options):
    asked = {"output": tmp_path / "a.plan", "flavor": "rtx", "batch": (1, 2, 4), **options}
    return BuildConfig(model=model or exported(**TENSOR16), **asked)


@pytest.mark.parametrize(
    ("options", "smallest", "largest"),
    [
        (TENSOR16, (1, 3, SIZE, SIZE), (4, 3, SIZE, SIZE)),
        (FRAME16, (1, 32, 32, 3), (4, 2160, 3840, 3)),
        ({"precision": "fp32", "graph": "tensor"}, (1, 3, SIZE, SIZE), (4, 3, SIZE, SIZE)),
    ],
    ids=["fp16-tensor", "fp16-frame", "fp32-tensor"],
)
def test_a_plan_is_built_without_a_gpu(options, smallest, largest, tmp_path):
    source = exported(**options)
    path = build_engine(config(tmp_path, source))
    manifest, facts = read_plan_manifest(path)
    assert (manifest.kind, manifest.precision, manifest.graph) == ("plan", options["precision"], options["graph"])
    assert manifest.onnx_sha256 == sha256_of(source)
    assert manifest.preprocess == read_manifest(source).preprocess
    assert manifest.parity is None  # what was proven of the graph is not proven of the plan
    assert (facts.flavor, facts.gpu, facts.plan_bytes) == ("rtx", "", path.stat().st_size)
    assert (facts.profiles[0].smallest, facts.profiles[0].largest) == (smallest, largest)
    assert (facts.typed_layers, facts.typed_flops) == (1.0, 1.0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.plan", "a.plan.json"]


@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("graph", ["tensor", "frame"])
def test_plans_of_the_widths_that_are_used(graph, precision, width, tmp_path):
    """Of `basnet-lite`'s width and the paper's, both graphs, shapes free, built ahead of time and inspected."""
    source = widened(exported(precision=precision, graph=graph), width)
    path = build_engine(config(tmp_path, source, batch=(1, 8, 32)))
    manifest, facts = read_plan_manifest(path)
    assert (manifest.width, manifest.precision, facts.typed_flops) == (width, precision, 1.0)
    assert facts.profiles[0].best[0] == 8
    assert facts.profiles[0].largest[0] == 32
    stored = 2 if precision == "fp16" else 4
    assert 0.9 < facts.plan_bytes / (stored * PARAMETERS[width]) < 1.5
    text = str(describe(path))
    assert f"{manifest.precision}: 100.0% of the convolutions' arithmetic" in text
    assert (f"1x3x{SIZE}x{SIZE} / 8x3x{SIZE}x{SIZE} / 32x3x{SIZE}x{SIZE}" in text) == (graph == "tensor")


def test_basnet_lite_itself_becomes_a_plan(tmp_path):
    manifest, facts = read_plan_manifest(build_engine(config(tmp_path, BUILTIN)))
    assert (manifest.width, manifest.precision, facts.typed_flops) == (16, "fp32", 1.0)
    assert manifest.preprocess == read_manifest(BUILTIN).preprocess


def test_a_checkpoint_becomes_an_fp16_engine(tmp_path):
    progress = Recorded()
    path = build_engine(config(tmp_path, checkpoint_file(), pictures=disc_folder()), progress)
    manifest, _ = read_plan_manifest(path)
    assert manifest.precision == "fp16"
    assert manifest.checkpoint_sha256 == sha256_of(checkpoint_file())
    assert "checking batches and parity with PyTorch FP32" in progress.said
    assert any(said.startswith("building with TensorRT for RTX 1.") for said in progress.said)
    shares = [share for _, share in progress.shares]
    assert all(0 <= share <= 1 for share in shares)
    assert max(shares) > 0.5


def test_description_says_what_it_is(tmp_path):
    text = str(describe(build_engine(config(tmp_path))))
    assert "TensorRT engine, tensor graph of BASNet" in text
    assert "fp16: 100.0% of the convolutions' arithmetic" in text
    assert "not proven: run 'basnet-bench parity' on the GPU" in text
    assert f"1x3x{SIZE}x{SIZE} / 2x3x{SIZE}x{SIZE} / 4x3x{SIZE}x{SIZE}" in text


@pytest.mark.parametrize("graph", ["tensor", "frame"])
def test_a_file_that_overflows_in_fp16_is_refused(graph, tmp_path):
    """No CPU runtime shows it; with --no-check it is built."""
    source = tmp_path / "large.onnx"
    model = onnx.load(exported(precision="fp16", graph=graph))
    block = ("predict.encoder.stage1.1.conv1", "predict.encoder.stage1.1.conv2")
    convolutions = [node for node in model.graph.node if node.name in block]
    kernels = dict(zip((node.input[1] for node in convolutions), (2.0**14, 2.0**-14), strict=True))
    kernels[convolutions[0].input[2]] = 2.0**14
    for tensor in model.graph.initializer:
        if tensor.name in kernels:
            values = onnx.numpy_helper.to_array(tensor) * np.float16(kernels[tensor.name])
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, source)
    with pytest.raises(ParityError, match=r"stage1\.1\.conv1 reaches .*, FP16 ends at 65,504") as caught:
        build_engine(config(tmp_path, source))
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == [source]
    assert build_engine(config(tmp_path, source, check=False)).is_file()


def test_an_engine_that_is_fp16_by_name_only_is_refused(tmp_path):
    """An FP32 graph whose manifest says fp16."""
    source = tmp_path / "lies.onnx"
    model = onnx.load(exported(precision="fp32", graph="tensor"))
    manifest = replace(read_manifest(exported(precision="fp32", graph="tensor")), precision="fp16", onnx_sha256="")
    onnx.helper.set_model_props(model, {"basnet": manifest.to_json()})
    onnx.save(model, source)
    with pytest.raises(EngineBuildError, match="only 0% of the convolutions' arithmetic would be in fp16"):
        build_engine(config(tmp_path, source))
    assert not (tmp_path / "a.plan").exists()


def test_parts_kept_in_fp32_by_name_do_not_count_against_an_engine(tmp_path):
    """But half of all must be in its precision."""
    path = build_engine(config(tmp_path, exported(precision="fp16", keep_fp32=("predict.decoder",))))
    _, facts = read_plan_manifest(path)
    assert 0.5 < facts.typed_flops < 0.9
    source = exported(precision="fp16", keep_fp32=("predict", "refine.down1"), check=False)
    with pytest.raises(
        EngineBuildError, match=r"only \d+% of the convolutions' arithmetic would be in fp16, at least 50%"
    ):
        build_engine(config(tmp_path, source, output=tmp_path / "b.plan"))


def test_a_node_that_cannot_be_parsed_is_named():
    library = open_tensorrt("rtx")
    model = onnx.load(exported(**TENSOR16))
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type = "NoSuchThing"
    builder = library.trt.Builder(library.logger)
    with pytest.raises(EngineBuildError, match=r"node .*NoSuchThing"):
        parse_onnx(library, builder, model.SerializeToString(), read_manifest(exported(**TENSOR16)))


def test_share_counts_arithmetic_not_layers():
    """Of a graph in FP32 nothing is FP16, and everything is FP32."""
    library = open_tensorrt("rtx")
    source = exported(precision="fp32", graph="tensor")
    parsed = parse_onnx(library, library.trt.Builder(library.logger), source.read_bytes(), read_manifest(source))
    convolutions = convolutions_of(library, parsed.network)
    assert precision_share(convolutions, "fp16").flops == 0
    assert precision_share(convolutions, "fp32").layers == 1


def test_ctrl_c_ends_the_build_and_leaves_nothing(tmp_path):
    class Impatient(Recorded):
        def advanced(self, phase, share):
            super().advanced(phase, share)
            if len(self.shares) == 5:
                os.kill(os.getpid(), signal.SIGINT)

    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build_engine(config(tmp_path), Impatient())
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is before


def test_the_cache_finds_the_same_content_only(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = build_engine(config(tmp_path, cache=cache))
    plan = first.read_bytes()
    monkeypatch.setattr(engine, "parse_onnx", lambda *_: pytest.fail("was built again"))
    progress = Recorded()
    again = build_engine(config(tmp_path, cache=cache, overwrite=True), progress)
    assert again.read_bytes() == plan
    assert any("found the engine" in said for said in progress.said)
    read_plan_manifest(again)
    monkeypatch.undo()
    for changed in ({"batch": (1, 1, 2)}, {"optimization_level": 1}):
        build_engine(config(tmp_path, cache=cache, overwrite=True, **changed))
    assert len(list(cache.glob("*.plan"))) == 3


def test_the_cache_finds_a_checkpoint_that_was_exported_again(tmp_path):
    for _ in range(2):
        build_engine(config(tmp_path, checkpoint_file(), cache=tmp_path / "cache", overwrite=True, check=False))
    assert len(list((tmp_path / "cache").glob("*.plan"))) == 1


def test_a_cache_that_cannot_be_written_costs_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    progress = Recorded()
    read_plan_manifest(build_engine(config(tmp_path, cache=tmp_path / "file"), progress))
    assert any("not kept in the cache" in said for said in progress.said)


@pytest.mark.parametrize("suffix", ["plan", "json"])
def test_a_damaged_cache_entry_is_built_anew(suffix, tmp_path):
    cache = tmp_path / "cache"
    build_engine(config(tmp_path, cache=cache))
    (entry,) = cache.glob("*.plan")
    (entry if suffix == "plan" else manifest_path(entry)).write_bytes(b"damaged")
    read_plan_manifest(build_engine(config(tmp_path, cache=cache, overwrite=True)))
    assert entry.stat().st_size > 1000


@pytest.mark.parametrize("capabilities", [("8.6",), ("8.6", "8.9")])
def test_compute_capabilities_of_rtx(capabilities, tmp_path):
    _, facts = read_plan_manifest(build_engine(config(tmp_path, compute_capabilities=capabilities)))
    assert facts.compute_capabilities == capabilities


def test_this_machines_gpu_has_to_be_there(tmp_path):
    with pytest.raises(BackendUnavailable, match="no NVIDIA driver; build there, or take another --compute-capability"):
        build_engine(config(tmp_path, compute_capabilities=("current",)))


@pytest.mark.parametrize(("capability", "listed"), [("9.0", False), ("8.9", True), ("12.0", True)])
def test_a_gpu_that_rtx_does_not_list(capability, listed, monkeypatch):
    monkeypatch.setattr(tensorrt_library, "_chosen", lambda: "rtx")
    gpu = replace(FakeCuda().gpu, name="NVIDIA H200", compute_capability=capability)
    monkeypatch.setattr(engine, "find_gpu", lambda: gpu)
    reason = cannot_build_here()
    assert (reason == "") == listed
    if not listed:
        assert re.match(r"TensorRT for RTX .* builds for compute capability 7\.5, 8\.0, .*12\.", reason)
        assert reason.endswith("and NVIDIA H200 has 9.0; install TensorRT")


def test_no_library_builds_nothing(monkeypatch):
    monkeypatch.setattr(tensorrt_library, "find_spec", lambda _: None)
    assert cannot_build_here().startswith("no TensorRT is installed")


def test_unknown_compute_capability(tmp_path):
    with pytest.raises(UsageError, match=r"compute capability 1\.0: TensorRT for RTX .* builds for 7\.5"):
        build_engine(config(tmp_path, compute_capabilities=("1.0",)))


def test_a_folder_of_that_name_is_refused_before_building(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "parse_onnx", lambda *_: pytest.fail("was built"))
    (tmp_path / "a.plan").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        build_engine(config(tmp_path, overwrite=True))
    (tmp_path / "file").write_text("x")
    with pytest.raises(MediaError, match="cannot be written"):
        build_engine(config(tmp_path, output=tmp_path / "file" / "b.plan"))


def test_sizes_of_a_graph_that_has_none(tmp_path):
    with pytest.raises(UsageError, match="height and width are for a frame graph"):
        build_engine(config(tmp_path, height=(64, 64, 64)))


def test_the_receipt_says_why_it_is_missing(tmp_path):
    progress = Recorded()
    build_engine(config(tmp_path, checkpoint_file(), pictures=disc_folder()), progress)
    assert "not proven: this machine has no NVIDIA driver" in progress.said


def test_existing_files_stay(tmp_path):
    (tmp_path / "a.plan").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        build_engine(config(tmp_path))
    assert (tmp_path / "a.plan").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flavor": "rtx", "compute_capabilities": ("current", "8.6")}, "current: stands alone"),
        ({"model": Path("a.plan")}, "an engine is built from"),
        ({"model": Path("a.onnx"), "precision": "fp16"}, "is for a checkpoint"),
        ({"output": Path("a.onnx")}, r"must end in \.plan"),
        ({"batch": (4, 2, 8)}, "batch is 4,2,8"),
        ({"batch": (0, 1, 1)}, "from 1 to 65535"),
        ({"optimization_level": 6}, "must be 0 to 5"),
        ({"batch": (1, 1, 3_000_000_000)}, "from 1 to 65535"),
        ({"workspace_mib": 1 << 40}, "workspace_mib is"),
        ({"aux_streams": 1 << 20}, "aux_streams is"),
        ({"flavor": "rtx", "compute_capabilities": ("86",)}, "as in 8.6"),
        ({"model": Path("a.onnx"), "pictures": Path("p")}, "is for a checkpoint"),
        ({"tiling": "some"}, "none, fast, moderate, full"),
        ({"hardware_compatible": True}, "add --flavor tensorrt"),
        ({"version_compatible": True, "flavor": "rtx"}, "only tensorrt has it"),
        ({"timing_cache": Path("t")}, "only tensorrt has it"),
        ({"flavor": "tensorrt", "compute_capabilities": ("8.6",)}, "only rtx has it"),
    ],
)
def test_config_refuses_nonsense(fields, message):
    with pytest.raises(UsageError, match=message):
        BuildConfig(**{"model": Path("a.pth"), **fields})


@pytest.mark.parametrize("text", ["", "1,2", "a", "1,2,3,4"])
def test_ranges(text):
    with pytest.raises(UsageError, match="give one number, or smallest,best,largest"):
        parse_range("batch", text)


def test_profiles_grow():
    with pytest.raises(ValueError, match="must grow"):
        Profile(smallest=(2,), best=(1,), largest=(3,))
    assert Profile(smallest=(1, 3), best=(2, 3), largest=(4, 3)).holds((3, 3))
    assert not Profile(smallest=(1, 3), best=(2, 3), largest=(4, 3)).holds((5, 3))


def test_the_other_flavor_is_not_taken_instead(monkeypatch):
    monkeypatch.setitem(tensorrt_library._MODULES, "tensorrt", "no_tensorrt_here")
    tensorrt_library._imported.cache_clear()
    with pytest.raises(BackendUnavailable, match=r"TensorRT is not installed; pip install 'basnet-deploy\[gpu\]'"):
        open_tensorrt("tensorrt")
    assert open_tensorrt("auto").flavor == "rtx"


def test_nothing_installed_says_what_to_install(monkeypatch):
    monkeypatch.setattr(tensorrt_library, "_MODULES", {"tensorrt": "no_such_module", "rtx": "nor_this_one"})
    with pytest.raises(BackendUnavailable, match=r"no TensorRT is installed; .*'basnet-deploy\[rtx\]'"):
        open_tensorrt("auto")


def test_facts_survive_json(tmp_path):
    manifest, facts = read_plan_manifest(build_engine(config(tmp_path)))
    assert type(manifest).from_json(manifest.to_json()).engine == facts
    assert json.loads(manifest_path(tmp_path / "a.plan").read_text())["engine"]["plan_sha256"] == facts.plan_sha256
