"""Two processes over gloo compute what one computes on the doubled batch; the first alone writes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from basnet_torch.checkpoint import load_checkpoint
from basnet_torch.errors import UsageError
from basnet_torch.train.distributed import SyncedBatchNorm2d, World, synchronize_norms, world_from_environment

OPTIONS = ("--width", 2, "--size", 32, "--eval-size", 32, "--store-size", 64, "--batch", 4, "--autocast", "fp32")
OPTIONS += ("--steps", 6, "--warmup", 2, "--threads", 1, "--eval-every", 3)


def trained(run, folder, *, processes, more=()):
    arguments = ["basnet_torch", "--data", folder, "--val", folder, "--run-dir", run, *OPTIONS, *more]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", processes, "-m"] if processes > 1 else []
    command = [sys.executable, "-m", *launcher, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return done, [r for r in records if r["kind"] == "step"]


def test_two_processes_give_the_loss_curve_of_one_with_the_same_batch(pair_folder, tmp_path):
    """Of 4 pictures a step each process computes 2; that is one process with the doubled batch.

    Under SGD, whose steps are as small as its gradients: Adam divides rounding by rounding where a gradient is nearly
    zero, and the curves of two equal runs part after a few steps.
    """
    more = ("--augment", "strong", "--size", 64, "--optimizer", "sgd", "--lr", 1e-4, "--schedule", "constant")
    done, both = trained(tmp_path / "two", pair_folder, processes=2, more=more)
    _, one = trained(tmp_path / "one", pair_folder, processes=1, more=more)
    assert [r["step"] for r in both] == [r["step"] for r in one] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(both, one, strict=True):
        for name in ("loss", "bce", "ssim", "iou"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), (a["step"], name)
    for a, b in zip(both[:2], one[:2], strict=True):  # before rounding has grown through the weights
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-4)
    assert len({round(r["loss"], 2) for r in one}) > 3  # it is a curve
    assert len(done.stdout.strip().splitlines()) == 1  # the first process alone speaks
    assert {"best.pth", "last.pth", "config.json", "curves.html"} <= {
        path.name for path in (tmp_path / "two").iterdir()
    }
    assert json.loads((tmp_path / "two/config.json").read_text())["processes"] == 2


def test_two_processes_compute_a_step_in_parts(pair_folder, tmp_path):
    _, steps = trained(tmp_path / "run", pair_folder, processes=2, more=("--accumulate", 2, "--steps", 2))
    assert [r["step"] for r in steps] == [1, 2]
    assert load_checkpoint(tmp_path / "run/last.pth").metadata["step"] == 2


def test_joined_norm_equals_pytorch_s_on_one_process(tmp_path):
    """Alone in its group the sums are its own, so that values and gradients must be those of nn.BatchNorm2d."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        ours, theirs = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(nn.BatchNorm2d(3))
        synchronize_norms(ours)
        assert type(ours[0]) is SyncedBatchNorm2d
        x = torch.randn(4, 3, 5, 5) * 3 + 1
        inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        weights = torch.randn(4, 3, 5, 5)
        outputs = [model.train()(value) for model, value in zip((ours, theirs), inputs, strict=True)]
        for output in outputs:
            (output * weights).sum().backward()
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)
    finally:
        torch.distributed.destroy_process_group()


def test_the_environment_says_who_one_is(monkeypatch):
    assert world_from_environment() == World()
    values = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert world_from_environment() == World(rank=3, size=4, local_rank=1, local_size=2)
    assert not world_from_environment().is_first
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(UsageError, match="torchrun sets these to numbers"):
        world_from_environment()
