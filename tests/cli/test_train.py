"""`basnet-train` as a user calls it."""

import json
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from basnet_torch.checkpoint import load_checkpoint, save_authors_checkpoint
from basnet_torch.data import datasets
from basnet_torch.device import CPU
from basnet_torch.errors import BackendUnavailable
from basnet_torch.model.basnet import BASNet
from basnet_torch.train.cli import _autocast, app
from basnet_torch.train.trainer import StepResult, Trainer
from tests.torch.conftest import pair_folder, write_png  # noqa: F401 - a fixture

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
    command = [sys.executable, "-c", "from basnet_torch.train.cli import main; main()", *map(str, arguments)]
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
        (("--data", pair_folder, "--run", tmp_path / "r", "--resume", "--init", "x.pth"), 2, "leave --init"),
        (("--data", pair_folder, "--run", tmp_path / "r", "--threads", "9999"), 2, "threads is 9999"),
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
    assert _autocast("auto", CPU) == "fp32"
    assert "autocast fp32: torch names no bfloat16" in capsys.readouterr().err
    with pytest.raises(BackendUnavailable, match="use --autocast fp32"):
        _autocast("bf16", CPU)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert [_autocast(asked, CPU) for asked in ("auto", "bf16", "fp32")] == ["bf16", "bf16", "fp32"]


EACH = {
    "--arch": ("unet", lambda c: c["arch"] == "unet"),
    "--no-refine": (None, lambda c: c["arch"] == "basnet-coarse"),
    "--loss": ("bce+iou", lambda c: c["loss"] == "bce+iou"),
    "--scale": ("image_max", lambda c: c["scale"] == "image_max"),
    "--augment": ("authors", lambda c: c["augment"] == "authors"),
    "--crop-stretch": (1.5, lambda c: c["crop_stretch"] == 1.5),
    "--flip": (0.25, lambda c: c["flip"] == 0.25),
    "--optimizer": ("sgd", lambda c: c["optimizer"] == "sgd"),
    "--momentum": (0.5, lambda c: c["momentum"] == 0.5),
    "--lr": (0.01, lambda c: c["lr"] == 0.01),
    "--encoder-lr": (0.1, lambda c: c["encoder_lr"] == 0.1),
    "--layer-decay": (0.9, lambda c: c["layer_decay"] == 0.9),
    "--weight-decay": (0.1, lambda c: c["weight_decay"] == 0.1),
    "--distill": (0.3, lambda c: c["distill"] == 0.3),
    "--schedule": ("constant", lambda c: c["schedule"] == "constant"),
    "--warmup": (5, lambda c: c["warmup"] == 5),
    "--clip": (1.0, lambda c: c["clip"] == 1.0),
    "--ema": (0.5, lambda c: c["ema"] == 0.5),
    "--compile": ("eager", lambda c: c["compiler"] == "eager"),
    "--no-channels-last": (None, lambda c: c["channels_last"] is False),
    "--seed": (7, lambda c: c["seed"] == 7),
    "--eval-every": (9, lambda c: c["eval_every"] == 9),
    "--save-every": (9, lambda c: c["save_every"] == 9),
    "--preset": ("authors", lambda c: (c["optimizer"], c["scale"], c["width"]) == ("adam", "image_max", 2)),
}


@pytest.mark.parametrize("option", EACH)
def test_each_option_reaches_the_run(option, pair_folder, tmp_path, monkeypatch):  # noqa: F811
    """All but the steps themselves, which the trainer's own tests cover for each option."""
    monkeypatch.setattr(Trainer, "_train_step", first_step_only)
    value, holds = EACH[option]
    given = (option,) if value is None else (option, value)
    result = call("--data", pair_folder, "--run", tmp_path / "run", "--steps", 1, *given)
    assert result.exit_code == 0, result.output
    assert holds(json.loads((tmp_path / "run/config.json").read_text())["config"])


def first_step_only(trainer, images, masks):
    batch, target = trainer._to_device(images, masks)
    assert batch.shape == (2, 3, 32, 32)
    assert 0 <= target.min() <= target.max() <= 1
    trainer.step += 1
    return StepResult(step=trainer.step, loss=1.0, terms={}, gradient_norm=1.0, lr=0.1, seconds=0.1)


def test_bad_pairs_are_refused_or_skipped_and_counted_before_training(pair_folder, tmp_path):  # noqa: F811
    (pair_folder / "DUTS-TR-Image/disc1.png").write_bytes(b"half a picture")
    (pair_folder / "DUTS-TR-Mask/disc2.png").unlink()
    common = ("--data", pair_folder, "--steps", 1, "--run")
    refused = call(*common, tmp_path / "a")
    assert (refused.exit_code, "1 pairs have no mask (DUTS-TR-Image/disc2.png)" in refused.stderr) == (1, True)
    skipped = call(*common, tmp_path / "b", "--on-bad-pair", "skip")
    assert skipped.exit_code == 0, skipped.output
    for said in ("data: 4 pairs", "1 pairs that cannot be read, skipped (disc1)", "1 pictures without a mask, skipped"):
        assert said in skipped.stderr
    report = json.loads((tmp_path / "b/config.json").read_text())["report"]
    assert (report["pairs"], report["unreadable"], report["without_mask"]) == (4, 1, 1)


def test_teacher_strong_augmentation_and_tensorboard(pair_folder, tmp_path):  # noqa: F811
    common = ("--data", pair_folder, "--val", pair_folder, "--steps", 1, "--run")
    assert call(*common, tmp_path / "teacher").exit_code == 0
    options = (
        "--teacher",
        tmp_path / "teacher/best.pth",
        "--augment",
        "strong",
        "--crop-scale",
        0.4,
        1.3,
        "--tensorboard",
    )
    result = call(*common, tmp_path / "student", *options)
    assert result.exit_code == 0, result.output
    assert {"log.txt", "log.jsonl", "curves.html", "panel.png", "tensorboard"} <= {
        path.name for path in (tmp_path / "student").iterdir()
    }
    assert "teacher" in json.loads((tmp_path / "student/log.jsonl").read_text().splitlines()[0])


def test_more_mistakes_end_in_one_line(pair_folder, tmp_path):  # noqa: F811
    cases = [
        (("--arch", "unet", "--no-refine"), 2, "unet has no refinement module"),
        (("--autocast", "fp16"), 3, "autocast fp16: CPUs train in bf16 or fp32"),
        (("--accumulate", 4), 2, "a divisor of the batch, 2"),
        (("--batch", 1), 2, "batch is 1 and size 32: 12 batch norms would see one picture of one pixel"),
        (("--accumulate", 2), 2, "batch is 2 and size 32: 12 batch norms would see one picture of one pixel"),
        (("--width", 10**6), 2, "width is 1000000: the network cannot be built"),
        (("--store-size", 10**7), 2, "6 pairs take 2,400,000 GB; lower --store-size"),
        (("--teacher", tmp_path / "none.pth"), 1, "no such file"),
        (("--resnet34", tmp_path / "none.pth", "--arch", "unet"), 2, "unet has no ResNet-34 encoder"),
    ]
    for arguments, code, message in cases:
        result = call("--data", pair_folder, "--run", tmp_path / "r", "--steps", 1, *arguments)
        assert (result.exit_code, message in result.stderr) == (code, True), result.output
        assert "Traceback" not in result.output


def test_every_option_has_a_test():
    """New options are named here or in `EACH`."""
    elsewhere = {
        "--run-dir",
        "--data",
        "--val",
        "--run",
        "--resume",
        "--init",
        "--widen-noise",
        "--resnet34",
        "--device",
        "--threads",
    }
    elsewhere |= {"--refine", "--width", "--size", "--eval-size", "--store-size", "--crop-scale", "--batch", "--steps"}
    elsewhere |= {"--encoder", "--encoder-weights", "--decoder-widths"}  # tests/torch/model/test_encoders.py
    elsewhere |= {
        "--teacher",
        "--autocast",
        "--channels-last",
        "--on-bad-pair",
        "--mask-values",
        "--tensorboard",
        "--help",
    }
    elsewhere |= {"--accumulate", "--mask-values"}
    command = typer.main.get_command(app)
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert known == {*EACH, *elsewhere} - {"--help"}


def test_the_authors_weights_go_on_with_their_way_of_preparing(pair_folder, tmp_path):  # noqa: F811
    save_authors_checkpoint(tmp_path / "basnet.pth", BASNet(2).state_dict())
    common = ("--data", pair_folder, "--steps", 1, "--init", tmp_path / "basnet.pth")
    assert call(*common, "--run", tmp_path / "a").exit_code == 0
    assert load_checkpoint(tmp_path / "a/last.pth").preprocess.scale == "image_max"
    assert call(*common, "--run", tmp_path / "b", "--scale", 255).exit_code == 0
    assert load_checkpoint(tmp_path / "b/last.pth").preprocess.scale == "255"


def test_label_maps_are_refused_or_read_as_asked(pair_folder, tmp_path):  # noqa: F811
    for path in (pair_folder / "DUTS-TR-Mask").iterdir():
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        border = cv2.dilate(mask, np.ones((9, 9), np.uint8)) > mask
        write_png(path, np.where(border, 255, mask > 0).astype(np.uint8))
    common = ("--data", pair_folder, "--val", pair_folder, "--steps", 1, "--run")
    for more in ((), ("--on-bad-pair", "skip")):
        refused = call(*common, tmp_path / "a", *more)
        assert (refused.exit_code, "--mask-values labels reads it" in refused.stderr) == (1, True)
        assert "Traceback" not in refused.stderr
    assert not (tmp_path / "a/last.pth").exists()
    read = call(*common, tmp_path / "b", "--mask-values", "labels")
    assert read.exit_code == 0, read.output
    assert "data: 6 label maps with pixels that are left out" in read.stderr
    assert "validation: 6 label maps with pixels that are left out" in read.stderr
    facts = json.loads((tmp_path / "b/config.json").read_text())
    assert (facts["mask_values"], facts["report"]["left_out"]) == ("labels", 6)
    again = call(*common, tmp_path / "b", "--resume")
    assert (again.exit_code, "--mask-values labels reads it" in again.stderr) == (1, True)


def test_a_step_in_parts_reaches_the_run(pair_folder, tmp_path):  # noqa: F811
    """Parts of two pictures: of one, at this size, batch norm would see a single value."""
    result = call("--data", pair_folder, "--run", tmp_path, "--steps", 1, "--batch", 4, "--accumulate", 2)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "config.json").read_text())["config"]["accumulate"] == 2


def test_resume_takes_more_steps(pair_folder, tmp_path):  # noqa: F811
    common = ("--data", pair_folder, "--run", tmp_path / "run")
    assert call(*common, "--steps", 1).exit_code == 0
    resumed = CliRunner().invoke(app, [str(a) for a in (*common, "--resume", "--steps", 3)])
    assert resumed.exit_code == 0, resumed.output
    assert json.loads(resumed.stdout.splitlines()[-1])["step"] == 3
    assert "resumed at step 1 with 3 steps instead of 1" in resumed.stderr
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["steps"] == 3
    fewer = CliRunner().invoke(app, [str(a) for a in (*common, "--resume", "--steps", 2)])
    assert (fewer.exit_code, "the run has done 3; give at least as many" in fewer.stderr) == (2, True)


def test_an_unexpected_error_names_its_log(pair_folder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(datasets, "decode_mask", lambda *_: 1 / 0)
    result = call("--data", pair_folder, "--run", tmp_path / "run", "--steps", 1, "--on-bad-pair", "skip")
    assert (result.exit_code, "6 pairs that failed unexpectedly" in result.stderr) == (1, True)
    assert "unexpected: ZeroDivisionError: division by zero; traceback in" in result.stderr
    assert "Traceback" not in result.stderr
