"""From raw map to mask: rounded, the same in strips as in one piece, and the same as the float path."""

from __future__ import annotations

import numpy as np
import pytest

from basnet_runtime import postprocess
from basnet_runtime.frame import Frame
from basnet_runtime.postprocess import Postprocessor, float_mask, mask_from_map
from basnet_torch.errors import ModelFileError
from basnet_torch.spec import Postprocess, Preprocess

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 64), (333, 500), (20, 900)])
def test_rounds_the_float_mask(size):
    values = RNG.random((64, 64), np.float32)
    exact = Postprocess().apply(values, *size) * 255
    assert np.abs(mask_from_map(values, *size) - exact).max() <= 0.5001


@pytest.mark.parametrize("size", [(7, 5), (64, 64), (333, 500), (400, 100)])
def test_strips_change_nothing(size, monkeypatch):
    values = RNG.random((64, 64), np.float32)
    whole = mask_from_map(values, *size).astype(int)
    monkeypatch.setattr(postprocess.row_strips, "__defaults__", (1000,))
    assert np.abs(mask_from_map(values, *size) - whole).max() <= 1
    assert (mask_from_map(values, *size) != whole).mean() < 1e-3


def test_values_outside_are_cut_off():
    assert mask_from_map(np.array([[-1, 2]], np.float32), 1, 2).tolist() == [[0, 255]]


def test_the_map_itself_is_not_changed():
    values = np.array([[-1, 2]], np.float32)
    mask_from_map(values, 1, 2)
    assert values.tolist() == [[-1, 2]]


@pytest.mark.parametrize("stretch", [False, True])
@pytest.mark.parametrize("takes_frames", [False, True])
def test_command_api_and_comparison_see_one_mask(stretch, takes_frames):
    """Bytes are the floats, rounded, whether decided or not; the `frame` graph's bytes pass as they are."""
    image = np.zeros((40, 60, 3), np.uint8)
    values = RNG.random((32, 32), np.float32) * np.float32(0.5)
    raw = RNG.integers(0, 255, (40, 60), np.uint8) if takes_frames else values[None]
    recipe = Preprocess(height=32, width=32), Postprocess(stretch=stretch)
    made = Postprocessor(*recipe, takes_frames=takes_frames, name="m")
    mask, decision = made(Frame(image_HWC=image), raw)
    map_hw, same = made.decide(raw)
    assert decision == same
    np.testing.assert_array_equal(float_mask(map_hw, 40, 60), made.undecided(raw, 40, 60))
    np.testing.assert_array_equal(mask, np.rint(made.undecided(raw, 40, 60) * 255))
    if takes_frames:
        np.testing.assert_array_equal(mask, raw)


def test_what_is_not_finite_is_seen_by_a_comparison_and_refused_by_all_others():
    raw = np.full((1, 32, 32), np.nan, np.float32)
    made = Postprocessor(Preprocess(height=32, width=32), Postprocess(), takes_frames=False, name="m")
    assert np.isnan(made.undecided(raw, 8, 8)).all()
    with pytest.raises(ModelFileError, match="m: gave values that are not finite"):
        made.decide(raw)
