"""Preloaded by Dask into workers of tests: pictures whose names say what happens to the worker that reads them."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from basnet_runtime.cluster import facts
from basnet_runtime.command import chunk, picture_files, run_video
from basnet_runtime.media.video.write import segments


class Faulty(picture_files.PictureFile):
    def __init__(self, path, **options):
        name = Path(path).name
        if "poison" in name:
            os.kill(os.getpid(), signal.SIGKILL)
        if "hangs" in name:
            time.sleep(1000)
        if "slow" in name:
            time.sleep(0.3)
        once = Path(path).with_name(f"{name}.met")
        if "once" in name and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if "print" in name:
            os.system("echo from C code")
        super().__init__(path, **options)


class FaultyVideo(run_video.VideoRun):
    def run_segments(self, segments):
        if "poison" in self.job.source.name:
            os.kill(os.getpid(), signal.SIGKILL)
        if "hangs" in self.job.source.name:
            time.sleep(1000)
        return super().run_segments(segments)


class Raising(chunk.Work):
    def run(self, jobs):
        if any("raises" in job.source.name for job in jobs):
            raise RuntimeError("a defect of the worker")
        super().run(jobs)


def as_other(function):
    """Facts of another machine, as the environment of one worker has them."""
    return lambda *args, **options: replace(function(*args, **options), **json.loads(os.environ["BASNET_TEST_FACTS"]))


if "BASNET_TEST_FACTS" in os.environ:
    facts.own_versions = as_other(facts.own_versions)
    chunk.worker_facts = as_other(chunk.worker_facts)
if "BASNET_TEST_DIES" in os.environ:
    facts.own_versions = lambda: os._exit(1)
segments.SEGMENT_FRAMES = 15
chunk._IDLE_SECONDS = float(os.environ.get("BASNET_TEST_IDLE_SECONDS", chunk._IDLE_SECONDS))
picture_files.PictureFile = Faulty
run_video.VideoRun = FaultyVideo
chunk.Work = Raising
