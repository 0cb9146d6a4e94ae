"""Strong augmentation: each part against an independent computation, and nothing drawn but from seed and step."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from basnet_torch.data.augment import Chances, augmented, blurred, colored, jpeg, windows
from basnet_torch.data.batches import DeviceStream, Share, StrongAugment
from basnet_torch.data.datasets import PairStore

NEUTRAL = {"height": 1, "width": 1, "top": 0.5, "left": 0.5, "flip": 0, "brightness": 1, "contrast": 1}
NEUTRAL |= {"saturation": 1, "sigma": 0, "quality": 0}


def chances(count=1, **changes):
    values = {**NEUTRAL, **changes}
    return Chances(**{name: torch.full((count,), float(value)) for name, value in values.items()})


def photo(side=64):
    image = cv2.resize(data.astronaut(), (side, side), interpolation=cv2.INTER_AREA)
    mask = np.zeros((side, side), np.uint8)
    mask[: side // 2, side // 4 :] = 255
    return torch.from_numpy(image)[None], torch.from_numpy(mask)[None]


def test_nothing_drawn_leaves_picture_and_mask_alone():
    image, mask = photo()
    out, truth = augmented(image, mask, 64, chances())
    torch.testing.assert_close(out, image.permute(0, 3, 1, 2).float(), rtol=0, atol=0.01)
    torch.testing.assert_close(truth, mask[:, None].float(), rtol=0, atol=0.01)


def test_a_window_is_the_crop_of_picture_and_mask_together():
    image, mask = photo()
    out, truth = windows(image, mask, 32, chances(height=0.5, width=0.5, top=1, left=0), largest=0.5)
    torch.testing.assert_close(out, image[:, 32:, :32].permute(0, 3, 1, 2).float(), rtol=0, atol=0.01)
    torch.testing.assert_close(truth[:, 0], mask[:, 32:, :32].float(), rtol=0, atol=0.01)
    flipped, turned = windows(image, mask, 64, chances(flip=1))
    torch.testing.assert_close(flipped, image.flip(2).permute(0, 3, 1, 2).float(), rtol=0, atol=0.01)
    torch.testing.assert_close(turned[:, 0], mask.flip(2).float(), rtol=0, atol=0.01)


def test_a_window_larger_than_the_picture_shows_gray_around_it_and_no_object():
    image, mask = photo()
    out, truth = windows(image, torch.full_like(mask, 255), 64, chances(height=2, width=2), largest=2)
    assert out[0, :, :12].sub(124).abs().max() < 0.01
    assert truth[0, 0, :12].max() == 0
    assert truth.mean() / 255 == pytest.approx(0.25, abs=0.01)


def test_shrinking_averages_instead_of_dropping_pixels():
    stripes = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    out, _ = windows(stripes, stripes[..., 0], 32, chances())
    assert (out - 127.5).abs().max() < 2


def test_color_is_brightness_contrast_and_saturation():
    image = torch.rand(1, 3, 8, 8) * 100 + 50
    one = torch.ones(1)
    torch.testing.assert_close(colored(image, one * 1.2, one, one), image * 1.2, rtol=1e-5, atol=1e-3)
    gray = colored(image, one, one, one * 0)
    torch.testing.assert_close(gray[:, 0], gray[:, 2], rtol=1e-5, atol=1e-3)
    flat = colored(image, one, one * 0, one)
    assert flat.std() < 1e-3


def test_blur_equals_opencv_inside():
    image = photo()[0].permute(0, 3, 1, 2).float()
    ours = blurred(image.repeat(2, 1, 1, 1), torch.tensor([1.5, 0.0]))
    theirs = cv2.GaussianBlur(image[0].permute(1, 2, 0).numpy(), (25, 25), 1.5)
    np.testing.assert_allclose(ours[0].permute(1, 2, 0).numpy()[14:-14, 14:-14], theirs[14:-14, 14:-14], atol=0.05)
    torch.testing.assert_close(ours[1:], image, rtol=0, atol=1e-3)


@pytest.mark.parametrize("quality", [30, 60, 92])
def test_jpeg_equals_libjpeg(quality):
    image = photo()[0]
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _, packed = cv2.imencode(".jpg", image[0].numpy()[..., ::-1], flags)
    theirs = cv2.imdecode(packed, cv2.IMREAD_COLOR_RGB).astype(np.float32)
    ours = jpeg(image.permute(0, 3, 1, 2).float(), torch.tensor([float(quality)]))[0].permute(1, 2, 0).numpy()
    lost = np.abs(theirs - image[0].numpy()).mean()
    assert np.abs(ours - theirs).mean() < 0.25 * lost


def test_jpeg_of_quality_zero_is_none_and_other_sizes_are_refused():
    image = torch.rand(1, 3, 16, 16) * 255
    assert torch.equal(jpeg(image, torch.zeros(1)), image)
    with pytest.raises(ValueError, match="multiples of 8"):
        jpeg(torch.zeros(1, 3, 12, 12), torch.ones(1))


def test_what_is_drawn_stays_in_its_range():
    drawn = Chances.drawn([np.random.default_rng(i) for i in range(400)], jitter=(0.4, 1.25), stretch=1.5, flip=0.5)
    area = (drawn.height * drawn.width).sqrt()
    assert 0.4 <= area.min() < 0.45
    assert 1.2 < area.max() <= 1.25
    ratio = drawn.height / drawn.width
    assert ratio.max() <= 1.5 + 1e-5
    assert 0.4 < drawn.flip.mean() < 0.6
    assert 0.1 < (drawn.sigma > 0).float().mean() < 0.3
    assert 0.2 < (drawn.quality > 0).float().mean() < 0.4


def stream(store, share=None, seed=3):
    rules = StrongAugment(size=32, scale=(0.5, 1.2), stretch=1.2, flip=0.5)
    return DeviceStream(store, rules, batch=4, seed=seed, device="cpu", share=share)


def test_a_batch_depends_on_seed_and_step_alone(store):
    first, again = stream(store), stream(store)
    again.at(0)
    for a, b in zip(first.at(5), again.at(5), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.at(5)[0], stream(store, seed=4).at(5)[0])


def test_two_processes_share_one_batch(store):
    whole = stream(store).at(2)
    halves = [stream(store, Share(rank=rank, size=2)).at(2) for rank in (0, 1)]
    for i in (0, 1):
        torch.testing.assert_close(torch.cat([half[i] for half in halves]), whole[i], rtol=0, atol=1e-3)


def test_a_mask_stays_with_its_picture(store):
    bright = PairStore(store.names, np.repeat(store.masks[..., None], 3, 3), store.masks)  # the mask is the picture
    images, masks = stream(bright).at(0)
    assert masks.shape == (4, 1, 32, 32)
    for image, mask in zip(images, masks, strict=True):
        if mask.max() > 250 and mask.min() < 5:
            assert image.mean(0)[mask[0] > 250].mean() > image.mean(0)[mask[0] < 5].mean() + 50


def test_chances_move_together():
    moved = chances(2).to(torch.device("cpu"))
    assert torch.equal(moved.height, chances(2).height)
    assert replace(moved, flip=torch.ones(2)).flip.sum() == 2
