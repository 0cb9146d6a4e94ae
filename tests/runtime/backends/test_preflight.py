"""Plans for another library, release or GPU, damaged ones and foreign ones: refused before TensorRT sees them."""

import json
from dataclasses import replace

import pytest

from basnet_runtime.backends.tensorrt import preflight as module
from basnet_runtime.backends.tensorrt.library import TensorRT
from basnet_runtime.backends.tensorrt.preflight import check_gpu, preflight, read_plan_manifest
from basnet_runtime.engine_facts import EngineFacts, Profile
from basnet_runtime.manifest import manifest_path, read_manifest, sha256_of
from basnet_runtime.open import BUILTIN, open_model
from basnet_torch.errors import BackendUnavailable, ModelFileError


@pytest.fixture
def plan(tmp_path):
    """Bytes that only their manifest calls a plan: nothing here reads further than their digest."""
    path = tmp_path / "fp16.plan"
    path.write_bytes(b"plan" * 1000)
    describe(path)
    return path


def describe(path, **changes):
    facts = EngineFacts(
        flavor="rtx",
        version="1.7.1.116",
        gpu="",
        compute_capabilities=(),
        driver="",
        plan_sha256=sha256_of(path),
        plan_bytes=path.stat().st_size,
        profiles=(Profile(smallest=(1, 3, 64, 64), best=(1, 3, 64, 64), largest=(8, 3, 64, 64)),),
        build_seconds=1.0,
        typed_layers=1.0,
        typed_flops=1.0,
    )
    manifest = replace(read_manifest(BUILTIN), kind="plan", engine=replace(facts, **changes))
    manifest_path(path).write_text(manifest.to_json())
    return manifest.engine


@pytest.fixture
def here(monkeypatch):
    """A machine with a driver and one release of each flavor."""
    monkeypatch.setattr(module, "has_nvidia_driver", lambda: True)
    versions = {"rtx": "1.7.1.116", "tensorrt": "10.16.1.11"}
    monkeypatch.setattr(
        module,
        "open_tensorrt",
        lambda flavor: TensorRT(flavor=flavor, version=versions[flavor], trt=None, logger=None, messages=None),
    )


def test_what_fits_passes(plan, here):
    manifest, facts, library = preflight(plan)
    assert (manifest.kind, facts.flavor, library.version) == ("plan", "rtx", "1.7.1.116")


def test_no_gpu_is_one_clear_sentence(plan, monkeypatch):
    monkeypatch.setattr(module, "has_nvidia_driver", lambda: False)
    with pytest.raises(
        BackendUnavailable, match="runs on an NVIDIA GPU, and this machine has no NVIDIA driver"
    ) as caught:
        open_model(plan)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "1.4.0.0"}, r"built by TensorRT for RTX 1\.4\.0\.0, and here is TensorRT for RTX 1\.7\.1\.116"),
        ({"version": "1.8.0.0", "flags": {"version_compatible": True}}, "rebuild it here with"),
        ({"flavor": "tensorrt", "version": "11.4.0.1"}, r"built by TensorRT 11\.4\.0\.1, and here is TensorRT 10\.16"),
        ({"flavor": "tensorrt", "version": "9.3.0.1", "flags": {"version_compatible": True}}, "--flavor tensorrt"),
    ],
)
def test_other_releases_are_named_with_the_mending_command(changes, reason, plan, here):
    describe(plan, **changes)
    with pytest.raises(BackendUnavailable, match=reason) as caught:
        preflight(plan)
    assert "basnet-export engine MODEL -o fp16.plan" in str(caught.value)


def test_odd_versions_are_compared_not_parsed(plan, here):
    describe(plan, version="1.7.0b6")
    with pytest.raises(BackendUnavailable, match=r"built by TensorRT for RTX 1\.7\.0b6"):
        preflight(plan)
    describe(plan, version="1.7.0b6", flags={"version_compatible": True})
    preflight(plan)


def test_a_version_compatible_plan_runs_in_later_releases(plan, here):
    describe(plan, version="1.5.0.1", flags={"version_compatible": True})
    preflight(plan)


def test_other_gpus(plan):
    facts = describe(plan, flavor="tensorrt", gpu="NVIDIA H200", compute_capabilities=("9.0",))
    check_gpu(plan, facts, "NVIDIA H200", "9.0")
    with pytest.raises(BackendUnavailable, match=r"on NVIDIA H200 for compute capability 9\.0, and NVIDIA L4 has 8\.9"):
        check_gpu(plan, facts, "NVIDIA L4", "8.9")
    facts = describe(plan, compute_capabilities=("9.0",), flags={"hardware_compatible": True})
    check_gpu(plan, facts, "NVIDIA A100", "8.0")
    with pytest.raises(BackendUnavailable, match=r"NVIDIA T4 has 7\.5"):
        check_gpu(plan, facts, "NVIDIA T4", "7.5")
    check_gpu(plan, describe(plan), "anything", "7.5")  # built for whatever the library supports


def test_damaged_plans(plan):
    plan.write_bytes(plan.read_bytes()[:100])
    with pytest.raises(ModelFileError, match=r"is cut short \(100 of 4,000 bytes\)"):
        read_plan_manifest(plan)
    plan.write_bytes(b"nalp" * 1000)
    with pytest.raises(ModelFileError, match=r"is not the plan that fp16\.plan\.json describes"):
        read_plan_manifest(plan)


@pytest.mark.parametrize(
    ("field", "value"),
    [("flavor", "foo"), ("plan_bytes", "x"), ("typed_flops", "x"), ("flags", None), ("profiles", 3)],
)
def test_manifests_with_wrong_values_are_one_line(field, value, plan):
    values = json.loads(manifest_path(plan).read_text())
    values["engine"][field] = value
    manifest_path(plan).write_text(json.dumps(values))
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_plan_manifest(plan)


@pytest.mark.parametrize(("field", "value"), [("parity", {}), ("exporter", []), ("checkpoint_sha256", 5)])
def test_records_with_wrong_values_are_one_line(field, value, plan):
    values = json.loads(manifest_path(plan).read_text())
    manifest_path(plan).write_text(json.dumps({**values, field: value}))
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_plan_manifest(plan)


def test_manifests_that_are_none(plan):
    manifest_path(plan).write_text(read_manifest(BUILTIN).to_json())
    with pytest.raises(ModelFileError, match="describes no TensorRT engine"):
        read_plan_manifest(plan)
    manifest_path(plan).unlink()
    with pytest.raises(ModelFileError, match=r"has no fp16\.plan\.json beside it"):
        read_plan_manifest(plan)
    with pytest.raises(BackendUnavailable, match=r"has no fp16\.plan\.json beside it"):  # exit 3 where it is to run
        preflight(plan)
    with pytest.raises(ModelFileError, match="no such file"):
        preflight(plan.with_name("none.plan"))
