"""`basnet-doctor`: its findings, its advice, and its exit code."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from basnet_runtime import doctor
from basnet_runtime.backends.openvino_provider import why_no_devices
from basnet_runtime.doctor import Finding
from tests.models import has_openvino_plugin

RUNNER = CliRunner()
OK = [Finding(name=name, state="ok", detail="1.0") for name in ("gpu", "onnxruntime", "openvino", "pytorch")]


@pytest.mark.slow
def test_this_machine():
    answer = RUNNER.invoke(doctor.app, ["--json"])
    found = {finding["name"]: finding for finding in json.loads(answer.stdout)}
    assert found["pictures"]["detail"].startswith("libvips 8")
    assert "libx264" in found["video"]["detail"]
    assert "allowed" in found["threads"]["detail"]
    for finding in found.values():
        assert finding["state"] in ("ok", "missing", "error")
        assert "\n" not in finding["detail"]
    assert answer.exit_code == any(finding["state"] == "error" for finding in found.values())


def test_missing_library_names_the_line_that_mends_it(monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda _: None)
    findings = [doctor._examine_library(library) for library in doctor._LIBRARIES]
    assert all(finding.fix.startswith("pip install") for finding in findings)
    assert [finding.state for finding in findings[:4]] == ["error", "error", "error", "missing"]


def test_broken_library_is_a_finding():
    broken = doctor._Library(name="x", packages=("numpy",), code="raise OSError('libx.so is missing')", fix="pip mend")
    finding = doctor._examine_library(broken)
    assert finding == Finding(
        name="x", state="error", detail="installed, but broken: OSError: libx.so is missing", fix="pip mend"
    )
    crash = doctor._Library(name="x", packages=("numpy",), code="import os; os.abort()", fix="")
    assert "its process ended with -6" in doctor._examine_library(crash).detail


@pytest.mark.parametrize(
    ("told", "state", "fix"),
    [
        ('["ok", "1.8.1, for onnxruntime", ""]', "ok", ""),
        ('["missing", "offers nothing on this one", "use --backend openvino"]', "missing", "use --backend openvino"),
        ('["error", "needs ONNX Runtime 1.23", "pip install --upgrade onnxruntime"]', "error", "--upgrade onnxruntime"),
    ],
)
def test_the_provider_says_itself_what_is_wrong(told, state, fix):
    """A reinstall, the advice for what cannot be imported, helps neither an old ONNX Runtime nor another CPU."""
    asked = replace(doctor._OPENVINO_PROVIDER, packages=("numpy",), code=f"print('{told}')")
    finding = doctor._examine_library(asked)
    assert finding.state == state
    assert finding.fix.endswith(fix)


@has_openvino_plugin
def test_the_provider_is_asked_what_it_offers():
    finding = doctor._examine_library(doctor._OPENVINO_PROVIDER)
    import onnxruntime

    reason = why_no_devices(onnxruntime)
    assert (finding.state, finding.fix) == (("ok", "") if reason is None else ("missing", reason.fix))


def test_both_onnxruntimes_are_an_error():
    findings = doctor._conflicts(lambda package: "1.0" if package.startswith("onnxruntime") else "")
    assert [finding.name for finding in findings] == ["onnxruntime + onnxruntime-gpu"]
    assert findings[0].state == "error"
    assert findings[0].fix == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    assert doctor._conflicts(lambda package: "1.0" if package == "onnxruntime" else "") == []


def test_gaps():
    assert [finding.name for finding in doctor._gaps(OK)] == ["gpu in onnxruntime"]
    none = [Finding(name=finding.name, state="missing", detail="") for finding in OK]
    assert [(finding.name, finding.state) for finding in doctor._gaps(none)] == [("backend", "error")]


def test_exit_code_follows_the_findings(monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda: OK)
    answer = RUNNER.invoke(doctor.app, [])
    assert answer.exit_code == 0
    assert answer.stdout.splitlines()[0].split() == ["ok", "gpu", "1.0"]
    monkeypatch.setattr(doctor, "examine", lambda: [*OK, Finding(name="z", state="error", detail="bad", fix="mend")])
    answer = RUNNER.invoke(doctor.app, [])
    assert answer.exit_code == 1
    assert "-> mend" in answer.stdout
