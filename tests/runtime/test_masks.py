"""The 8-bit mask: rounded, the same in strips as in one piece, and the same as the float path."""

from __future__ import annotations

import numpy as np
import pytest

from basnet_runtime import masks
from basnet_runtime.masks import mask_from_map
from basnet_torch.spec import Postprocess

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
    monkeypatch.setattr(masks.row_strips, "__defaults__", (1000,))
    assert np.abs(mask_from_map(values, *size) - whole).max() <= 1
    assert (mask_from_map(values, *size) != whole).mean() < 1e-3


def test_values_outside_are_cut_off():
    assert mask_from_map(np.array([[-1, 2]], np.float32), 1, 2).tolist() == [[0, 255]]


def test_the_map_itself_is_not_changed():
    values = np.array([[-1, 2]], np.float32)
    mask_from_map(values, 1, 2)
    assert values.tolist() == [[-1, 2]]
