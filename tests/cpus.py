"""CPUs that this machine may not have: what one of a kind lists, and the libraries' kernels held to it.

`BASNET_CPU=avx2 pytest` runs all tests as on such a CPU, and the fixture `cpu` of `tests/conftest.py` a single one.
Masking reaches downwards only: of a CPU with more than this one the answer is given, and no kernel runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from basnet_runtime.machine import cpu_features as processor

__all__ = ["CPUS", "HAS_BF16", "HAS_INT8", "ISA", "as_on", "kernels_of", "runs_here"]

_AVX2 = "fpu sse2 sse4_1 sse4_2 popcnt avx f16c fma bmi1 bmi2 avx2"
_AVX512 = f"{_AVX2} avx512f avx512bw avx512cd avx512dq avx512vl"
CPUS = {
    "avx2": _AVX2,
    "avx2-vnni": f"{_AVX2} avx_vnni",
    "avx512": _AVX512,
    "amx": f"{_AVX512} avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_int8 amx_bf16",
}
ISA = {"avx2": "AVX2", "avx2-vnni": "AVX2_VNNI", "avx512": "AVX512_CORE", "amx": "AVX512_CORE_AMX"}
HAS_INT8 = ("avx2-vnni", "amx")
HAS_BF16 = ("amx",)


def as_on(kind: str, folder: Path) -> Path:
    """A list of instruction sets as the system gives it, in a file; the program reads it when `_CPUINFO` names it."""
    path = folder / f"cpuinfo-{kind}"
    path.write_text(f"processor\t: 0\nmodel name\t: a CPU with {kind}\nflags\t\t: {CPUS[kind]}\n")
    return path


def kernels_of(kind: str) -> Mapping[str, str]:
    """Variables that hold oneDNN, in PyTorch and OpenVINO, and PyTorch's own kernels to the kind; read at import."""
    return {"ONEDNN_MAX_CPU_ISA": ISA[kind], "ATEN_CPU_CAPABILITY": "avx512" if kind in ("avx512", "amx") else "avx2"}


def runs_here(kind: str) -> bool:
    """Whether this machine has the kind's instruction sets; one without VNNI can be any x86 with AVX2."""
    here = processor.processor_flags() or frozenset()
    needed = {"avx2": ("avx2",), "avx2-vnni": ("avx2",), "avx512": ("avx512vl", "avx512bw"), "amx": ("amx_tile",)}
    return here.issuperset(needed[kind])
