"""Kills a segmented video run again and again, at random moments, and compares what comes out in the end.

python kill_video.py CLIP FOLDER KILLS SEED

Prints one JSON object. An undisturbed run in another folder gives the bytes to compare with. After every kill nothing
but the segments' folder, or the whole result, may lie in the folder.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import av  # noqa: F401 - loaded once, before the forks
import cv2  # noqa: F401

from basnet_runtime.backends.fake import FakeBackend
from basnet_runtime.command.config import RunConfig
from basnet_runtime.command.jobs import Job
from basnet_runtime.command.run_video import VideoRun, clear_finished
from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.compose.compose import Composer
from basnet_runtime.media.video import reader as video  # noqa: F401 - as above
from basnet_runtime.media.video.options import VideoOptions
from basnet_runtime.media.video.write import segments as video_segments
from basnet_runtime.media.video.write import sink as video_sink  # noqa: F401 - as above
from basnet_runtime.model import SaliencyModel
from basnet_runtime.pipeline.run import Pipeline
from basnet_torch.spec import Postprocess, Preprocess

video_segments.SEGMENT_FRAMES = 8


CONFIG = RunConfig(
    inputs=(), kind=OutputKind(name="overlay"), video=VideoOptions(resume=True, hwaccel="none"), max_pixels=10**8
)
COMPOSER = Composer(CONFIG.kind)
IDENTITY = {"model": "fake"}


class Slow:
    """Listens slowly, so that there is time to kill."""

    def started(self, what: str, total: int) -> None:
        """Nothing."""

    def advanced(self) -> None:
        """Wait."""
        time.sleep(0.002)


def job_of(clip: Path, target: Path) -> Job:
    return Job(source=clip, target=target, media="video")


def convert(clip: Path, target: Path) -> None:
    model = SaliencyModel(FakeBackend(32, 32), Preprocess(height=32, width=32), Postprocess(), "fake")
    made_of = {
        "model": model,
        "pipeline": lambda done, **more: Pipeline(model, COMPOSER, on_frame=done, stream=True, **more),
    }
    VideoRun(job=job_of(clip, target), config=CONFIG, identity=IDENTITY, listener=Slow(), **made_of).run()


def child(clip: Path, target: Path) -> int:
    """Start a run in a process of its own."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        convert(clip, target)
        code = 0
    finally:
        os._exit(code)


def whole_run(clip: Path, target: Path) -> float:
    """Seconds of a run that nobody disturbs."""
    begun = time.monotonic()
    _, status = os.waitpid(child(clip, target), 0)
    assert status == 0
    return time.monotonic() - begun


def main() -> None:
    clip, folder, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    choose = random.Random(seed)
    (folder / "whole").mkdir()
    seconds = whole_run(clip, folder / "whole" / "out.mp4")
    expected = (folder / "whole" / "out.mp4").read_bytes()
    target = folder / "killed" / "out.mp4"
    target.parent.mkdir()
    killed = finished = kept_whole = 0
    while killed < kills:
        pid = child(clip, target)
        time.sleep(choose.uniform(0, seconds * 1.2))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            killed += 1
            kept_whole += target.exists()
        else:
            assert os.WEXITSTATUS(status) == 0, "a run failed"
        names = {path.name for path in target.parent.iterdir()}
        assert names <= {"out.mp4", "out.mp4.segments"}, names
        if target.exists():
            assert target.read_bytes() == expected, "other bytes than those of an undisturbed run"
            joined = (target.parent / "out.mp4.segments" / "joined.json").exists()
            cleared = clear_finished([job_of(clip, target)], CONFIG, IDENTITY)
            assert cleared == ({target} if joined else set())
            assert {path.name for path in target.parent.iterdir()} == {"out.mp4"}
            target.unlink()
            finished += 1
    whole_run(clip, target)
    assert target.read_bytes() == expected, "other bytes than those of an undisturbed run"
    counts = {"killed": killed, "finished": finished + 1, "whole_when_killed": kept_whole, "seconds": seconds}
    sys.stdout.write(json.dumps(counts))


if __name__ == "__main__":
    main()
