"""The gate passes what is the model, fails what is not or became slow, and never calls passed what did not run."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from basnet_benchmarks import candidates
from basnet_benchmarks import gate as module
from basnet_benchmarks.cli import app
from basnet_benchmarks.gate import Baseline, GateConfig, run_gate
from basnet_benchmarks.parity import ParityRow
from basnet_benchmarks.statistics import Estimate
from basnet_export import samples
from basnet_export.config import ExportConfig
from basnet_export.onnx_export import export_onnx
from basnet_runtime.machine import cpu_features as processor
from basnet_runtime.manifest import METADATA_KEY, read_manifest
from basnet_runtime.onnx_file.content import read_graph_content
from basnet_runtime.open import BUILTIN, BUILTIN_INT8
from basnet_runtime.parity import MEASURES, ParityReport, tolerance_for
from basnet_torch.errors import UsageError
from tests.cpus import CPUS, HAS_INT8

ROOT = BUILTIN.parents[3]
LITE = BUILTIN.with_name("basnet-lite.onnx")
NAME = "model.onnx, onnxruntime fp32"


def write_baseline(folder, candidate, **changes):
    values = {
        "format": 1,
        "reference": str(LITE.with_suffix(".safetensors")),
        "candidates": [str(candidate)],
        "devices": {"cpu": ["onnxruntime:fp32"]},
        "rounds": 0,
        "rows": [],
        **changes,
    }
    path = folder / "baseline.json"
    path.write_text(json.dumps(values))
    return path


def convolutions(graph):
    """Initializers of the convolutions' weights, through the casts of weights kept in FP16."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    return [stored[casts.get(n.input[1], n.input[1])] for n in graph.node if n.op_type == "Conv"]


def scaled(index):
    def change(graph):
        tensor = convolutions(graph)[index]
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array((values * np.float32(1.05)).astype(values.dtype), tensor.name))

    return change


def swapped_channels(graph):
    """Two output channels of a layer change places."""
    tensor = convolutions(graph)[10]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[[0, 1]] = values[[1, 0]]
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def bgr(graph):
    """The first layer reads blue for red."""
    tensor = convolutions(graph)[0]
    values = onnx.numpy_helper.to_array(tensor)[:, ::-1]
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))


def aligned_corners(graph):
    """Every resize maps corners onto corners."""
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Resize" else ():
            if attribute.name == "coordinate_transformation_mode":
                attribute.s = b"align_corners"


DAMAGE = {
    "first layer x 1.05": scaled(0),
    "layer 30 x 1.05": scaled(30),
    "layer 60 x 1.05": scaled(60),
    "last layer x 1.05": scaled(-1),
    "channels swapped": swapped_channels,
    "corners aligned": aligned_corners,
    "BGR for RGB": bgr,
}


@pytest.fixture(autouse=True)
def _two_photographs(tmp_path, monkeypatch):
    """As if two of the five photographs came along, which takes less time."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in ("coffee.jpg", "astronaut.jpg"):
        shutil.copy(samples.BUNDLED / name, folder)
    monkeypatch.setattr(samples, "BUNDLED", folder)


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_model_is_caught(change, tmp_path):
    model = onnx.load(LITE)
    change(model.graph)
    onnx.save(model, tmp_path / "model.onnx")
    report = run_gate(GateConfig(threads=1, baseline=write_baseline(tmp_path, "model.onnx")))
    assert report.exit_code == 4
    assert "max_abs" in report.conclusion
    assert report.rows[0].verdict == "failed"


@pytest.fixture
def intact(tmp_path):
    onnx.save(onnx.load(LITE), tmp_path / "model.onnx")
    return tmp_path


def test_the_model_itself_passes_and_the_baseline_is_written(intact):
    path = write_baseline(intact, "model.onnx")
    assert run_gate(GateConfig(threads=1, baseline=path)).exit_code == 0
    assert Baseline.read(path).rows == ()
    report = run_gate(GateConfig(threads=1, baseline=path, update=True))
    assert (report.exit_code, report.updated) == (0, True)
    (row,) = Baseline.read(path).rows
    assert (row.device, row.name) == ("cpu", NAME)
    assert row.parity["max_abs"] < 1e-4
    assert run_gate(GateConfig(threads=1, baseline=path)).rows[0].before == row


def test_a_damaged_model_is_no_baseline(tmp_path):
    model = onnx.load(LITE)
    bgr(model.graph)
    onnx.save(model, tmp_path / "model.onnx")
    path = write_baseline(tmp_path, "model.onnx")
    before = path.read_text()
    assert run_gate(GateConfig(threads=1, baseline=path, update=True)).exit_code == 4
    assert path.read_text() == before


def speed(value, low, high):
    return Estimate(value=value, low=low, high=high)


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        (speed(1.5, 1.4, 1.6), "passed"),
        (speed(0.9, 0.7, 1.1), "passed"),  # the interval reaches 0.6 of the baseline's lowest
        (speed(0.7, 0.6, 0.8), "failed"),
        (None, "not proven"),
    ],
)
def test_speed_fails_only_where_the_whole_interval_is_below_the_band(now, verdict, intact, monkeypatch):
    row = saved_row(parity={}, speed=vars_of(speed(1.6, 1.5, 1.7)), kind=module._machine_kind("cpu"))
    path = write_baseline(intact, "model.onnx", rounds=6, rows=[row])
    timed = {} if now is None else {("model.onnx", "onnxruntime", "fp32"): now}
    monkeypatch.setattr(module, "_timed", lambda *_: timed)
    report = run_gate(GateConfig(threads=1, baseline=path))
    assert report.rows[0].verdict == verdict
    assert report.exit_code == {"failed": 4, "not proven": 3, "passed": 0}[verdict]
    assert run_gate(GateConfig(threads=1, baseline=path, speed=False)).exit_code == 0
    run_gate(GateConfig(threads=1, baseline=path, update=True, speed=False))
    assert Baseline.read(path).rows[0].speed == speed(1.6, 1.5, 1.7)  # what was not timed stays
    if verdict == "failed":
        assert "0.80 times PyTorch FP32 at most, at least 0.90" in report.conclusion


def vars_of(estimate):
    return asdict(estimate)


def test_each_candidate_is_timed_itself(bench_models, tmp_path, picture_folder):
    """Two files on one backend, one of them in FP16, and the reference in PyTorch of the same run."""
    half = tmp_path / "half.onnx"
    export_onnx(ExportConfig(checkpoint=bench_models.checkpoint, output=half, precision="fp16", check=False))
    path = write_baseline(
        tmp_path,
        half,
        reference=str(bench_models.checkpoint),
        candidates=[str(bench_models.onnx), str(half)],
        devices={"cpu": ["onnxruntime:fp32", "onnxruntime:fp16"]},
        rounds=1,
    )
    report = run_gate(GateConfig(threads=1, baseline=path, pictures=picture_folder))
    assert {row.name for row in report.rows} == {"good.onnx, onnxruntime fp32", "half.onnx, onnxruntime fp16"}
    assert all(row.speed is not None and row.speed.value > 0 for row in report.rows)


def test_a_row_of_another_device_stays(intact):
    rows = [
        {"device": device, "name": name, "parity": {}, "processor": "p", "speed": None}
        for device, name in (("cpu", "old.onnx, openvino fp32"), ("cuda", "old.onnx, openvino fp32"))
    ]
    devices = {"cpu": ["onnxruntime:fp32"], "cuda": ["onnxruntime:fp32"]}
    path = write_baseline(intact, "model.onnx", devices=devices, rows=rows)
    report = run_gate(GateConfig(threads=1, baseline=path))
    assert report.gone == (("cpu", "old.onnx, openvino fp32"), ("cuda", "old.onnx, openvino fp32"))


def test_what_cannot_run_is_never_passed(intact):
    """A GPU's row on a machine without one: not proven, and an error where it was required."""
    row = {"device": "cuda", "name": NAME, "parity": {"max_abs": 1e-6}, "processor": "gpu", "speed": None}
    devices = {"cpu": ["onnxruntime:fp32"], "cuda": ["onnxruntime:fp32"]}
    path = write_baseline(intact, "model.onnx", devices=devices, rows=[row])
    report = run_gate(GateConfig(threads=1, baseline=path))
    if report.rows[1].verdict != "not proven":
        pytest.skip("this machine has a CUDA device")
    assert [r.verdict for r in report.rows] == ["passed", "not proven"]
    assert report.conclusion == "1 passed, 1 not proven"
    assert (report.exit_code, replace(report, require_all=True).exit_code) == (0, 3)
    assert run_gate(GateConfig(threads=1, baseline=path, update=True)).updated
    (kept,) = [each for each in Baseline.read(path).rows if each.device == "cuda"]
    assert kept.parity == {"max_abs": 1e-6}  # what did not run stays


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2}',
        '{"format": 1, "reference": "a", "candidates": [], "devices": {}}',
        '{"format": 1, "reference": 5, "candidates": [], "devices": {"cpu": []}}',
        '{"format": 1, "reference": "a", "candidates": "abc", "devices": {"cpu": []}}',
        '{"format": 1, "reference": "a", "candidates": [], "devices": {"cpu": []}, "rounds": "a"}',
        '{"format": 1, "reference": "a", "candidates": [], "devices": {"cpu": []}, "rounds": -1}',
        '{"format": 1, "reference": "a", "candidates": [], "devices": {"cpu": []}, "rows": [{"parity": null}]}',
    ],
)
def test_no_baseline_is_one_line(text, tmp_path):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(UsageError, match="is no baseline of basnet-bench gate"):
        run_gate(GateConfig(threads=1, baseline=tmp_path / "b.json"))


def row_of(measures, precision="int8", **options):
    """A gate's row of a candidate with these measures, and of a baseline row before it."""
    worst = dict.fromkeys(MEASURES, "picture 1")
    before, now = (
        {**dict.fromkeys(MEASURES, 0.0), "boundary_iou": 1.0, **{k: v[i] for k, v in measures.items()}} for i in (0, 1)
    )
    report = ParityReport(tolerance=tolerance_for(precision), pictures=2, informative=2, worst=worst, **now)
    parity = ParityRow(model="m.onnx", backend="openvino", precision=precision, report=report)
    old = module.BaselineRow(device="cpu", name=parity.name, parity=before, speed=None, processor="p")
    values = {"device": "cpu", "name": parity.name, "parity": parity, "before": old, "mask_band": 0.25}
    return module.GateRow(**values | options)


@pytest.mark.parametrize(
    ("measures", "drift"),
    [
        ({"mean_abs": (0.004, 0.0054)}, None),  # a quarter of the 0.006 that was left
        ({"mean_abs": (0.004, 0.0056)}, "mean_abs drifted from 0.004 to 0.0056 on picture 1, at most 0.0055"),
        ({"boundary_iou": (0.97, 0.961)}, None),
        ({"boundary_iou": (0.97, 0.959)}, "boundary_iou drifted from 0.97 to 0.959 on picture 1, at least 0.96"),
        ({"max_abs": (0.1, 0.9)}, None),  # which int8 does not limit
        ({"mean_abs": (0.004, 0.001)}, None),
        ({"flips": (0.001, float("nan"))}, None),  # the contract itself fails on it
    ],
)
def test_masks_that_drift_towards_a_limit_fail(measures, drift):
    row = row_of(measures)
    assert row.drifts == (() if drift is None else (drift,))
    if drift:
        assert row.verdict == "failed"
        assert replace(row, mask_band=None).verdict == "passed"
    assert row_of({"flips": (0.001, float("nan"))}).verdict == "failed"


def saved_row(**changes):
    value = {"max_abs": 1e-9, "mean_abs": 0.0, "p999_abs": 0.0, "flips": 0.0, "boundary_iou": 1.0}
    fast = vars_of(speed(99.0, 98.0, 100.0))
    return {"device": "cpu", "name": NAME, "parity": value, "processor": "one", "speed": fast, **changes}


def test_another_machine_or_checkpoint_is_said_and_not_judged(intact, monkeypatch):
    timed = {("model.onnx", "onnxruntime", "fp32"): speed(1.0, 0.9, 1.1)}
    monkeypatch.setattr(module, "_timed", lambda *_: timed)
    path = write_baseline(intact, "model.onnx", rounds=6, rows=[saved_row(kind="sve2")])
    (row,) = run_gate(GateConfig(threads=1, baseline=path)).rows
    assert (row.verdict, row.speed_floor, row.drifts) == ("passed", None, ())
    assert "drift and speed not measured: the baseline is from sve2" in row.remarks[0]
    path = write_baseline(intact, "model.onnx", rounds=6, rows=[saved_row(kind=module._machine_kind("cpu"))])
    (row,) = run_gate(GateConfig(threads=1, baseline=path)).rows
    assert row.verdict == "failed"
    assert "1.10 times PyTorch FP32 at most, at least 58.80" in row.remarks[-1]
    path = write_baseline(intact, "model.onnx", rounds=0, rows=[saved_row(speed=None)], reference_sha256="ab")
    (row,) = run_gate(GateConfig(threads=1, baseline=path)).rows
    assert row.mask_band is None
    assert "the checkpoint is another than the baseline's" in row.remarks[0]
    assert run_gate(GateConfig(threads=1, baseline=path, update=True)).updated
    baseline = Baseline.read(path)
    assert baseline.reference_sha256 == module._digest(baseline)
    assert baseline.rows[0].kind == module._machine_kind("cpu")
    assert run_gate(GateConfig(threads=1, baseline=path)).rows[0].remarks == ()


@pytest.fixture
def on(cpu):
    """The gate on a CPU of a kind, as the flags say."""

    def there(kind):
        cpu(kind)
        module._machine_kind.cache_clear()

    yield there
    module._machine_kind.cache_clear()


def says_int8(folder):
    """Its manifest alone is changed, so that no INT8 kernel has to run."""
    model = onnx.load(LITE)
    manifest = replace(read_manifest(LITE), precision="int8", onnx_sha256="", parity=None)
    manifest = replace(manifest, graph_sha256=read_graph_content(LITE).sha256)  # else the graph's own precision counts
    onnx.helper.set_model_props(model, {METADATA_KEY: manifest.to_json()})
    onnx.save(model, folder / "small.onnx")
    return folder / "small.onnx"


def test_a_file_that_says_int8_gets_rows_of_both_libraries_under_its_contract(intact, monkeypatch, on):
    on("avx2-vnni")
    monkeypatch.setattr(candidates, "find_spec", lambda _: None)  # OpenVINO's provider for ONNX Runtime
    path = write_baseline(intact, "model.onnx")
    config = GateConfig(threads=1, baseline=path, update=True, candidates=(says_int8(intact),))
    report = run_gate(config)
    names = [NAME, "small.onnx, onnxruntime int8", "small.onnx, openvino int8"]
    assert [row.name for row in report.rows] == names, report.complaint
    assert [row.parity.report.tolerance.precision for row in report.rows] == ["fp32", "int8", "int8"]
    kept = Baseline.read(path)
    assert kept.candidates == ("model.onnx", "small.onnx")
    assert kept.devices["cpu"] == ("onnxruntime:fp32", "onnxruntime:int8", "openvino:int8")
    assert [row.name for row in kept.rows] == names


@pytest.mark.parametrize("kind", CPUS)
def test_a_cpu_of_another_kind_passes_and_says_what_is_not_comparable(kind, intact, monkeypatch, on):
    """The baseline is of this CPU: fast, and with an INT8 file."""
    monkeypatch.setattr(candidates, "find_spec", lambda _: None)
    slow = speed(0.1, 0.1, 0.1)
    monkeypatch.setattr(module, "_timed", lambda *_: dict.fromkeys([("model.onnx", "onnxruntime", "fp32")], slow))
    rows = [saved_row(kind="a CPU of a kind that nobody has"), saved_row(name="small.onnx, onnxruntime int8", kind="x")]
    changes = {"rounds": 6, "rows": rows, "candidates": ["model.onnx", says_int8(intact).name]}
    changes["devices"] = {"cpu": ["onnxruntime:fp32", "onnxruntime:int8"]}
    on(kind)
    report = run_gate(GateConfig(threads=1, baseline=write_baseline(intact, "", **changes)))
    assert report.exit_code == 0, report.complaint
    plain, eight = report.rows
    assert (plain.verdict, plain.drifts, plain.speed_floor) == ("passed", (), None)
    assert f"this is {module._machine_kind('cpu')}" in plain.unlike
    if kind in HAS_INT8:
        assert (eight.verdict, eight.drifts) == ("passed", ())
    else:
        assert (eight.verdict, "no VNNI" in " ".join(eight.remarks)) == ("not proven", True)


def test_two_makers_cpus_of_the_same_instructions_are_not_compared(intact, monkeypatch, tmp_path, on):
    on("avx512")  # for its cleaning up
    kinds = {}
    for vendor in ("AuthenticAMD", "GenuineIntel"):
        listed = tmp_path / vendor
        listed.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {CPUS['avx512']}\n")
        monkeypatch.setattr(processor, "_CPUINFO", listed)
        module._machine_kind.cache_clear()
        kinds[vendor] = module._machine_kind("cpu")
    assert kinds == {"AuthenticAMD": "AuthenticAMD avx2 f16c avx512f", "GenuineIntel": "GenuineIntel avx2 f16c avx512f"}
    path = write_baseline(intact, "model.onnx", rounds=0, rows=[saved_row(kind=kinds["AuthenticAMD"], speed=None)])
    (row,) = run_gate(GateConfig(threads=1, baseline=path)).rows
    assert (row.verdict, row.mask_band) == ("passed", None)
    assert "the baseline is from AuthenticAMD avx2 f16c avx512f, this is GenuineIntel" in row.unlike


def test_a_file_for_openvino_is_asked_of_what_runs_it(intact):
    path = write_baseline(intact, "model.onnx")
    kept = Baseline.read(path).with_candidates([BUILTIN_INT8])
    assert kept.devices["cpu"] == ("onnxruntime:fp32", "onnxruntime:int8:openvino", "openvino:int8")
    row = ParityRow(model="m.onnx", backend="onnxruntime", precision="int8 openvino")
    assert module._choice_of(row) == "onnxruntime:int8:openvino"
    assert module._choice_of(replace(row, backend="pytorch", precision="fp16 compiled")) == "pytorch:fp16"


def test_command_prints_what_moved(intact):
    path = write_baseline(intact, "model.onnx")
    answer = CliRunner().invoke(app, ["gate", str(path), "--update", "-o", str(intact / "gate.md")])
    assert answer.exit_code == 0, answer.output
    text = (intact / "gate.md").read_text()
    assert "Gate against baseline.json: 1 passed, 0 not proven" in text
    assert "| model.onnx, onnxruntime fp32 | cpu | - -> " in text
    again = CliRunner().invoke(app, ["gate", str(path), "--json"])
    assert json.loads(again.stdout)["rows"][0]["verdict"] == "passed"


def test_the_projects_own_baseline_names_files_that_exist():
    baseline = Baseline.read(ROOT / "benchmarks" / "baseline.json")
    assert (baseline.folder / baseline.reference).is_file()
    assert all((baseline.folder / name).is_file() for name in baseline.candidates)
    assert "cuda" in baseline.devices
