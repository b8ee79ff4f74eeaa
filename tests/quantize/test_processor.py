from __future__ import annotations

from pathlib import Path

import pytest

from onnxcomp.quantize.processor import saturates


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
