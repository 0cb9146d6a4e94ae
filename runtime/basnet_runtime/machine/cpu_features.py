"""CPU features: bfloat16 and exact INT8 sums, or why they are missing."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["processor_flags", "processor_vendor", "why_no_bf16", "why_no_int8"]

_CPUINFO = Path("/proc/cpuinfo")
_BF16_FLAGS = ("avx512_bf16", "amx_bf16")
_INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8")
_X86 = ("x86_64", "amd64", "i686")


def processor_flags(cpuinfo: Path | None = None) -> frozenset[str] | None:
    """Return the first CPU's instruction sets, or None where the system lists none."""
    value = _listed(cpuinfo, "flags", "features")
    return None if value is None else frozenset(value.split())


def processor_vendor() -> str:
    """Return the first CPU's vendor as the system reports it, or an empty text."""
    return _listed(None, "vendor_id", "cpu implementer") or ""


def _listed(cpuinfo: Path | None, *names: str) -> str | None:
    """What the system lists first under one of these names; None where it lists nothing."""
    try:
        lines = (cpuinfo or _CPUINFO).read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() in names:
            return value.strip()
    return None


def why_no_bf16(cpuinfo: Path | None = None) -> str | None:
    """Return why the CPU refuses bfloat16, for people; None when it multiplies in it."""
    flags = processor_flags(cpuinfo)
    if flags is None:
        return f"{platform.system()} does not list this CPU's instruction sets, so bfloat16 cannot be confirmed"
    if flags.isdisjoint(_BF16_FLAGS):
        return "this CPU has neither avx512_bf16 nor amx_bf16, so bfloat16 would be emulated and slower than FP32"
    return None


def why_no_int8(cpuinfo: Path | None = None, machine: str | None = None) -> str | None:
    """Return why INT8 files are refused, for people; None when sums are exact here.

    They are sums of byte products.

    x86 without VNNI adds pairs of u8 * s8 in 16 bits, which saturate: masks would be wrong without a word.
    """
    if (machine or platform.machine()).lower() not in _X86:
        return None  # other CPUs' instructions for this do not saturate
    flags = processor_flags(cpuinfo)
    if flags is None:
        return f"{platform.system()} does not list this CPU's instruction sets, so VNNI cannot be confirmed"
    if flags.isdisjoint(_INT8_FLAGS):
        return "this CPU has no VNNI, and without it sums of u8 * s8 products saturate"
    return None
