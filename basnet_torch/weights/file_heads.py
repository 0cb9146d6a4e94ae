"""Kinds of model files by their first bytes, because suffixes are unreliable."""

from __future__ import annotations

from typing import Final

__all__ = ["HEAD_BYTES", "is_plain_pickle", "is_safetensors", "is_torch_save", "pickle_protocol"]

HEAD_BYTES: Final = 512  # as much of a file as the functions here look at
_OLD_TORCH = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # the number that torch.save wrote first before 1.6
_MOST_HEADER = 100_000_000  # of safetensors' own reader


def is_torch_save(head: bytes) -> bool:
    r"""Tell whether torch.save may have written it: zip, or pickle protocol 2 and up.

    >>> is_torch_save(b"PK\x03\x04"), is_torch_save(b"\x08\x08\x12\x07pytorch")
    (True, False)
    """
    return head.startswith(b"PK") or pickle_protocol(head) is not None


def is_safetensors(head: bytes) -> bool:
    """Whether it begins with the length of a JSON object, and with that object.

    >>> is_safetensors((2).to_bytes(8, "little") + b"{}"), is_safetensors(b"PK" + bytes(98))
    (True, False)
    """
    return 2 <= int.from_bytes(head[:8], "little") <= _MOST_HEADER and head[8:9] == b"{"


def pickle_protocol(head: bytes) -> int | None:
    r"""Return the protocol in a pickle's header; None outside protocols 2 to 5.

    >>> pickle_protocol(b"\x80\x04\x95"), pickle_protocol(b"GIF89a")
    (4, None)
    """
    return head[1] if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") else None


def is_plain_pickle(head: bytes) -> bool:
    """Whether it is a pickle that torch.save did not write.

    >>> import pickle
    >>> is_plain_pickle(pickle.dumps({})), is_plain_pickle(pickle.dumps(0x1950A86A20F9469CFC6C, 2))
    (True, False)
    """
    return pickle_protocol(head) is not None and _OLD_TORCH not in head[:32]
