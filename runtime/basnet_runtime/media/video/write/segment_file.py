"""Segment file: encoded packets, their times, and state for the next segment.

Layout: a magic line; for each packet a fixed header, its bytes and its side bytes; then a JSON text, an .npz and a
fixed tail with their lengths and the CRC-32 of all before it.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.salience import SalienceDecision
from basnet_torch.errors import MediaError
from basnet_torch.files import PendingFile, reason

if TYPE_CHECKING:
    from av.packet import Packet

__all__ = ["SegmentFacts", "SegmentWriter", "read_facts", "read_packets"]

_MAGIC = b"basnet-segment 1\n"
_PACKET = struct.Struct("<qqqBII")  # pts, dts, duration, key frame, bytes, side bytes
_TAIL = struct.Struct("<QQI8s")  # JSON bytes, .npz bytes, CRC-32
_END = b"segment."
_ALPHA: Final = "matroska_block_additional"  # where VP9 keeps its transparency
_ALPHA_NUMBER = 15  # AV_PKT_DATA_MATROSKA_BLOCKADDITIONAL
_CHUNK = 1 << 20


@dataclass(kw_only=True, slots=True)
class SegmentFacts:
    """What is known of a segment beside its packets.

    Attributes:
        library: The encoder that made it.
        height: Of its pictures, rows.
        width: Of its pictures, columns.
        decisions: Of its frames.
        memory: What the next frame's mask depends on, arrays by name.
    """

    library: str
    height: int
    width: int
    decisions: list[SalienceDecision] = field(default_factory=list)
    memory: dict[str, NDArray[Any]] = field(default_factory=dict)

    def to_bytes(self) -> tuple[bytes, bytes]:
        """As JSON and as .npz."""
        plain = {"library": self.library, "height": self.height, "width": self.width}
        scores = [[decision.score, decision.salient] for decision in self.decisions]
        arrays = io.BytesIO()
        np.savez(arrays, allow_pickle=False, **self.memory)
        return json.dumps({**plain, "decisions": scores}).encode(), arrays.getvalue()

    @classmethod
    def from_bytes(cls, text: bytes, arrays: bytes) -> SegmentFacts:
        """The reverse of `to_bytes`."""
        plain = json.loads(text)
        decisions = [SalienceDecision(score=score, salient=salient) for score, salient in plain.pop("decisions")]
        with np.load(io.BytesIO(arrays), allow_pickle=False) as loaded:
            return cls(**plain, decisions=decisions, memory=dict(loaded))


class SegmentWriter:
    """Writes one segment; it appears whole by `commit` or not at all."""

    def __init__(self, path: Path) -> None:
        """Create it under a temporary name.

        Raises:
            MediaError: The folder cannot be written.
        """
        self._pending = PendingFile(path, overwrite=True)
        self._file = self._pending.path.open("wb")
        self._crc = 0
        self._write(_MAGIC)

    def add(self, packet: Packet[Any]) -> None:
        """Keep one packet."""
        side = bytes(packet.get_sidedata(_ALPHA)) if packet.has_sidedata(_ALPHA) else b""
        pts = packet.pts or 0
        dts = pts if packet.dts is None else packet.dts
        key = int(packet.is_keyframe)
        self._write(_PACKET.pack(pts, dts, packet.duration or 0, key, packet.size, len(side)))
        self._write(bytes(packet))
        self._write(side)

    def commit(self, facts: SegmentFacts) -> None:
        """Finish the segment and give it its name, after its bytes have reached the disk.

        Raises:
            MediaError: The disk refuses.
        """
        text, arrays = facts.to_bytes()
        self._write(text)
        self._write(arrays)
        self._file.write(_TAIL.pack(len(text), len(arrays), self._crc, _END))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._pending.commit()

    def discard(self) -> None:
        """Remove what was written."""
        with suppress(OSError):  # what is not on a full disk yet need not get there
            self._file.close()
        self._pending.discard()

    def _write(self, data: bytes) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._file.write(data)


def read_facts(path: Path) -> SegmentFacts:
    """What is known of a segment, after its checksum has been compared.

    Raises:
        MediaError: The segment is damaged.
    """
    try:
        with path.open("rb") as file:
            _, text, arrays = _parts(path, file)
        return SegmentFacts.from_bytes(text, arrays)
    except OSError as error:
        raise MediaError(f"{path}: cannot be read: {reason(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error


def read_packets(path: Path) -> Iterator[Packet[Any]]:
    """The packets of a segment, in order.

    Raises:
        MediaError: The segment is damaged.
    """
    from av.packet import Packet, PacketSideData

    with path.open("rb") as file:
        end, _, _ = _parts(path, file)
        file.seek(len(_MAGIC))
        while file.tell() < end:
            pts, dts, duration, key, size, side_size = _PACKET.unpack(file.read(_PACKET.size))
            packet: Packet[Any] = Packet(file.read(size))
            packet.pts, packet.dts, packet.duration, packet.is_keyframe = pts, dts, duration, bool(key)
            if side_size:
                side = PacketSideData(_ALPHA_NUMBER, side_size)  # type: ignore[call-arg]
                side.update(file.read(side_size))
                packet.set_sidedata(side)
            yield packet


def _parts(path: Path, file: BinaryIO) -> tuple[int, bytes, bytes]:
    """Where the packets end, the JSON and the .npz."""
    size = file.seek(0, os.SEEK_END)
    if size < len(_MAGIC) + _TAIL.size:
        raise _damaged(path)
    file.seek(size - _TAIL.size)
    text_size, arrays_size, crc, end = _TAIL.unpack(file.read(_TAIL.size))
    packets_end = size - _TAIL.size - text_size - arrays_size
    if end != _END or packets_end < len(_MAGIC) or _checksum(file, size - _TAIL.size) != crc:
        raise _damaged(path)
    file.seek(packets_end)
    return packets_end, file.read(text_size), file.read(arrays_size)


def _checksum(file: BinaryIO, size: int) -> int:
    file.seek(0)
    crc = 0
    while size > 0:
        chunk = file.read(min(size, _CHUNK))
        if not chunk:
            break
        crc = zlib.crc32(chunk, crc)
        size -= len(chunk)
    return crc


def _damaged(path: Path) -> MediaError:
    return MediaError(f"{path}: is damaged; remove the folder {path.parent} and run again")
