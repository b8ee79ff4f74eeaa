"""A pass of a third-party package, really built and installed, is found, documented and run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


def pip_install(source: Path, target: Path, scratch: Path) -> None:
    """Install a package into a folder of its own; the source tree stays clean because a copy is built."""
    copy = scratch / source.name
    shutil.copytree(source, copy)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(copy)], check=True, capture_output=True, cwd=scratch)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which onnxcomp and the plugin are both installed."""
    scratch = tmp_path_factory.mktemp("plugin")
    pip_install(HERE, scratch / "site", scratch)
    return {**os.environ, "PYTHONPATH": str(scratch / "site")}


def call(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxcomp.cli.main", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 6, 6])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_it_is_listed_with_its_package(environment: dict[str, str]) -> None:
    rows = json.loads(call(environment, "passes", "--json").stdout)
    row = next(row for row in rows if row["name"] == "smallweights")
    assert row["package"] == "onnxcomp-prune-demo"
    assert row["summary"] == "Set the smallest weights of every convolution to zero."
    assert {"fold", "int8", "tucker2"} <= {row["name"] for row in rows}


def test_its_options_are_described_and_checked(environment: dict[str, str], model: Path, tmp_path: Path) -> None:
    (option,) = json.loads(call(environment, "passes", "smallweights", "--json").stdout)["options"]
    assert option == {
        "name": "amount",
        "type": "a number in [0, 1)",
        "default": "0.1",
        "help": "Fraction of the weights of a layer.",
    }
    got = call(environment, "optimize", model, "-p", "smallweights(amount=1)", "-o", tmp_path / "o.onnx")
    assert got.returncode == 2
    assert "smallweights.amount: 1 is not a number in [0, 1)" in got.stderr


def test_it_runs_among_the_others(environment: dict[str, str], model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    got = call(
        environment,
        "optimize",
        model,
        "-p",
        "fold,smallweights(amount=0.5)",
        "-o",
        out,
        "--json",
        "--objective",
        "size",
    )
    assert got.returncode == 0, got.stderr
    step = json.loads(got.stdout)["steps"][1]
    assert (step["spec"], step["kept"]) == ("smallweights(amount=0.5)", True)
    (weight,) = (numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer if t.name == "w")
    assert int((weight == 0).sum()) == 108


def test_a_broken_plugin_is_named_and_hides_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    info = tmp_path / "broken_demo-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-demo\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[onnxcomp.passes]\nbroken = broken_demo:Nothing\n")
    (tmp_path / "broken_demo.py").write_text("import a_module_that_is_not_there\n")
    path = {**environment, "PYTHONPATH": os.pathsep.join([environment["PYTHONPATH"], str(tmp_path)])}
    problem = "the pass 'broken' of the package broken-demo cannot be loaded: ModuleNotFoundError"
    got = call(path, "passes")
    assert got.returncode == 0
    assert "smallweights" in got.stdout
    assert problem in got.stderr
    named = call(path, "passes", "broken")
    assert named.returncode == 3
    assert named.stderr.startswith(f"onnxcomp: error: {problem}")
    assert len(named.stderr.splitlines()) == 1


def test_a_clash_of_names_is_an_error(environment: dict[str, str], tmp_path: Path) -> None:
    info = tmp_path / "clash_demo-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clash-demo\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[onnxcomp.passes]\ntucker2 = clash_demo:Tucker2\n")
    path = {**environment, "PYTHONPATH": os.pathsep.join([environment["PYTHONPATH"], str(tmp_path)])}
    got = call(path, "passes")
    assert (got.returncode, got.stdout) == (2, "")
    assert got.stderr == (
        "onnxcomp: error: two installed packages register the pass 'tucker2': clash-demo (clash_demo:Tucker2) and "
        "onnxcomp (onnxcomp.passes.tucker2:Tucker2); uninstall one\n"
    )
