"""Converts mutated copies of a video, one after the other, and reports what is not an error of ours.

python fuzz_video.py FILE FIRST COUNT FOLDER

Prints one JSON object: how many gave a result, how many an error in one line, the peak memory. A crash, a hang (60
seconds for one input) or any other exception ends the process with an error.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import struct
import sys
import time
from pathlib import Path

EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x10000)


def mutated(data: bytes, number: int) -> bytes:
    """The header, which lies in front or at the end, with one to six changes; the same for the same number."""
    choose = random.Random(number)
    out = bytearray(data)
    for _ in range(choose.randint(1, 6)):
        near = min(len(out), choose.choice((64, 512, 4096)))
        at = choose.randrange(near) if choose.random() < 0.6 else len(out) - 1 - choose.randrange(near)
        match choose.randrange(6):
            case 0:
                out[at] = choose.randrange(256)
            case 1:
                out[at] ^= 1 << choose.randrange(8)
            case 2:
                out[at : at + 4] = struct.pack(choose.choice((">I", "<I")), choose.choice(EDGES))
            case 3:
                out[at : at + choose.randint(1, 64)] = bytes(choose.randint(0, 64))
            case 4:
                out[at:at] = out[at : at + choose.randint(1, 64)]
            case _:
                if choose.random() < 0.3:
                    del out[max(16, at) :]
    return bytes(out)


def convert(source: Path, target: Path) -> None:
    from basnet_runtime.backends.fake import FakeBackend
    from basnet_runtime.kinds import OutputKind
    from basnet_runtime.media.compose.compose import Composer
    from basnet_runtime.media.video.reader import VideoSource
    from basnet_runtime.media.video.write.sink import OutputPlan, VideoSink
    from basnet_runtime.model import SaliencyModel
    from basnet_runtime.pipeline.run import Pipeline
    from basnet_torch.spec import Postprocess, Preprocess

    model = SaliencyModel(FakeBackend(32, 32), Preprocess(height=32, width=32), Postprocess(), "fake")
    with VideoSource(source) as opened:
        sink = VideoSink(OutputPlan(target=target, info=opened.info, kind=OutputKind(), overwrite=True))
        Pipeline(model, Composer(OutputKind())).run(opened, sink)


def main() -> None:
    from basnet_benchmarks.breakdown import highest_bytes
    from basnet_torch.errors import BasnetError

    file, first, count, folder = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    data = file.read_bytes()
    results, refused, slowest = 0, 0, (0.0, -1)
    source = folder / f"in{file.suffix}"
    for number in range(first, first + count):
        source.write_bytes(mutated(data, number))
        os.write(2, f"{file.name} {number}\n".encode())
        signal.alarm(60)
        begun = time.monotonic()
        try:
            convert(source, folder / "out.mkv")
            results += 1
        except BasnetError as error:
            refused += 1
            if "\n" in str(error):
                raise
        signal.alarm(0)
        slowest = max(slowest, (time.monotonic() - begun, number))
    left = [path.name for path in folder.iterdir() if "partial" in path.name]
    assert not left, left
    peak = (highest_bytes() or 0) // 1_000_000  # getrusage would count the caller's memory
    sys.stdout.write(json.dumps({"results": results, "refused": refused, "slowest": slowest, "peak_mb": peak}))


if __name__ == "__main__":
    main()
