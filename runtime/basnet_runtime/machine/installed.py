"""Which distributions are installed, asked of their metadata: nothing is imported."""

from __future__ import annotations

__all__ = ["installed_version"]


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
