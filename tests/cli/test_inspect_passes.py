"""`onnxcomp inspect --passes`: what each pass would make of each layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxcomp.registry import available


def proposals(document: Any, layer: str) -> dict[str, Any]:
    """What was proposed for a layer, by spec."""
    (found,) = (entry for entry in document["layers"] if entry["name"] == layer)
    return {proposal["spec"]: proposal for proposal in found["proposals"]}


def asked(run: Any, *arguments: Any) -> Any:
    """The JSON document of a call that succeeds."""
    got = run("inspect", *arguments, "--json")
    assert got.code == 0, got.err
    return json.loads(got.out)


def conv_model(make: Any, channels: int, filters: int, kernel: int, size: int, *, bias: bool = True) -> Path:
    """One valid-padded convolution on a square image."""
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {
        "w": rng.normal(size=(filters, channels, kernel, kernel)).astype(np.float32),
        "b": rng.normal(size=filters).astype(np.float32),
    }
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    out = size - kernel + 1
    path: Path = make(
        [helper.make_node("Conv", inputs, ["y"], name="conv")],
        arrays if bias else {"w": arrays["w"]},
        inputs=(("x", TensorProto.FLOAT, [1, channels, size, size]),),
        outputs=(("y", TensorProto.FLOAT, [1, filters, out, out]),),
    )
    return path


@pytest.mark.parametrize("n", [3, 5, 7])
@pytest.mark.parametrize("bias", [False, True])
def test_a_separable_convolution_has_two_nths_of_the_weights(n: int, bias: bool, run: Any, make: Any) -> None:
    channels, size = 16, 20
    model = conv_model(make, channels, channels, n, size, bias=bias)
    document = asked(run, model, "-p", f"spatial(rank={channels})")
    proposal = proposals(document, "conv")[f"spatial(rank={channels})"]
    assert proposal["weights_kept"] == 2 / n
    assert proposal["before"]["weights"] == n * n * channels**2
    assert proposal["after"]["weights"] == 2 * n * channels**2


@pytest.mark.parametrize("n", [3, 5, 7])
@pytest.mark.parametrize("size", [8, 20, 224])
def test_multiplications_of_a_separable_convolution(n: int, size: int, run: Any, make: Any) -> None:
    """M_s(M, n); for n = 3 it is 2/n + 2/(n (M - 2))."""
    channels = 8
    document = asked(run, conv_model(make, channels, channels, n, size), "-p", f"spatial(rank={channels})")
    (proposal,) = proposals(document, "conv").values()
    expected = 2 / n + (n - 1) / (n * (size - n + 1))
    assert proposal["macs_kept"] == pytest.approx(expected, rel=1e-12)
    if n == 3:
        assert expected == pytest.approx(2 / n + 2 / (n * (size - 2)))


@pytest.mark.parametrize("n", [3, 5, 7])
@pytest.mark.parametrize("filters", [16, 48])
def test_a_depthwise_separable_convolution(n: int, filters: int, run: Any, make: Any) -> None:
    """Weights 1/n^2 + 1/N_F; multiplications as well, as the depthwise node comes first."""
    document = asked(run, conv_model(make, 12, filters, n, 20), "-p", "depthwise(rank=1,order=dw)")
    (proposal,) = proposals(document, "conv").values()
    assert proposal["weights_kept"] == pytest.approx(1 / n**2 + 1 / filters, rel=1e-15)
    assert proposal["macs_kept"] == pytest.approx(1 / n**2 + 1 / filters, rel=1e-15)


def test_every_pass_on_single_layers_answers_for_every_layer(run: Any, cnn: Path) -> None:
    document = asked(run, cnn, "--passes")
    assert document["proposed"] is True
    assert document["data"] is None
    spoken = {s for layer in document["layers"] for s in (*proposals(document, layer["name"]), *layer["refusals"])}
    assert spoken | set(document["whole"]) | set(document["refusals"]) == set(available())
    for layer in document["layers"]:
        assert layer["open"] == []
    proposal = proposals(document, "conv2")["tucker2"]
    assert proposal["summary"].startswith("1x1 32>")
    assert proposal["error_of"] == "weight"
    assert proposal["error"] < 1e-9  # the weight has rank 8
    assert proposal["bytes_saved"] == 4 * (proposal["before"]["weights"] - proposal["after"]["weights"])
    assert "ranks" in proposal["choice"]
    packed = proposals(document, "conv2")["int4"]
    assert packed["weights_kept"] == packed["macs_kept"] == 1
    assert packed["before"]["bytes"] / packed["after"]["bytes"] > 7
    assert 0 < packed["error"] < 0.1


def test_a_proposal_is_what_optimize_makes(run: Any, cnn: Path, tmp_path: Path) -> None:
    spec = "tucker2(ranks=8x8)"
    proposal = proposals(asked(run, cnn, "-p", spec), "conv2")[spec]
    got = run("optimize", cnn, "-p", spec, "--objective", "macs", "-o", tmp_path / "o.onnx", "--json")
    assert got.code == 0, got.err
    (change,) = json.loads(got.out)["steps"][0]["changes"]
    assert change["summary"] == proposal["summary"]
    assert change["error"] == pytest.approx(proposal["error"])
    assert change["after"]["macs"] == proposal["after"]["macs"]
    assert change["choice"] == proposal["choice"]


def test_with_data_errors_are_of_the_outputs(run: Any, cnn: Path, images: Path, tmp_path: Path) -> None:
    spec = "spatial(rank=8)"
    of_weights = proposals(asked(run, cnn, "-p", spec), "conv2")[spec]
    document = asked(run, cnn, "-p", spec, "--data", images)
    assert document["samples"] == 100
    assert str(images) in document["data"]
    of_outputs = proposals(document, "conv2")[spec]
    assert (of_weights["error_of"], of_outputs["error_of"]) == ("weight", "output")
    assert of_outputs["error"] < of_weights["error"]  # the data lie in fewer dimensions
    assert of_outputs["after"]["macs"] == of_weights["after"]["macs"]
    got = run(
        "optimize", cnn, "-p", spec, "--data", images, "--objective", "macs", "--exclude", "conv1",
        "-o", tmp_path / "o.onnx", "--json",
    )  # fmt: skip
    (change,) = json.loads(got.out)["steps"][0]["changes"]
    assert 0.5 * of_outputs["error"] < change["error"] < 1.05 * of_outputs["error"]  # a run refines the factors


def test_a_pass_that_rounds_predicts_outputs_too(run: Any, cnn: Path, images: Path) -> None:
    specs = "int4,int4(rounding=nearest)"
    found = proposals(asked(run, cnn, "-p", specs, "--data", images), "conv2")
    assert found["int4"]["error_of"] == "output"
    assert found["int4(rounding=nearest)"]["error_of"] == "weight"
    shown = run("inspect", cnn, "-p", specs, "--data", images).out
    assert "w: of the energy of its weights" in shown
    assert " % w\n" in "\n".join(line.rstrip() for line in shown.splitlines()) + "\n"


def test_one_pass_may_be_asked_several_times(run: Any, cnn: Path) -> None:
    document = asked(run, cnn, "-p", "spatial(rank=8), spatial( rank = 16 ),spatial(rank=4096)")
    found = proposals(document, "conv2")
    assert list(found) == ["spatial(rank=8)", "spatial(rank=16)", "spatial(rank=4096)"]
    assert found["spatial(rank=8)"]["error"] > found["spatial(rank=16)"]["error"]
    assert found["spatial(rank=8)"]["after"]["macs"] * 2 == found["spatial(rank=16)"]["after"]["macs"]
    whole = found["spatial(rank=4096)"]  # what was asked is shown, gain or not
    assert (whole["choice"]["rank"], whole["weights_kept"], whole["error"]) == (96, 2, pytest.approx(0, abs=1e-12))
    assert whole["bytes_saved"] == -4 * 9 * 32 * 32


def test_the_terminal_shows_it(run: Any, cnn: Path) -> None:
    got = run("inspect", cnn, "-p", "spatial(rank=16),tucker2,int4,decompose")
    assert got.code == 0, got.err
    lines = [line.rstrip() for line in got.out.splitlines()]
    start = lines.index("What each pass would make of each layer")
    (row,) = (line for line in lines[start:] if line.startswith("  spatial(rank=16)") and "32>16" in line)
    assert "3x1 32>16, 1x3 16>32" in row or "1x3 32>16, 3x1 16>32" in row
    assert "33.3 %" in row
    assert "error: share of the energy of the layer's weights that is lost" in got.out
    (refused,) = (line for line in lines[start:] if line.startswith("  no"))
    assert refused.split(None, 1)[1] == "tucker2: too few channels: 3 in, 32 out"
    assert "Each pass alone, on all layers that it takes" in got.out
    assert max(map(len, lines)) <= 120
    assert any("decompose" in line and "works on the whole model" in line for line in lines)


@pytest.mark.parametrize("flag", ["--passes", "-p"])
def test_the_value_of_passes_is_optional(flag: str, run: Any, cnn: Path) -> None:
    before = run("inspect", cnn, flag).out
    assert run("inspect", flag, cnn).out == before  # the model is not taken for a pipeline
    assert "What each pass would make" in before
    assert run("inspect", flag, "lowrank", cnn).out == run("inspect", cnn, flag, "lowrank").out


def test_nothing_is_written(run: Any, cnn: Path, images: Path) -> None:
    before = {path: path.read_bytes() for path in cnn.parent.iterdir()}
    assert run("inspect", cnn, "--passes", "tucker2,int4", "--data", images).code == 0
    assert {path: path.read_bytes() for path in cnn.parent.iterdir()} == before


def test_shapes_make_costs_known(run: Any, make: Any, parts: Any) -> None:
    nodes, arrays = parts
    model = make(nodes, arrays, inputs=(("x", TensorProto.FLOAT, ["N", 3, "H", "W"]),))
    unknown = proposals(asked(run, model, "-p", "spatial(rank=8)"), "conv2")["spatial(rank=8)"]
    assert unknown["macs_kept"] is None
    assert unknown["weights_kept"] == pytest.approx(1 / 6)
    assert "?" in run("inspect", model, "-p", "spatial(rank=8)").out
    shapes = ("--shapes", "x:1x3x16x16")
    known = proposals(asked(run, model, "-p", "spatial(rank=8)", *shapes), "conv2")["spatial(rank=8)"]
    assert known["before"]["macs"] == 256 * 9 * 32 * 32


def test_a_model_without_layers(run: Any, make: Any, images: Path) -> None:
    model = make([helper.make_node("Relu", ["x"], ["y"])], {}, outputs=(("y", 1, ["N", 3, 16, 16]),))
    got = run("inspect", model, "--passes", "--data", images)
    assert got.code == 0, got.err
    assert "The model has no layer with weights." in got.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--passes", "spatal"), "there is no pass 'spatal'; did you mean 'spatial'?"),
        (("--passes", "spatial(rnk=3)"), "rnk"),
        (("--passes", "spatial(rank=3"), "found the end"),
        (("--passes", ""), "expected a pass name"),
        (("--data", "images.npz"), "give --passes as well"),
        (("--passes", "spatial", "--data", "none.npz"), "none.npz: no such file or folder"),
        (("--passes", "spatial(fit=data)"), "needs calibration data: give --data"),
        (("--passes", "spatial", "--shapes", "z:1x3x16x16"), "there is no input 'z'"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], words: str, run: Any, cnn: Path) -> None:
    got = run("inspect", cnn, *arguments)
    assert (got.code, got.out) == (2, "")
    assert words in got.err


def test_data_that_do_not_fit(run: Any, cnn: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrong.npz"
    np.savez(path, x=np.zeros((8, 3, 8, 8), np.float32))
    got = run("inspect", cnn, "--passes", "spatial", "--data", path)
    assert (got.code, got.out) == (2, "")
    assert "wrong.npz" in got.err


def test_no_model(run: Any) -> None:
    got = run("inspect", "--passes", "no.onnx")
    assert got.code == 2
    assert "Missing argument 'MODEL'. ('no.onnx' was read as the value of --passes, and is no file)" in got.err
    assert "Missing argument 'MODEL'" in run("inspect").err


def test_what_cannot_run_is_named_beside_what_can(run: Any, cnn: Path) -> None:
    got = run("inspect", cnn, "-p", "lowrank,spatial(fit=data)")
    assert got.code == 0, got.err
    assert "spatial(fit=data) cannot run" in got.out


def test_nodes_of_one_layer_answer_for_themselves(run: Any, cnn: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    got = run("optimize", cnn, "-p", "tucker2(ranks=16x16)", "--objective", "macs", "-o", out)
    assert got.code == 0, got.err
    document = asked(run, out, "-p", "spatial(rank=8)")
    chain = [layer for layer in document["layers"] if layer["name"] == "conv2"]
    assert len(chain) == 3
    assert [len(layer["proposals"]) for layer in chain] == [0, 1, 0]
