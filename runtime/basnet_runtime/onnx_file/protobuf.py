"""Protobuf messages as (field, value) pairs, read without copying; writing too."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["encoded", "fields", "numbers_of", "spans", "text", "varint"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def fields(view: int | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of one message, without copying.

    Numbers are int, everything with a length is a view.
    """
    for field, value, _ in spans(view):
        yield field, value


def spans(view: int | memoryview) -> Iterator[tuple[int, int | memoryview, memoryview]]:
    """Yield `fields` with all the bytes that hold each, to write a message again."""
    if isinstance(view, int):
        return
    at, end = 0, len(view)
    while at < end:
        start = at
        tag = view[at]  # most tags and lengths are one byte: a call for each would double the time
        at += 1
        if tag > 0x7F:
            tag, at = _varint(view, start)
        field, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(view, at)
            yield field, value, view[start:at]
            continue
        if wire == _BYTES:
            length = view[at] if at < end else 0x80
            at += 1
            if length > 0x7F:
                length, at = _varint(view, at - 1)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError("it is no protobuf message")
        if not field or at + length > end:
            raise ValueError("it ends in the middle" if field else "it is no protobuf message")
        yield field, view[at : at + length], view[start : at + length]
        at += length


def text(value: int | memoryview) -> str:
    """A string field."""
    return "" if isinstance(value, int) else bytes(value).decode()


def numbers_of(value: int | memoryview) -> Iterator[int]:
    """Return a repeated signed 64-bit number, packed or not."""
    if isinstance(value, int):
        yield value - (1 << 64) if value >> 63 else value
        return
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield number - (1 << 64) if number >> 63 else number


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """A number in seven-bit groups, lowest first, and where it ends."""
    value = shift = 0
    while shift < 70:
        if at >= len(view):
            raise ValueError("it ends in the middle")
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("it is no protobuf message")


def varint(value: int) -> bytes:
    """A number of at least 0 as protobuf writes it.

    >>> varint(300).hex()
    'ac02'
    """
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*groups, value))


def encoded(field: int, value: int | str | bytes) -> bytes:
    """One field with its tag: a number, or a string or message with its length.

    >>> list(fields(memoryview(encoded(3, 300))))
    [(3, 300)]
    """
    if isinstance(value, int):
        return varint(field << 3 | _VARINT) + varint(value)
    body = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | _BYTES) + varint(len(body)) + body
