"""What has to be in a model's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from onnxcomp.gate.line import Line
from onnxcomp.options import did_you_mean

__all__ = ["metadata_line"]

_SHOWN = 60


def metadata_line(key: str, glob: str, held: Mapping[str, str]) -> Line:
    """Judge one key.

    Args:
        key: The key that has to be there.
        glob: What its value has to match; ``*`` for any.
        held: ``metadata_props`` of the model.
    """
    name, limit = f"metadata {key}", "present" if glob == "*" else f"matches {glob!r}"
    if key not in held:
        others = f"the model has {', '.join(map(repr, held))}" if held else "the model has none"
        return Line(name, limit, "absent", "fail", f"no such key; {others}{did_you_mean(key, held)}", (key,))
    value = held[key]
    shown = repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "...")
    if fnmatchcase(value, glob):
        return Line(name, limit, shown, "pass")
    return Line(name, limit, shown, "fail", f"the value of {key!r} does not match", (key,))
