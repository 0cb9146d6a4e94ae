"""What repeats gives nothing, what moves is measured, and what cannot run is said."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from basnet_benchmarks import noise as module
from basnet_benchmarks.cli import app
from basnet_benchmarks.noise import WHAT, NoiseConfig, measure_noise
from basnet_benchmarks.parity import Pictures
from basnet_torch.errors import BackendUnavailable, UsageError
from tests.conftest import make_fake_model


def test_every_way_of_repeating(bench_models, picture_folder, tmp_path):
    backend = ("--backend", "onnxruntime", "--threads", "1", "--times", "2", "--pictures", str(picture_folder))
    options = [str(bench_models.onnx), *backend, "--json", "-o", str(tmp_path / "n.md")]
    answer = CliRunner().invoke(app, ["noise", *options])
    assert answer.exit_code == 0, answer.output
    values = json.loads(answer.stdout)
    rows = {row["what"]: row for row in values["rows"]}
    assert set(rows) == set(WHAT[:4])  # an exported file is not built again: its checkpoint is
    assert [rows[what]["comparisons"] for what in WHAT[:4]] == [6, 6, 3, 3]
    for what in ("run again", "opened again"):
        assert rows[what]["deterministic"]
    assert rows["other threads"]["measures"]["max_abs"] < 1e-5
    assert rows["in a batch of 2"]["measures"]["max_abs"] < 1e-5
    assert "| good.onnx, onnxruntime fp32 | run again | 6 | 0 |" in (tmp_path / "n.md").read_text()


def test_a_checkpoint_is_built_again(bench_models, picture_folder):
    report = measure_noise(
        NoiseConfig(
            model=str(bench_models.checkpoint), pictures=picture_folder, times=1, threads=1, backends=("onnxruntime",)
        )
    )
    rebuilt = next(row for row in report.rows if row.what == "built again")
    assert rebuilt.deterministic


def test_what_moves_is_measured(picture_folder):
    """A backend that gives other masks at every run."""
    pictures, model = list(Pictures(picture_folder)), make_fake_model()
    infer, runs = model.backend.infer, []

    def shaking(batch):
        runs.append(None)
        return infer(batch) + np.float32(0.001) * len(runs)

    first = module._masks(model, pictures)
    model.backend.infer = shaking
    row = module._row(FakeCandidate(), WHAT[0], first, (module._masks(model, pictures),))
    assert not row.deterministic
    values = row.to_dict()
    assert values["measures"]["max_abs"] == pytest.approx(0.003, abs=1e-6)
    assert values["worst"]["max_abs"] == pictures[2].name


class FakeCandidate:
    name = "fake"


def test_what_cannot_run_is_said(bench_models, picture_folder):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(BackendUnavailable, match="CUDA"):
        measure_noise(NoiseConfig(model=str(bench_models.onnx), pictures=picture_folder, threads=1, device="cuda"))
    with pytest.raises(UsageError, match="times is 0"):
        NoiseConfig(model="x", times=0)
