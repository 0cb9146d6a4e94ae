"""Good files pass, damaged ones fail, and what did not run is never passed."""

import sys

import numpy as np
import pytest

from basnet_benchmarks.parity import ParityConfig, Pictures, measure_parity
from basnet_benchmarks.results import values_of
from basnet_export.reference import RememberingModel
from basnet_runtime.parity import compare, tolerance_for
from basnet_torch.errors import DataError, UsageError
from tests.conftest import make_fake_model
from tests.torch.conftest import draw_pairs, write_png

FP32 = ("onnxruntime:fp32", "openvino:fp32")


def config_of(reference, *candidates, **options):
    return ParityConfig(reference=reference, candidates=candidates, **{"threads": 1, "backends": FP32, **options})


def test_good_passes_and_damaged_fails(bench_models, data_set):
    result = measure_parity(
        config_of(bench_models.checkpoint, bench_models.onnx, bench_models.damaged, pictures=data_set)
    )
    assert [(row.model, row.backend, row.verdict) for row in result.candidates] == [
        ("good.onnx", "onnxruntime", "passed"),
        ("good.onnx", "openvino", "passed"),
        ("damaged.onnx", "onnxruntime", "failed"),
        ("damaged.onnx", "openvino", "failed"),
    ]
    assert (result.exit_code, result.complaint.count("damaged.onnx")) == (4, 2)
    good, damaged = result.candidates[0].report, result.candidates[2].report
    assert (good.pictures, good.informative) == (3, 3)
    assert good.max_abs <= 1e-4 < damaged.max_abs
    assert 0 < good.pytorch_fp32["max_abs"] < 1e-4
    assert abs(good.mae_change) < 1e-5
    assert abs(damaged.mae_change) > 1e-5
    assert any("max_abs" in remark and "disc" in remark for remark in result.candidates[2].remarks)
    assert values_of(result)["candidates"][2]["report"]["worst"]["max_abs"].startswith("disc")


def test_without_candidates_the_reference_is_exported(bench_models, picture_folder):
    result = measure_parity(config_of(bench_models.checkpoint, pictures=picture_folder, backends=FP32[:1]))
    assert [(row.model, row.verdict) for row in result.candidates] == [("good.safetensors", "passed")]
    assert (result.exit_code, result.complaint, result.candidates[0].report.mae_change) == (0, "", None)
    assert "fp32" in result.reference_runs_on


def test_the_reference_among_the_candidates_is_itself(bench_models, picture_folder):
    result = measure_parity(
        config_of(
            bench_models.checkpoint,
            bench_models.checkpoint,
            bench_models.onnx,
            pictures=picture_folder,
            backends=FP32[:1],
        )
    )
    assert [(row.model, row.verdict) for row in result.candidates] == [
        ("good.safetensors", "passed"),
        ("good.onnx", "passed"),
    ]


def test_flat_reference_is_not_proven(bench_models, picture_folder, tmp_path):
    copy = tmp_path / "copy.pth"
    copy.write_bytes(bench_models.flat.read_bytes())
    result = measure_parity(config_of(bench_models.flat, copy, pictures=picture_folder, backends=("pytorch:fp32",)))
    assert [row.verdict for row in result.candidates] == ["not proven"]
    assert result.exit_code == 4
    assert result.candidates[0].report.max_abs < 1e-6  # of FP64
    assert "flat" in result.complaint


def test_what_does_not_run_is_not_proven(bench_models, picture_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    asked = measure_parity(config_of(bench_models.checkpoint, bench_models.onnx, pictures=picture_folder))
    assert [row.verdict for row in asked.candidates] == ["passed", "not proven"]
    assert "pip install" in asked.candidates[1].remarks[0]
    assert asked.exit_code == 3
    assert asked.complaint.startswith("not proven: good.onnx, openvino fp32: OpenVINO is not installed")
    every = measure_parity(config_of(bench_models.checkpoint, bench_models.onnx, pictures=picture_folder, backends=()))
    assert ([row.verdict for row in every.candidates], every.exit_code) == (["passed", "not proven", "not proven"], 0)
    alone = measure_parity(
        config_of(bench_models.checkpoint, bench_models.onnx, pictures=picture_folder, backends=FP32[1:])
    )
    assert alone.exit_code == 3


def test_the_reference_is_not_compared_with_itself(bench_models, picture_folder):
    with pytest.raises(UsageError, match="reference itself"):
        measure_parity(config_of(bench_models.checkpoint, pictures=picture_folder, backends=("pytorch:fp32",)))
    with pytest.raises(UsageError, match="give the exported checkpoint"):
        config_of(bench_models.onnx)


def test_reference_runs_once_per_picture():
    images = draw_pairs(3, 80)[0]
    model, plain = make_fake_model(), make_fake_model()
    remembering = RememberingModel(model)
    for _ in range(2):
        for image in images:
            np.testing.assert_array_equal(remembering.mask(image), plain.mask(image))
    assert model.backend.pictures == 3
    forgetful = RememberingModel(model, limit_bytes=0)
    assert [forgetful.mask(images[0]).shape for _ in range(2)] == [(80, 80)] * 2
    assert model.backend.pictures == 5


def test_data_set_gives_truth_and_folder_gives_none(data_set, picture_folder):
    for _ in range(2):  # as often as there are candidates
        with_truth = list(Pictures(data_set))
        assert [p.name for p in with_truth] == ["disc0", "disc1", "disc2"]
        assert all(set(np.unique(p.truth_HW)) == {0, 1} for p in with_truth)
    without = list(Pictures(picture_folder))
    assert [p.truth_HW for p in without] == [None] * 3
    np.testing.assert_array_equal(with_truth[0].image_HWC, without[0].image_HWC)
    assert len(list(Pictures(None))) == 5
    report = compare(make_fake_model(), make_fake_model(), Pictures(data_set), tolerance_for("fp32"))
    assert report.mae_change == report.max_f_change == 0


def test_a_mask_of_another_size_than_its_picture_is_named(data_set):
    write_png(data_set / "masks" / "disc1.png", np.zeros((10, 12), np.uint8))
    with pytest.raises(DataError, match=r"disc1: picture is \(72, 72\) and mask \(10, 12\)"):
        list(Pictures(data_set))


def test_folders_that_hold_no_pictures_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no such"):
        Pictures(tmp_path / "absent")
    with pytest.raises(DataError, match="no pictures"):
        Pictures(tmp_path)
