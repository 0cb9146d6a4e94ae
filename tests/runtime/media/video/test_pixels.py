"""Colors and transparency of real containers, damage, lengths, and the same bytes on every machine."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from basnet_runtime.frame import Frame, ResultFrame
from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.video.options import VideoOptions
from basnet_runtime.media.video.reader import VideoSource
from basnet_runtime.media.video.stream_info import Color, VideoStreamInfo
from basnet_runtime.media.video.write import sink as video_sink
from basnet_runtime.media.video.write.passthrough import NoPassthrough
from basnet_runtime.media.video.write.sink import FrameEncoder, OutputPlan, VideoSink
from tests.videos import images, made, streams_of

LEVELS = np.arange(256, dtype=np.uint8)


def read(path, **options):
    with VideoSource(path, **options) as source:
        frames = list(source.frames())
    return frames, source


def encoded(path, library, pixels, planes, count=3, rate=25, **context):
    """A clip whose frames have these planes, as arrays."""
    options = context.pop("options", {})
    with av.open(str(path), "w") as container:
        stream = container.add_stream(library, rate=rate, options=options)
        stream.height, stream.width = planes[0].shape
        stream.pix_fmt = pixels
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for _ in range(count):
            frame = av.VideoFrame(*planes[0].shape[::-1], pixels)
            for plane, values in zip(frame.planes, planes, strict=True):
                rows = np.frombuffer(memoryview(plane), values.dtype).reshape(-1, plane.line_size // values.itemsize)
                rows[: values.shape[0], : values.shape[1]] = values
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


NEAREST = [(8, 6), (10, 9), (11, 6), (12, 6), (13, 6), (14, 9)]


@pytest.mark.parametrize(("matrix", "nearest"), NEAREST)
def test_a_matrix_that_cannot_be_converted_is_read_as_the_nearest(tmp_path, fake_model, matrix, nearest):
    planes = [np.full((48, 64), 120, np.uint8), np.full((24, 32), 90, np.uint8), np.full((24, 32), 160, np.uint8)]
    clip = encoded(tmp_path / "in.mp4", "libx264", "yuv420p", planes, colorspace=matrix, color_range=1)
    plain = encoded(tmp_path / "plain.mp4", "libx264", "yuv420p", planes, colorspace=nearest, color_range=1)
    frames, source = read(clip)
    said = (
        f"has color matrix {matrix} (H.273), which cannot be converted; it is read as matrix {nearest}, the nearest one"
    )
    assert [said in note for note in source.warnings] == [True]
    assert (frames[0].image_HWC == read(plain)[0][0].image_HWC).all()
    run = made(fake_model, clip, tmp_path / "out.mp4", "overlay")
    assert run.complete
    with av.open(str(run.job.target)) as container:
        assert int(next(container.decode(video=0)).colorspace) == nearest


@pytest.mark.parametrize(
    ("library", "pixels", "shift"), [("libx264", "gray", 0), ("libx265", "gray", 0), ("libx265", "gray10le", 2)]
)
def test_gray_in_limited_range_is_expanded(tmp_path, library, pixels, shift):
    luma = np.repeat(np.array([16, 50, 128, 235], np.uint8), 32)[None].repeat(64, 0)
    stored = luma.astype("<u2") << shift if shift else luma
    options = {"crf": "1"} if library == "libx264" else {"x265-params": "lossless=1:log-level=none"}
    clip = encoded(tmp_path / "in.mp4", library, pixels, [stored], color_range=1, options=options)
    image_HWC = read(clip)[0][0].image_HWC
    assert (image_HWC[..., 0] == image_HWC[..., 2]).all()
    assert np.abs(image_HWC[32, 16::32, 0].astype(int) - [0, 40, 130, 255]).max() <= 1


@pytest.mark.parametrize("size", [(241, 321), (240, 321), (241, 320), (47, 65)])
@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("h264", ".mp4"), ("hevc", ".mp4"), ("av1", ".mp4"), ("vp9", ".webm"), ("prores", ".mov"), ("ffv1", ".mkv")],
)
def test_masks_of_odd_size_keep_their_values(tmp_path, codec, suffix, size):
    """Read as a player does that honors the range, and as one that takes all gray for full range."""
    height, width = size
    ramp = np.clip(np.arange(width) * 300 // width - 20, 0, 255).astype(np.uint8)[None].repeat(height, 0)
    info = VideoStreamInfo(
        source="none",
        height=height,
        width=width,
        time_base=Fraction(1, 25),
        rate=Fraction(25),
        pixel_aspect=Fraction(1),
        color=Color(),
        frames=0,
        seconds=0.0,
        part=True,
    )
    options = VideoOptions(codec=codec, hwaccel="none")
    target = tmp_path / f"out{suffix}"
    sink = VideoSink(
        OutputPlan(target=target, info=info, kind=OutputKind(), options=options, passthrough=NoPassthrough)
    )
    for index in range(3):
        frame = Frame(image_HWC=np.zeros((height, width, 3), np.uint8), index=index, pts=index)
        sink.write(ResultFrame(pixels=ramp, frame=frame))
    sink.finish()
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        frame = next(container.decode(video=0))
    for seen in (frame.to_ndarray(format="gray"), *np.moveaxis(frame.to_ndarray(format="rgb24"), 2, 0)):
        assert seen.shape == size
        assert np.abs(seen.astype(int) - ramp).mean() < 3
        assert seen[:, :4].max() <= 6
        assert seen[:, -4:].min() >= 249


def clear(path, codec, alpha_HW, rgb=(120, 120, 120)):
    """A cut-out with this transparency, written as a run writes it."""
    height, width = alpha_HW.shape
    info = VideoStreamInfo(
        source="none",
        height=height,
        width=width,
        time_base=Fraction(1, 25),
        rate=Fraction(25),
        pixel_aspect=Fraction(1),
        color=Color(),
        frames=0,
        seconds=0.0,
        part=True,
    )
    options = VideoOptions(codec=codec, hwaccel="none", quality=None if codec != "vp9" else 100)
    kind = OutputKind(name="cutout")
    sink = VideoSink(OutputPlan(target=path, info=info, kind=kind, options=options, passthrough=NoPassthrough))
    for index in range(2):
        image_HWC = np.broadcast_to(np.array(rgb, np.uint8), (height, width, 3)).copy()
        frame = Frame(image_HWC=image_HWC, index=index, pts=index)
        sink.write(ResultFrame(pixels=image_HWC, alpha_HW=alpha_HW, frame=frame))
    sink.finish()
    return path


@pytest.mark.parametrize(("suffix", "codec"), [(".mov", "prores"), (".mkv", "prores"), (".mkv", "ffv1")])
def test_soft_transparency_comes_back_exactly(tmp_path, suffix, codec):
    alpha_HW = LEVELS.reshape(16, 16).repeat(4, 0).repeat(4, 1)
    clip = clear(tmp_path / f"out{suffix}", codec, alpha_HW)
    assert (read(clip)[0][1].alpha_HW == alpha_HW).all()
    with av.open(str(clip)) as container:
        frame = next(container.decode(video=0))
    assert (frame.to_ndarray(format="rgba")[..., 3] == alpha_HW).all()  # by swscale, as most programs read it
    if codec == "prores":
        plane = frame.planes[3]
        stored = np.frombuffer(memoryview(plane), np.uint16).reshape(-1, plane.line_size // 2)[:64, :64].astype(int)
        assert (stored >> 4 == alpha_HW).all()
        assert (np.rint(stored * 255 / 4095) == alpha_HW).all()
        assert stored.max() == 4095  # opaque is fully opaque


@pytest.mark.parametrize("level", [1, 60, 127, 128, 200, 254, 255])
def test_soft_transparency_of_webm(tmp_path, level):
    """The plane holds what was composed; VP9 then loses little of it."""
    alpha_HW = np.full((64, 64), level, np.uint8)
    clip = clear(tmp_path / "out.webm", "vp9", alpha_HW)
    with av.open(str(clip)) as container:
        decoder = av.CodecContext.create("libvpx-vp9", "r")
        frame = next(frame for packet in container.demux(video=0) for frame in decoder.decode(packet))
    plane = frame.planes[3]
    stored = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:64, :64]
    assert (stored == level).all()
    assert (read(clip)[0][0].alpha_HW == level).all()


def test_the_plane_of_webm_is_filled_not_converted():
    from basnet_runtime.media.video.write.encoder import Encoder

    info = VideoStreamInfo(
        source="none",
        height=16,
        width=16,
        time_base=Fraction(1, 25),
        rate=Fraction(25),
        pixel_aspect=Fraction(1),
        color=Color(),
        frames=0,
        seconds=0.0,
    )
    encoder = Encoder(codec="vp9", library="libvpx-vp9", pixels="yuva420p", options={})
    alpha_HW = LEVELS.reshape(16, 16)
    frames = FrameEncoder(av.CodecContext.create("libvpx-vp9", "w"), encoder, info)
    picture = frames._color_frame(np.zeros((16, 16, 3), np.uint8), alpha_HW)
    plane = picture.planes[3]
    assert (np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:16, :16] == alpha_HW).all()


@pytest.mark.parametrize(("depth", "pixels"), [(10, "yuva444p10le"), (12, "gbrap12le"), (16, "gbrap16le")])
def test_transparency_of_other_writers_is_rounded_not_shifted(tmp_path, depth, pixels):
    most = (1 << depth) - 1
    alpha = np.rint(LEVELS.reshape(16, 16).repeat(4, 0).repeat(4, 1) * (most / 255)).astype("<u2")
    plane = np.full((64, 64), most // 2, "<u2")
    clip = encoded(tmp_path / "in.mkv", "ffv1", pixels, [plane, plane, plane, alpha])
    assert (read(clip)[0][0].alpha_HW == LEVELS.reshape(16, 16).repeat(4, 0).repeat(4, 1)).all()


def test_the_crop_of_matroska_is_applied(tmp_path, fake_model, write_video):
    """Its elements are put in the place of others that have their sizes: the unit of the shape, and the color range."""
    marked = [np.full((48, 64, 3), 20, np.uint8) for _ in range(3)]
    for image in marked:
        image[8:40] = 200
    plain = write_video(tmp_path / "plain.mkv", marked, time_base=Fraction(1, 1000), pts=[0, 40, 80])
    data = bytearray(plain.read_bytes())
    for element, crop in (("54b28104", "54bb8108"), ("55b08455b98101", "54aa8108ec8100")):
        at = data.index(bytes.fromhex(element))
        data[at : at + len(crop) // 2] = bytes.fromhex(crop)
    clip = tmp_path / "in.mkv"
    clip.write_bytes(data)
    frames, source = read(clip)
    assert (source.info.height, source.info.width) == (32, 64)
    assert frames[0].image_HWC.min() > 150
    run = made(fake_model, clip, tmp_path / "out.mkv", codec="ffv1")
    with av.open(str(run.job.target)) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == (32, 64)
        assert (stream.sample_aspect_ratio or 1) == 1


def cut(path, share):
    whole = path.read_bytes()
    half = path.with_name(f"cut{path.suffix}")
    half.write_bytes(whole[: int(len(whole) * share)])
    return half


def noise(path, count=50, tagged=True, **options):
    """A clip whose bytes are spread evenly over its time."""
    pictures = np.random.default_rng(0).integers(0, 255, (count, 48, 64, 3), np.uint8)
    with av.open(str(path), "w") as container:
        library = {".webm": "libvpx-vp9", ".flv": "flv", ".avi": "mpeg4", ".wmv": "msmpeg4"}.get(path.suffix, "libx264")
        stream = container.add_stream(library, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    if not tagged:  # as other writers than FFmpeg and mkvmerge leave it: the container's length alone
        path.write_bytes(path.read_bytes().replace(b"DURATION", b"DURATIOX"))
    return path


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".avi", ".flv", ".wmv"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_cut_short_is_not_complete(tmp_path, fake_model, suffix, share, tagged):
    clip = noise(tmp_path / f"in{suffix}", tagged=tagged)
    whole = made(fake_model, clip, tmp_path / "whole.mp4")
    assert (whole.frames, whole.complete, whole.notes) == (50, True, [])
    run = made(fake_model, cut(clip, share), tmp_path / "half.mp4")
    assert 5 < run.frames < 50
    assert not run.complete
    assert any("could be read" in note for note in run.notes)


@pytest.mark.parametrize(
    ("suffix", "library", "size"), [(".y4m", "wrapped_avframe", (48, 64)), (".dv", "dvvideo", (576, 720))]
)
def test_half_a_frame_at_the_end_is_told_where_frames_fill_the_file(tmp_path, fake_model, suffix, library, size):
    clip = tmp_path / f"in{suffix}"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream(library, rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((*size, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    assert made(fake_model, clip, tmp_path / "whole.mp4").complete
    run = made(fake_model, cut(clip, 0.6), tmp_path / "half.mp4")
    assert not run.complete
    assert any("damaged or cut short (its end is missing)" in note for note in run.notes)


def test_a_length_that_a_subtitle_makes_is_not_that_of_the_video(tmp_path, fake_model):
    plain, clip = noise(tmp_path / "plain.mkv"), tmp_path / "in.mkv"
    with av.open(str(plain)) as source, av.open(str(clip), "w") as out:
        copy, text = out.add_stream_from_template(source.streams.video[0]), out.add_mux_stream("dvd_subtitle")
        text.time_base = Fraction(1, 1000)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copy
                out.mux(packet)
        packet = av.Packet(bytes(64))
        packet.stream, packet.time_base, packet.pts, packet.dts = text, Fraction(1, 1000), 10, 10
        packet.duration = (1 << 32) - 1
        out.mux(packet)
    with av.open(str(clip)) as container:
        assert container.duration > 4e12
    run = made(fake_model, clip, tmp_path / "out.mkv")
    assert (run.frames, run.complete, run.notes) == (50, True, [])


def zeros(data):
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)


def another_header(data):
    data[6:20] = b"\xff" * 14


@pytest.mark.parametrize(("library", "damage"), [("libx264", zeros), ("libx265", another_header)])
def test_damaged_frames_are_done_and_counted(tmp_path, fake_model, library, damage):
    """Of HEVC FFmpeg gives none that follows a damaged one up to the next key frame, unless it is asked to."""
    options = {"x265-params": "log-level=none:keyint=30"} if library == "libx265" else {"bf": "0"}
    plain, clip = tmp_path / "plain.mp4", tmp_path / "in.mp4"
    pictures = np.random.default_rng(0).integers(0, 255, (30, 96, 128, 3), np.uint8)
    with av.open(str(plain), "w") as container:
        stream = container.add_stream(library, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for image in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(plain)) as source, av.open(str(clip), "w") as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                data = bytearray(bytes(packet))
                if number in (10, 20):
                    damage(data)
                broken = av.Packet(bytes(data))
                broken.pts, broken.dts, broken.duration = packet.pts, packet.dts, packet.duration
                broken.time_base, broken.is_keyframe, broken.stream = packet.time_base, packet.is_keyframe, copy
                out.mux(broken)
    run = made(fake_model, clip, tmp_path / "out.mp4")
    assert not run.complete
    assert any(note.startswith("damaged frames: ") for note in run.notes)
    assert run.frames >= 28


def digests(clip, folder, cpus):
    code = (
        "import os, sys; os.sched_setaffinity(0, {int(n) for n in sys.argv[1].split(',')});"
        "sys.path.insert(0, sys.argv[2]);"
        "from tests.runtime.media.video.same_bytes import main; main(*sys.argv[3:])"
    )
    root = Path(__file__).parents[4]
    command = [sys.executable, "-c", code, ",".join(map(str, cpus)), str(root), str(clip), str(folder)]
    subprocess.run(command, check=True, timeout=240)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_bytes_do_not_depend_on_the_number_of_cpus(tmp_path, write_video):
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("this process may use one CPU alone")
    times = list(range(0, 60 * 40, 40))
    pictures = images(60, height=240, width=320)
    clip = write_video(tmp_path / "in.mkv", pictures, time_base=Fraction(1, 1000), pts=times, pixels="yuv420p")
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    one, two = digests(clip, folders[0], cpus[:1]), digests(clip, folders[1], cpus[:2])
    assert len(one) == 8
    assert one == two


def test_encoders_leave_the_scheduling_of_the_process_alone(tmp_path, fake_model):
    """Real-time threads, as SVT-AV1 makes them for root, would stop whatever else the machine does."""
    clip = noise(tmp_path / "in.mkv", count=5)
    policy = os.sched_getscheduler(0)
    seen = set()

    def look(*_):
        seen.update(os.sched_getscheduler(int(thread.name)) for thread in Path("/proc/self/task").iterdir())

    real = video_sink.FrameEncoder.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_sink.FrameEncoder, "encode", lambda self, item: (look(), real(self, item))[1])
        made(fake_model, clip, tmp_path / "out.mp4", codec="av1")
        made(fake_model, clip, tmp_path / "again.mp4", codec="av1", resume=True)
    assert seen == {policy} == {os.sched_getscheduler(0)}


def test_av1_is_not_waited_for(tmp_path, fake_model, monkeypatch):
    """Where each frame's packet is waited for (low delay), SVT-AV1 4.1 hung once in some thousand short videos."""
    counts = []
    real = video_sink.FrameEncoder.encode
    monkeypatch.setattr(
        video_sink.FrameEncoder,
        "encode",
        lambda self, item: (packets := list(real(self, item)), counts.append(len(packets)))[0],
    )
    made(fake_model, noise(tmp_path / "in.mkv", count=5), tmp_path / "out.mp4", codec="av1")
    assert counts[0] == 0
    assert len(streams_of(tmp_path / "out.mp4")) == 1


def test_h264_pictures_are_whole_slices(tmp_path, fake_model):
    """One slice a picture: x264 cuts it by the number of threads otherwise, which makes files larger."""
    clip = noise(tmp_path / "in.mkv", count=5)
    run = made(fake_model, clip, tmp_path / "out.mp4", "overlay")
    with av.open(str(run.job.target)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for data in packets:
        at, slices = 0, 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            slices += data[at + 4] & 31 in (1, 5)
            at += 4 + size
        assert slices == 1


def test_streams_of_a_cut_file_still_meet(tmp_path, fake_model, write_video):
    """What is there of the sound ends where the pictures do, or before."""
    clip = write_video(
        tmp_path / "in.mkv", images(40), audio="aac", time_base=Fraction(1, 1000), pts=list(range(0, 1600, 40))
    )
    run = made(fake_model, cut(clip, 0.6), tmp_path / "out.mkv")
    assert not run.complete
    video, sound = streams_of(run.job.target)
    assert video.packets == run.frames
    assert sound.packets > 0
