"""The names that `onnxcomp` exports: adding or dropping one is a decision."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import onnxcomp
from onnxcomp import errors

PUBLIC = [
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


def test_the_public_names_are_these() -> None:
    assert onnxcomp.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(onnxcomp))


@pytest.mark.parametrize("name", PUBLIC)
def test_each_name_leads_somewhere(name: str) -> None:
    value = getattr(onnxcomp, name)
    assert value.__name__ == name
    assert getattr(importlib.import_module(value.__module__), name) is value


def test_other_names_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="module 'onnxcomp' has no attribute 'optimise'"):
        _ = onnxcomp.optimise  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(str(onnxcomp.__file__)).read_text("utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(PUBLIC)


def test_every_error_is_exported() -> None:
    assert set(errors.__all__) <= set(PUBLIC)


@pytest.mark.parametrize("name", errors.__all__)
def test_exit_codes_follow_the_tree(name: str) -> None:
    error = getattr(errors, name)
    expected = 2 if issubclass(error, errors.InputError) else 1 if error is errors.GateFailure else 3
    assert error.exit_code == expected


@pytest.mark.parametrize("asked", [None, "0"])
def test_the_runtime_leaves_nothing_behind(tmp_path: Path, asked: str | None) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    if asked is not None:
        environment["ORT_DISABLE_TELEMETRY"] = asked
    code = "import onnxcomp, onnxruntime, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (asked or "1")
    if asked is None:
        assert list(tmp_path.iterdir()) == []
