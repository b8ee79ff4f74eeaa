"""What this processor does with vectors: whether int8 products saturate, and how many channels a block has.

``vpmaddubsw`` (AVX2, AVX-512 without VNNI) adds pairs of uint8 x int8 products in int16, which overflows for large
weights; with 7-bit weights it cannot. VNNI accumulates in int32.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np

from onnxcomp.targets.target import Target

__all__ = ["cpu_name", "rank_block", "saturates", "vector_features"]

_CPUINFO = Path("/proc/cpuinfo")
_SAFE = {"avx_vnni", "avx512_vnni", "avx512vnni", "amx_int8"}

# ORT's x86 provider holds activations in blocks of channels, one vector each, and pads what does not fill one
# (MLAS, NCHWc): 16 floats with AVX-512, 8 with AVX. One channel more than a multiple is the worst case.
_AVX512, _AVX = 16, 8
_BLOCKS = {
    # NEON kernels make tiles of 8 output channels, two vectors of 4 floats (MLAS, XNNPACK).
    "ort-arm": 8,
    "ort-mobile": 8,
    "coreml": 8,
    # Tensor cores want 16 bytes of channels: 8 in half precision, 16 in int8. A rank is chosen once for both.
    "tensorrt": 16,
}

# What decides how fast kernels are, in the order in which it is told; ARM's own names are beside those in use.
_FEATURES = {
    **{name: (name,) for name in ("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw")},
    "avx512_vnni": ("avx512_vnni", "avx512vnni"),
    **{name: (name,) for name in ("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16")},
    "neon": ("asimd", "neon"),
    "fp16": ("asimdhp", "fphp"),
    "dotprod": ("asimddp",),
    **{name: (name,) for name in ("i8mm", "bf16", "sve", "sve2", "sme")},
}


def saturates(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether int8 products of full range can overflow here; False where the processor does not tell."""
    flags = _flags(cpuinfo)
    return "avx2" in flags and not _SAFE.intersection(flags)


def vector_features(cpuinfo: Path = _CPUINFO) -> tuple[str, ...]:
    """The vector features of this processor that decide how fast kernels are, such as ``avx2`` or ``dotprod``."""
    flags = _flags(cpuinfo) or frozenset(_line(cpuinfo, "Features").split()) or _numpy_features()
    return tuple(name for name, spellings in _FEATURES.items() if flags.intersection(spellings))


def rank_block(target: Target, cpuinfo: Path = _CPUINFO) -> int:
    """Number of channels in whose multiples a rank costs no more than it has to, on the machine the target means.

    For ort-x86 that is this machine's processor where it is an x86; otherwise 16, which fits both kinds.
    """
    if target.name in _BLOCKS:
        return _BLOCKS[target.name]
    return _vector_floats(cpuinfo) if target.host else _AVX512


@cache
def _vector_floats(cpuinfo: Path) -> int:
    """Floats in a vector of this x86 processor, as ORT uses it: 16 or 8."""
    flags = _flags(cpuinfo) or _numpy_features()
    return _AVX512 if "avx512f" in flags or not flags else _AVX


def _flags(cpuinfo: Path) -> frozenset[str]:
    """The features that Linux lists; empty where there is no such file or line."""
    return frozenset(_line(cpuinfo, "flags").split())


def _numpy_features() -> frozenset[str]:
    """The features that numpy found, in lower case, for systems without /proc; its level x86-64-v4 has AVX-512."""
    config = cast("Mapping[str, Mapping[str, Sequence[str]]]", np.show_config(mode="dicts"))
    extensions = config["SIMD Extensions"]
    names = {name.lower() for kind in ("baseline", "found") for name in extensions.get(kind, ())}
    return frozenset(names | {"avx512f"} if "x86_v4" in names else names)


@cache
def cpu_name(cpuinfo: Path = _CPUINFO) -> str:
    """The processor as the system names it, such as ``AMD EPYC (family 26, model 2)``; else its architecture.

    Virtual machines often tell no more of the name than the maker; family and model tell generations apart.
    """
    name = _line(cpuinfo, "model name")
    if not name:
        return platform.processor() or platform.machine()
    family, model = _line(cpuinfo, "cpu family"), _line(cpuinfo, "model")
    return f"{name} (family {family}, model {model})" if family and model else name


def _line(cpuinfo: Path, key: str) -> str:
    """The text behind the first ``key :`` of /proc/cpuinfo; empty where there is none."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return ""
    found = (line.partition(":") for line in text.splitlines() if line.startswith(key))
    return next((value.strip() for name, _, value in found if name.strip() == key), "")
