from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcomp.runtime.processor import cpu_name, rank_block, saturates
from onnxcomp.targets.target import load_target

EPYC = """processor\t: 0
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC
flags\t\t: fpu avx2 avx512f avx512_vnni
bugs\t\t: none

processor\t: 1
model name\t: another
"""
HASWELL = "model name\t: Intel(R) Core(TM) i7-4770\nflags\t\t: fpu sse4_2 avx fma avx2\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd\n"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("sse4_2 avx2 avx512f", True), ("avx2 avx512_vnni", False), ("avx2 avx_vnni", False), ("sse4_2", False)],
)
def test_int8_products_saturate_on_avx2_without_vnni(flags: str, expected: bool, tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor : 0\nflags\t\t: fpu {flags}\n")
    assert saturates(path) is expected


def test_a_processor_that_does_not_tell_is_taken_as_safe(tmp_path: Path) -> None:
    assert not saturates(tmp_path / "none")


@pytest.mark.parametrize(("text", "expected"), [(EPYC, 16), (HASWELL, 8), ("flags : fpu sse4_2\n", 8)])
def test_on_x86_a_block_is_a_vector(text: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert rank_block(load_target("ort-x86"), path) == expected


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        ({"baseline": ["X86_V2"], "found": ["X86_V3", "X86_V4"]}, 16),
        ({"baseline": ["SSE", "SSE2"], "found": ["AVX2", "AVX512F"]}, 16),
        ({"baseline": ["X86_V2"], "found": ["X86_V3"], "not found": ["X86_V4"]}, 8),
        ({}, 16),
    ],
)
def test_without_proc_numpy_tells(
    extensions: dict[str, Any], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(mode: str) -> dict[str, Any]:
        assert mode == "dicts"
        return {"SIMD Extensions": extensions}

    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    monkeypatch.setattr(np, "show_config", config)
    assert rank_block(load_target("ort-x86"), tmp_path / "none") == expected


@pytest.mark.parametrize(
    ("target", "expected"), [("ort-arm", 8), ("ort-mobile", 8), ("coreml", 8), ("tensorrt", 16), ("ort-x86", 16)]
)
def test_elsewhere_the_target_says_it(
    target: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(ARM)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert rank_block(load_target(target), path) == expected


def test_a_processor_is_told_from_another_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, short = tmp_path / "cpuinfo", tmp_path / "short"
    path.write_text(EPYC)
    short.write_text(HASWELL)
    assert cpu_name(path) == "AMD EPYC (family 26, model 2)"
    assert cpu_name(short) == "Intel(R) Core(TM) i7-4770"
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert cpu_name(tmp_path / "none") == "riscv64"
