"""What `basnet-run` makes of every video of a folder: a table, file by file, with time and peak memory.

python -m basnet_benchmarks.media_video FOLDER -o benchmarks/reports/media-video.md

Each file is a process of its own, so that its memory is its own. Times and packets of source and result are read with
PyAV alone and compared one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from basnet_benchmarks.environment import environment
from basnet_benchmarks.tables import Table, environment_lines, escaped_markdown, markdown_rows
from basnet_runtime.media.files import whole_file

__all__ = ["FileOutcome", "copied_packets", "frame_times", "main", "outcome_of"]

_COLUMNS = ("file", "picture", "frames", "in the result", "times", "sound and subtitles", "result", "s", "MB", "said")
_NUMBERS = frozenset({"frames", "in the result", "s", "MB"})
_RUN = "from basnet_runtime.cli import main; main()"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileOutcome:
    """What came of one file.

    Attributes:
        name: Of the file.
        picture: Codec and stored size.
        frames: That PyAV alone decodes.
        frames_out: In the result, decoded again; 0 without one.
        times: Whether every frame of the result has its own time in the source.
        packets: Copied unchanged, of how many in the source.
        result: Suffix and codec; empty without one.
        code: Exit code.
        seconds: From start to end of the command.
        megabytes: Most memory that was resident.
        said: The error or the notes.
    """

    name: str
    picture: str
    frames: int
    frames_out: int
    times: str
    packets: tuple[int, int]
    result: str
    code: int
    seconds: float
    megabytes: int
    said: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        """As a row of the table."""
        same, there = self.packets
        sound = "none" if not there else f"{same} of {there} packets equal"
        made = self.result or f"exit code {self.code}"
        measured = (f"{self.seconds:.1f}", str(self.megabytes))
        counts = (str(self.frames), str(self.frames_out))
        return (self.name, self.picture, *counts, self.times, sound, made, *measured, "; ".join(self.said))


def frame_times(path: Path) -> tuple[str, list[Fraction | None]]:
    """Codec and size, and the times of all frames that can be decoded one after the other; None where one has none."""
    import av
    from av.error import FFmpegError

    times: list[Fraction | None] = []
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        picture = f"{stream.codec_context.codec.canonical_name} {stream.width}x{stream.height}"
        for packet in container.demux(stream):
            with suppress(FFmpegError):  # a damaged packet, or what is left in the decoder after one
                times.extend(_time_of(frame) for frame in packet.decode())
    return picture, times


def _time_of(frame: Any) -> Fraction | None:
    return None if frame.pts is None else frame.pts * Fraction(frame.time_base)


def copied_packets(path: Path) -> list[tuple[str, Fraction, Fraction, str]]:
    """Kind, times and content of every audio and subtitle packet."""
    import av

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


def outcome_of(source: Path, folder: Path, options: Sequence[str] = ()) -> FileOutcome:
    """Run the command on one file and look at what it made."""
    target = folder / source.name
    command = [sys.executable, "-c", _RUN, str(source), "-o", f"{target}/", "--json", *options]
    begun = time.perf_counter()
    with (folder / "out").open("w+") as out, (folder / "err").open("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)  # noqa: S603 - this very package
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        printed, errors = out.read(), err.read()
    results = json.loads(printed)["results"] if printed else []
    picture, times = frame_times(source)
    made = Path(results[0]["target"]) if results else None
    said = tuple(results[0]["notes"]) if results else tuple(_errors(errors, source))
    before = copied_packets(source)
    after = copied_packets(made) if made is not None else []
    codec, times_out = frame_times(made) if made is not None else ("", [])
    return FileOutcome(
        name=source.name,
        picture=picture,
        frames=len(times),
        frames_out=len(times_out),
        times=_compared(times, times_out),
        packets=(sum(a == b for a, b in zip(before, after, strict=False)), len(before)),
        result="" if made is None else f"{made.suffix} {codec}",
        code=process.returncode,
        seconds=round(seconds, 2),
        megabytes=used.ru_maxrss // 1024,
        said=said,
    )


def _errors(text: str, source: Path) -> list[str]:
    lines = [line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: ")]
    return [line.replace(str(source), source.name) for line in lines]


def _compared(before: list[Fraction | None], after: list[Fraction | None]) -> str:
    if not after:
        return "-"
    if None in before:
        return "none in the source"
    differing = sum(a != b for a, b in zip(before, after, strict=False))
    return "equal" if not differing else f"{differing} differ"


def _markdown(outcomes: Sequence[FileOutcome], where: dict[str, Any], options: Sequence[str]) -> str:
    table = Table(
        title=f"`basnet-run FILE {' '.join(options)}`".replace(" `", "`"),
        columns=_COLUMNS,
        numbers=_NUMBERS,
        rows=tuple(outcome.cells() for outcome in outcomes),
        notes=(
            "frames: what PyAV alone decodes",
            "times: of every frame of the result, against its own in the source",
            "sound and subtitles: packets of equal content and equal times",
            f"slowest {max(outcome.seconds for outcome in outcomes):.1f} s",
            f"largest {max(outcome.megabytes for outcome in outcomes)} MB resident",
        ),
        environment=environment_lines(where),
    )
    lines = [f"### {table.title}", "", *markdown_rows(table), "", *(f"- {note}" for note in table.notes)]
    environment_part = [f"- {escaped_markdown(line)}" for line in table.environment]
    return "\n".join(
        [*lines, "", "<details><summary>Environment</summary>", "", *environment_part, "", "</details>", ""]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 when a file took longer or more memory than the limits given."""
    parser = argparse.ArgumentParser(prog="basnet_benchmarks.media_video", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="a .md file; a .json file is written beside")
    parser.add_argument("--most-seconds", type=float, default=float("inf"))
    parser.add_argument("--most-megabytes", type=float, default=float("inf"))
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("options", nargs="*", help="after --: options of basnet-run")
    given = parser.parse_args(arguments)
    where = asdict(environment())
    outcomes = []
    for source in sorted(path for path in given.folder.iterdir() if path.is_file()):
        with TemporaryDirectory() as folder:
            outcomes.append(outcome_of(source, Path(folder), given.options))
        sys.stderr.write(f"{' | '.join(outcomes[-1].cells())}\n")
    values = {"command": "media-video", "options": given.options, "environment": where}
    text = json.dumps({**values, "files": [asdict(outcome) for outcome in outcomes]}, indent=1) + "\n"
    for path, content in (
        (given.output, _markdown(outcomes, where, given.options)),
        (given.output.with_suffix(".json"), text),
    ):
        with whole_file(path, overwrite=given.overwrite) as beside:
            beside.write_text(content, encoding="utf-8")
    worst = (max(o.seconds for o in outcomes), max(o.megabytes for o in outcomes))
    return int(worst[0] > given.most_seconds or worst[1] > given.most_megabytes)


if __name__ == "__main__":
    raise SystemExit(main())
