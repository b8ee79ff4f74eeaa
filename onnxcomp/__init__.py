"""onnxcomp: a compiler from ONNX to smaller, faster ONNX.

>>> import onnxcomp
>>> result = onnxcomp.optimize("in.onnx", "tucker2,int8", data="calibration.npz")  # doctest: +SKIP
>>> result.save("out.onnx")  # doctest: +SKIP

Names are imported when they are first used, so that ``import onnxcomp`` costs nothing.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxcomp.api import Result, optimize
    from onnxcomp.contract import Candidate, Change, Context, Pass, PassReport, SitePass, Skip
    from onnxcomp.cost import Cost
    from onnxcomp.data import Feeds, open_feeds
    from onnxcomp.errors import (
        DataError,
        GateFailure,
        InputError,
        ModelError,
        OnnxcompError,
        OptionError,
        OutputError,
        PassError,
        RecipeError,
        SpecError,
        UnknownPassError,
    )
    from onnxcomp.gate.checking import check
    from onnxcomp.modelio import load, save
    from onnxcomp.quantize.calibrate import calibrate
    from onnxcomp.quantize.retarget import retarget

# ONNX Runtime reads this when it is loaded; otherwise it leaves a session file in the temporary directory and may call
# home. A compiler does neither. A user who sets the variable is obeyed.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# What is logged is for whoever listens; without a handler Python would print warnings on stderr.
logging.getLogger("onnxcomp").addHandler(logging.NullHandler())

__all__ = [
    "Candidate",
    "Change",
    "Context",
    "Cost",
    "DataError",
    "Feeds",
    "GateFailure",
    "InputError",
    "ModelError",
    "OnnxcompError",
    "OptionError",
    "OutputError",
    "Pass",
    "PassError",
    "PassReport",
    "RecipeError",
    "Result",
    "SitePass",
    "Skip",
    "SpecError",
    "UnknownPassError",
    "calibrate",
    "check",
    "load",
    "open_feeds",
    "optimize",
    "retarget",
    "save",
]

_HOMES = {
    "onnxcomp.api": ("Result", "optimize"),
    "onnxcomp.contract": ("Candidate", "Change", "Context", "Pass", "PassReport", "SitePass", "Skip"),
    "onnxcomp.cost": ("Cost",),
    "onnxcomp.data": ("Feeds", "open_feeds"),
    "onnxcomp.gate.checking": ("check",),
    "onnxcomp.modelio": ("load", "save"),
    "onnxcomp.quantize.calibrate": ("calibrate",),
    "onnxcomp.quantize.retarget": ("retarget",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # type checkers read the imports above, and so find a misspelt name

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'onnxcomp' has no attribute {name!r}")
        value = getattr(import_module(_HOME_OF.get(name, "onnxcomp.errors")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
