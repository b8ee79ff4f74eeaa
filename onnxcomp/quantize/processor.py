"""Whether this processor multiplies int8 without saturating.

``vpmaddubsw`` (AVX2, AVX-512 without VNNI) adds pairs of uint8 x int8 products in int16, which overflows for large
weights; with 7-bit weights it cannot. VNNI accumulates in int32.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["saturates"]

_SAFE = {"avx_vnni", "avx512_vnni", "avx512vnni", "amx_int8"}


def saturates(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether int8 products of full range can overflow here; False where the processor does not tell."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in text.splitlines() if line.startswith("flags")), [])
    return "avx2" in flags and not _SAFE.intersection(flags)
