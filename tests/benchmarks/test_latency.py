"""All three backends on a network of width 2, in one process."""

import sys
from contextlib import ExitStack, nullcontext
from types import SimpleNamespace

import pytest

from basnet_benchmarks.candidates import REFERENCE, Variant, parse_choices
from basnet_benchmarks.latency import LatencyConfig, _opened, measure_latency
from basnet_benchmarks.results import values_of
from basnet_torch.errors import BackendUnavailable, UsageError

FP32 = ("pytorch:fp32", "onnxruntime:fp32", "openvino:fp32")


def config_of(*models, **options):
    values = {
        "stages": False,
        "memory": False,
        "rounds": 6,
        "calls": 1,
        "warm_up": 1,
        "threads": 1,
        "backends": FP32,
        **options,
    }
    return LatencyConfig(models=tuple(map(str, models)), **values)


def test_checkpoint_and_its_export_run_on_every_backend_at_every_batch(bench_models):
    # PyTorch is not asked: it is measured all the same, because the ratios need it.
    report = measure_latency(config_of(bench_models.checkpoint, bench_models.onnx, batches=(1, 2), backends=FP32[1:]))
    assert [(row.model, row.backend, row.measurement.pictures) for row in report.results] == [
        (model, name, batch)
        for batch in (1, 2)
        for model, name in (
            ("good.safetensors", "pytorch"),
            ("good.safetensors", "onnxruntime"),
            ("good.safetensors", "openvino"),
            ("good.onnx", "onnxruntime"),
            ("good.onnx", "openvino"),
        )
    ]
    for row in report.results:
        assert (row.width, row.size, len(row.measurement.turns_s)) == (2, (64, 64), 6)
        assert row.ratio.low <= row.ratio.value <= row.ratio.high
    references = [row.ratio.value for row in report.results if row.backend == "pytorch"]
    assert references == [1.0, 1.0]
    values = values_of(report)
    assert values["settings"] == {"rounds": 6, "calls": 1, "warm_up": 1, "threads": 1, "device": "cpu"}
    first = values["results"][0]
    assert sum(map(len, first["turns_s"])) == 6
    assert min(min(turn) for turn in first["turns_s"]) > 0


def test_onnx_without_its_checkpoint_has_no_ratio(bench_models):
    alone = measure_latency(config_of(bench_models.onnx, rounds=1, backends=("onnxruntime",)))
    assert [(row.backend, row.ratio) for row in alone.results] == [("onnxruntime", None)]


def test_random_weights_of_a_width(tmp_path):
    report = measure_latency(config_of("random:2", rounds=1, backends=("pytorch:fp32",)))
    assert [(row.model, row.width, row.size) for row in report.results] == [("random:2", 2, (256, 256))]
    assert "too few" in report.warnings[-1]


def test_a_library_that_is_not_there_is_said_and_an_error_when_asked(bench_models, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    report = measure_latency(config_of(bench_models.onnx, rounds=1, backends=()))
    assert [row.backend for row in report.results] == ["onnxruntime"]
    assert {item.name for item in report.not_run} == {"good.onnx, openvino fp32", "good.onnx, openvino bf16"}
    assert all("pip install" in item.reason for item in report.not_run)
    with pytest.raises(BackendUnavailable, match="OpenVINO is not installed"):
        measure_latency(config_of(bench_models.onnx, rounds=1, backends=("openvino:fp32",)))


def test_only_what_was_asked_by_name_must_open():
    def refuse():
        raise BackendUnavailable("no CUDA device")

    reference = SimpleNamespace(name="reference", variant=REFERENCE, open=refuse)
    asked = SimpleNamespace(name="asked", variant=Variant(backend="onnxruntime", precision="fp32"), open=nullcontext)
    with ExitStack() as stack:
        opened, not_run = _opened([reference, asked], parse_choices(["onnxruntime"]), stack, lambda _: None)
        assert ([c.name for c, _ in opened], [n.name for n in not_run]) == (["asked"], ["reference"])
        with pytest.raises(BackendUnavailable, match=r"^no CUDA device$"):
            _opened([reference, asked], parse_choices(["pytorch"]), stack, lambda _: None)


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ((), {}, "at least one"),
        (("a/x.onnx", "b/x.onnx"), {}, "own name"),
        (("x.onnx",), {"rounds": 0}, "rounds is 0"),
        (("x.onnx",), {"batches": (0,)}, "batches"),
        (("x.onnx",), {"backends": ("onnx",)}, "backend 'onnx'"),
        (("x.onnx",), {"backends": ("pytorch:fp31",)}, "fp31"),
        (("x.onnx",), {"device": "gpu"}, "device gpu: give cpu, or cuda, tensorrt or rtx"),
    ],
)
def test_settings_that_make_no_sense_are_refused(models, options, message):
    with pytest.raises(UsageError, match=message):
        config_of(*models, **options)


@pytest.mark.parametrize("name", ["random:x", "random:0", "model.txt"])
def test_names_of_no_model_are_refused(name):
    with pytest.raises(UsageError, match=name):
        measure_latency(config_of(name))


def test_a_backend_that_runs_none_of_the_models_is_refused(bench_models):
    with pytest.raises(UsageError, match="pytorch runs none"):
        measure_latency(config_of(bench_models.onnx, backends=("pytorch",)))
