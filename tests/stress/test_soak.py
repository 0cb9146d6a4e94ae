"""Memory is read all along a real run, growth is caught, and frames that get lost are told."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.compose.compose import Composer
from basnet_runtime.media.video.reader import VideoSource
from basnet_runtime.media.video.write.sink import OutputPlan, VideoSink
from basnet_runtime.pipeline.run import Pipeline
from basnet_torch.errors import MediaError
from tests.stress.soak import Sample, SoakReport, SoakWatcher, soak, write_source

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tiny_video(tmp_path, write_video):
    """48 x 32, a disc that moves; no B-frames."""
    images = []
    for index in range(20):
        image = np.full((32, 48, 3), 30, np.uint8)
        image[8:24, 4 + index : 20 + index] = 220
        images.append(image)
    return write_video(tmp_path / "tiny.mp4", images, pixels="yuv420p")


_GROWS = """
import numpy as np
from basnet_benchmarks.breakdown import highest_bytes, resident_bytes
before = resident_bytes()
block = np.ones(200_000_000, np.uint8)
print(resident_bytes() - before, highest_bytes() - resident_bytes(), block[0])
"""


def test_memory_is_that_of_this_process():
    """In a young process: what a large one has not used for a while, the system may take away meanwhile."""
    done = subprocess.run([sys.executable, "-c", _GROWS], capture_output=True, text=True, check=True)
    grown, below_highest, _ = map(int, done.stdout.split())
    assert 190e6 < grown < 240e6
    assert below_highest >= -1e6


def test_hundreds_of_frames_through_the_real_pipeline_with_a_model_of_no_network(tiny_video, tmp_path, make_model):
    """Decoder, queues, finishing and encoder keep nothing of the frames that went through."""
    video = write_source(tmp_path / "long.mp4", 600, tiny_video)
    watcher = SoakWatcher(every=10)
    with make_model() as model, VideoSource(video) as source:
        sink = VideoSink(OutputPlan(target=tmp_path / "out.mp4", info=source.info, kind=OutputKind()))
        pipeline = Pipeline(model, Composer(OutputKind.parse("mask")), on_frame=lambda _: watcher.advanced())
        report = pipeline.run(source, sink)
    assert report.frames == 600
    settled, last = (s.resident_bytes for s in (watcher.samples[19], watcher.samples[-1]))
    assert last / settled - 1 < 0.02
    with av.open(str(tmp_path / "out.mp4")) as made:
        assert sum(1 for _ in made.decode(video=0)) == 600


def made_report(resident, frames=None):
    samples = tuple(Sample(frame=10 * i, seconds=i, resident_bytes=n) for i, n in enumerate(resident, start=1))
    asked = 10 * len(resident)
    return SoakReport(asked=asked, settled=20, limit=0.02, frames=frames or asked, seconds=2.0, samples=samples)


def test_growth_is_judged_from_the_settled_frame_on():
    assert made_report([50, 100, 101, 102, 100]).failures == ()
    leaking = made_report([50, 100, 101, 102, 103])
    assert leaking.failures == ("memory grew by 3.0% after frame 20, at frame 50; at most 2.0%",)
    assert made_report([50, 100, 104, 100]).failures  # what was given back later had grown all the same
    lost = made_report([100] * 5, frames=49)
    assert lost.failures == ("49 of 50 frames came out",)
    assert replace(lost, frames=50).failures == ()


_LEAKS = """
import numpy as np
from tests.stress.soak import SoakWatcher
kept, watcher = [], SoakWatcher(every=1)
for _ in range(40):
    kept.append(np.ones(4_000_000, np.uint8))
    watcher.advanced()
print(watcher.samples[-1].resident_bytes - watcher.samples[0].resident_bytes)
"""


def test_a_watcher_that_leaks_is_caught():
    """The reading itself, in a loop that keeps four megabytes at every step."""
    done = subprocess.run([sys.executable, "-c", _LEAKS], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) > 100e6


def test_the_source_has_exactly_as_many_frames(tiny_video, tmp_path):
    video = write_source(tmp_path / "long.mp4", 50, tiny_video)
    with av.open(str(video)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 50
    times = [frame.time for frame in frames]
    assert np.diff(times) == pytest.approx(1 / 25)
    first, again = (frames[i].to_ndarray(format="gray") for i in (0, 20))
    np.testing.assert_array_equal(first, again)


def test_the_drawn_source(tmp_path):
    with av.open(str(write_source(tmp_path / "drawn.mp4", 3))) as container:
        assert [(f.width, f.height) for f in container.decode(video=0)] == [(640, 360)] * 3


def test_what_is_no_video_is_one_line(tmp_path):
    (tmp_path / "x.mp4").write_text("no video")
    with pytest.raises(MediaError, match="cannot be repeated"):
        write_source(tmp_path / "long.mp4", 10, tmp_path / "x.mp4")


def test_the_built_in_model_in_short(tiny_video, tmp_path):
    report = soak(tmp_path, 30, settled=10, every=5, limit=0.3, source=tiny_video, threads=1)
    assert report.failures == ()
    assert (report.frames, report.later[0].frame, len(report.samples)) == (30, 10, 6)


@pytest.mark.stress
def test_twenty_thousand_frames(tmp_path):
    report = soak(tmp_path)
    print(f"{report.frames} frames, {report.frames / report.seconds:.1f} a second, memory {report.growth:+.2%}")
    assert report.failures == ()
