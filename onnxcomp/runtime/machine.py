"""What a measurement was made on: without it, a figure cannot be compared with another one."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnxruntime as ort

from onnxcomp.runtime.processor import cpu_name, vector_features

__all__ = ["Machine", "this_machine"]

_ROOT = Path("/")
_GOVERNOR = Path("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_QUOTA = Path("sys/fs/cgroup/cpu.max")  # version 2 of control groups
_OLD_QUOTA = Path("sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_OLD_PERIOD = Path("sys/fs/cgroup/cpu/cpu.cfs_period_us")


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine and its software, as they are now.

    Attributes:
        cpu: The processor's name.
        features: Its features that decide how fast kernels are, such as ``avx2``, ``avx512_vnni``, ``i8mm``.
        cores: Cores that this process may run on.
        quota: Cores' worth of time that its control group allows; None where there is no limit.
        governor: How the system chooses the clock, such as ``performance``; None where it does not tell.
        load: Average number of processes that wanted to run in the last minute; None where it is not known.
        system: Operating system and its release.
        python: Version.
        onnxruntime: Version.
        onnxcomp: Version.
    """

    cpu: str
    features: tuple[str, ...]
    cores: int
    quota: float | None
    governor: str | None
    load: float | None
    system: str
    python: str
    onnxruntime: str
    onnxcomp: str

    def lines(self) -> tuple[str, ...]:
        """Return it in words, a few lines."""
        limit = "" if self.quota is None else f", limited to {self.quota:g}"
        governor = "" if self.governor is None else f"; governor {self.governor}"
        load = "" if self.load is None else f"; load {self.load:.2f}"
        features = " ".join(self.features) or "no vector features known"
        return (
            f"machine: {self.cpu}, {self.cores} core{'s' if self.cores != 1 else ''}{limit}{governor}{load}",
            f"features: {features}",
            f"software: onnxruntime {self.onnxruntime}, onnxcomp {self.onnxcomp}, Python {self.python}, {self.system}",
        )


def this_machine(root: Path = _ROOT) -> Machine:
    """Look at the machine; what it does not tell is None.

    Args:
        root: Where its files are.
    """
    load = None
    with suppress(OSError, AttributeError):  # Windows has none
        load = round(os.getloadavg()[0], 2)
    return Machine(
        cpu_name(root / "proc/cpuinfo"),
        vector_features(root / "proc/cpuinfo"),
        _cores(),
        _quota(root),
        _text(root / _GOVERNOR) or None,
        load,
        f"{platform.system()} {platform.release()}",
        platform.python_version(),
        str(ort.__version__),
        version("onnxcomp"),
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(root: Path) -> float | None:
    limit, _, period = _text(root / _QUOTA).partition(" ")
    if not limit:
        limit, period = _text(root / _OLD_QUOTA), _text(root / _OLD_PERIOD)
    try:
        cores = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return cores if cores > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
