"""The flicker score: nothing for masks that move with the picture, much for masks that come and go."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from basnet_benchmarks import flicker
from basnet_benchmarks.cli import app
from basnet_benchmarks.flicker import FlickerConfig, FlickerMeter, Motion, measure_flicker


def frames(count=6, step=3, size=128):
    """A bright textured square that moves right over a dark ground, and its masks."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 255, (size, size)).astype(np.float32), (0, 0), 3)
    texture = (texture - texture.mean()) / texture.std()
    for index in range(count):
        mask = np.zeros((size, size), np.float32)
        left = 20 + step * index
        mask[40:90, left : left + 50] = 1
        grey = 60 + 15 * texture
        grey[40:90, left : left + 50] = 190 + 25 * texture[40:90, 20:70]
        yield grey.clip(0, 255).astype(np.uint8), mask


def score(masks, greys, truths=None):
    meter, last = FlickerMeter(), None
    for mask, grey, truth in zip(masks, greys, truths or [None] * len(masks), strict=True):
        meter.add(mask, None if last is None else Motion.between(grey, last), truth)
        last = grey
    return meter.row("a", "b")


def test_masks_that_move_with_the_picture_do_not_flicker():
    greys, masks = zip(*frames(), strict=True)
    assert score(masks, greys).flicker < 0.03
    blinking = [mask * (1 if index % 2 else 0.5) for index, mask in enumerate(masks)]
    assert score(blinking, greys).flicker > 0.4


def test_late_masks_are_told():
    greys, masks = zip(*frames(), strict=True)
    truths = [mask > 0 for mask in masks]
    prompt, late = score(masks, greys, truths), score([masks[0], *masks[:-1]], greys, truths)
    assert prompt.iou == 1 > prompt.lag
    assert late.lag == 1 > late.iou


def test_the_command_with_truth_and_without(tmp_path, monkeypatch, make_model, write_video):
    monkeypatch.setattr(flicker, "open_model", lambda *_, **__: make_model())
    folder = tmp_path / "square"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    images = []
    for index, (grey, mask) in enumerate(frames(4)):
        images.append(np.repeat(grey[..., None], 3, axis=2))
        cv2.imwrite(str(folder / "images" / f"{index}.png"), grey)
        cv2.imwrite(str(folder / "masks" / f"{index}.png"), (mask * 255).astype(np.uint8))
    clip = write_video(tmp_path / "clip.mp4", images)
    answer = CliRunner().invoke(app, ["flicker", str(folder), str(clip), "--json", "--frames", "3"])
    assert answer.exit_code == 0, answer.stderr
    rows = json.loads(answer.stdout)["rows"]
    assert [(row["source"], row["masks"], row["frames"]) for row in rows] == [
        ("square", "as they are", 3),
        ("square", "stabilised", 3),
        ("square", "truth", 3),
        ("clip.mp4", "as they are", 3),
        ("clip.mp4", "stabilised", 3),
    ]
    assert all((row["iou"] is not None) == (row["source"] == "square") for row in rows if row["masks"] != "truth")
    assert CliRunner().invoke(app, ["flicker", str(folder), "-o", str(tmp_path / "out.md")]).exit_code == 0
    assert "| square | stabilised | 4 |" in (tmp_path / "out.md").read_text()


def test_one_frame_is_no_video(tmp_path, monkeypatch, make_model, write_video):
    monkeypatch.setattr(flicker, "open_model", lambda *_, **__: make_model())
    clip = write_video(tmp_path / "clip.mp4", [np.zeros((32, 32, 3), np.uint8)])
    with pytest.raises(flicker.UsageError, match="has 1 frames; flicker needs at least 2"):
        measure_flicker(FlickerConfig(sources=(clip,)))
