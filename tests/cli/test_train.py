"""`basnet-train` as a user calls it."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from basnet_torch.checkpoint import load_checkpoint
from basnet_torch.cli import _autocast, app
from basnet_torch.errors import BackendUnavailable
from tests.torch.conftest import pair_folder  # noqa: F401 - a fixture

SMALL = ("--width", 2, "--size", 32, "--eval-size", 32, "--store-size", 64, "--batch", 2, "--autocast", "fp32")


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in (*SMALL, *arguments)])


def test_train_resume_and_init(pair_folder, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    common = ("--data", pair_folder, "--val", pair_folder, "--run")
    first = call(*common, run, "--steps", 2)
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout.splitlines()[-1])["step"] == 2
    assert {"best.pth", "last.pth", "log.jsonl", "config.json"} <= {p.name for p in run.iterdir()}
    again = call(*common, run, "--steps", 2)
    assert (again.exit_code, "add --resume" in again.stderr) == (2, True)
    resumed = CliRunner().invoke(app, [str(a) for a in (*common, run, "--resume")])  # the rest is the run's own
    assert resumed.exit_code == 0, resumed.output
    assert json.loads(resumed.stdout.splitlines()[-1])["step"] == 2
    changed = CliRunner().invoke(app, [str(a) for a in (*common, run, "--resume", "--lr", 0.5)])
    assert (changed.exit_code, "lr 0.001 -> 0.5" in changed.stderr) == (1, True)
    other = call(*common, tmp_path / "second", "--steps", 1, "--init", run / "best.pth")
    assert other.exit_code == 0, other.output
    bare = ("--data", pair_folder, "--run", tmp_path / "third", "--steps", 1, "--init", run / "best.pth")
    small = ("--size", 32, "--eval-size", 32, "--store-size", 64, "--batch", 2, "--autocast", "fp32")
    third = CliRunner().invoke(app, [str(a) for a in (*bare, *small)])  # the width is that of the checkpoint
    assert third.exit_code == 0, third.output
    wide = CliRunner().invoke(
        app,
        [
            str(a)
            for a in (
                "--data",
                pair_folder,
                "--run",
                tmp_path / "w",
                "--steps",
                1,
                "--width",
                4,
                "--init",
                run / "best.pth",
                *small,
            )
        ],
    )
    assert wide.exit_code == 0, wide.output
    assert load_checkpoint(tmp_path / "w/last.pth").width == 4


def test_a_scheduler_ending_it_loses_nothing(pair_folder, tmp_path):  # noqa: F811
    """SIGTERM in the middle: exit 130, and last.pth holds the step it came to."""
    arguments = (*SMALL, "--data", pair_folder, "--run", tmp_path / "run", "--steps", 10**6, "--save-every", 10**6)
    command = [sys.executable, "-c", "from basnet_torch.cli import main; main()", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run/log.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.rstrip().endswith("interrupted")
    last = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])["step"]
    assert load_checkpoint(tmp_path / "run/last.pth").metadata["step"] == last


def test_mistakes_end_in_one_line(pair_folder, tmp_path):  # noqa: F811
    cases = [
        (("--data", tmp_path / "absent", "--run", tmp_path / "r"), 1, "no such file"),
        (("--data", pair_folder, "--run", tmp_path / "r", "--resume"), 2, "resume from"),
        (("--data", pair_folder, "--run", tmp_path / "r", "--init", tmp_path / "x.pth"), 1, "no such file"),
        (("--data", pair_folder, "--run", tmp_path / "r", "--size", "50"), 2, "multiples of 32"),
        (("--data", pair_folder, "--run", tmp_path / "r", "--batch", "50"), 2, "there are 6 pairs"),
        (("--data", pair_folder, "--run", tmp_path / "r", "--crop-scale", "0", "2"), 2, "crop_scale"),
        (("--data", pair_folder, "--run", tmp_path / "r", "--device", "tpu"), 2, "cpu, cuda or cuda:N"),
        (("--data", pair_folder, "--run", tmp_path / "r", "--device", "cuda:99"), 3, "sees"),
        (("--data", pair_folder, "--run", pair_folder / "DUTS-TR-Image/disc0.png/r"), 2, "cannot be made a folder"),
    ]
    for arguments, code, message in cases:
        result = call(*arguments)
        assert (result.exit_code, message in result.stderr) == (code, True), result.output
        assert len(result.stderr.strip().splitlines()) == 1


def test_bf16_is_taken_only_where_the_processor_has_it(monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    assert _autocast("auto", "cpu") == "fp32"
    assert "autocast fp32: torch names no bfloat16" in capsys.readouterr().err
    with pytest.raises(BackendUnavailable, match="use --autocast fp32"):
        _autocast("bf16", "cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert [_autocast(asked, "cpu") for asked in ("auto", "bf16", "fp32")] == ["bf16", "bf16", "fp32"]
