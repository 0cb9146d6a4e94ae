"""The authors' transforms by name, each against numbers computed in another way."""

import numpy as np
import pytest
from skimage import color, data

from basnet_torch.data.batches import AuthorsCrop, BatchStream
from basnet_torch.data.transforms import CenterCrop, RandomCrop, Rescale, RescaleT, Sample, ToTensorLab


def sample(height=40, width=60):
    image = data.astronaut()[:height, :width]
    mask = np.zeros((height, width), np.uint8)
    mask[:10, :20] = 255
    return Sample(image, mask)


def test_rescale_to_a_square_and_by_the_shorter_side():
    assert RescaleT(32)(sample()).image.shape == (32, 32, 3)
    wide, tall = Rescale(20)(sample()), Rescale(20)(sample(60, 40))
    assert (wide.mask.shape, tall.mask.shape) == ((20, 30), (30, 20))
    assert set(np.unique(wide.mask)) == {0, 255}


def test_crops_keep_picture_and_mask_together():
    whole = sample()
    middle = CenterCrop(20)(whole)
    np.testing.assert_array_equal(middle.image, whole.image[10:30, 20:40])
    places = set()
    for seed in range(8):
        crop = RandomCrop(30)(whole, np.random.default_rng(seed))
        top, left = next(
            (row, column)
            for row in range(11)
            for column in range(31)
            if np.array_equal(whole.image[row : row + 30, column : column + 30], crop.image)
        )
        np.testing.assert_array_equal(whole.mask[top : top + 30, left : left + 30], crop.mask)
        places.add((top, left))
    assert len(places) > 4
    with pytest.raises(ValueError, match="side is 50, but the picture has 40x60"):
        CenterCrop(50)(whole)


def test_flag_0_divides_by_the_largest_value_and_normalizes():
    planes, truth = ToTensorLab(flag=0)(sample())
    image = sample().image.astype(np.float64)
    expected = (image / image.max() - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(planes, expected.transpose(2, 0, 1), atol=1e-5)
    assert (planes.dtype, truth.shape, truth.max()) == (np.float32, (1, 40, 60), 1.0)


def test_flag_1_is_lab_and_flag_2_is_rgb_and_lab():
    lab = color.rgb2lab(sample().image)
    ranged = (lab - lab.min((0, 1))) / (lab.max((0, 1)) - lab.min((0, 1)))
    expected = ((ranged - ranged.mean((0, 1))) / ranged.std((0, 1))).transpose(2, 0, 1)
    planes, _ = ToTensorLab(flag=1)(sample())
    np.testing.assert_allclose(planes, expected, atol=2e-3)
    both, _ = ToTensorLab(flag=2)(sample())
    assert both.shape == (6, 40, 60)
    np.testing.assert_allclose(both[3:], planes, atol=1e-6)
    np.testing.assert_allclose(both.mean((1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(both.std((1, 2)), 1, atol=1e-4)


def test_gray_pictures_even_planes_and_empty_masks_stay_finite():
    gray = Sample(np.full((8, 8), 7, np.uint8), np.zeros((8, 8), np.uint8))
    for flag in (0, 1, 2):
        planes, truth = ToTensorLab(flag=flag)(gray)
        assert np.isfinite(planes).all()
        assert truth.max() == 0
    with pytest.raises(ValueError, match="flag is 3"):
        ToTensorLab(flag=3)


def test_the_authors_pass_shows_every_picture_and_its_mirror_image_once(store):
    stream = BatchStream(store, AuthorsCrop(size=64), batch=12, seed=0)
    images = np.concatenate([stream.at(step)[0] for step in (0, 1)])
    wanted = {image.tobytes() for image in store.images} | {image[:, ::-1].tobytes() for image in store.images}
    assert {image.tobytes() for image in images} == wanted
