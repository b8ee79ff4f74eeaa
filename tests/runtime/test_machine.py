"""What is told of a machine."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest

from onnxcomp.runtime.machine import this_machine
from onnxcomp.runtime.processor import vector_features

ARM = "processor : 0\nFeatures : fp asimd aes asimdhp asimddp sve i8mm bf16\n"
X86 = "model name : Some CPU\nflags : fpu sse4_2 avx avx2 avx512f avx512_vnni amx_int8 unknown\n"


def root(path: Path, **files: str) -> Path:
    names = {"cpuinfo": "proc/cpuinfo", "quota": "sys/fs/cgroup/cpu.max"}
    names |= {"governor": "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"}
    names |= {key: f"sys/fs/cgroup/cpu/cpu.cfs_{key}_us" for key in ("old", "period")}
    names["old"] = "sys/fs/cgroup/cpu/cpu.cfs_quota_us"
    for name, text in files.items():
        file = path / names[name]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "features"),
    [
        (ARM, ("neon", "fp16", "dotprod", "i8mm", "bf16", "sve")),
        (X86, ("sse4_2", "avx", "avx2", "avx512f", "avx512_vnni", "amx_int8")),
    ],
)
def test_features_that_decide_how_fast_kernels_are(tmp_path: Path, text: str, features: tuple[str, ...]) -> None:
    assert vector_features(root(tmp_path, cpuinfo=text) / "proc/cpuinfo") == features


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"quota": "150000 100000\n"}, 1.5),
        ({"quota": "max 100000\n"}, None),
        ({"old": "200000\n", "period": "100000\n"}, 2.0),
        ({"old": "-1\n", "period": "100000\n"}, None),
        ({"quota": "nonsense"}, None),
        ({}, None),
    ],
)
def test_limits_of_a_control_group(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert this_machine(root(tmp_path, **files)).quota == quota


def test_a_machine_that_tells_little() -> None:
    found = this_machine(Path("/nowhere"))
    assert found.governor is None and found.cores >= 1 and found.cpu
    assert found.onnxruntime == ort.__version__


def test_a_machine_that_tells_all(tmp_path: Path) -> None:
    found = this_machine(root(tmp_path, cpuinfo=X86, governor="powersave\n"))
    assert (found.cpu, found.governor) == ("Some CPU", "powersave")
