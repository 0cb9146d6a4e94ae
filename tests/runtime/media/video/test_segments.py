"""Videos in segments: continued after Ctrl-C, kill -9 and refusal, with the bytes of an undisturbed run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from basnet_runtime.command.config import RunConfig
from basnet_runtime.command.run_video import clear_finished
from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.image.pictures import write_picture
from basnet_runtime.media.video.options import Span, VideoOptions
from basnet_runtime.media.video.write import segments as video_segments
from basnet_runtime.media.video.write.segment_file import SegmentWriter
from basnet_runtime.media.video.write.segments import SegmentFolder, segments_folder
from basnet_torch.errors import MediaError, UsageError
from tests import videos

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(video_segments, "SEGMENT_FRAMES", 8)


def images(count):
    out = []
    for i in range(count):
        image = np.full((48, 64, 3), 20, np.uint8)
        image[8:24, 4 + i : 20 + i] = (230, 200, 180)
        out.append(image)
    return out


@pytest.fixture
def clip(tmp_path, write_video):
    times = [1001 * i + (500 if i > 10 else 0) for i in range(30)]
    return write_video(tmp_path / "in.mp4", images(30), pts=times, audio="aac")


def video_run(model, source, target, *, stop_at=None, stabilize=False, identity=None, **options):
    """A run; Ctrl-C after `stop_at` frames of it."""
    count = 0

    def advanced():
        nonlocal count
        count += 1
        if count == stop_at:
            raise KeyboardInterrupt

    options |= {"identity": identity or {"model": "fake"}, "pipeline": {"stabilize": stabilize}}
    return videos.video_run(model, source, target, resume=True, advanced=advanced, **options)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("out.mp4", "mask", {}),
        ("out.mp4", "side", {"codec": "hevc"}),
        ("out.mp4", "overlay", {"codec": "av1"}),
        ("out.mov", "cutout", {}),
        ("out.mkv", "cutout", {"codec": "vp9"}),
        ("out.mkv", "cutout", {"codec": "ffv1"}),
        ("out.mp4", "overlay", {"span": Span.parse("0.2", "0.8")}),
    ],
)
def test_continued_run_gives_the_same_bytes(tmp_path, clip, fake_model, name, kind, options):
    whole, stopped = tmp_path / "whole" / name, tmp_path / "stopped" / name
    video_run(fake_model, clip, whole, kind=kind, **options).run()
    interrupted = video_run(fake_model, clip, stopped, kind=kind, stop_at=13, **options)
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    assert interrupted.notes == ["8 frames are kept; the same command continues after them"]
    assert [path.name for path in stopped.parent.iterdir()] == [f"{name}.segments"]
    again = video_run(fake_model, clip, stopped, kind=kind, **options)
    report = again.run()
    assert again.frames == report.frames + 8
    assert digest(stopped) == digest(whole)
    assert [path.name for path in stopped.parent.iterdir()] == [name]
    with av.open(str(stopped)) as container:
        assert sum(1 for _ in container.decode(video=0)) == again.frames


def test_what_the_stabilizer_remembers_goes_along(tmp_path, clip, fake_model):
    targets = [tmp_path / name / "out.mkv" for name in ("whole", "stopped", "unstable")]
    stable = {"stabilize": True, "codec": "ffv1"}
    video_run(fake_model, clip, targets[0], **stable).run()
    with pytest.raises(KeyboardInterrupt):
        video_run(fake_model, clip, targets[1], stop_at=13, **stable).run()
    video_run(fake_model, clip, targets[1], **stable).run()
    video_run(fake_model, clip, targets[2], codec="ffv1").run()
    assert digest(targets[0]) == digest(targets[1]) != digest(targets[2])


def test_batches_of_a_continued_run_are_those_of_a_whole_one(tmp_path, clip, fake_model):
    interrupted = video_run(fake_model, clip, tmp_path / "out.mp4", batch=3, stop_at=20)
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    assert interrupted.notes == ["18 frames are kept; the same command continues after them"]


def test_nothing_is_done_again_when_only_the_joining_is_left(tmp_path, clip, fake_model, monkeypatch):
    target = tmp_path / "out.mp4"
    with monkeypatch.context() as patched:
        patched.setattr(video_segments.SegmentedSink, "_join", lambda self: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(MediaError, match="full"):
            video_run(fake_model, clip, target).run()
    again = video_run(fake_model, clip, target)
    assert again.run().frames == 0
    assert again.frames == 30
    video_run(fake_model, clip, tmp_path / "whole.mp4").run()
    assert digest(target) == digest(tmp_path / "whole.mp4")


def stopped_at(tmp_path, clip, model, **options):
    with pytest.raises(KeyboardInterrupt):
        video_run(model, clip, tmp_path / "out.mp4", stop_at=13, **options).run()
    return tmp_path / "out.mp4.segments"


def test_other_settings_are_refused(tmp_path, clip, fake_model):
    stopped_at(tmp_path, clip, fake_model)
    with pytest.raises(UsageError, match="was begun with another kind and quality"):
        video_run(fake_model, clip, tmp_path / "out.mp4", kind="overlay", quality=50).run()
    with pytest.raises(UsageError, match="was begun with another model"):
        video_run(fake_model, clip, tmp_path / "out.mp4", identity={"model": "other"}).run()
    clip.touch()
    with pytest.raises(UsageError, match="was begun with another source"):
        video_run(fake_model, clip, tmp_path / "out.mp4").run()


def test_damaged_segment_is_one_line(tmp_path, clip, fake_model):
    segment = stopped_at(tmp_path, clip, fake_model) / "000000.segment"
    content = segment.read_bytes()
    for damaged in (content[:100], content[:50] + b"x" + content[51:], b""):
        segment.write_bytes(damaged)
        with pytest.raises(MediaError, match=r"000000\.segment: is damaged; remove the folder .*segments and"):
            video_run(fake_model, clip, tmp_path / "out.mp4").run()


def test_two_runs_do_not_share_a_folder(tmp_path, clip, fake_model):
    stopped_at(tmp_path, clip, fake_model)
    run = video_run(fake_model, clip, tmp_path / "out.mp4")
    with (tmp_path / "out.mp4.segments" / "job.json").open() as other:
        import fcntl

        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another run is working on it"):
            run.run()
    run.run()


def test_fifty_kills_at_random_moments(tmp_path, write_video):
    clip = write_video(tmp_path / "in.mp4", images(40), audio="aac")
    command = [sys.executable, HERE / "kill_video.py", clip, tmp_path, "50", "20261124"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["killed"] == 50
    assert counts["finished"] >= 2


def joined_but_not_removed(tmp_path, clip, model, monkeypatch, **options):
    """As a run leaves it that is killed right after the result has got its name."""
    monkeypatch.setattr(SegmentFolder, "remove", SegmentFolder.close)
    video_run(model, clip, tmp_path / "out.mp4", **options).run()
    monkeypatch.undo()


def cleared(clip, target, kind="mask", identity=None):
    config = RunConfig(
        inputs=(), kind=OutputKind.parse(kind), video=VideoOptions(resume=True, hwaccel="none"), max_pixels=10**8
    )
    return clear_finished([videos.job_of(clip, target)], config, identity or {"model": "fake"})


def test_a_result_whose_segments_still_lie_there_is_done(tmp_path, clip, fake_model, monkeypatch):
    target = tmp_path / "out.mp4"
    joined_but_not_removed(tmp_path, clip, fake_model, monkeypatch)
    for other in ({"kind": "overlay"}, {"identity": {"model": "other"}}):
        assert cleared(clip, target, **other) == frozenset()
    assert segments_folder(target).is_dir()
    assert cleared(clip, target) == {target}
    assert not segments_folder(target).exists()


def test_a_file_that_was_there_before_is_not_the_result(tmp_path, clip, fake_model, monkeypatch):
    target = tmp_path / "out.mp4"
    target.write_bytes(b"an older mask")
    stopped_at(tmp_path, clip, fake_model)
    kept = sorted(path.name for path in segments_folder(target).iterdir())
    assert cleared(clip, target) == frozenset()
    assert sorted(path.name for path in segments_folder(target).iterdir()) == kept
    assert target.read_bytes() == b"an older mask"


def test_a_live_run_keeps_its_segments(tmp_path, clip, fake_model, monkeypatch):
    target = tmp_path / "out.mp4"
    joined_but_not_removed(tmp_path, clip, fake_model, monkeypatch)
    with (segments_folder(target) / "job.json").open() as other:
        import fcntl

        fcntl.flock(other, fcntl.LOCK_EX)
        assert cleared(clip, target) == frozenset()
    assert segments_folder(target).is_dir()


def test_a_full_disk_leaves_the_finished_segments_alone(tmp_path, clip, fake_model, monkeypatch):
    """What a buffer still holds is written once more when the file is closed, and fails once more."""

    def fails(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    written = 0

    def add(writer, packet):
        nonlocal written
        written += 1
        if written < 12:
            return whole(writer, packet)
        writer._file.close()
        writer._file = SimpleNamespace(close=fails, write=fails, flush=fails)
        return fails()

    whole = SegmentWriter.add
    monkeypatch.setattr(SegmentWriter, "add", add)
    with pytest.raises(MediaError, match="no space left on device"):
        video_run(fake_model, clip, tmp_path / "out.mp4").run()
    assert sorted(path.name for path in segments_folder(tmp_path / "out.mp4").iterdir()) == [
        "000000.segment",
        "job.json",
    ]


def test_ctrl_c_before_the_first_segment_says_so(tmp_path, clip, fake_model):
    run = video_run(fake_model, clip, tmp_path / "out.mp4", stop_at=2)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert "nothing is kept yet: what --resume continues are segments of 8 frames" in run.notes


def test_another_background_in_the_same_file_is_another_job(tmp_path, clip, fake_model):
    ground, kind = tmp_path / "ground.png", f"image:{tmp_path / 'ground.png'}"
    write_picture(ground, np.full((48, 64, 3), 10, np.uint8))
    with pytest.raises(KeyboardInterrupt):
        video_run(fake_model, clip, tmp_path / "out.mp4", stop_at=20, kind=kind).run()
    write_picture(ground, np.full((48, 64, 3), 200, np.uint8), overwrite=True)
    with pytest.raises(UsageError, match="was begun with another kind"):
        video_run(fake_model, clip, tmp_path / "out.mp4", kind=kind).run()


@pytest.mark.parametrize("content", ["[]", "null", '"a"', '{"job": [], "result": 1}', "{"])
def test_a_strange_note_is_no_result(tmp_path, clip, fake_model, monkeypatch, content):
    joined_but_not_removed(tmp_path, clip, fake_model, monkeypatch)
    (segments_folder(tmp_path / "out.mp4") / "joined.json").write_text(content)
    assert cleared(clip, tmp_path / "out.mp4") == frozenset()
