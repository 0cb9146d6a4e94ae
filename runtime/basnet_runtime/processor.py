"""What the processor can compute: whether bfloat16 arithmetic is built in, and if not, why it is refused."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["processor_flags", "why_no_bf16"]

_CPUINFO = Path("/proc/cpuinfo")
_BF16_FLAGS = ("avx512_bf16", "amx_bf16")


def processor_flags(cpuinfo: Path = _CPUINFO) -> frozenset[str] | None:
    """The instruction sets the system lists for its first processor, or None where it lists none."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return frozenset(value.split())
    return None


def why_no_bf16(cpuinfo: Path = _CPUINFO) -> str | None:
    """None when the processor multiplies in bfloat16; otherwise the reason it is refused, for people."""
    flags = processor_flags(cpuinfo)
    if flags is None:
        return f"{platform.system()} does not list this processor's instruction sets, so bfloat16 cannot be confirmed"
    if flags.isdisjoint(_BF16_FLAGS):
        return "this processor has neither avx512_bf16 nor amx_bf16, so bfloat16 would be emulated and slower than FP32"
    return None
