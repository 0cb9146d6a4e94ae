"""Fuzz picture headers: each damaged file is read, or refused in one line; no crash, no hang, no memory growth.

Small valid files of every format get seeded damage in their headers. A separate process reads them as `basnet-run`
does, under a pixel limit; its memory peak is reset and read for every input.
"""

from __future__ import annotations

import io
import random
import re
import select
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

_READER: tuple[str, ...] = (__file__,)  # run as a program, this file is the reading process
_HUNG_SECONDS = 30.0
_MEMORY_MAX_MB = 400.0
_MAX_PIXELS = 20_000_000
_BIG = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 20_000, 60_000, 1_000_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class FuzzConfig:
    """How many, and from where.

    Attributes:
        inputs: Damaged files in all, in turn of each format.
        seed: Of the damage.
    """

    inputs: int = 1000
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class FuzzReport:
    """What became of them.

    Attributes:
        read: Inputs that were read all the same, by format.
        refused: Inputs that were refused with one line, by format.
        problems: Crashes, hangs, other errors than ours, errors of several lines.
        peak_mb: The most memory that reading one input took, the libraries included.
        slowest_seconds: The longest that one input took.
    """

    read: dict[str, int]
    refused: dict[str, int]
    problems: tuple[str, ...]
    peak_mb: float
    slowest_seconds: float

    def __bool__(self) -> bool:
        return not self.problems


def fuzz_pictures(config: FuzzConfig) -> FuzzReport:
    """Do it."""
    generator = random.Random(config.seed)
    valid = seeds()
    names = sorted(valid)
    read: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    problems: list[str] = []
    peak = slowest = 0.0
    with tempfile.TemporaryDirectory(prefix="basnet-fuzz-") as folder, _Reader() as reader:
        for number in range(config.inputs):
            name = names[number % len(names)]
            path = Path(folder) / f"{number}{name[name.rindex('.') :]}"
            path.write_bytes(damaged(valid[name], generator))
            answer = reader.ask(path)
            peak, slowest = max(peak, answer.peak_mb), max(slowest, answer.seconds)
            if answer.peak_mb > _MEMORY_MAX_MB:
                problems.append(f"input {number} of seed {config.seed}, {name}: took {answer.peak_mb:.0f} MB")
            if answer.said.startswith("read"):
                read[name] += 1
            elif answer.said.startswith("refused"):
                refused[name] += 1
            else:
                problems.append(f"input {number} of seed {config.seed}, {name}: {answer.said}")
            path.unlink()
    return FuzzReport(
        read=dict(read),
        refused=dict(refused),
        problems=tuple(problems),
        peak_mb=round(peak, 1),
        slowest_seconds=round(slowest, 2),
    )


def damaged(data: bytes, generator: random.Random) -> bytes:
    """One to four changes in the first few hundred bytes; a PNG's check sums are mended half of the time."""
    changed = bytearray(data)
    reach = min(len(changed), generator.choice((32, 64, 256, 1024)))
    for _ in range(generator.randint(1, 4)):
        generator.choice(_DAMAGES)(changed, generator.randrange(4, max(5, reach)), generator)
    if data[:4] == b"\x89PNG" and generator.random() < 0.5:
        _mend_png(changed)
    return bytes(changed)


def _flip(data: bytearray, at: int, generator: random.Random) -> None:
    if at < len(data):
        data[at] ^= 1 << generator.randrange(8)


def _number(data: bytearray, at: int, generator: random.Random) -> None:
    """A number where sizes, counts and offsets are: 2 or 4 bytes, in either order."""
    value, code = generator.choice(_BIG), generator.choice((">H", "<H", ">I", "<I"))
    packed = struct.pack(code, value & (0xFFFF if code[1] == "H" else 0xFFFFFFFF))
    data[at : at + len(packed)] = packed


def _noise(data: bytearray, at: int, generator: random.Random) -> None:
    size = generator.randint(1, 16)
    data[at : at + size] = generator.randbytes(size)


def _cut(data: bytearray, at: int, generator: random.Random) -> None:
    del data[at : at + generator.choice((1, 2, 4, 12, len(data)))]


def _repeat(data: bytearray, at: int, generator: random.Random) -> None:
    size = generator.randint(1, 40)
    data[at:at] = data[at : at + size] * generator.choice((1, 1, 2, 50))


_DAMAGES: tuple[Callable[[bytearray, int, random.Random], None], ...] = (_flip, _number, _number, _noise, _cut, _repeat)


def _mend_png(data: bytearray) -> None:
    at = 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        end = at + 8 + size
        if end + 4 > len(data):
            return
        struct.pack_into(">I", data, end, zlib.crc32(bytes(data[at + 4 : end])))
        at = end + 4


def seeds() -> dict[str, bytes]:
    """A small valid file of every format that is read, by a name that ends in its suffix."""
    import cv2

    from basnet_runtime.media.image.pictures import vips_module

    generator = np.random.default_rng(0)
    image = (generator.integers(0, 6, (48, 64, 3)) * 51).astype(np.uint8)
    alpha = np.dstack([image, np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))])
    files = {f"still{suffix}": cv2.imencode(suffix, image)[1].tobytes() for suffix in (".bmp", ".jp2")}
    vips = vips_module()
    for name, pixels in (("", image), ("alpha", alpha), ("gray", image[..., 0].copy())):
        height, width = pixels.shape[:2]
        bands = 1 if pixels.ndim == 2 else pixels.shape[2]
        picture = vips.Image.new_from_memory(pixels.tobytes(), width, height, bands, "uchar")
        picture = picture.copy(interpretation="b-w" if bands == 1 else "srgb")
        picture.set_type(vips.GValue.gint_type, "orientation", 6)
        for suffix in (".png", ".jpg", ".webp", ".tif", ".gif", ".avif"):
            if bands != 4 or suffix != ".jpg":
                files[f"{name}{suffix}"] = picture.write_to_buffer(suffix)
    for suffix in (".gif", ".webp", ".png", ".avif"):
        animation = cv2.Animation()
        animation.frames = [np.roll(alpha, 5 * i, axis=1) for i in range(3)]
        animation.durations = [50, 100, 70]
        files[f"animated{suffix}"] = np.asarray(cv2.imencodeanimation(suffix, animation)[1]).tobytes()
    with suppress(ImportError):
        import pillow_heif

        made = io.BytesIO()
        pillow_heif.encode("RGB", (64, 48), image.tobytes(), made, quality=90)
        files["still.heic"] = made.getvalue()
    return files


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    said: str
    peak_mb: float = 0.0
    seconds: float = 0.0


class _Reader:
    """A process that reads what it is told to; a new one takes the place of one that died or hung."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> int | None:
        if self._process is None:
            return None
        self._process.kill()
        self._process.communicate()
        code, self._process = self._process.returncode, None
        return code

    def ask(self, path: Path) -> _Answer:
        if self._process is None:
            command = [sys.executable, *_READER]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n".encode())
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], _HUNG_SECONDS)
        line = self._process.stdout.readline().decode() if ready else ""
        if not line:
            if not ready:
                self._end()
                return _Answer(said=f"hung for {_HUNG_SECONDS:.0f} s")
            self._process.wait()
            return _Answer(said=f"crashed with {self._end()}")
        peak, seconds, said = line.rstrip("\n").split("\t", 2)
        return _Answer(said=said, peak_mb=float(peak), seconds=float(seconds))


def read_forever() -> None:
    """The reading process: a path a line on standard input, an answer a line on standard output."""
    import time

    for line in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
        start = time.monotonic()
        said = _read(Path(line.rstrip("\n")))
        seconds = time.monotonic() - start
        status = Path("/proc/self/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+)", status)
        peak = int(found[1]) / 1000 if found else 0.0
        print(f"{peak}\t{seconds}\t{said}", flush=True)


def _read(path: Path) -> str:
    from basnet_torch.errors import MediaError

    try:
        frames = sum(1 for _ in _frames(path))
    except MediaError as error:
        return f"refused: {error}" if "\n" not in str(error) else f"several lines: {str(error)!r}"
    except Exception as error:  # noqa: BLE001 - it is what is looked for
        return f"{type(error).__name__}: {error!r}"
    return f"read {frames}"


def _frames(path: Path) -> Iterator[Any]:
    from basnet_runtime.command.jobs import media_of
    from basnet_runtime.media.image.animation import AnimationSource
    from basnet_runtime.media.image.pictures import read_picture

    if media_of(path) == "animation":
        with AnimationSource(path, max_pixels=_MAX_PIXELS) as source:
            yield from source.frames()
    else:
        yield read_picture(path, max_pixels=_MAX_PIXELS)


if __name__ == "__main__":
    read_forever()
