"""The stabilizer: less flicker, no lag, nothing kept over a cut, the same when a video is done in parts."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest

from basnet_runtime.frame import Frame
from basnet_runtime.temporal import Stabilizer, warped

SIZE = 96


def texture(rng):
    smooth = cv2.GaussianBlur(rng.integers(0, 255, (SIZE, SIZE, 3)).astype(np.float32), (0, 0), 3)
    return ((smooth - smooth.mean()) / smooth.std() * 60 + 128).clip(0, 255)


def scene(frame, step=2, seed=1):
    """A textured disc moving right over a textured ground; picture and its true mask."""
    rng = np.random.default_rng(seed)
    ground, skin = (texture(rng) for _ in range(2))
    y, x = np.mgrid[:SIZE, :SIZE]
    left = 25 + step * frame
    mask = (np.hypot(y - SIZE / 2, x - left) < 18).astype(np.float32)
    moved = np.roll(skin, step * frame, axis=1)
    return np.where(mask[..., None] > 0, moved, ground).astype(np.uint8), mask


def iou(map_hw, truth):
    found = map_hw > 0.5
    return (found & (truth > 0)).sum() / (found | (truth > 0)).sum()


def noisy(mask, rng):
    """As a network that is unsure: holes and blobs that come and go."""
    noise = cv2.GaussianBlur(rng.normal(0, 3, mask.shape).astype(np.float32), (0, 0), 3)
    return (mask * 0.8 + 0.1 + noise).clip(0, 1)


def test_flicker_falls_and_masks_follow_the_motion():
    rng = np.random.default_rng(0)
    stabilizer, plain, stable, truth = Stabilizer(), [], [], []
    for frame in range(14):
        image, mask = scene(frame)
        plain.append(noisy(mask, rng))
        stable.append(stabilizer(image, plain[-1]))
        truth.append(mask)
    before = np.mean([iou(m, t) for m, t in zip(plain[3:], truth[3:], strict=True)])
    after = np.mean([iou(m, t) for m, t in zip(stable[3:], truth[3:], strict=True)])
    late = np.mean([iou(m, t) for m, t in zip(stable[3:], truth[2:], strict=False)])
    assert after > before + 0.05
    assert after > late  # the mask is that of this frame, not of the one before

    def change(maps):
        """What moving with the disc, two pixels a frame, leaves over."""
        return np.mean([np.abs(np.roll(a, 2, axis=1) - b).mean() for a, b in pairwise(maps[3:])])

    assert change(stable) < change(plain) / 2


def test_a_cut_starts_anew():
    stabilizer = Stabilizer()
    image, mask = scene(0)
    stabilizer(image, mask)
    other = np.zeros((SIZE, SIZE), np.float32)
    assert (stabilizer(255 - scene(0, seed=9)[0], other) == other).all()


def test_a_still_picture_keeps_its_mask():
    image, mask = scene(0)
    stabilizer = Stabilizer()
    for _ in range(3):
        np.testing.assert_allclose(stabilizer(image, mask), mask, atol=0.02)


def test_warping_moves_with_the_flow():
    last = np.zeros((8, 8), np.float32)
    last[2, 2] = 1
    flow = np.full((8, 8, 2), (-3, -1), np.float32)  # what is here was three to the left and one up
    assert warped(last, flow)[3, 5] == 1


@pytest.mark.parametrize("graph", ["tensor", "frame"])
def test_in_parts_as_in_one_run(make_model, graph, monkeypatch):
    model, rng = make_model(), np.random.default_rng(0)
    monkeypatch.setattr(type(model), "takes_frames", graph == "frame")
    frames = []
    for index in range(6):
        image, mask = scene(index)
        raw = noisy(mask, rng)
        raw = (raw * 255).astype(np.uint8) if graph == "frame" else raw[None]
        frames.append((Frame(image_HWC=image, index=index), raw))

    def finisher():
        return model.postprocessor(stabilize=True, stream=True)

    whole, first, second = finisher(), finisher(), finisher()
    masks = [whole(*item)[0] for item in frames]
    parts = [first(*item)[0] for item in frames[:3]]
    second.recall(first.memory)
    parts += [second(*item)[0] for item in frames[3:]]
    assert all((a == b).all() for a, b in zip(masks, parts, strict=True))
    assert masks[0].shape == (SIZE, SIZE)
    alone = model.postprocessor(stabilize=True)  # pictures have no past
    assert (alone(*frames[1])[0] != masks[1]).any()
    assert (alone(*frames[1])[0] == alone(*frames[1])[0]).all()


@pytest.mark.parametrize("size", [(1, 1), (4, 40)])
def test_smallest_maps(size):
    stabilizer = Stabilizer()
    values = np.full(size, 0.5, np.float32)
    for _ in range(2):
        assert (stabilizer(np.zeros((*size, 3), np.uint8), values) == 0.5).all()
