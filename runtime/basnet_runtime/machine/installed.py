"""Installed distributions and drivers; no distribution is imported."""

from __future__ import annotations

__all__ = ["has_nvidia_driver", "installed_version"]


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, or None.

    >>> installed_version("no-such-distribution") is None
    True
    """
    from importlib.metadata import PackageNotFoundError, version  # 15 ms of a start that asks for none

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def has_nvidia_driver() -> bool:
    """Tell whether the CUDA driver's library exists, which every plan needs."""
    import ctypes

    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False
