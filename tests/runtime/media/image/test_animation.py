"""Animations: as many frames out as in, each with its delay, the loop count, the transparency."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest

from basnet_runtime.frame import Frame, ResultFrame
from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.compose.compose import Composer
from basnet_runtime.media.image import avif
from basnet_runtime.media.image.animation import (
    AnimationInfo,
    AnimationSink,
    AnimationSource,
    animation_suffix,
    check_animation_output,
    is_animation,
)
from basnet_runtime.media.image.avif import avif_bits, avif_orientation
from basnet_runtime.media.image.metadata import upright as upright_pixels
from basnet_runtime.media.image.pictures import read_picture, vips_module, write_picture
from basnet_runtime.pipeline.run import Pipeline
from basnet_torch.errors import MediaError, UsageError

DELAYS = (50, 170, 30, 1000)
SUFFIXES = [".gif", ".webp", ".png", ".avif"]


def pictures(height=48, width=64):
    """A white square that moves over black, with colors that a palette of 256 holds."""
    frames = []
    for i in range(len(DELAYS)):
        image = np.zeros((height, width, 3), np.uint8)
        image[10:30, 5 + 10 * i : 25 + 10 * i] = 255
        frames.append(image)
    return frames


def draw(path, frames=None, alpha=None, loops=3):
    frames = frames or pictures()
    sink = AnimationSink(path, AnimationInfo(height=48, width=64, delays=DELAYS, loops=loops), overwrite=False)
    for i, image in enumerate(frames):
        sink.write(ResultFrame(pixels=image, alpha_HW=alpha, frame=Frame(image_HWC=image, index=i)))
    sink.finish()
    return path


def read(path):
    with AnimationSource(path) as source:
        return source.info, list(source.frames())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("loops", [0, 1, 3])
def test_frames_delays_and_loops_survive(tmp_path, suffix, loops):
    path = draw(tmp_path / f"ä a{suffix}", loops=loops)
    assert is_animation(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    info, frames = read(path)
    assert (info.height, info.width, info.delays) == (48, 64, DELAYS)
    assert info.loops == (0 if suffix == ".avif" else loops)  # OpenCV does not read an AVIF's
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
        sink = AnimationSink(target, source.info, overwrite=False)
        Pipeline(fake_model, Composer(OutputKind.parse("side"))).run(source, sink)
    info, frames = read(target)
    assert (info.height, info.width, len(frames)) == (48, 128, len(DELAYS))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("batch", [1, 3])
def test_through_the_pipeline(tmp_path, suffix, batch, fake_model):
    path = draw(tmp_path / f"a{suffix}")
    target = tmp_path / f"out{suffix}"
    with AnimationSource(path) as source:
        sink = AnimationSink(target, source.info, overwrite=False)
        report = Pipeline(fake_model, Composer(OutputKind()), batch=batch).run(source, sink)
    assert report.frames == len(DELAYS)
    info, frames = read(target)
    assert info.delays == DELAYS
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
    sink = AnimationSink(path, AnimationInfo(height=48, width=64, delays=(100,), loops=0), overwrite=False)
    image = pictures()[0]
    sink.write(ResultFrame(pixels=image, frame=Frame(image_HWC=image)))
    sink.finish()
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
        tmp_path / "a.webp", AnimationInfo(height=48, width=64, delays=DELAYS, loops=0), overwrite=False
    )
    image = pictures()[0]
    sink.write(ResultFrame(pixels=image, frame=Frame(image_HWC=image)))
    sink.abort()
    assert list(tmp_path.iterdir()) == []


def test_what_is_held_whole_is_limited(tmp_path, monkeypatch):
    from basnet_runtime.media.image import animation

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
    info, frames = read(draw(tmp_path / f"a{suffix}", [still, still, moved, moved]))
    shown = [frame.image_HWC for frame, delay in zip(frames, info.delays, strict=True) for _ in range(delay // 10)]
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


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def apng(frames, *, bits=8, kind=0, further=b""):
    """An animated PNG of samples H,W or H,W,C, written chunk by chunk; `kind` is PNG's type of color."""
    height, width = frames[0].shape[:2]
    made = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    made += further + chunk(b"acTL", struct.pack(">II", len(frames), 0))
    number = 0
    for index, frame in enumerate(frames):
        rows = frame.astype(">u2") if bits == 16 else frame.astype(np.uint8)
        if bits < 8:
            each = np.unpackbits(rows[..., None], axis=2)[..., -bits:].reshape(height, -1)
            rows = np.packbits(each, axis=1)
        packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
        control = struct.pack(">IIIIIHHBB", number, width, height, 0, 0, 40, 1000, 0, 0)
        made += chunk(b"fcTL", control)
        number += 1
        if index == 0:
            made += chunk(b"IDAT", packed)
        else:
            made += chunk(b"fdAT", struct.pack(">I", number) + packed)
            number += 1
    return made + chunk(b"IEND", b"")


RAMP = np.tile(np.arange(64), (48, 1))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_gray_apng_of_every_depth(tmp_path, bits):
    top = (1 << bits) - 1
    frames = [np.rint(RAMP / 63 * top).astype(int), np.rint((63 - RAMP) / 63 * top).astype(int)]
    (tmp_path / "a.png").write_bytes(apng(frames, bits=bits))
    info, found = read(tmp_path / "a.png")
    assert info.delays == (40, 40)
    for frame, wanted in zip(found, frames, strict=True):
        assert frame.alpha_HW is None
        assert np.abs(frame.image_HWC - np.rint(wanted / top * 255)[..., None]).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", [4, 2, 6])
def test_apng_of_every_kind_of_color(tmp_path, kind, bits):
    scale = 1 if bits == 8 else 257
    color = [RAMP * 4] if kind == 4 else [RAMP * 4, RAMP * 2, RAMP * 0 + 99]
    alpha = [255 - RAMP * 3] if kind in (4, 6) else []
    frame = np.dstack([*color, *alpha]) * scale
    (tmp_path / "a.png").write_bytes(apng([frame, frame[:, ::-1]], bits=bits, kind=kind))
    _, found = read(tmp_path / "a.png")
    assert np.abs(found[0].image_HWC - np.dstack(color if kind != 4 else color * 3)).max() <= 1
    assert np.array_equal(found[1].image_HWC, found[0].image_HWC[:, ::-1])
    assert (found[0].alpha_HW is None) == (not alpha)
    if alpha:
        assert np.abs(found[0].alpha_HW - alpha[0]).max() <= 1


def stands(orientation):
    """Pixels that lie as EXIF's orientation says, and as they stand."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[:10, :20] = 255
    image[30:, :5] = (200, 30, 30)
    return image, np.ascontiguousarray(UPRIGHT[orientation](image))


UPRIGHT = {
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image.swapaxes(0, 1), 2),
    8: np.rot90,
}


@pytest.mark.parametrize("suffix", [".webp", ".png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_animations_stand_upright_as_stills_do(tmp_path, orientation, suffix):
    image, upright = stands(orientation)
    frames = [image, 255 - image]
    exif = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        path.write_bytes(apng(frames, kind=2, further=chunk(b"eXIf", exif)))
    else:
        vips = vips_module()
        whole = vips.Image.new_from_memory(np.concatenate(frames).data, 64, 96, 3, "uchar").copy(interpretation="srgb")
        whole.set_type(vips.GValue.gint_type, "page-height", 48)
        whole.set_type(vips.GValue.array_int_type, "delay", [40, 40])
        whole.set_type(vips.GValue.blob_type, "exif-data", b"Exif\0\0" + exif)
        whole.webpsave(str(path), lossless=True)
    assert is_animation(path)
    info, found = read(path)
    assert (info.height, info.width) == upright.shape[:2]
    assert np.array_equal(found[0].image_HWC, upright)
    assert np.array_equal(found[1].image_HWC, 255 - upright)
    still = read_picture(path)
    assert np.array_equal(still.image_HWC, upright)


def with_turn(data, box):
    """An animated AVIF whose first track's samples carry one more property, in the place of one of no use."""
    at = data.index(b"ccst") - 4
    (size,) = struct.unpack_from(">I", data, at)
    assert size == 16
    replaced = struct.pack(">I4sB", 16, *box).ljust(16, b"\0")
    return data[:at] + replaced + data[at + 16 :]


@pytest.mark.parametrize(
    ("box", "orientation"),
    [
        ((b"irot", 0), 1),
        ((b"irot", 1), 8),
        ((b"irot", 2), 3),
        ((b"irot", 3), 6),
        ((b"imir", 0), 4),
        ((b"imir", 1), 2),
    ],
)
def test_an_avif_stands_upright(tmp_path, box, orientation):
    image, upright = stands(orientation)
    path = draw(tmp_path / "a.avif", [image] * 4)
    path.write_bytes(with_turn(path.read_bytes(), box))
    info, found = read(path)
    assert (info.height, info.width) == upright.shape[:2]
    assert np.abs(found[0].image_HWC.astype(int) - upright).mean() < 3


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("mirror", [None, 0, 1])
def test_a_turn_and_a_mirror_together(turn, mirror):
    """Against doing one after the other."""
    image = np.arange(6).reshape(2, 3)
    turned = np.rot90(image, turn)
    wanted = turned if mirror is None else turned[::-1] if mirror == 0 else turned[:, ::-1]
    properties = struct.pack(">I4sB", 9, b"irot", turn)
    if mirror is not None:
        properties += struct.pack(">I4sB", 9, b"imir", mirror)
    inner = struct.pack(">I4s", 8 + len(properties), b"ipco") + properties
    middle = struct.pack(">I4s", 8 + len(inner), b"iprp") + inner
    data = struct.pack(">I4sI", 12 + len(middle), b"meta", 0) + middle
    assert np.array_equal(upright_pixels(image, avif_orientation(data)), wanted)


CASES = Path(__file__).parents[3] / "data" / "cases"


@pytest.mark.parametrize(
    ("name", "size", "mean"),
    [("grey-animated", (96, 128), 84.7), ("ten-bit-animated", (96, 128), 76.4), ("turned-animated", (128, 96), 76.8)],
)
def test_animated_avif_that_opencv_reads_otherwise_or_not(name, size, mean):
    path = CASES / f"{name}.avif"
    assert is_animation(path)
    info, found = read(path)
    assert (info.height, info.width) == size
    assert info.delays == (33,) * 4
    assert len(found) == 4
    for frame in found:
        assert frame.image_HWC.shape == (*size, 3)
        assert abs(frame.image_HWC.mean() - mean) < 0.2
        assert frame.image_HWC.max() > 200


@pytest.mark.parametrize("bits", [10, 12])
def test_samples_of_avif_are_scaled_by_their_bits(tmp_path, bits):
    top = (1 << bits) - 1
    gray = np.rint(RAMP / 63 * top).astype(np.uint16)
    animation = cv2.Animation()
    animation.frames, animation.durations = [np.dstack([gray] * 3)] * 2, [40, 40]
    options = [cv2.IMWRITE_AVIF_DEPTH, bits, cv2.IMWRITE_AVIF_QUALITY, 100]
    made, data = cv2.imencodeanimation(".avif", animation, options)
    assert made
    (tmp_path / "a.avif").write_bytes(data.tobytes())
    assert avif_bits(data.tobytes()) == bits
    _, found = read(tmp_path / "a.avif")
    assert np.abs(found[0].image_HWC.astype(int) - np.rint(RAMP / 63 * 255)[..., None]).max() <= 2


def test_an_animation_in_hdr_is_said(tmp_path):
    data = bytearray((CASES / "ten-bit-animated.avif").read_bytes())
    at = data.index(b"colrnclx")
    data[at + 10 : at + 12] = struct.pack(">H", 18)
    (tmp_path / "a.avif").write_bytes(data)
    with AnimationSource(tmp_path / "a.avif") as source:
        assert source.notes == ["is HDR (HLG); masks are found on its samples as they are stored"]


def test_gray_avif_cut_short_is_one_line(tmp_path):
    data = (CASES / "grey-animated.avif").read_bytes()
    for cut in (len(data) - 700, 1000, 300):
        (tmp_path / "a.avif").write_bytes(data[:cut])
        with pytest.raises(MediaError) as caught:
            read(tmp_path / "a.avif")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sizes", [((48, 72), (72, 48)), ((48, 72), (48, 72), (72, 48))])
def test_an_animation_of_several_sizes_is_damaged(monkeypatch, sizes):
    """As headers that were damaged give it: a frame or its transparency of another size."""
    planes = [np.zeros(size, np.uint8) for size in sizes]
    tracks = ((planes[:-1], [10] * (len(planes) - 1)), (planes[-1:], [10]))
    monkeypatch.setattr(avif, "_planes", lambda data, track, most: tracks[track])
    with pytest.raises(MediaError, match="damaged"):
        avif.gray_frames(b"", 9)
