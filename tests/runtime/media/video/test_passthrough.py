"""What goes along with the pictures: sound, subtitles, chapters and tags, in a container that takes them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.video.options import Span, VideoOptions
from basnet_runtime.media.video.write.container import check_output, default_suffix
from basnet_torch.errors import MediaError, UsageError
from tests.videos import images, made, streams_of

CASES = Path(__file__).parents[3] / "data" / "cases"
DTS_HEADER = bytes.fromhex("7ffe8001fc3c1ff0b54001380003ef7fe006c91e00124924")  # PyAV has no encoder for it
MILLISECOND = Fraction(1, 1000)


def film(path, codec="libx264", count=5, sounds=(), subtitles=(), video=None, **options):
    """A clip with sound of these codecs and subtitles of these, in the container that the name says."""
    with av.open(str(path), "w", options=options) as container:
        for name in (codec,) if isinstance(codec, str) else codec:
            stream = container.add_stream(name, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        tracks = list(container.streams.video)
        heard = [container.add_stream(name, rate=48000, options={"strict": "-2"}) for name in sounds]
        texts = [container.add_mux_stream(name, **({"rate": 48000} if name == "dts" else {})) for name in subtitles]
        for text in texts:
            text.time_base = MILLISECOND
        for number, track in enumerate(tracks):
            for image in images(count, shift=number * 20):
                container.mux(track.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(track.encode(None))
        for sound in heard:
            resampler = av.AudioResampler(sound.format, sound.layout, 48000, frame_size=sound.frame_size or 960)
            tone = av.AudioFrame.from_ndarray(np.zeros((2, 9600), np.float32), format="fltp", layout="stereo")
            tone.rate, tone.pts = 48000, 0
            for frame in (*resampler.resample(tone), *resampler.resample(None)):
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
        for text in texts:
            packet = av.Packet(DTS_HEADER + bytes(488))
            packet.stream, packet.time_base, packet.pts, packet.dts, packet.duration = text, MILLISECOND, 10, 10, 100
            container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("name", "sounds", "subtitles", "mask", "cutout"),
    [
        ("in.webm", ["libopus"], [], ".mp4", ".webm"),
        ("in.mkv", ["flac"], [], ".mp4", ".mkv"),
        ("in.mkv", [], ["dts"], ".mkv", ".mkv"),
        ("in.mkv", ["aac"], [], ".mp4", ".mov"),
        ("in.mkv", ["aac"], ["hdmv_pgs_subtitle"], ".mkv", ".mkv"),
        ("in.mkv", [], ["dvd_subtitle"], ".mkv", ".mkv"),
        ("in.mkv", ["aac"], ["subrip"], ".mkv", ".mkv"),
        ("in.mkv", ["pcm_s16le"], [], ".mov", ".mov"),
        ("in.mkv", ["libmp3lame", "ac3"], [], ".mp4", ".mov"),
    ],
)
def test_a_container_is_chosen_that_takes_all(tmp_path, fake_model, name, sounds, subtitles, mask, cutout):
    clip = film(tmp_path / name, "libvpx-vp9" if name.endswith("webm") else "libx264", 5, sounds, subtitles)
    before = streams_of(clip)
    for kind, suffix in (("mask", mask), ("cutout", cutout)):
        assert default_suffix(clip, OutputKind.parse(kind)) == suffix
        run = made(fake_model, clip, tmp_path / f"out.{kind}{suffix}", kind)
        assert not [note for note in run.notes if "left out" in note]
        after = streams_of(run.job.target)
        assert [stream.codec for stream in after[1:]] == [stream.codec for stream in before[1:]]
        assert [stream.packets for stream in after[1:]] == [stream.packets for stream in before[1:]]


def test_sound_and_subtitles_are_left_out_apart(tmp_path, fake_model):
    clip = film(tmp_path / "in.mkv", sounds=["aac"], subtitles=["hdmv_pgs_subtitle"])
    kind, target = OutputKind(), tmp_path / "out.mp4"
    with pytest.raises(
        UsageError, match=r"hold the hdmv_pgs_subtitle stream of in\.mkv; use \.mkv, or --no-subtitles$"
    ):
        check_output(clip, target, kind, VideoOptions())
    assert default_suffix(clip, kind, VideoOptions(subtitles=False)) == ".mp4"
    made(fake_model, clip, target, subtitles=False)
    assert [stream.codec for stream in streams_of(target)] == ["h264", "aac"]
    made(fake_model, clip, tmp_path / "out.mkv", sound=False)
    assert [stream.codec for stream in streams_of(tmp_path / "out.mkv")] == ["h264", "hdmv_pgs_subtitle"]


def with_sound_of_format(path, tag):
    """An AVI whose PCM calls itself something else."""
    film(path, sounds=["pcm_s16le"])
    data = bytearray(path.read_bytes())
    at = data.index(b"strf", data.index(b"auds")) + 8
    data[at : at + 2] = tag.to_bytes(2, "little")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("tag", "codec"), [(2, "adpcm_ms"), (0x161, "wmav2")])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_that_fits_nowhere_is_left_out_by_name(tmp_path, fake_model, tag, codec, suffix):
    clip = with_sound_of_format(tmp_path / "in.avi", tag)
    run = made(fake_model, clip, tmp_path / f"out{suffix}")
    assert f"the {codec} stream is left out; {suffix} cannot hold it" in run.notes
    assert run.complete
    assert [stream.packets for stream in streams_of(run.job.target)] == [5]


@pytest.mark.parametrize(("which", "left"), [([0, 1], 2), ([1], 1)])
def test_sound_of_an_unknown_codec_is_named(tmp_path, fake_model, which, left):
    clip = film(tmp_path / "in.mp4", sounds=["aac", "aac"])
    data = bytearray(clip.read_bytes())
    places = [i for i in range(len(data)) if data[i : i + 4] == b"mp4a"]
    assert len(places) == 2
    for number in which:  # the name of the codec, and the box that says it again
        data[places[number] : places[number] + 4] = b"zzzz"
        at = data.index(b"esds", places[number])
        data[at : at + 4] = b"free"
    clip.write_bytes(data)
    run = made(fake_model, clip, tmp_path / "out.mp4")
    assert run.notes == [f"audio streams of an unknown codec are left out: {left}"]
    assert run.complete
    assert made(fake_model, clip, tmp_path / "silent.mp4", sound=False).notes == []


@pytest.mark.parametrize(("suffix", "dropped"), [(".mkv", True), (".mp4", False)])
def test_pictures_begin_at_zero_beside_aac(tmp_path, fake_model, suffix, dropped):
    """AAC begins before 0 in .mp4; Matroska would move everything for it."""
    clip = film(tmp_path / "in.mp4", sounds=["aac"])
    before = streams_of(clip)[1]
    run = made(fake_model, clip, tmp_path / f"out{suffix}")
    video, sound = streams_of(run.job.target)
    assert before.times[0] < 0 == video.times[0]
    assert sound.packets == before.packets - dropped
    assert sound.times == pytest.approx(before.times[dropped:], abs=0.001)
    said = "aac packets before the first picture are left out: 1; .mkv has no times below 0"
    assert [note for note in run.notes if "millisecond" not in note] == ([said] if dropped else [])


def test_chapters_are_no_telemetry(tmp_path, fake_model):
    with av.open(str(film(tmp_path / "plain.mp4"))) as source, av.open(str(tmp_path / "in.mp4"), "w") as out:
        track = out.add_stream_from_template(source.streams.video[0])
        chapter = {"id": 1, "start": 0, "end": 120, "time_base": MILLISECOND, "metadata": {"title": "x"}}
        out.set_chapters([chapter, {**chapter, "id": 2, "start": 120, "end": 200}])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = track
                out.mux(packet)
    with av.open(str(tmp_path / "in.mp4")) as container:
        assert len(container.streams.data) == 1
    run = made(fake_model, tmp_path / "in.mp4", tmp_path / "out.mp4")
    assert run.notes == []
    with av.open(str(run.job.target)) as container:
        assert [chapter["metadata"]["title"] for chapter in container.chapters()] == ["x", "x"]


def test_statistics_of_the_source_are_not_those_of_the_result(tmp_path, fake_model):
    plain, clip = film(tmp_path / "plain.mkv"), tmp_path / "in.mkv"
    with av.open(str(plain)) as source, av.open(str(clip), "w") as out:
        track = out.add_stream_from_template(source.streams.video[0])
        track.metadata.update(
            {
                "BPS": "9",
                "BPS-eng": "9",
                "NUMBER_OF_BYTES": "9",
                "NUMBER_OF_FRAMES": "9",
                "_STATISTICS_TAGS": "BPS",
                "A": "b",
            }
        )
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = track
                out.mux(packet)
    made(fake_model, clip, tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as container:
        tags = container.streams.video[0].metadata
    assert tags["A"] == "b"
    assert not [key for key in tags if key.startswith(("BPS", "NUMBER", "_STAT"))]
    assert tags["DURATION"] == "00:00:00.200000000"


@pytest.mark.parametrize(("span", "kept"), [(("0.04", None), False), ((None, None), True)])
def test_statistics_of_sound_hold_for_all_of_it(tmp_path, fake_model, span, kept):
    plain, clip = film(tmp_path / "plain.mkv", sounds=["ac3"]), tmp_path / "in.mkv"
    with av.open(str(plain)) as source, av.open(str(clip), "w") as out:
        copies = [out.add_stream_from_template(stream) for stream in source.streams]
        copies[1].metadata.update({"BPS": "9", "NUMBER_OF_FRAMES-eng": "9", "A": "b"})
        for packet in source.demux():
            if packet.size:
                packet.stream = copies[packet.stream.index]
                out.mux(packet)
    made(fake_model, clip, tmp_path / "out.mkv", span=Span.parse(*span))
    with av.open(str(tmp_path / "out.mkv")) as container:
        tags = container.streams.audio[0].metadata
    assert ("BPS" in tags, "NUMBER_OF_FRAMES-eng" in tags, tags["A"]) == (kept, kept, "b")


def test_closed_captions_are_said(tmp_path, fake_model):
    run = made(fake_model, CASES / "mp4_closed_captions.mp4", tmp_path / "out.mp4")
    assert run.notes == ["has closed captions inside its pictures, which are left out"]


@pytest.mark.parametrize("captions", [b"GA94\x03\xc1\xff\xfc\x94\x20\xff", b"CC\x01\xf8\x82\xff\x94\x20"])
def test_closed_captions_of_mpeg_2_are_said(tmp_path, fake_model, captions):
    encoder = av.CodecContext.create("mpeg2video", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 64, 48, "yuv420p", Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24").reformat(format="yuv420p")
    frame.pts = 0
    data = b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
    slices = data.index(b"\0\0\1\1")
    clip = tmp_path / "a.m2v"
    for content, told in ((data, False), (data[:slices] + b"\0\0\1\xb2" + captions + data[slices:], True)):
        clip.write_bytes(content)
        run = made(fake_model, clip, tmp_path / f"{told}.mp4")
        assert any("closed captions" in note for note in run.notes) == told


def test_the_default_track_or_the_one_that_is_named(tmp_path, fake_model):
    both, clip = film(tmp_path / "both.mkv", ["libx264", "libx264"]), tmp_path / "in.mkv"
    with av.open(str(both)) as source, av.open(str(clip), "w") as out:
        copies = {stream.index: out.add_stream_from_template(stream) for stream in source.streams.video}
        copies[0].disposition, copies[1].disposition = 0, 1
        for packet in source.demux():
            if packet.size:
                packet.stream = copies[packet.stream.index]
                out.mux(packet)
    left = "further video tracks are left out: 1; --video-track chooses another"
    squares = {}
    for track in (None, 1, 2):
        run = made(fake_model, clip, tmp_path / f"{track}.mkv", track=track, codec="ffv1")
        assert (run.frames, run.complete, run.notes) == (5, True, [left])
        with av.open(str(run.job.target)) as container:
            squares[track] = next(container.decode(video=0)).to_ndarray(format="gray")[16].argmax()
    assert squares[None] == squares[2] != squares[1]
    with pytest.raises(MediaError, match="--video-track is 3, but it has 2 video tracks"):
        check_output(clip, tmp_path / "out.mp4", OutputKind(), VideoOptions(track=3))


def test_a_rate_that_av1_does_not_take(tmp_path):
    clip = tmp_path / "in.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in images(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match="the video has 1000 frames per second, and AV1 is written with at most 240"):
        check_output(clip, tmp_path / "out.mp4", OutputKind(), VideoOptions(codec="av1"))
    check_output(clip, tmp_path / "out.mp4", OutputKind(), VideoOptions())
