"""`basnet-export`: exit codes, what goes to which stream, and what inspect says of every kind of file."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from basnet_export.cli import app
from basnet_runtime.manifest import read_manifest
from basnet_runtime.media.image.pictures import write_picture
from tests.models import checkpoint_file, disc_folder, exported, graph_made_before


@pytest.fixture
def run():
    def invoke(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke


def test_onnx_writes_a_checked_file(run, tmp_path, monkeypatch):
    monkeypatch.setattr("basnet_export.onnx_export.onnx_from_checkpoint", graph_made_before())
    path = tmp_path / "discs.onnx"
    result = run("onnx", checkpoint_file(), "-o", path, "--pictures", disc_folder(), "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["file"] == str(path)
    assert facts["manifest"]["parity"]["passed"] is True
    assert "checking" in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["discs.onnx", "discs.onnx.json"]


def test_no_check_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setattr("basnet_export.onnx_export.onnx_from_checkpoint", graph_made_before())
    result = run("onnx", checkpoint_file(), "-o", tmp_path / "a.onnx", "--no-check")
    assert result.exit_code == 0, result.stderr
    assert "masks not checked against PyTorch" in result.stdout
    assert read_manifest(tmp_path / "a.onnx").parity is None


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("--precision", "int8"), 2, "calibration"),
        (("--precision", "fp8"), 2, "fp8"),
        (("--size", "250"), 2, "multiples of 32"),
        (("--size", "big"), 2, "give one number, or height x width"),
        (("--store", "fp16", "--precision", "bf16"), 2, "kept in 16 bits already"),
        (("-o", "model.pb"), 2, "must end in .onnx"),
    ],
)
def test_wrong_usage(run, arguments, code, reason):
    result = run("onnx", checkpoint_file(), *arguments)
    assert result.exit_code == code
    assert reason in result.stderr


def test_pictures_without_objects_prove_nothing(run, tmp_path, monkeypatch):
    """Noise has no object, so the masks are flat: exit 4 and no file."""
    monkeypatch.setattr("basnet_export.onnx_export.onnx_from_checkpoint", graph_made_before())
    dark = np.random.default_rng(0).integers(0, 90, (64, 64, 3), dtype=np.uint8)
    write_picture(tmp_path / "dark" / "noise.png", dark)
    result = run("onnx", checkpoint_file(), "-o", tmp_path / "a.onnx", "--pictures", tmp_path / "dark")
    assert result.exit_code == 4
    assert "not proven: the reference masks are flat" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["dark"]


def test_missing_and_foreign_files(run, tmp_path):
    result = run("onnx", tmp_path / "none.pth")
    assert (result.exit_code, "no such file" in result.stderr) == (1, True)
    (tmp_path / "page.pth").write_bytes(b"<html>sign in</html>")
    result = run("onnx", tmp_path / "page.pth")
    assert (result.exit_code, "is a web page" in result.stderr) == (1, True)


def test_inspect_says_how_to_feed(run, tmp_path):
    checkpoint = run("inspect", checkpoint_file())
    assert "parameters" in checkpoint.stdout
    assert "basnet-export onnx" in checkpoint.stdout
    tensor = json.loads(run("inspect", exported(precision="fp32", graph="tensor"), "--json").stdout)
    assert "image float32 ?x3x?x? (proven at 64x64" in tensor["feed"]
    assert "proven on 4 pictures" in tensor["facts"]["parity"]
    frame = run("inspect", exported(precision="fp32", graph="frame")).stdout
    assert "uint8 RGB pictures N,H,W,3 of any size" in frame


def test_inspect_of_plans_and_of_nothing(run, tmp_path):
    plan = tmp_path / "a.plan"
    plan.write_bytes(b"engine")
    assert "a.plan.json is missing" in run("inspect", plan).stdout
    assert run("inspect", tmp_path / "none.plan").exit_code == 1
    assert run("inspect", tmp_path / "a.txt").exit_code == 1


def test_there_are_these_commands(run):
    assert {command.name or command.callback.__name__ for command in app.registered_commands} == {
        "adopt",
        "checkpoint",
        "engine",
        "inspect",
        "onnx",
        "triton",
    }
    assert run("engine").exit_code == 2
