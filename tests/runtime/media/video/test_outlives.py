"""A job outlives its videos: what one of them brings to light fails that one alone, wherever it happens."""

from __future__ import annotations

import json

import pytest

from basnet_runtime.command import run as running
from basnet_runtime.command.config import RunConfig
from basnet_runtime.command.run import run
from basnet_runtime.media.compose.compose import Composer
from basnet_runtime.media.video.options import VideoOptions
from basnet_runtime.media.video.pixels import FrameReader
from basnet_runtime.media.video.reader import VideoSource
from basnet_runtime.media.video.write import segments as video_segments
from basnet_runtime.media.video.write.sink import FrameEncoder, Muxer
from basnet_torch import files
from basnet_torch.files import host_token
from basnet_torch.unexpected import log_path
from tests.videos import images

NAMES = ["a.mp4", "b.mp4", "c.mp4"]


class Quiet:
    def started(self, what, total):
        pass

    def advanced(self):
        pass


@pytest.fixture
def folder(tmp_path, monkeypatch, make_model, write_video):
    """Three clips, of which the second has more frames than the others."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(running, "opened_model", lambda _: make_model())
    (tmp_path / "in").mkdir()
    for name in NAMES:
        write_video(tmp_path / "in" / name, images(12 if name == "b.mp4" else 4), audio="aac")
    return tmp_path


def odd_after(calls, method, error):
    """The method, but with an error from so many calls on, which only the long clip reaches."""
    seen = {}  # objects are kept: an address given away again would count on

    def wrapped(this, *arguments, **options):
        _, count = seen.get(id(this), (this, 0))
        seen[id(this)] = (this, count + 1)
        if count >= calls:
            raise error
        return method(this, *arguments, **options)

    return wrapped


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("owner", "name"), [(FrameReader, "read"), (FrameEncoder, "encode"), (VideoSource, "_next"), (Muxer, "mux")]
)
def test_reading_and_writing(folder, monkeypatch, owner, name, resume):
    monkeypatch.setattr(owner, name, odd_after(6, getattr(owner, name), KeyError("odd")))
    video = VideoOptions(hwaccel="none", resume=resume)
    summary = run(RunConfig(inputs=(str(folder / "in"),), output=str(folder / "out"), video=video), Quiet())
    (failure,) = summary.failures
    assert failure.error == f"{folder}/in/b.mp4: unexpected: KeyError: 'odd'; traceback in {log_path()}"
    assert [result.source.name for result in summary.results] == ["a.mp4", "c.mp4"]
    assert "KeyError: 'odd'" in log_path().read_text()
    assert not (folder / "out" / "b.mask.mp4").exists()
    assert not list((folder / "out").glob(".*.partial*"))


def test_composing(folder, monkeypatch):
    whole = Composer.__call__

    def odd(this, frame, *arguments):
        if frame.index == 6:
            raise ZeroDivisionError("odd")
        return whole(this, frame, *arguments)

    monkeypatch.setattr(Composer, "__call__", odd)
    summary = run(RunConfig(inputs=(str(folder / "in"),), output=str(folder / "out")), Quiet())
    assert [failure.source.name for failure in summary.failures] == ["b.mp4"]
    assert len(summary.results) == 2


@pytest.mark.parametrize("where", ["default_suffix", "check_output"])
def test_planning(folder, monkeypatch, where):
    from basnet_runtime.media.video.write import container as video_container

    whole = getattr(video_container, where)

    def odd(source, *arguments, **options):
        if source.name == "b.mp4":
            raise UnicodeError("odd")
        return whole(source, *arguments, **options)

    monkeypatch.setattr(video_container, where, odd)
    summary = run(RunConfig(inputs=(str(folder / "in"),), output=str(folder / "out")), Quiet())
    (failure,) = summary.failures
    assert failure.error.startswith(f"{folder}/in/b.mp4: unexpected: UnicodeError: odd; ")
    assert len(summary.results) == 2


def test_temporary_names_carry_the_host(folder, monkeypatch):
    """Also those of segments, and only those of this host are removed where nobody can say who else is there."""
    target = folder / "out.mp4"
    beside = video_segments.segments_folder(target)
    beside.mkdir()
    ours, others = beside / f".a-{host_token()}-1-2.partial.segment", beside / ".b-00000000-1-2.partial.segment"
    for path in (ours, others):
        path.touch()

    def without_locks(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(files.fcntl, "flock", without_locks)
    opened = video_segments.SegmentFolder(target, {})
    assert (ours.exists(), others.exists()) == (False, True)
    opened.close()
    monkeypatch.undo()
    video_segments.SegmentFolder(target, json.loads((beside / "job.json").read_text())).close()
    assert not others.exists()
    writer = video_segments.SegmentWriter(beside / "000000.segment")
    assert f"-{host_token()}-" in writer._pending.path.name
    writer.discard()
