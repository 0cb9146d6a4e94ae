"""Animations: as many frames out as in, each with its delay, the loop count, the transparency."""

from __future__ import annotations

from contextlib import suppress

import cv2
import numpy as np
import pytest

from basnet_runtime.media.animation import (
    AnimationSink,
    AnimationSource,
    AnimationTraits,
    animation_suffix,
    check_animation_output,
    is_animation,
)
from basnet_runtime.media.compose import Composer, OutputKind
from basnet_runtime.media.frame import Composed, Frame
from basnet_runtime.media.pictures import write_picture
from basnet_runtime.pipeline import Pipeline, Room
from basnet_runtime.timing import StageClock
from basnet_torch.errors import MediaError, UsageError

DELAYS = (50, 170, 30, 1000)
SUFFIXES = [".gif", ".webp", ".png", ".avif"]


def pictures(height=48, width=64):
    """A white square that moves over black, with colours that a palette of 256 holds."""
    frames = []
    for i in range(len(DELAYS)):
        image = np.zeros((height, width, 3), np.uint8)
        image[10:30, 5 + 10 * i : 25 + 10 * i] = 255
        frames.append(image)
    return frames


def draw(path, frames=None, alpha=None, loops=3):
    frames = frames or pictures()
    sink = AnimationSink(path, AnimationTraits(height=48, width=64, delays=DELAYS, loops=loops), overwrite=False)
    clock = StageClock()
    for i, image in enumerate(frames):
        sink.write(Composed(pixels=image, alpha_HW=alpha, frame=Frame(image_HWC=image, index=i)), clock)
    sink.finish(clock)
    return path


def read(path):
    with AnimationSource(path) as source:
        return source.traits, list(source.frames(Room(), StageClock()))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("loops", [0, 1, 3])
def test_frames_delays_and_loops_survive(tmp_path, suffix, loops):
    path = draw(tmp_path / f"ä a{suffix}", loops=loops)
    assert is_animation(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    traits, frames = read(path)
    assert (traits.height, traits.width, traits.delays) == (48, 64, DELAYS)
    assert traits.loops == (0 if suffix == ".avif" else loops)  # OpenCV does not read an AVIF's
    assert [(frame.index, frame.duration) for frame in frames] == list(enumerate(DELAYS))
    for frame, image in zip(frames, pictures(), strict=True):
        worst = np.abs(frame.image_HWC.astype(int) - image).mean()
        assert worst == 0 if suffix != ".avif" else worst < 4


@pytest.mark.parametrize("suffix", [".webp", ".png", ".avif"])
def test_soft_transparency_survives(tmp_path, suffix):
    alpha = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8), (48, 64)).copy()
    _, frames = read(draw(tmp_path / f"a{suffix}", [image // 2 + 60 for image in pictures()], alpha))
    for frame in frames:
        assert frame.alpha_HW is not None
        assert np.abs(frame.alpha_HW.astype(int) - alpha).mean() < 2


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_results_wider_than_the_source(tmp_path, suffix, fake_model):
    target = tmp_path / f"out{suffix}"
    with AnimationSource(draw(tmp_path / f"a{suffix}")) as source:
        sink = AnimationSink(target, source.traits, overwrite=False)
        Pipeline(fake_model, Composer(OutputKind.parse("side"))).run(source, sink)
    traits, frames = read(target)
    assert (traits.height, traits.width, len(frames)) == (48, 128, len(DELAYS))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("batch", [1, 3])
def test_through_the_pipeline(tmp_path, suffix, batch, fake_model):
    path = draw(tmp_path / f"a{suffix}")
    target = tmp_path / f"out{suffix}"
    with AnimationSource(path) as source:
        sink = AnimationSink(target, source.traits, overwrite=False)
        report = Pipeline(fake_model, Composer(OutputKind()), batch=batch).run(source, sink)
    assert report.frames == len(DELAYS)
    traits, frames = read(target)
    assert traits.delays == DELAYS
    for frame, image in zip(frames, pictures(), strict=True):  # the fake model's mask is the brightness
        inside = frame.image_HWC[image > 0].mean(), frame.image_HWC[image == 0].mean()
        assert inside[0] > 200
        assert inside[1] < 30


def test_names(tmp_path):
    gif, webp = draw(tmp_path / "a.gif"), draw(tmp_path / "b.webp")
    assert animation_suffix(gif, OutputKind()) == ".gif"
    assert animation_suffix(gif, OutputKind.parse("cutout")) == ".webp"
    assert animation_suffix(webp, OutputKind()) == ".webp"
    assert animation_suffix(gif, OutputKind(), "png") == ".png"
    assert animation_suffix(gif, OutputKind(), "jpg") == ".gif"
    with pytest.raises(UsageError, match="holds no soft transparency; write a cutout as"):
        check_animation_output(tmp_path / "a.gif", OutputKind.parse("cutout"))
    with pytest.raises(UsageError, match=r"an animation is written as .*, not \.jpg"):
        check_animation_output(tmp_path / "a.jpg", OutputKind())


def test_stills_are_no_animations(tmp_path):
    for suffix in (".png", ".webp", ".jpg", ".tif"):
        write_picture(tmp_path / f"a{suffix}", pictures()[0])
        assert not is_animation(tmp_path / f"a{suffix}")
    single = draw_one(tmp_path / "one.gif")
    assert not is_animation(single)
    assert not is_animation(tmp_path / "missing.gif")
    (tmp_path / "text.gif").write_text("GIF89a and no more")
    assert not is_animation(tmp_path / "text.gif")


def draw_one(path):
    sink = AnimationSink(path, AnimationTraits(height=48, width=64, delays=(100,), loops=0), overwrite=False)
    image = pictures()[0]
    sink.write(Composed(pixels=image, frame=Frame(image_HWC=image)), StageClock())
    sink.finish(StageClock())
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_cut_short_is_an_error_of_ours_or_what_is_whole(tmp_path, suffix):
    path = draw(tmp_path / f"a{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with suppress(MediaError):
        _, frames = read(path)
        assert len(frames) <= len(DELAYS)


def test_a_failed_run_leaves_nothing(tmp_path):
    sink = AnimationSink(
        tmp_path / "a.webp", AnimationTraits(height=48, width=64, delays=DELAYS, loops=0), overwrite=False
    )
    image = pictures()[0]
    sink.write(Composed(pixels=image, frame=Frame(image_HWC=image)), StageClock())
    sink.abort()
    assert list(tmp_path.iterdir()) == []


def test_what_is_held_whole_is_limited(tmp_path, monkeypatch):
    from basnet_runtime.media import animation

    path = draw(tmp_path / "a.png")
    monkeypatch.setattr(animation, "_WHOLE_MAX", 48 * 64 * 3)
    with pytest.raises(MediaError, match="make it an animated WebP or a video"):
        AnimationSource(path)
    with pytest.raises(MediaError, match=r"write \.webp"):
        draw(tmp_path / "b.png")


def test_opencv_agrees_about_a_gif(tmp_path):
    path = draw(tmp_path / "a.gif")
    _, theirs = cv2.imdecodeanimation(np.frombuffer(path.read_bytes(), np.uint8).reshape(1, -1))
    assert list(theirs.durations) == list(DELAYS)
    assert theirs.loop_count == 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_frames_that_repeat_keep_their_time(tmp_path, suffix):
    """Encoders store successive frames that are identical as one; what is seen at every moment stays the same."""
    still, moved = pictures()[:2]
    traits, frames = read(draw(tmp_path / f"a{suffix}", [still, still, moved, moved]))
    shown = [frame.image_HWC for frame, delay in zip(frames, traits.delays, strict=True) for _ in range(delay // 10)]
    expected = [still] * ((DELAYS[0] + DELAYS[1]) // 10) + [moved] * ((DELAYS[2] + DELAYS[3]) // 10)
    assert len(shown) == len(expected)
    for seen, drawn in zip(shown, expected, strict=True):
        assert np.abs(seen.astype(int) - drawn).mean() < 4


def test_a_chunk_that_promises_gigabytes(tmp_path):
    path = draw(tmp_path / "a.png")
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT") - 4
    data[at : at + 4] = (0x80001773).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(MediaError, match="cut short or damaged"):
        AnimationSource(path)
