"""The whole way of a picture, and what a candidate needs in a process of its own."""

import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from basnet_benchmarks import breakdown
from basnet_benchmarks.breakdown import STEPS, Memory, _with_copies, measure_stages, memory_of
from basnet_benchmarks.candidates import Candidate, ModelSource, Variant
from basnet_benchmarks.device_times import DeviceTimes
from basnet_benchmarks.environment import clocks
from basnet_benchmarks.latency import LatencyConfig, measure_latency
from basnet_benchmarks.results import values_of
from basnet_export.samples import BUNDLED
from basnet_torch.device import Device
from basnet_torch.errors import UsageError
from tests.conftest import make_fake_model


def candidate(source, backend="onnxruntime", precision="fp32", device="cpu"):
    variant = Variant(backend=backend, precision=precision)
    return Candidate(source=source, variant=variant, device=Device.parse(device), threads=1)


def test_every_step_of_every_round_is_there():
    source = SimpleNamespace(name="fake.onnx")
    model = make_fake_model()
    (split,) = measure_stages([(candidate(source), model)], BUNDLED / "coffee.jpg", rounds=3)
    assert set(split.seconds) == set(STEPS)
    assert all(len(times) == 3 for times in split.seconds.values())
    assert min(split.seconds["decode"]) > 0
    assert split.size == (213, 320)
    totals = [sum(split.seconds[s][i] for s in STEPS) for i in range(3)]
    assert model.backend.pictures == 4  # one round comes before and is not counted
    values = values_of(split)
    assert values["total_s"]["value"] == pytest.approx(np.median(totals), rel=1e-5)
    assert values["stages"]["decode"]["raw_s"] == pytest.approx(list(split.seconds["decode"]), rel=1e-5)
    assert "in place" in values["note"]


def test_copies_on_a_device_are_taken_out_of_the_call():
    seconds = dict.fromkeys(STEPS, (0.01, 0.02))
    device = DeviceTimes(copy_in_s=(0.002, 0.002, 0.5), copy_out_s=(0.001,), compute_s=(0.006,))
    found = _with_copies(seconds, device)
    assert found["copy_in"] == pytest.approx((0.012, 0.022))
    assert found["compute"] == pytest.approx((0.007, 0.017))
    assert found["copy_out"] == (0.001, 0.001)
    assert min(_with_copies(seconds, DeviceTimes(copy_in_s=(9.0,)))["compute"]) == 0


def test_memory_is_that_of_a_process_of_its_own(bench_models, tmp_path):
    source = ModelSource(str(bench_models.onnx), tmp_path)
    ballast = np.ones(400_000_000, np.uint8)
    need = memory_of(candidate(source), 1)
    assert isinstance(need, Memory), need
    assert 10e6 < need.before_bytes < need.opened_bytes <= need.highest_bytes < 400e6 * ballast[0]
    assert need.threads >= 1
    assert need.device_bytes is None


def test_a_candidate_that_cannot_run_says_why(bench_models, tmp_path):
    source = ModelSource(str(bench_models.onnx), tmp_path)
    assert "CUDA" in memory_of(candidate(source, device="cuda"), 1)


def test_a_process_that_hangs_is_given_up(bench_models, tmp_path, monkeypatch):
    def hang(*_, **__):
        raise subprocess.TimeoutExpired("x", 300)

    monkeypatch.setattr(breakdown.subprocess, "run", hang)
    assert "longer than" in memory_of(candidate(ModelSource(str(bench_models.onnx), tmp_path)), 1)


def test_latency_holds_them(bench_models):
    config = LatencyConfig(
        models=(str(bench_models.onnx),),
        batches=(1, 2),
        rounds=1,
        calls=1,
        warm_up=1,
        threads=1,
        backends=("onnxruntime",),
        memory=False,
    )
    values = values_of(measure_latency(config))
    (rates,) = values["throughput"]
    assert set(rates["pictures_per_second"]) == {"1", "2"}
    assert rates["best_batch"] in (1, 2)
    assert [split["model"] for split in values["stages"]] == ["good.onnx"]
    assert len(values["clocks"]) == 3
    assert values["results"][0]["device"] is None
    with pytest.raises(UsageError, match="no such file"):
        LatencyConfig(models=("x.onnx",), picture=bench_models.onnx.with_name("absent.jpg"))


def test_clocks_are_read_where_the_system_tells(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor: 0\ncpu MHz\t\t: 2500.5\nprocessor: 1\ncpu MHz\t\t: 2499.5\n")
    found = clocks(cpuinfo, tmp_path)
    assert (found.mhz, found.source) == ((2500.5, 2499.5), "/proc/cpuinfo")
    folder = tmp_path / "cpu0" / "cpufreq"
    folder.mkdir(parents=True)
    (folder / "scaling_cur_freq").write_text("3100000\n")
    assert (clocks(cpuinfo, tmp_path).mhz, clocks(cpuinfo, tmp_path).source) == ((3100.0,), "scaling_cur_freq")
    assert clocks(tmp_path / "absent", tmp_path / "absent").source == ""
