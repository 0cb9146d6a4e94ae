"""A video by several machines: segments made in any order, joined to the bytes of one machine."""

import hashlib
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from basnet_runtime.backends.fake import FakeBackend
from basnet_runtime.command import cluster as driver
from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.video.options import VideoOptions
from basnet_runtime.media.video.write import segments
from basnet_runtime.media.video.write.segments import SegmentFolder, segments_folder
from basnet_runtime.model import SaliencyModel
from basnet_torch.errors import UsageError
from basnet_torch.spec import Postprocess, Preprocess
from tests import videos

from .conftest import journal_lines, wait_until


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def scored(scores):
    """Frames that are as bright as that."""
    return [np.full((48, 64, 3), round(255 * score), np.uint8) for score in scores]


@pytest.fixture
def model():
    """Its score is the frame's brightness: something is found from 0.5 on, and lost below 0.425."""
    return SaliencyModel(FakeBackend(32, 32), Preprocess(height=32, width=32), Postprocess(empty_below=0.5), "fake")


IN_THE_BAND = [0.9, *[0.46] * 11, 0.1, *[0.46] * 9, 0.9, *[0.46] * 8]


@pytest.mark.parametrize("scores", [IN_THE_BAND, [0.46] * 31, [0.9, 0.1] * 15], ids=["band", "all in it", "blinking"])
@pytest.mark.parametrize("batch", [1, 3])
def test_what_a_mask_remembers_is_found_again(tmp_path, write_video, model, monkeypatch, scores, batch):
    """Segments 2, 1 and 0 made apart, in this order, give what one run gives."""
    monkeypatch.setattr(segments, "SEGMENT_FRAMES", 9)
    clip = write_video(tmp_path / "in.mp4", scored(scores))
    given = {"batch": batch, "pipeline": {"empty_weak": True}, "resume": True, "identity": {"model": "fake"}}
    whole = videos.video_run(model, clip, tmp_path / "whole.mp4", **given)
    whole.run()
    target = tmp_path / "parts.mp4"
    for part in (range(2, 4), range(1, 2), range(1)):
        assert videos.video_run(model, clip, target, **given).run_segments(part).frames
        assert videos.video_run(model, clip, target, **given).run_segments(part) is None
    joined = videos.video_run(model, clip, target, **given)
    joined.joins = True
    assert joined.run().frames == 0
    assert digest(target) == digest(tmp_path / "whole.mp4")
    assert joined.decisions.to_dict() == whole.decisions.to_dict()
    assert joined.notes == whole.notes
    assert not segments_folder(target).exists()


def test_as_few_frames_as_decide_it_are_run_before(tmp_path, write_video, model, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_FRAMES", 12)
    clip = write_video(tmp_path / "in.mp4", scored([0.9] * 24))
    run = videos.video_run(model, clip, tmp_path / "out.mp4", resume=True, identity={"model": "fake"})
    run.run_segments(range(1, 2))
    assert model.backend.pictures == 1 + 12


def test_nobody_joins_while_parts_are_made(tmp_path, write_video, model, monkeypatch):
    clip = write_video(tmp_path / "in.mp4", scored([0.9] * 4))
    target = tmp_path / "out.mp4"
    first, second = (SegmentFolder(target, {"a": 1}, shared=True) for _ in range(2))
    with pytest.raises(UsageError, match="another run is working on it"):
        SegmentFolder(target, {"a": 1})
    first.close()
    second.close()
    with pytest.raises(UsageError, match="was begun with another"):
        videos.video_run(model, clip, target, resume=True).run_segments(range(1))
    SegmentFolder(target, {"a": 1}).close()


@pytest.fixture
def clip(tmp_path, write_video):
    (tmp_path / "in").mkdir()
    return write_video(tmp_path / "in" / "clip.mp4", videos.images(50, height=64, width=128), audio="aac")


RESUMED = VideoOptions(resume=True)


@pytest.mark.parametrize(
    ("kind", "video", "name"), [("mask", {}, "clip.mask.mp4"), ("cutout", {"codec": "prores"}, "clip.cutout.mov")]
)
def test_the_bytes_of_one_machine(tmp_path, clip, alone, spread, monkeypatch, kind, video, name):
    monkeypatch.setattr(segments, "SEGMENT_FRAMES", 15)
    given = {"kind": OutputKind.parse(kind), "video": VideoOptions(resume=True, **video)}
    one = alone(**given)
    many = spread(**{**given, "video": VideoOptions(**video)})
    assert digest(tmp_path / "out" / name) == digest(tmp_path / "alone" / name)
    assert many.results[0].to_dict() == {**one.results[0].to_dict(), "target": str(tmp_path / "out" / name)}
    assert many.frames == one.frames == 50
    assert [line["state"] for line in journal_lines(tmp_path / "out")] == ["run", "begun", "done", "end"]
    assert not list((tmp_path / "out").glob(".*partial*"))


def test_a_stabilized_video_and_numbered_pictures_are_one_task(tmp_path, clip, alone, spread, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_FRAMES", 15)
    alone(stabilize=True)
    spread(stabilize=True)
    assert digest(tmp_path / "out" / "clip.mask.mp4") == digest(tmp_path / "alone" / "clip.mask.mp4")
    spread("frames/%06d.png", inputs=(str(clip),))
    assert len(list((tmp_path / "frames").glob("*.png"))) == 50


def test_a_worker_dies_over_its_segments(tmp_path, clip, cluster, alone, spread, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_FRAMES", 15)
    alone(video=RESUMED)

    def kill():
        wait_until(lambda: list((tmp_path / "out").glob("*.segments/*.segment")))
        os.kill(cluster.workers[0].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    summary = spread()
    thread.join(timeout=30)
    assert summary.failures == []
    assert digest(tmp_path / "out" / "clip.mask.mp4") == digest(tmp_path / "alone" / "clip.mask.mp4")


def test_an_interrupted_run_goes_on_without_a_cluster(tmp_path, clip, alone, spread, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_FRAMES", 15)
    monkeypatch.setattr(driver, "_TELL_SECONDS", 0.0)
    alone(video=RESUMED)

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spread(tell=interrupt)
    assert list((tmp_path / "out").glob("*.segments/*.segment"))
    assert not (tmp_path / "out" / "clip.mask.mp4").exists()
    (result,) = alone("out", video=RESUMED).results
    assert any(note.startswith("continued after ") for note in result.notes)
    assert digest(tmp_path / "out" / "clip.mask.mp4") == digest(tmp_path / "alone" / "clip.mask.mp4")


def test_a_segment_that_kills_its_worker_fails_the_video_alone(tmp_path, clip, spread, monkeypatch, write_video):
    monkeypatch.setattr(segments, "SEGMENT_FRAMES", 15)
    write_video(tmp_path / "in" / "poison.mp4", videos.images(32))
    summary = spread()
    assert [failure.source.name for failure in summary.failures] == ["poison.mp4"]
    assert [Path(result.source).name for result in summary.results] == ["clip.mp4"]
