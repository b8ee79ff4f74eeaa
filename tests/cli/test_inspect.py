"""`onnxcomp inspect`, `onnxcomp passes` and the group itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from onnxcomp.registry import available


def test_inspect_lists_layers_and_what_passes_could_do(run: Any, cnn: Path) -> None:
    got = run("inspect", cnn, "--json")
    assert got.code == 0, got.err
    document = json.loads(got.out)
    assert document["schema"] == "onnxcomp.inspection/3"
    assert document["bytes"] == cnn.stat().st_size
    assert document["opsets"] == {"ai.onnx": 17}
    assert document["cost"]["parameters"] == 32 * 27 + 32 + 32 * 32 * 9 + 320 + 10
    assert document["cost"]["macs"] == 256 * (32 * 27 + 32 * 32 * 9) + 320
    layers = {layer["name"]: layer for layer in document["layers"]}
    assert list(layers) == ["conv1", "conv2", "head"]
    assert layers["conv2"]["input_shape"] == "Nx32x16x16"
    assert layers["conv2"]["parameters"] == 32 * 32 * 9
    assert layers["conv1"]["parameters"] == 32 * 27 + 32
    assert layers["conv2"]["macs"] == 256 * 32 * 32 * 9
    assert layers["conv1"]["refusals"]["tucker2"] == "too few channels: 3 in, 32 out"
    assert {"tucker2", "spatial", "int4"} <= set(layers["conv2"]["open"])
    assert layers["conv2"]["proposals"] == []
    assert document["proposed"] is False


@pytest.mark.parametrize(("bits", "stored"), [(8, "int8"), (4, "int4"), (3, "int4"), (2, "int2")])
def test_inspect_looks_through_what_decodes_weights(
    bits: int, stored: str, run: Any, cnn: Path, tmp_path: Path
) -> None:
    out = tmp_path / "q.onnx"
    got = run(
        "optimize", cnn, "-p", f"int8(weight_bits={bits})", "--shapes", "x:1x3x16x16", "--objective", "size", "-o", out
    )
    assert got.code == 0, got.err
    document = json.loads(run("inspect", out, "--json").out)
    layers = {layer["name"]: layer for layer in document["layers"]}
    assert [layers[name]["dtype"] for name in ("conv1", "conv2")] == [stored] * 2
    assert layers["conv1"]["parameters"] == 32 * 27 + 32
    assert layers["conv2"]["parameters"] - 32 * 32 * 9 in (0, 32)  # a bias takes up the means
    assert layers["conv2"]["macs"] == 256 * 32 * 32 * 9


def test_inspect_refuses_what_optimize_refuses(run: Any, tmp_path: Path) -> None:
    model = Path(__file__).parents[2] / "models" / "digits_vgg.onnx"
    document = json.loads(run("inspect", model, "--json").out)
    verdicts = {layer["name"]: layer["refusals"].get("tucker2", "") for layer in document["layers"]}
    got = run("optimize", model, "-p", "tucker2", "--objective", "macs", "-o", tmp_path / "o.onnx", "--json")
    (step,) = json.loads(got.out)["steps"]
    skips = {skip["site"]: skip["reason"] for skip in step["skips"]}
    assert verdicts["conv1"] == "too few channels: 1 in, 64 out" == skips["conv1"]


def test_inspect_names_the_passes_on_whole_models(run: Any, cnn: Path) -> None:
    document = json.loads(run("inspect", cnn, "--json").out)
    assert {"fold", "int8"} <= set(document["whole"])
    assert "tucker2" not in document["whole"]
    assert "work on the whole model; only a run tells more" in run("inspect", cnn).out
    assert "int8" not in json.loads(run("inspect", cnn, "--target", "coreml", "--json").out)["whole"]


def test_inspect_prints_tables(run: Any, cnn: Path) -> None:
    got = run("inspect", cnn)
    assert got.code == 0, got.err
    for words in ("file size", "10.4 k", "conv2", "Nx32x16x16", "tucker2", "input x"):
        assert words in got.out
    assert run("inspect", cnn).out == got.out


def test_inspect_writes_pages_and_reports(run: Any, cnn: Path, tmp_path: Path) -> None:
    page, text, document = tmp_path / "page.html", tmp_path / "model.md", tmp_path / "model.json"
    got = run("inspect", cnn, "--html", page, "--report", text, "--report", document, "--json")
    assert got.code == 0, got.err
    assert json.loads(document.read_text()) == json.loads(got.out)
    for words in ("conv2", "Layers by MACs", "Left alone", "GlobalAveragePool"):
        assert words in page.read_text("utf-8") and words in text.read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--html", "page.md"), "--html 'page.md': the name must end in .html"),
        (("--report", "model.txt"), "--report 'model.txt': the name must end in .json, .md, .html"),
        (("--report", "none/model.md"), "the folder 'none' does not exist"),
        (("--sort", "latency"), "'latency' is not one of 'macs', 'bytes', 'name', 'order'"),
        (("--top", "-1"), "--top"),
    ],
)
def test_inspect_refuses_before_it_looks(run: Any, cnn: Path, arguments: tuple[str, ...], words: str) -> None:
    got = run("inspect", cnn, *arguments)
    assert (got.code, got.out) == (2, "")
    assert words in got.err


def test_inspect_lists_as_many_layers_as_asked(run: Any, cnn: Path) -> None:
    lines = run("inspect", cnn, "--top", "1").out.splitlines()
    (rest,) = (line for line in lines if line.startswith("... and 2 more"))
    assert lines[lines.index(rest) - 1].startswith("conv2")
    assert "... and" not in run("inspect", cnn, "--top", "0", "--sort", "order").out


def test_inspect_tells_what_made_a_file(run: Any, cnn: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    assert run("optimize", cnn, "-p", "tucker2(ranks=8x8)", "--objective", "macs", "-o", out).code == 0
    assert ": tucker2(ranks=8x8)" in run("inspect", out).out
    made = json.loads(run("inspect", out, "--json").out)["structure"]["made"]
    assert made["passes"] == ["tucker2(ranks=8x8)"]
    assert "conv2" in made["recipe"]["choices"][0]


def test_inspect_leaves_the_model_alone(run: Any, cnn: Path) -> None:
    before = cnn.read_bytes()
    assert run("inspect", cnn).code == 0
    assert cnn.read_bytes() == before


def test_inspect_a_model_without_weights(run: Any, make: Any) -> None:
    model = make([helper.make_node("Relu", ["x"], ["y"])], {}, outputs=(("y", 1, ["N", 3, 16, 16]),))
    got = run("inspect", model)
    assert got.code == 0, got.err
    assert "The model has no layer with weights." in got.out


def test_inspect_says_which_pass_cannot_run(run: Any, cnn: Path) -> None:
    document = json.loads(run("inspect", cnn, "--target", "coreml", "--json").out)
    assert "int8" in document["refusals"]


def test_inspect_of_an_unknown_target(run: Any, cnn: Path) -> None:
    got = run("inspect", cnn, "--target", "ort-x68")
    assert got.code == 2
    assert "did you mean 'ort-x86'" in got.err


def test_hostile_names_cannot_steer_the_terminal(run: Any, make: Any, parts: Any) -> None:
    nodes, arrays = parts
    nodes[0].name = "\x1b[31m[bold red]conv[/]\x07\n"
    got = run("inspect", make(nodes, arrays))
    assert got.code == 0, got.err
    assert "\x1b" not in got.out
    assert "\\x1b[31m[bold red]conv[/]\\x07" in got.out


def test_passes_lists_every_pass(run: Any) -> None:
    got = run("passes")
    assert got.code == 0, got.err
    rows = json.loads(run("passes", "--json").out)
    assert [row["name"] for row in rows] == list(available())
    for row in rows:
        assert row["name"] in got.out
        assert row["summary"]


@pytest.mark.parametrize("name", ["fold", "int8", "tucker2"])
def test_passes_describes_one(run: Any, name: str) -> None:
    got = run("passes", name)
    assert got.code == 0, got.err
    assert got.out.startswith(f"{name}: ")
    document = json.loads(run("passes", name, "--json").out)
    for option in document["options"]:
        assert option["name"] in got.out
    assert document["name"] == name


def test_passes_of_an_unknown_name(run: Any) -> None:
    got = run("passes", "tuker2")
    assert (got.code, got.out) == (2, "")
    assert got.err.startswith("onnxcomp: error: there is no pass 'tuker2'; did you mean 'tucker2'?")


def test_help_is_quick_and_lists_the_commands() -> None:
    command = [sys.executable, "-m", "onnxcomp.cli.main", "--help"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    times: list[float] = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.5
    for name in ("optimize", "inspect", "passes", "compare"):
        assert name in shown


@pytest.mark.parametrize("command", [(), ("optimize",), ("inspect",), ("passes",), ("compare",)])
def test_every_command_has_help(run: Any, command: tuple[str, ...]) -> None:
    got = run(*command, "--help")
    assert (got.code, got.err) == (0, "")
    assert got.out.startswith("Usage: onnxcomp")


def test_version(run: Any) -> None:
    got = run("--version")
    assert got.code == 0
    assert got.out.startswith("onnxcomp 0.")


def test_no_command_shows_help_as_a_wrong_call(run: Any) -> None:
    got = run()
    assert (got.code, got.out) == (2, "")
    assert got.err.startswith("Usage: onnxcomp")


def test_an_unknown_command(run: Any) -> None:
    got = run("optimise")
    assert got.code == 2
    assert "No such command 'optimise'" in got.err


def test_a_page_never_replaces_the_model(run: Any, cnn: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.html"
    model.write_bytes(cnn.read_bytes())
    got = run("inspect", model, "--html", model)
    assert got.code == 2
    assert "would be written over" in got.err
    assert model.read_bytes() == cnn.read_bytes()
