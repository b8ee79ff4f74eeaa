"""Write ``.ort`` files, the format of ONNX Runtime's mobile builds, with the runtime's own converter.

Beside ``NAME.ort`` lies ``NAME.required_operators.config``, which a reduced build of the runtime reads. Two styles:
``runtime`` keeps plain ONNX operators and notes which fusions may follow at load, for providers such as NNAPI and
CoreML that take whole subgraphs; ``fixed`` bakes all fusions in, for the CPU provider. The same model gives the same
``fixed`` file each time; of a ``runtime`` one the converter writes the notes in no fixed order.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal, get_args

import onnx_ir as ir

from onnxcomp import modelio
from onnxcomp.atomic import staging
from onnxcomp.errors import InputError, ModelError
from onnxcomp.targets.target import Target

__all__ = ["OrtStyle", "check_destination", "config_path", "is_ort", "save_as", "save_ort"]

OrtStyle = Literal["runtime", "fixed"]

_DEFAULT_STYLE: dict[str, OrtStyle] = {
    "ort-x86": "fixed",
    "ort-arm": "fixed",
    "ort-mobile": "runtime",
    "coreml": "runtime",
}
_TOOL = "onnxruntime.tools.convert_onnx_models_to_ort"
_LEVEL = "ORT_CONVERT_ONNX_MODELS_TO_ORT_OPTIMIZATION_LEVEL"  # the converter's own switch; a file must not depend on it


def is_ort(path: str | Path) -> bool:
    """Whether a path names an ``.ort`` file."""
    return Path(path).suffix.lower() == ".ort"


def config_path(path: str | Path) -> Path:
    """Where the list of required operators of an ``.ort`` file goes."""
    return Path(path).with_suffix(".required_operators.config")


def check_destination(path: str | Path, target: Target, style: str | None = None) -> None:
    """Refuse what :func:`save_as` could not do, before any work.

    Raises:
        InputError: An ``.ort`` for a target that reads none, a style that does not exist, or a style without ``.ort``.
    """
    if not is_ort(path):
        if style is not None:
            raise InputError(f"--ort-style says how an .ort file is written, and {str(path)!r} is none; end it in .ort")
        return
    if target.name not in _DEFAULT_STYLE:
        raise InputError(f"{target.name} reads no .ort files; write {str(Path(path).with_suffix('.onnx'))!r}")
    if style is not None and style not in get_args(OrtStyle):
        raise InputError(f"--ort-style {style!r} is not one of {', '.join(get_args(OrtStyle))}")


def save_as(model: ir.Model, path: str | Path, target: Target, style: str | None = None) -> tuple[Path, ...]:
    """Write a model as its path says: ``.ort`` with its ``.config``, or ONNX for any other name.

    Returns:
        The files written; a data file beside an ``.onnx`` is not listed.

    Raises:
        InputError: As :func:`check_destination` and `modelio.save`.
        ModelError: The runtime cannot convert the model.
        OutputError: The files cannot be written.
    """
    check_destination(path, target, style)
    if not is_ort(path):
        modelio.save(model, path)
        return (Path(path),)
    chosen: OrtStyle = "runtime" if (style or _DEFAULT_STYLE[target.name]) == "runtime" else "fixed"
    return save_ort(model, path, style=chosen, arm=target.name != "ort-x86")


def save_ort(model: ir.Model, path: str | Path, *, style: OrtStyle = "runtime", arm: bool = True) -> tuple[Path, Path]:
    """Convert a model and write ``path`` and its ``.required_operators.config``, both or neither.

    Args:
        model: The model; not modified.
        path: Where to write, ending in ``.ort``.
        style: ``runtime`` or ``fixed``; see the top of this module.
        arm: For ARM: int8 kernels, no layouts of x86. False: x86-64.

    Returns:
        The two files.

    Raises:
        ModelError: The runtime cannot convert the model; the message carries its own sentence.
        InputError, OutputError: As `modelio.save`.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        source = Path(folder) / "model.onnx"
        modelio.save(model, source)
        _convert(source, style, arm)
        suffix = ".with_runtime_opt" if style == "runtime" else ""
        content = source.with_suffix(f"{suffix}.ort")
        config = source.with_suffix(f".required_operators{suffix}.config").read_text("utf-8")
        with staging() as files:
            files.open(config_path(path)).write(_without_paths(config, path.name).encode())
            with content.open("rb") as converted:
                shutil.copyfileobj(converted, files.open(path))
    return path, config_path(path)


def _convert(source: Path, style: OrtStyle, arm: bool) -> None:
    """Run the converter in a process of its own: it prints, and loads modules under names of its own."""
    environment = {key: value for key, value in os.environ.items() if key != _LEVEL}
    call = [sys.executable, "-m", _TOOL, str(source), "--optimization_style", style.capitalize()]
    platform = ["--target_platform", "arm" if arm else "amd64"]
    done = subprocess.run([*call, *platform], capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise ModelError(f"ONNX Runtime cannot write the model as .ort: {lines[-1].strip()}")


def _without_paths(config: str, name: str) -> str:
    """The list of operators, saying which model it is of instead of where that lay while it was converted."""
    lines = [line for line in config.splitlines() if line and not line.startswith("#")]
    return "\n".join([f"# Operators that {name} needs", *lines, ""])
