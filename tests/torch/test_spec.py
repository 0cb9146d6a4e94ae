"""Preparing and finishing agree with torch and with the authors' scikit-image way."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.transform import resize as skimage_resize
from torch.nn import functional as F

from basnet_torch import spec
from basnet_torch.json_values import from_plain, to_plain
from basnet_torch.spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Postprocess,
    Preprocess,
    check_size,
    resize_bilinear,
    resize_lanczos,
)

SIDES = st.integers(1, 70)


def noise(height, width):
    return np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_resize_equals_torch(height, width, to_height, to_width):
    image = noise(height, width)
    ours = resize_bilinear(image, to_height, to_width)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    theirs = F.interpolate(tensor, (to_height, to_width), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(ours, theirs[0].permute(1, 2, 0), atol=2e-2)  # of 255


def test_large_pictures_take_the_frugal_way_with_the_same_result(monkeypatch):
    image = noise(61, 93)
    plain = resize_bilinear(image, 32, 64)
    monkeypatch.setattr(spec, "_LARGE_PIXELS", 100)
    np.testing.assert_allclose(resize_bilinear(image, 32, 64), plain, atol=1e-3)


def test_authors_preparation():
    """Scikit-image without anti-aliasing, divided by the resized picture's largest value, normalized."""
    image = (noise(50, 70) * 0.7).astype(np.uint8)
    image[20, 20] = 255  # a bright pixel that the resized picture does not reach
    resized = skimage_resize(image, (64, 64), order=1, mode="edge", anti_aliasing=False, preserve_range=True)
    assert resized.max() < 254
    expected = (resized / resized.max() - IMAGENET_MEAN) / IMAGENET_STD
    ours = Preprocess(height=64, width=64, scale="image_max").apply(image)
    np.testing.assert_allclose(ours, expected.transpose(2, 0, 1), atol=1e-3)


def test_black_picture_is_not_divided_by_zero():
    prepared = Preprocess(height=32, width=32, scale="image_max").apply(np.zeros((4, 4, 3), np.uint8))
    assert np.isfinite(prepared).all()


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_only_uint8_rgb_is_taken(bad):
    with pytest.raises(ValueError, match="uint8 H,W,3"):
        Preprocess().apply(bad)


def test_stretch_is_per_picture_and_leaves_nothing_as_nothing():
    stretch = Postprocess(stretch=True)
    faint = np.array([[0.0, 0.05]], np.float32)
    strong = np.array([[0.2, 0.7]], np.float32)
    flat = np.full((2, 2), 0.6, np.float32)
    np.testing.assert_array_equal(stretch.stretched(faint), faint)
    np.testing.assert_allclose(stretch.stretched(strong), [[0, 1]], atol=1e-6)
    np.testing.assert_array_equal(stretch.stretched(flat), flat)
    np.testing.assert_array_equal(Postprocess().stretched(strong), strong)


@pytest.mark.parametrize("shape", [(97, 211), (40, 30), (64, 48), (64, 300), (700, 48), (1500, 1100)])
def test_lanczos_is_pillows(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    want = np.asarray(Image.fromarray(image).resize((48, 64), Image.Resampling.LANCZOS), np.float32)
    found = resize_lanczos(image, 64, 48)
    assert (found.shape, found.dtype) == (want.shape, np.float32)
    assert np.abs(found - want).max() <= 1
    assert np.abs(found - want).mean() < 0.01


def test_the_way_of_resizing_is_what_is_fed():
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    lanczos = Preprocess(height=32, width=32, mean=(0, 0, 0), std=(1, 1, 1), resample="lanczos")
    np.testing.assert_allclose(lanczos.apply(image).transpose(1, 2, 0) * 255, resize_lanczos(image, 32, 32), atol=1e-3)
    assert np.abs(lanczos.apply(image) - replace(lanczos, resample="bilinear").apply(image)).max() > 0.1
    with pytest.raises(ValueError, match="it must be 'bilinear' or 'lanczos'"):
        Preprocess(resample="nearest")


def test_older_files_resize_bilinearly_and_keep_their_digest():
    plain = {name: value for name, value in to_plain(Preprocess()).items() if name != "resample"}
    assert from_plain(plain, Preprocess) == Preprocess(resample="bilinear")
    assert Preprocess().digest() == "86120125b967"
    assert Preprocess(resample="lanczos").digest() != "86120125b967"


def test_values_survive_json_and_unknown_fields_do_not():
    for value in (Preprocess(height=224, scale="image_max"), Postprocess(stretch=True)):
        assert from_plain(to_plain(value), type(value)) == value
        with pytest.raises(ValueError, match="this version knows"):
            from_plain({**to_plain(value), "gamma": 2}, type(value))


@pytest.mark.parametrize(("height", "width"), [(0, 32), (31, 32), (32, 33), (-32, 32)])
def test_sizes(height, width):
    with pytest.raises(ValueError, match="multiples of 32"):
        check_size(height, width)


@pytest.mark.parametrize("fields", [{"height": 100}, {"scale": "1"}, {"std": (1.0, 0.0, 1.0)}, {"stride": 0}])
def test_preprocess_refuses_nonsense(fields):
    with pytest.raises(ValueError, match=r"size|scale|std|stride is 0"):
        Preprocess(**fields)
