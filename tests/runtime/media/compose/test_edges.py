"""Refined edges: onto the picture's edge where there is one, untouched where there is none, the same in strips."""

from __future__ import annotations

import numpy as np
import pytest

from basnet_runtime.frame import Frame
from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.compose import edges
from basnet_runtime.media.compose.compose import Composer
from basnet_runtime.media.compose.edges import refined_edges
from basnet_torch.metrics import boundary_iou


def disc(height, width, radius, grow=0.0, soft=1.0):
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - height / 2, x - width / 2)
    return ((radius + grow - distance) / soft + 0.5).clip(0, 1).astype(np.float32)


def picture(alpha, noise=3):
    rng = np.random.default_rng(0)
    colors = alpha[..., None] * (200, 60, 40) + (1 - alpha[..., None]) * (40, 90, 160)
    return (colors + rng.normal(0, noise, colors.shape)).clip(0, 255).astype(np.uint8)


def error(mask_HW, alpha):
    return np.abs(mask_HW / 255 - alpha).mean()


@pytest.mark.parametrize("size", [(300, 400), (900, 1200)])
@pytest.mark.parametrize("grow", [-0.01, 0.0, 0.01])
def test_a_mask_beside_the_edge_moves_to_it(size, grow):
    alpha = disc(*size, size[0] / 3)
    rough = (disc(*size, size[0] / 3, grow=grow * size[0], soft=size[0] / 25) * 255).astype(np.uint8)
    refined = refined_edges(picture(alpha), rough)
    assert error(refined, alpha) < 0.87 * error(rough, alpha)


@pytest.mark.parametrize("soft", [4, 16, 40])
@pytest.mark.parametrize("grow", [-6, 0, 6])
def test_boundaries_are_better_and_no_error_is_added(soft, grow):
    alpha = disc(360, 480, 110)
    rough = (disc(360, 480, 110, grow=grow, soft=soft) * 255).astype(np.uint8)
    refined = refined_edges(picture(alpha, noise=12), rough)
    assert error(refined, alpha) <= error(rough, alpha)
    before, after = (boundary_iou(mask > 127, alpha > 0.5) for mask in (rough, refined))
    if grow:
        assert after > before + 0.03
    else:
        assert after > 0.99  # it lay where it belongs


def test_no_pixel_is_less_certain_of_the_side_it_stays_on():
    rng = np.random.default_rng(0)
    alpha = disc(300, 400, 90)
    rough = disc(300, 400, 90, grow=3, soft=20) * 200 + 28 + rng.normal(0, 6, (300, 400))
    rough = rough.clip(0, 255).astype(np.uint8)
    refined = refined_edges(picture(alpha, noise=15), rough)
    stays = (refined > 127) == (rough > 127)
    assert 0.9 < stays.mean() < 1
    assert (np.abs(refined - 127.5) >= np.abs(rough - 127.5))[stays].all()


def test_a_picture_without_edges_leaves_the_mask():
    rough = (disc(200, 200, 60, soft=12) * 255).astype(np.uint8)
    rng = np.random.default_rng(0)
    flat = rng.integers(120, 124, (200, 200, 3), dtype=np.uint8)
    change = np.abs(refined_edges(flat, rough).astype(int) - rough)
    assert change.mean() < 1.5
    assert change.max() < 20


def test_strips_change_nothing(monkeypatch):
    alpha = disc(500, 640, 150)
    rough = (disc(500, 640, 150, soft=30) * 255).astype(np.uint8)
    whole = refined_edges(picture(alpha), rough).astype(int)
    monkeypatch.setattr(edges, "_STRIP_PIXELS", 5000)
    assert np.abs(refined_edges(picture(alpha), rough) - whole).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 40000)])
def test_odd_sizes(shape):
    image, mask = np.zeros((*shape, 3), np.uint8), np.full(shape, 128, np.uint8)
    assert np.abs(refined_edges(image, mask).astype(int) - 128).max() <= 1


def test_empty_and_full_masks_stay():
    image = picture(disc(90, 120, 30))
    for value in (0, 255):
        assert (refined_edges(image, np.full((90, 120), value, np.uint8)) == value).all()


def test_the_composer_refines_on_request_alone():
    alpha = disc(300, 400, 100)
    rough = (disc(300, 400, 100, soft=25) * 255).astype(np.uint8)
    frame = Frame(image_HWC=picture(alpha))
    plain = Composer(OutputKind())(frame, rough).pixels
    refined = Composer(OutputKind(), refine_edges=True)(frame, rough).pixels
    assert (plain == rough).all()
    assert (refined == refined_edges(frame.image_HWC, rough)).all()
    assert (refined != rough).any()
