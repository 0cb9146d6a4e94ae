"""The Python API: what it takes, what it gives, and that it gives what the command does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import basnet_runtime as bn
from basnet_runtime.api import Prediction, Predictor, frame_of
from basnet_runtime.command.cli import app
from basnet_runtime.media.image.pictures import read_picture, write_picture
from basnet_torch.errors import MediaError, ModelFileError, UsageError


@pytest.fixture
def model(fake_model):
    return Predictor(fake_model)


def bright(height=40, width=60):
    image = np.full((height, width, 3), 10, np.uint8)
    image[height // 4 : height // 2, width // 4 : width // 2] = 240
    return image


def test_arrays_pil_and_files_give_the_same(model, tmp_path):
    image = bright()
    write_picture(tmp_path / "a b.png", image)
    mask = model(image)
    assert mask.shape == (40, 60)
    assert mask.dtype == np.float32
    assert mask[15, 20] > 0.8
    assert mask[35, 50] < 0.2
    for same in (Image.fromarray(image), tmp_path / "a b.png", str(tmp_path / "a b.png"), image[:, ::-1][:, ::-1]):
        np.testing.assert_array_equal(model(same), mask)
    gray = image[..., 0]
    for same in (gray, gray[..., None], Image.fromarray(gray), Image.fromarray(image).quantize(8)):
        np.testing.assert_allclose(model(same), mask, atol=0.02)
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    np.testing.assert_allclose(model(deep), mask, atol=0.01)


def test_transparency_is_kept_in_the_cutout(model):
    image = bright()
    alpha = np.full((40, 60), 255, np.uint8)
    alpha[:, :20] = 0
    rgba = np.dstack([image, alpha])
    for same in (rgba, Image.fromarray(rgba)):
        cut = model.cutout(same)
        assert cut.shape == (40, 60, 4)
        assert (cut[:, :20, 3] == 0).all()
        assert cut[15, 25, 3] > 200


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_batches_are_the_same_one_by_one(model, batch):
    images = [bright(30 + 10 * (index % 2), 50 + index) for index in range(5)]
    one_by_one = [model(image) for image in images]
    for several in (images, tuple(images), (image for image in images)):
        masks = model(several, batch=batch)
        assert isinstance(masks, list)
        assert all((a == b).all() for a, b in zip(masks, one_by_one, strict=True))
    stack = np.stack([bright(), 255 - bright()])
    assert [mask.shape for mask in model(stack)] == [(40, 60)] * 2
    assert model([]) == []


def test_pictures_of_any_size_in_one_batch_of_a_frame_graph(make_model, monkeypatch):
    model = make_model()
    monkeypatch.setattr(type(model), "takes_frames", True)
    monkeypatch.setattr(model.backend, "infer", lambda batch: batch.max(axis=3))
    images = [bright(30 + 10 * (index % 2), 50) for index in range(4)]
    for found, image in zip(Predictor(model).predict(images), images, strict=True):
        np.testing.assert_array_equal(np.rint(found.mask * 255), image[..., 0])


def test_a_weak_mask_is_kept_and_can_be_emptied(model):
    dark = np.full((20, 20, 3), 12, np.uint8)
    found = model.predict(dark)
    assert not found.salient
    assert found.score == pytest.approx(12 / 255, abs=0.001)
    assert found.mask.min() > 0
    assert (model.mask(dark) == found.mask).all()
    assert (model(dark) == found.mask).all()
    assert model.cutout(dark)[..., 3].min() > 0
    assert repr(found) == "Prediction(20x20, salient=False, score=0.047)"
    assert model.salience(dark) == found.decision
    emptied = model.predict(dark, empty_weak=True)
    assert emptied.decision == found.decision
    assert emptied.mask.shape == (20, 20)
    assert not emptied.mask.any()
    assert not model(dark, empty_weak=True).any()
    assert not model.cutout(dark, empty_weak=True).any()
    assert [mask.any() for mask in model([dark, bright()], empty_weak=True)] == [False, True]


@pytest.mark.parametrize("stabilize", [False, True])
def test_weak_frames_of_a_video_are_kept_and_can_be_emptied(model, write_video, tmp_path, stabilize):
    clip = write_video(tmp_path / "clip.mp4", [np.full((48, 64, 3), 12, np.uint8)] * 2)
    for emptied in (False, True):
        frames = list(model.video(clip, empty_weak=emptied, stabilize=stabilize))
        assert [(frame.salient, bool(frame.mask.any())) for frame in frames] == [(False, not emptied)] * 2


def test_what_is_composed_is_what_the_command_makes(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr("basnet_runtime.open.open_model", lambda *_, **__: make_model())
    write_picture(tmp_path / "photo.png", bright())
    found = Predictor(make_model()).predict(tmp_path / "photo.png")
    for kind, options in (("cutout", []), ("color:#20c060", ["--feather", "2"]), ("mask", ["--threshold", "0.5"])):
        out = tmp_path / f"{kind[:4]}.png"
        answer = CliRunner().invoke(app, [str(tmp_path / "photo.png"), "--kind", kind, "-o", str(out), *options])
        assert answer.exit_code == 0, answer.stderr
        given = {options[0][2:]: float(options[1])} if options else {}
        ours, theirs = found.compose(kind, **given), read_picture(out)
        picture = ours if ours.ndim == 3 else np.repeat(ours[..., None], 3, axis=2)
        assert np.abs(picture[..., :3].astype(int) - theirs.image_HWC).max() <= 1
        if kind == "cutout":
            assert theirs.alpha_HW is not None
            assert np.abs(ours[..., 3].astype(int) - theirs.alpha_HW).max() <= 1
    assert (found.image == bright()).all()  # composing left the picture as it was


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((3, 4, 4, 2, 2), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        Image.fromarray(np.zeros((4, 4), np.float32)),
        3.5,
        None,
    ],
)
def test_what_is_no_picture_is_one_line(image):
    with pytest.raises(UsageError, match=r"^image is") as told:
        frame_of(image)
    assert "\n" not in str(told.value)


def test_missing_files_and_broken_networks(model, monkeypatch, tmp_path):
    with pytest.raises(MediaError, match="no such file"):
        model(tmp_path / "none.png")
    with pytest.raises(MediaError, match="cannot be read"):
        list(model.video(tmp_path / "none.mp4"))
    with pytest.raises(UsageError, match="batch is 0"):
        model([bright()], batch=0)
    monkeypatch.setattr(
        model.model.backend, "infer", lambda batch: np.full((len(batch), 1, 64, 64), np.nan, np.float32)
    )
    with pytest.raises(ModelFileError, match="not finite"):
        model(bright())


@pytest.mark.parametrize("options", [{}, {"batch": 3}, {"stabilize": True}])
def test_video_frame_by_frame(model, write_video, tmp_path, options):
    images = [np.roll(bright(48, 64), 4 * index, axis=1) for index in range(7)]
    clip = write_video(tmp_path / "clip.mp4", images)
    found = list(model.video(clip, **options))
    assert [frame.index for frame in found] == list(range(7))
    assert [frame.seconds for frame in found] == pytest.approx([1001 * index / 30000 for index in range(7)])
    for frame, image in zip(found, images, strict=True):
        assert isinstance(frame, Prediction)
        assert frame.salient
        assert np.abs(frame.image.astype(int) - image).mean() < 3
        if not options.get("stabilize"):
            np.testing.assert_allclose(frame.mask, model.model.mask(frame.image), atol=0.003)
    assert found[3].cutout().shape == (48, 64, 4)


def test_a_video_that_is_left_early_is_closed(model, write_video, tmp_path):
    clip = write_video(tmp_path / "clip.mp4", [bright(48, 64)] * 5)
    frames = model.video(clip)
    next(frames)
    frames.close()
    clip.unlink()
    assert not any(str(clip) in str(link.resolve()) for link in Path("/proc/self/fd").iterdir())


def test_the_package_opens_models():
    assert bn.load.__name__ == "load"
