"""Bad input: what the user is told and the exit code, case by case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

FAST = ("--objective", "size")
FLOAT = TensorProto.FLOAT


def report_of(got: Any) -> Any:
    assert got.code == 0, got.err
    return json.loads(got.out)


def skips_of(document: Any, step: int = 0) -> dict[str, str]:
    return {skip["site"]: skip["reason"] for skip in document["steps"][step]["skips"]}


def refused(got: Any, *words: str, code: int = 2) -> None:
    """The call ended with the code, said nothing on stdout, and said these words in one or two lines (and a caret)."""
    assert got.code == code, got.err
    assert got.out == ""
    assert got.err.startswith("onnxcomp: error: ")
    assert "Traceback" not in got.err
    for word in words:
        assert word in got.err
    assert len(got.err.splitlines()) <= (4 if "^" in got.err else 2)


# The call


@pytest.mark.parametrize(
    ("passes", "words"),
    [
        ("tuker2", ("there is no pass 'tuker2'; did you mean 'tucker2'?", "\n  tuker2\n  ^")),
        ("int8,tuker2(keep=1)", ("there is no pass 'tuker2'", "\n       ^")),
        ("tucker2(rnk=vbmf)", ("pass 'tucker2' has no option 'rnk'; did you mean 'rank'?", "\n          ^")),
        ("tucker2(rank=vmbf)", ("tucker2.rank: 'vmbf' is not one of", "did you mean 'vbmf'?")),
        ("tucker2(energy=1.5)", ("tucker2.energy: 1.5 is not a number in (0, 1]", "\n                 ^")),
        ("tucker2(ranks=32)", ("tucker2.ranks: '32' is not of the form INxOUT", "\n                ^")),
        ("tucker2(", ("expected an option name, found the end", "\n          ^")),
        ("int8;fold", ("unexpected character ';'", "\n      ^")),
        ("", ("no passes given: name some with -p, or in a recipe under 'passes:'",)),
    ],
)
def test_bad_passes(run: Any, cnn: Path, tmp_path: Path, passes: str, words: tuple[str, ...]) -> None:
    refused(run("optimize", cnn, "-p", passes, "-o", tmp_path / "out.onnx"), *words)
    assert not (tmp_path / "out.onnx").exists()


def test_a_dry_run_refuses_a_target_that_does_not_exist(run: Any, cnn: Path) -> None:
    refused(run("optimize", cnn, "-p", "int8", "--target", "ort-x68", "--dry-run"), "did you mean 'ort-x86'?")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), ("no passes given: name some with -p",)),
        (("-p", "fold"), ("no output: give -o OUT", "see onnxcomp optimize --help")),
        (("-p", "fold", "-o"), ("Option '-o' requires an argument",)),
        (("-p", "fold", "--optput", "x"), ("No such option",)),
        (("-p", "fold", "-o", "x", "--objective", "fast"), ("--objective: 'fast' is not one of latency, size, macs",)),
        (("-p", "fold", "-o", "x", "--max-drop", "-1"), ("--max-drop: -1.0 is not a number in [0, 100]",)),
        (("-p", "fold", "-o", "x", "--max-drop", "lots"), ("'--max-drop'", "'lots' is not a valid float")),
        (("-p", "fold", "-o", "x", "--threads", "0"), ("'--threads'", "0 is not in the range")),
        (("-p", "fold", "-o", "x", "--shapes", "1x3"), ("--shapes '1x3' is not NAME:SIZES",)),
        (("-p", "fold", "-o", "x", "--shapes", "x:1xN"), ("'1xN' is not a shape such as 1x3x224x224",)),
        (("-p", "fold", "-o", "x", "--report", "r.txt"), ("--report 'r.txt': the name must end in .json, .md, .html",)),
        (("-p", "fold", "-o", "x", "--recipe", "no.yaml"), ("cannot read the recipe 'no.yaml': No such file",)),
    ],
)
def test_bad_flags(
    run: Any, cnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run("optimize", cnn, *flags), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_an_unknown_target(run: Any, cnn: Path, tmp_path: Path) -> None:
    got = run("optimize", cnn, "-p", "fold", "-o", tmp_path / "o.onnx", "--target", "ort-x68")
    refused(got, "ort-x68", "did you mean 'ort-x86'")


def test_int8_where_the_target_has_none(run: Any, cnn: Path, tmp_path: Path) -> None:
    refused(run("optimize", cnn, "-p", "int8", "-o", tmp_path / "o.onnx", "--target", "coreml"), "CoreML")


def test_a_recipe_with_an_unknown_key(run: Any, cnn: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("passes: [fold]\n\nobjektive: size\n")
    got = run("optimize", cnn, "--recipe", recipe, "-o", tmp_path / "o.onnx")
    refused(got, "recipe, line 3: unknown key 'objektive' in the recipe; did you mean 'objective'?")


@pytest.mark.parametrize("flag", ["-o", "--report"])
def test_a_folder_that_does_not_exist(run: Any, cnn: Path, tmp_path: Path, flag: str) -> None:
    targets = {"-o": tmp_path / "out.onnx", "--report": tmp_path / "r.json"}
    targets[flag] = tmp_path / "missing" / targets[flag].name
    got = run("optimize", cnn, "-p", "fold", "-o", targets["-o"], "--report", targets["--report"])
    refused(got, f"{flag} ", f"the folder {str(tmp_path / 'missing')!r} does not exist; create it first")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_an_output_that_is_a_folder(run: Any, cnn: Path, tmp_path: Path) -> None:
    refused(run("optimize", cnn, "-p", "fold", "-o", tmp_path), "is a folder; give a file name")


# The file


@pytest.mark.parametrize("command", [("optimize", "-p", "fold", "-o", "o.onnx"), ("inspect",)])
def test_files_that_are_no_models(
    run: Any, cnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = cnn.read_bytes()
    cases = {
        "text.onnx": (b"hello, this is no model at all\n" * 20, ("text.onnx", "not an ONNX model")),
        "empty.onnx": (b"", ("empty.onnx", "is empty")),
        "cut.onnx": (whole[: len(whole) // 2], ("cut.onnx",)),
        "pointer.onnx": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", ("Git LFS pointer",)),
        "zip.onnx": (b"PK\x03\x04" + bytes(100), ("zip.onnx", "not an ONNX model")),
    }
    for name, (content, words) in cases.items():
        Path(name).write_bytes(content)
        refused(run(command[0], name, *command[1:]), *words)
    refused(run(command[0], "absent.onnx", *command[1:]), "there is no file 'absent.onnx'")
    refused(run(command[0], ".", *command[1:]), "'.' is a folder, not an ONNX file")
    assert not Path("o.onnx").exists()


def test_external_data_that_are_missing(run: Any, tmp_path: Path, parts: Any) -> None:
    nodes, arrays = parts
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("y", FLOAT, ["N", 10])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    refused(run("optimize", path, "-p", "fold", "-o", tmp_path / "o.onnx"), "weights.bin")


# The model


def test_a_custom_operator(run: Any, make: Any, parts: Any, tmp_path: Path) -> None:
    nodes, arrays = parts
    nodes[1] = helper.make_node("Fancy", ["c1"], ["r1"], name="fancy", domain="com.acme")
    model = make(nodes, arrays, opsets=(helper.make_opsetid("com.acme", 1),))
    got = run("optimize", model, "-p", "tucker2,int8", "-o", tmp_path / "o.onnx", *FAST)
    refused(got, "com.acme", "Fancy")
    assert not (tmp_path / "o.onnx").exists()


def test_dynamic_spatial_sizes(run: Any, make: Any, parts: Any, tmp_path: Path) -> None:
    model = make(*parts, inputs=(("x", FLOAT, ["N", 3, "H", "W"]),))
    out = tmp_path / "o.onnx"
    document = report_of(
        run("optimize", model, "-p", "tucker2(ranks=8x8),int8", "-o", out, "--shapes", "x:1x3x16x16", "--json", *FAST)
    )
    assert {"conv1", "conv2"} <= {c["site"] for c in document["steps"][1]["changes"]} | skips_of(document).keys()
    dims = onnx.load(out).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["N", 3, "H", "W"]


def test_shapes_that_contradict_the_model(run: Any, cnn: Path, tmp_path: Path) -> None:
    for shape, words in (("x:1x4x16x16", "x"), ("z:1x3x16x16", "z")):
        refused(run("optimize", cnn, "-p", "int8", "-o", tmp_path / "o.onnx", "--shapes", shape, *FAST), words)


def test_a_weight_with_no_channels_that_the_runtime_cannot_load(
    run: Any, make: Any, parts: Any, tmp_path: Path
) -> None:
    nodes, arrays = parts
    arrays["w2"] = np.zeros((0, 32, 3, 3), np.float32)
    arrays["w3"] = np.zeros((10, 0), np.float32)
    got = run("optimize", make(nodes, arrays), "-p", "tucker2", "-o", tmp_path / "o.onnx", "--json", *FAST)
    refused(got, "ONNX Runtime cannot load", "invalid channel count")


def test_a_shared_initializer(run: Any, make: Any, parts: Any, tmp_path: Path) -> None:
    nodes, arrays = parts
    nodes.insert(
        4, helper.make_node("Conv", ["r2", "w2"], ["c3"], name="conv3", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    )
    nodes[5].input[0] = "c3"
    document = report_of(
        run("optimize", make(nodes, arrays), "-p", "tucker2(ranks=8x8)", "-o", tmp_path / "o.onnx", "--json", *FAST)
    )
    skips = skips_of(document)
    assert skips["conv2"] == "the weight is shared with conv3"
    assert skips["conv3"] == "the weight is shared with conv2"


def test_an_overridable_initializer(run: Any, make: Any, parts: Any, tmp_path: Path) -> None:
    nodes, arrays = parts
    inputs = (("x", FLOAT, ["N", 3, 16, 16]), ("w2", FLOAT, [32, 32, 3, 3]))
    out = tmp_path / "o.onnx"
    model = make(nodes, arrays, inputs=inputs)
    document = report_of(run("optimize", model, "-p", "tucker2(ranks=8x8)", "-o", out, "--json", *FAST))
    assert skips_of(document)["conv2"] == "the weight 'w2' can be overridden by a graph input"
    assert [value.name for value in onnx.load(out).graph.input] == ["x", "w2"]


def test_convolutions_inside_a_body(run: Any, make: Any, parts: Any, tmp_path: Path) -> None:
    nodes, arrays = parts
    inner = helper.make_node(
        "Conv", ["r1", "w2"], ["inner"], name="conv_in_body", kernel_shape=[3, 3], pads=[1, 1, 1, 1]
    )
    info = helper.make_tensor_value_info("inner", FLOAT, None)
    other = helper.make_tensor_value_info("same", FLOAT, None)
    branch = helper.make_node(
        "If",
        ["flag"],
        ["c2"],
        name="branch",
        then_branch=helper.make_graph([inner], "then", [], [info]),
        else_branch=helper.make_graph([helper.make_node("Identity", ["r1"], ["same"])], "else", [], [other]),
    )
    nodes[2] = branch
    out = tmp_path / "o.onnx"
    model = make(nodes, arrays, inputs=(("x", FLOAT, ["N", 3, 16, 16]), ("flag", TensorProto.BOOL, [])))
    document = report_of(run("optimize", model, "-p", "tucker2,int8", "-o", out, "--json", *FAST))
    assert skips_of(document)["conv_in_body"] == "inside a subgraph (If, Loop or Scan body)"
    written = next(node for node in onnx.load(out).graph.node if node.op_type == "If")
    assert [node.op_type for node in written.attribute[0].g.node] in (["Conv"], ["Identity"])


def test_a_model_without_convolutions(run: Any, make: Any, tmp_path: Path) -> None:
    model = make([helper.make_node("Softmax", ["x"], ["y"], name="softmax")], {}, inputs=(("x", FLOAT, ["N", 10]),))
    got = run("optimize", model, "-p", "tucker2,int8", "-o", tmp_path / "o.onnx", *FAST)
    assert got.code == 0, got.err
    assert "nothing to do" in got.out
    assert [node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node] == ["Softmax"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers(run: Any, make: Any, parts: Any, tmp_path: Path, bad: float) -> None:
    nodes, arrays = parts
    arrays["w2"][0, 0, 0, 0] = bad
    document = report_of(
        run("optimize", make(nodes, arrays), "-p", "tucker2(ranks=8x8)", "-o", tmp_path / "o.onnx", "--json", *FAST)
    )
    assert skips_of(document)["conv2"] == "the weight holds NaN or Inf"


def in_precision(make: Any, parts: Any, dtype: Any) -> Any:
    nodes, arrays = parts
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return make(
        nodes,
        {name: array.astype(dtype) for name, array in arrays.items()},
        inputs=(("x", kind, ["N", 3, 16, 16]),),
        outputs=(("y", kind, ["N", 10]),),
    )


def test_half_precision_is_left_alone(run: Any, make: Any, parts: Any, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    model = in_precision(make, parts, np.float16)
    document = report_of(run("optimize", model, "-p", "tucker2(ranks=8x8)", "-o", out, "--json", *FAST))
    assert skips_of(document)["conv2"] == "the weight is float16, not float32"
    assert onnx.load(out).graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT16


def test_double_precision_that_the_runtime_has_no_kernel_for(run: Any, make: Any, parts: Any, tmp_path: Path) -> None:
    model = in_precision(make, parts, np.float64)
    got = run("optimize", model, "-p", "tucker2(ranks=8x8)", "-o", tmp_path / "o.onnx", "--json", *FAST)
    refused(got, "ONNX Runtime cannot load", "Could not find an implementation for Conv")


# The data


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((0, 3, 16, 16), np.float32)}, ("is empty (shape [0,3,16,16]); at least one sample is needed",)),
        ({"x": np.zeros((4, 1, 16, 16), np.float32)}, ("has shape [4,1,16,16]", "input 'x' needs [n,3,16,16]")),
        ({"x": np.zeros((4, 3), np.float32)}, ("has shape [4,3]", "needs 4 axes")),
        ({"X": np.zeros((4, 3, 16, 16), np.float32)}, ("has no array for input 'x'", "it has: X")),
        ({"x": np.full((4, 3, 16, 16), np.nan, np.float32)}, ("is NaN or infinite",)),
        ({"x": np.array([{}, {}])}, ("never unpickled",)),
        ({"x": np.full((4, 3, 16, 16), "a")}, ("do not go into input 'x'",)),
    ],
)
def test_data_that_do_not_fit(run: Any, cnn: Path, tmp_path: Path, arrays: Any, words: tuple[str, ...]) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, **arrays)
    got = run("optimize", cnn, "-p", "int8", "-o", tmp_path / "o.onnx", "--data", data, *FAST)
    refused(got, str(data), *words)
    assert not (tmp_path / "o.onnx").exists()


def test_data_that_cannot_be_read(run: Any, cnn: Path, images: Path, tmp_path: Path) -> None:
    call = ("optimize", cnn, "-p", "int8", "-o", tmp_path / "o.onnx", *FAST, "--data")
    refused(run(*call, tmp_path / "absent.npz"), "absent.npz")
    (tmp_path / "cut.npz").write_bytes(images.read_bytes()[:1000])
    refused(run(*call, tmp_path / "cut.npz"), "cut.npz")
    refused(run(*call, "no_such_module:feeds"), "no_such_module")


def test_evaluation_needs_labels_for_max_drop(run: Any, cnn: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=np.zeros((4, 3, 16, 16), np.float32))
    call = ("optimize", cnn, "-p", "int8", "-o", tmp_path / "o.onnx", "--max-drop", "1", *FAST)
    refused(run(*call), "--max-drop needs labelled evaluation data")
    refused(run(*call, "--eval", data), "label")


def test_labels_that_do_not_fit(run: Any, cnn: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=np.zeros((4, 3, 16, 16), np.float32), labels=np.zeros(3, np.int64))
    call = ("optimize", cnn, "-p", "int8", "-o", tmp_path / "o.onnx", *FAST)
    refused(run(*call, "--eval", data), "3 labels for 4 samples")


def test_required_data_that_are_missing(run: Any, cnn: Path, tmp_path: Path) -> None:
    got = run("optimize", cnn, "-p", "int8", "-o", tmp_path / "o.onnx", "--require-data")
    refused(got, "no calibration data: --require-data was given without --data")


def test_few_samples_are_warned_of(run: Any, cnn: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(0).normal(size=(5, 3, 16, 16)).astype(np.float32))
    got = run("optimize", cnn, "-p", "int8", "-o", tmp_path / "o.onnx", "--data", data, *FAST)
    assert got.code == 0
    assert got.err == "onnxcomp: warning: only 5 calibration samples; 64 or more are advised\n"


def test_preprocessing_that_does_not_parse(run: Any, cnn: Path, images: Path, tmp_path: Path) -> None:
    call = ("optimize", cnn, "-p", "int8", "-o", tmp_path / "o.onnx", "--data", images, "--preprocess")
    refused(run(*call, "sise=16"), "preprocess: unknown key 'sise'", "did you mean 'size'")
