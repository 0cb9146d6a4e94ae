"""Memory that loading a model left behind, back to the system.

return_free_memory()
"""

from __future__ import annotations

import ctypes

__all__ = ["return_free_memory"]


def return_free_memory() -> None:
    """Return the heap's free pages to the system, where the C library can: glibc keeps tens of MB of a parsed model."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS and Windows have none
        return
    trim(ctypes.c_size_t(0))
