"""Clocks of real containers: late, wrapping, falling, missing, and what becomes of them."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest

from basnet_runtime.api import Predictor
from basnet_runtime.command.jobs import media_of
from basnet_runtime.media.video.reader import VideoSource
from basnet_runtime.media.video.times import Timeline, frame_rate
from basnet_runtime.media.video.write.sink import Muxer, partial_path
from basnet_torch.errors import MediaError
from tests.videos import images, made, streams_of

TICKS = 90_000
WRAP = 1 << 33


def transport_stream(path, start, count=25, sound=True, step=3600):
    """MPEG-TS whose clock begins at `start`, in ticks of 90 kHz; the picture comes a little after the sound."""
    with av.open(str(path), "w", format="mpegts", options={"mpegts_copyts": "1"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "2", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS)
        tone = container.add_stream("mp2", rate=48000) if sound else None
        packets = []
        for i, image in enumerate(images(count)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = i * step, Fraction(1, TICKS)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if tone is not None:
            for i in range(count * step * 48000 // TICKS // 1152):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 2304), np.int16), format="s16", layout="stereo")
                frame.pts, frame.rate, frame.time_base = i * 1152, 48000, Fraction(1, 48000)
                packets += tone.encode(frame)
            packets += tone.encode(None)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            shift = round((start + (1800 if packet.stream is stream else 0)) / (packet.time_base * TICKS))
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            container.mux(packet)
    return path


def steps(times):
    return np.diff(times)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize(
    "start",
    [10 * TICKS, 40_000 * TICKS, WRAP - 90_000, WRAP - 30_000, WRAP - 3 * TICKS],
    ids=["10 s", "11 h", "wraps late", "wraps soon", "ends before the wrap"],
)
def test_a_clock_that_does_not_begin_at_zero(tmp_path, fake_model, start, suffix):
    clip = transport_stream(tmp_path / "in.ts", start)
    run = made(fake_model, clip, tmp_path / f"out{suffix}")
    assert (run.frames, run.complete) == (25, True)
    assert [note for note in run.notes if "millisecond" not in note] == []
    video, sound = streams_of(run.job.target)
    before = [stream.times[0] for stream in streams_of(clip)]
    assert min(video.times + sound.times) == 0
    assert video.times[0] - sound.times[0] == pytest.approx(before[0] - before[1], abs=0.001)
    assert steps(video.times) == pytest.approx(0.04, abs=0.0011)
    with av.open(str(run.job.target)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 25  # none hidden by an edit list


def test_seconds_in_python_begin_at_zero_too(tmp_path, fake_model):
    clip = transport_stream(tmp_path / "in.ts", 40_000 * TICKS)
    video, sound = (stream.times[0] for stream in streams_of(clip))
    seconds = [frame.seconds for frame in Predictor(fake_model).video(clip)]
    assert len(seconds) == 25
    assert seconds[0] == pytest.approx(video - sound, abs=0.001)
    assert steps(seconds) == pytest.approx(0.04)


class Clock:
    """Packets of 40 ms, by stream and decoding time, put on one clock."""

    def __init__(self, container="mpegts", streams=1):
        self.streams = [SimpleNamespace(index=index, type="video") for index in range(streams)]
        self.timeline = Timeline(SimpleNamespace(format=SimpleNamespace(name=container), streams=self.streams))

    def place(self, time, stream=0):
        packet = SimpleNamespace(
            stream=self.streams[stream],
            pts=(time + 7200) % WRAP,
            dts=time % WRAP,
            duration=3600,
            time_base=Fraction(1, TICKS),
        )
        self.timeline.place(packet)
        return packet


def test_a_wrap_in_a_long_file_is_no_new_recording():
    """FFmpeg undoes wraps near the beginning alone; the same clock, 26 hours in."""
    clock, times = Clock(), range(WRAP - 5 * 3600, WRAP + 5 * 3600, 3600)
    packets = [clock.place(time) for time in times]
    assert [packet.dts for packet in packets] == list(times)
    assert all(packet.pts - packet.dts == 7200 for packet in packets)
    assert clock.timeline.falls == []


def test_one_wrong_time_is_no_new_recording():
    clock = Clock("matroska,webm")
    times = [*range(0, 100 * 3600, 3600), 0, *range(101 * 3600, 200 * 3600, 3600)]
    packets = [clock.place(time) for time in times]
    assert clock.timeline.falls == []
    assert [packet.dts for packet in packets[:100]] == times[:100]
    assert [packet.dts for packet in packets[101:]] == times[101:]


def test_three_recordings_and_a_stream_that_comes_later():
    """The second stream begins in the second recording; it moves no later one."""
    clock, seen = Clock("matroska,webm", streams=2), []
    for recording in range(3):
        for time in range(20 * TICKS, 24 * TICKS, 3600):
            seen.append(clock.place(time).dts)
            if recording:
                clock.place(time, stream=1)
    assert len(clock.timeline.falls) == 2
    assert np.diff(seen).min() > 0
    assert np.diff(seen).max() < TICKS / 2


@pytest.mark.parametrize(("first", "second"), [(20, 20), (20, 3), (300, 4)], ids=["same", "earlier", "minutes earlier"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_joined_recordings_follow_one_another(tmp_path, fake_model, first, second, suffix):
    """FFmpeg takes the second clock for a wrapped one where it begins more than a minute before the first."""
    parts = [transport_stream(tmp_path / f"{i}.ts", start * TICKS, 40) for i, start in enumerate((first, second))]
    clip = tmp_path / "in.ts"
    clip.write_bytes(b"".join(part.read_bytes() for part in parts))
    run = made(fake_model, clip, tmp_path / f"out{suffix}")
    video, sound = streams_of(run.job.target)
    assert (run.frames, run.complete, len(video.times)) == (80, True, 80)
    assert [note for note in run.notes if "falls back" in note] == run.notes[:1] != []
    joint = video.times[40] - video.times[39]  # FFmpeg holds the last picture back until the next one comes
    assert 0.02 < joint < 0.1
    assert np.delete(steps(video.times), 39) == pytest.approx(0.04, abs=0.0011)
    assert steps(sound.times).min() > 0.022  # 1152 samples
    assert steps(sound.times).max() < 0.1
    per = len(sound.times) // 2
    assert video.times[40] - sound.times[per] == pytest.approx(video.times[0] - sound.times[0], abs=0.002)
    quiet = made(fake_model, clip, tmp_path / f"quiet{suffix}", sound=False)
    assert steps(streams_of(quiet.job.target)[0].times) == pytest.approx(steps(video.times), abs=0.0011)


def equal_times(path, kept=3):
    """Matroska whose sound has several packets of one time, as lace and broken writers make it."""
    plain = path.with_name("plain.mkv")
    with av.open(str(plain), "w") as container:
        stream, tone = container.add_stream("libx264", rate=25), container.add_stream("ac3", rate=48000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in images(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
        for i in range(12):
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1536), np.float32), format="fltp", layout="stereo")
            frame.pts, frame.rate = i * 1536, 48000
            container.mux(tone.encode(frame))
        container.mux(tone.encode(None))
    with av.open(str(plain)) as source, av.open(str(path), "w") as out:
        copies = {stream.index: out.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.size:
                if packet.stream.type == "audio":
                    packet.pts = packet.dts = packet.dts - packet.dts % (32 * kept)
                packet.stream = copies[packet.stream.index]
                out.mux(packet)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_packets_of_one_time_are_moved_by_a_tick(tmp_path, fake_model, suffix):
    clip = equal_times(tmp_path / "in.mkv")
    before = streams_of(clip)[1].times
    assert len(set(before)) < len(before)
    run = made(fake_model, clip, tmp_path / f"out{suffix}")
    after = streams_of(run.job.target)[1].times
    assert len(after) == len(before)
    assert steps(after).min() > 0
    assert np.abs(np.subtract(after, before)).max() <= 0.003


def with_sound(path, codec, packets):
    """Ten pictures of 40 ms, and `packets` packets of sound."""
    with av.open(str(path), "w") as container:
        library = "flv" if path.suffix == ".flv" else "libx264"
        stream, tone = container.add_stream(library, rate=25), container.add_stream(codec, rate=44100)
        stream.width, stream.height, stream.pix_fmt, tone.layout = 64, 48, "yuv420p", "mono"
        tone.codec_context.open()
        for image in images(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
        kind = np.int16 if tone.codec_context.format.name.startswith("s16") else np.int32
        for i in range(packets):
            silence = np.zeros((1, tone.frame_size), kind)
            frame = av.AudioFrame.from_ndarray(silence, format=tone.codec_context.format.name, layout="mono")
            frame.pts, frame.rate = i * tone.frame_size, 44100
            container.mux(tone.encode(frame))
        container.mux(tone.encode(None))
    return path


def test_sound_whose_packets_have_no_duration_is_copied_to_the_last(tmp_path, fake_model):
    clip = with_sound(tmp_path / "in.mkv", "alac", 5)
    before = streams_of(clip)[1].packets
    for suffix in (".mp4", ".mov", ".mkv"):
        run = made(fake_model, clip, tmp_path / f"out{suffix}")
        assert streams_of(run.job.target)[1].packets == before == 5


def test_sound_whose_packets_have_no_duration_is_no_damage(tmp_path, fake_model):
    run = made(fake_model, with_sound(tmp_path / "in.flv", "adpcm_swf", 6), tmp_path / "out.mp4")
    assert run.complete
    assert run.notes == ["the adpcm_swf stream is left out; .mp4 cannot hold it"]


def avi(path, codec="libx264", ticks=range(10), rate=10, **options):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for tick, image in zip(ticks, images(len(ticks)), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mjpeg"])
@pytest.mark.parametrize("frames_between", ["0", "2"])
def test_avi_has_decoding_times_alone(tmp_path, fake_model, codec, frames_between):
    options = {} if codec == "mjpeg" else {"bf": frames_between}
    run = made(fake_model, avi(tmp_path / "in.avi", codec, **options), tmp_path / "out.mp4")
    assert (run.frames, run.complete, run.notes) == (10, True, [])
    assert streams_of(run.job.target)[0].times == pytest.approx([i / 10 for i in range(10)])


@pytest.mark.parametrize("codec", ["libx264", "mjpeg"])
def test_ticks_of_avi_without_a_picture_are_no_damage(tmp_path, fake_model, codec):
    ticks = [0, 1, 2, 10, 11, 40]
    options = {} if codec == "mjpeg" else {"bf": "0"}
    run = made(fake_model, avi(tmp_path / "in.avi", codec, ticks, rate=25, **options), tmp_path / "out.mp4")
    assert (run.frames, run.complete, run.notes) == (6, True, [])
    assert streams_of(run.job.target)[0].times == pytest.approx([tick / 25 for tick in ticks])


@pytest.mark.parametrize("between", ["0", "3"])
def test_raw_video_counts_frames(tmp_path, fake_model, between):
    clip = avi(tmp_path / "in.h264", rate=25, bf=between)
    run = made(fake_model, clip, tmp_path / "out.mp4")
    assert streams_of(run.job.target)[0].times == pytest.approx([i / 25 for i in range(10)])
    assert (run.complete, run.notes) == (True, [])


@pytest.mark.parametrize(
    ("size", "pixels", "rate"), [((720, 480), "yuv411p", Fraction(30000, 1001)), ((720, 576), "yuv420p", Fraction(25))]
)
def test_one_frame_of_dv_has_a_rate(tmp_path, fake_model, size, pixels, rate):
    clip = tmp_path / "in.dv"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("dvvideo", rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        frame = av.VideoFrame.from_ndarray(np.full((*size[::-1], 3), 90, np.uint8), format="rgb24")
        container.mux(stream.encode(frame.reformat(format=pixels)))
        container.mux(stream.encode(None))
    with av.open(str(clip)) as container:
        assert frame_rate(container.streams.video[0]) == rate
    assert made(fake_model, clip, tmp_path / "out.mp4").frames == 1


@pytest.mark.parametrize("name", ["five.mjpeg", "five"])
def test_a_row_of_jpeg_is_a_video(tmp_path, fake_model, name):
    clip = tmp_path / name
    clip.write_bytes(b"".join(cv2.imencode(".jpg", image[..., ::-1])[1].tobytes() for image in images(5)))
    assert media_of(clip) == "video"
    run = made(fake_model, clip, tmp_path / "out.mp4")
    assert (run.frames, run.complete) == (5, True)
    assert streams_of(run.job.target)[0].times == pytest.approx([i / 25 for i in range(5)])


@pytest.mark.parametrize("behind", ["nothing", "a preview", "text", "listed"])
def test_a_jpeg_with_something_behind_it_is_a_picture(tmp_path, behind):
    whole = cv2.imencode(".jpg", images(1)[0])[1].tobytes()
    small = cv2.imencode(".jpg", images(1, height=24, width=32)[0])[1].tobytes()
    listed = whole[:2] + b"\xff\xe2\x00\x08MPF\x00\x00\x00" + whole[2:]
    content = {"nothing": whole, "a preview": whole + small, "text": whole + b"text", "listed": listed + whole}[behind]
    (tmp_path / "photo").write_bytes(content)
    assert media_of(tmp_path / "photo") == "picture"


def test_what_the_container_took_stays_when_it_refuses(tmp_path, fake_model, write_video, monkeypatch):
    """Hours of work may be in it; the line says which stream, when and why."""
    clip, target, begin = (
        write_video(tmp_path / "in.mp4", images(20), audio="aac"),
        tmp_path / "out.mp4",
        Muxer.__init__,
    )

    class Refusing:
        """As a container that does not like one packet of sound."""

        def __init__(self, container):
            self._container = container

        def __getattr__(self, name):
            return getattr(self._container, name)

        def mux_one(self, packet):
            if packet.stream.type == "audio" and packet.pts * packet.time_base > 0.3:
                raise av.error.ArgumentError(22, "Invalid argument")
            self._container.mux_one(packet)

    def refusing(muxer, *arguments):
        begin(muxer, *arguments)
        muxer._container = Refusing(muxer._container)

    monkeypatch.setattr(Muxer, "__init__", refusing)
    kept = partial_path(target)
    with pytest.raises(
        MediaError,
        match=r"out\.mp4: \.mp4 refuses a packet of the aac stream at 0\.3.* s \(invalid argument\); .*partial",
    ) as error:
        made(fake_model, clip, target)
    assert str(kept) in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.partial.mp4"]
    with av.open(str(kept)) as container:
        assert 5 < sum(1 for _ in container.decode(video=0)) < 20


def test_a_recording_that_begins_between_key_frames(tmp_path, fake_model):
    """What its first pictures were made from is not there; that is no damage."""
    whole = transport_stream(tmp_path / "whole.ts", 20 * TICKS, 60).read_bytes()
    clip = tmp_path / "in.ts"
    clip.write_bytes(whole[len(whole) // 188 // 3 * 188 :])
    run = made(fake_model, clip, tmp_path / "out.mp4")
    left_out = [note for note in run.notes if note.startswith("frames before the first key frame: ")]
    assert run.notes == left_out != []
    assert run.complete
    assert 20 < run.frames < 60


def test_a_part_of_joined_recordings(tmp_path, fake_model):
    parts = [transport_stream(tmp_path / f"{i}.ts", 20 * TICKS, count=10, step=90_000) for i in range(2)]
    clip = tmp_path / "in.ts"
    clip.write_bytes(b"".join(part.read_bytes() for part in parts))
    from basnet_runtime.media.video.options import Span

    with VideoSource(clip, span=Span.parse("12", "15")) as source:
        assert not source._sought
    run = made(fake_model, clip, tmp_path / "out.mp4", span=Span.parse("12", "15"))
    assert run.frames == 3
    assert streams_of(run.job.target)[0].times == pytest.approx([0, 1, 2], abs=0.001)
