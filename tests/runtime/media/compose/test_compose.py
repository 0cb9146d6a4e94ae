"""What is made of picture and mask, by value."""

from __future__ import annotations

import numpy as np
import pytest

from basnet_runtime.frame import Frame
from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.compose import compose, foreground
from basnet_runtime.media.compose.compose import Composer
from basnet_runtime.media.image.pictures import write_picture
from basnet_torch.errors import MediaError, UsageError

RED, BLUE, GREEN = (220, 30, 20), (20, 40, 200), (32, 192, 96)


def scene(height=120, width=160, soft=8):
    """A red disc on blue, mixed by a soft mask; returns image, mask and pure colors."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - height / 2, x - width / 2)
    alpha = np.clip((height / 3 - distance) / soft + 0.5, 0, 1)[..., None]
    image = alpha * RED + (1 - alpha) * BLUE
    return np.rint(image).astype(np.uint8), np.rint(alpha[..., 0] * 255).astype(np.uint8)


def made(kind, image, mask, alpha=None):
    return Composer(OutputKind.parse(kind))(Frame(image_HWC=image.copy(), alpha_HW=alpha), mask.copy())


@pytest.mark.parametrize("text", ["masks", "color", "color:red", "color:#12345", "image:", "blur:3", "", "mask:x"])
def test_unknown_kinds_are_refused(text):
    with pytest.raises(UsageError, match=r"kind is .* it must be mask, cutout, overlay, side, color:#rrggbb, image"):
        OutputKind.parse(text)


def test_mask_is_the_mask():
    image, mask = scene()
    out = made("mask", image, mask)
    assert (out.pixels == mask).all()
    assert out.alpha_HW is None


def test_cutout_has_no_rim_of_the_old_background():
    image, mask = scene()
    out = made("cutout", image, mask)
    soft = (mask > 20) & (mask < 235)
    assert (out.alpha_HW == mask).all()
    assert np.abs(out.pixels[soft].astype(int) - RED).mean() < np.abs(image[soft].astype(int) - RED).mean() / 3
    assert (out.pixels[mask == 255] == image[mask == 255]).all()
    assert (out.pixels[mask == 0] == 0).all()


def test_cutout_keeps_transparency_of_the_input():
    image, mask = scene()
    own = np.full(mask.shape, 128, np.uint8)
    alpha = made("cutout", image, mask, own).alpha_HW
    assert alpha is not None
    assert np.abs(alpha - mask * (128 / 255)).max() <= 0.51


def test_color_background_is_exact_outside_and_clean_at_the_edge():
    image, mask = scene()
    out = made("color:#20c060", image, mask).pixels.astype(float)
    share = mask[..., None] / 255
    ideal = share * RED + (1 - share) * GREEN
    assert (out[mask == 0] == GREEN).all()
    assert np.abs(out - ideal).mean() < 1
    assert np.abs(out - ideal).max() < 25


def test_overlay_changes_the_object_alone():
    image, mask = scene()
    out = made("overlay", image, mask).pixels
    assert (out[mask == 0] == image[mask == 0]).all()
    assert np.abs(out[mask == 255].astype(int) - image[mask == 255]).mean() > 20


def test_blur_keeps_the_object_and_does_not_smear_it():
    image, mask = scene(soft=1)
    image[::2, ::2][mask[::2, ::2] == 0] = 0
    out = made("blur", image, mask).pixels
    assert (out[mask == 255] == image[mask == 255]).all()
    outside = out[mask == 0].astype(int)
    assert outside[:, 0].max() < 60  # no red outside the disc
    assert outside.std(axis=0).max() < image[mask == 0].std(axis=0).max() / 2


@pytest.mark.parametrize("size", [(240, 320), (30, 40), (60, 300), (120, 160)])
def test_image_background_covers_and_is_centered(tmp_path, size):
    y = np.linspace(0, 255, size[0])[:, None, None]
    x = np.linspace(0, 255, size[1])[None, :, None]
    ramp = np.concatenate([y + 0 * x, x + 0 * y, 0 * x + 0 * y], axis=2).astype(np.uint8)
    write_picture(tmp_path / "back.png", ramp)
    image, mask = scene()
    out = made(f"image:{tmp_path / 'back.png'}", image, np.zeros_like(mask)).pixels
    assert np.abs(out[60, 80].astype(int) - (127, 127, 0)).max() <= 4
    assert (np.diff(out[..., 0].astype(int), axis=0) >= -1).all()
    assert (np.diff(out[..., 1].astype(int), axis=1) >= -1).all()
    assert out[-1, 0, 0] == 255 or out[0, -1, 1] >= 250


def test_missing_background_is_one_line(tmp_path):
    with pytest.raises(MediaError, match="no such file"):
        Composer(OutputKind.parse(f"image:{tmp_path / 'none.png'}"))


@pytest.mark.parametrize("kind", ["cutout", "overlay", "color:#20c060", "blur"])
def test_strips_change_nothing(kind, monkeypatch):
    image, mask = scene()
    whole = made(kind, image, mask).pixels.astype(int)
    for module in (compose, foreground):
        monkeypatch.setattr(
            module, "row_strips", lambda h, w, pixels=0: [slice(y, min(y + 7, h)) for y in range(0, h, 7)]
        )
    monkeypatch.setattr(compose, "_CACHED_PIXELS", 0)
    assert np.abs(made(kind, image, mask).pixels - whole).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1)])
@pytest.mark.parametrize("kind", ["mask", "cutout", "overlay", "color:#20c060", "blur"])
def test_smallest_pictures(kind, shape):
    image = np.full((*shape, 3), 90, np.uint8)
    out = made(kind, image, np.full(shape, 128, np.uint8))
    assert out.pixels.shape[:2] == shape
