"""``onnxcomp check``: limits, budgets, reports, and what careless and hostile callers meet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcomp.gate import families
from onnxcomp.runtime.latency import latency_of, paired_speed


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time for tenths of a second."""

    def quickly(measure: Any) -> Any:
        def measured(*given: Any, **named: Any) -> Any:
            return measure(*given, **{**named, "rounds": 8, "sessions": 1, "budget_s": 0.2})

        return measured

    monkeypatch.setattr(families, "paired_speed", quickly(paired_speed))
    monkeypatch.setattr(families, "latency_of", quickly(latency_of))


@pytest.fixture
def renamed(cnn: Path) -> Path:
    """The classifier with another name for its output."""
    model = onnx.load(cnn)
    for node in model.graph.node:
        node.output[:] = ["scores" if name == "y" else name for name in node.output]
    model.graph.output[0].name = "scores"
    onnx.save(model, cnn.with_name("renamed.onnx"))
    return cnn.with_name("renamed.onnx")


def verdicts(got: Any) -> dict[str, str]:
    return {line["name"]: line["verdict"] for line in json.loads(got.out)["lines"]}


def test_limits_of_every_family(run: Any, cnn: Path, images: Path, tmp_path: Path) -> None:
    budget = tmp_path / "budget.yaml"
    budget.write_text(
        """
        max_size: 1MB
        min_speedup: 0.01
        max_drop: 0.5
        ops: {deny: ["com.microsoft:*"]}
        opset: {min: 13, max: 26}
        inputs: {x: "float32[N,3,16,16]"}
        outputs: {y: "float32[N,10]"}
        """
    )
    flags = ("--max-params", "1M", "--max-macs", "1G", "--max-latency", "1s", "--max-latency-p99", "10s")
    quality = ("--min-accuracy", "0", "--min-agreement", "100%", "--min-sqnr", "100dB", "--max-memory", "1GB")
    got = run("check", cnn, "--against", cnn, "--budget", budget, "--eval", images, *flags, *quality, "--json")
    assert got.code == 0, got.err
    assert set(verdicts(got).values()) <= {"pass", "inconclusive"}
    assert len(verdicts(got)) == 18
    document = json.loads(got.out)
    assert document["headline"] == "passed: 18 of 18"
    assert "100 samples from" in document["data"]


def test_flags_go_over_the_budget(run: Any, cnn: Path, tmp_path: Path) -> None:
    budget = tmp_path / "budget.yaml"
    budget.write_text("max_size: 1B\ntarget: tensorrt\n")
    assert run("check", cnn, "--budget", budget).code == 1
    got = run("check", cnn, "--budget", budget, "--max-size", "1MB", "--target", "ort-arm", "--json")
    assert (got.code, json.loads(got.out)["target"]) == (0, "ort-arm")


def test_the_table_and_its_reasons(run: Any, cnn: Path) -> None:
    got = run("check", cnn, "--max-size", "1KB", "--require-fused", "--allow-float", "conv*")
    assert got.code == 1
    assert got.out.splitlines()[0] == "failed: 2 of 3: max_size, fusion"
    for words in ("at most 1 KB", "no layer in float but conv*", "head runs as", "legal for ort-x86"):
        assert words in got.out
    assert got.err.startswith(f"onnxcomp: error: '{cnn}' failed: 2 of 3")
    assert len(got.err.splitlines()) == 1


def test_a_changed_contract_fails_by_itself(run: Any, cnn: Path, renamed: Path, images: Path) -> None:
    got = run("check", renamed, "--against", cnn, "--eval", images, "--max-drop", "1", "--min-accuracy", "0", "--json")
    assert got.code == 1
    assert verdicts(got) == {
        "contract": "fail",
        "max_drop": "skipped",
        "target": "pass",
        "min_accuracy": "pass",
        "finite": "pass",
    }
    contract = json.loads(got.out)["lines"][0]
    assert (contract["where"], contract["why"]) == (["y"], "output 'y' is now called 'scores'")


def test_a_base_with_other_inputs(run: Any, cnn: Path, make: Any, images: Path) -> None:
    other = make(
        [helper.make_node("Relu", ["z"], ["y"])],
        {},
        inputs=(("z", TensorProto.FLOAT, ["N", 10]),),
        name="other.onnx",
    )
    got = run(
        "check", cnn, "--against", other, "--eval", images, "--min-agreement", "1", "--min-speedup", "1", "--json"
    )
    assert got.code == 1
    found = {line["name"]: line for line in json.loads(got.out)["lines"]}
    assert found["contract"]["verdict"] == "fail"
    assert "input 'z' (float32[N,10]) is gone" in found["contract"]["why"]
    for name in ("min_agreement", "min_speedup"):
        assert (found[name]["verdict"], "other inputs" in found[name]["why"]) == ("skipped", True)
    # the data are the base's: the model is at fault, not the call
    got = run("check", other, "--against", cnn, "--eval", images, "--min-accuracy", "1", "--json")
    assert got.code == 1
    assert "the inputs are not those of the base: " in str(got.out)


def test_a_model_that_does_not_load(run: Any, cnn: Path, images: Path) -> None:
    model = onnx.load(cnn)
    model.graph.node[0].op_type = "NoSuchOperator"
    broken = cnn.with_name("broken.onnx")
    onnx.save(model, broken)
    flags = (
        "--max-latency",
        "1",
        "--max-memory",
        "64",
        "--min-accuracy",
        "1",
        "--min-speedup",
        "1",
        "--max-size",
        "1MB",
    )
    got = run("check", broken, "--against", cnn, "--eval", images, *flags, "--require-fused", "--json")
    assert got.code == 1
    assert verdicts(got) == {
        "target": "fail",
        **dict.fromkeys(("fusion", "min_accuracy", "max_memory", "max_latency", "min_speedup"), "skipped"),
        "contract": "pass",
        "max_size": "pass",
    }
    assert json.loads(got.out)["findings"][0]["message"].count("conv1") >= 1  # and not the token of the proof
    assert got.out.count("as said above") == 4
    swapped = run("check", cnn, "--against", broken, "--min-speedup", "1")
    assert (swapped.code, swapped.out) == (2, "")
    assert "--against: ONNX Runtime cannot load" in swapped.err
    swapped = run("check", cnn, "--against", broken, "--eval", images, "--max-drop", "1")
    assert (swapped.code, swapped.out) == (2, "")
    assert "--against: ONNX Runtime cannot load" in swapped.err


def test_outputs_that_are_no_numbers(run: Any, make: Any, parts: Any, images: Path) -> None:
    nodes, arrays = parts
    base = make(nodes, arrays, name="base.onnx")
    bad = make(nodes, {**arrays, "b3": np.full(10, np.nan, np.float32)}, name="bad.onnx")
    got = run("check", bad, "--against", base, "--eval", images, "--max-drop", "100", "--min-sqnr", "0", "--json")
    assert got.code == 1
    assert {name for name, verdict in verdicts(got).items() if verdict == "fail"} == {"min_sqnr", "finite"}


def test_reports_are_written_even_when_the_gate_fails(run: Any, cnn: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("c.xml", "c.md", "c.sarif", "r.json", "r.md", "r.html")}
    files["c.md"].write_text("what another step wrote")
    got = run(
        "check", cnn, "--max-size", "1B", "--target", "ort-mobile",
        "--junit", files["c.xml"], "--markdown", files["c.md"], "--sarif", files["c.sarif"],
        "--report", files["r.json"], "--report", files["r.md"], "--report", files["r.html"],
        "-o", tmp_path / "out.onnx",
    )  # fmt: skip
    assert got.code == 1
    assert "was not written" in got.err
    assert not (tmp_path / "out.onnx").exists()
    assert ElementTree.parse(files["c.xml"]).getroot().attrib["failures"] == "1"
    assert files["c.md"].read_text().startswith("**failed: 1 of 2: max\\_size**")
    assert files["r.md"].read_text() == files["c.md"].read_text()
    assert json.loads(files["c.sarif"].read_text())["runs"][0]["results"][0]["ruleId"] == "mobile-shape"
    assert json.loads(files["r.json"].read_text())["passed"] is False
    assert "max_size" in files["r.html"].read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--min-speedup", "1"), "min_speedup needs a model to compare with; give --against BASE"),
        (("--max-drop", "1", "--against", "BASE"), "max_drop needs labelled evaluation data; give --eval E"),
        (("--min-sqnr", "1", "--against", "BASE"), "give --eval E or --data D"),
        (("--min-accuracy", "1", "--data", "IMAGES"), "give --eval E"),
        (("--min-accuracy", "1", "--eval", "UNLABELLED"), "has no labels"),
        (("--eval", "nothing.npz", "--min-accuracy", "1"), "no such file"),
        (("--against", "none.onnx"), "there is no file 'none.onnx'"),
        (("--against", "CORRUPT", "--min-speedup", "1"), "--against: "),
        (("--max-size", "0"), "--max-size: '0' is out of range"),
        (("--max-size", "-4MB"), "--max-size: '-4MB' is out of range"),
        (("--max-size", "4XB"), "is not a number such as 4MB or 100KB"),
        (("--max-latency", "fast"), "is not a number such as 12 or 12ms"),
        (("--budget", "none.yaml"), "cannot read the budget 'none.yaml'"),
        (("--budget", "IMAGES"), "not UTF-8 text"),
        (("--budget", "MISSPELT"), "line 2: unknown key 'max_lattency' in the budget; did you mean 'max_latency'?"),
        (("--budget", "NEEDY"), "give --against BASE"),
        (("--budget", "ELSEWHERE"), "did you mean 'tensorrt'?"),
        (("--junit", "nowhere/c.xml"), "the folder 'nowhere' does not exist"),
        (("--markdown", "."), "is a folder; give a file name"),
        (("--sarif", "/dev/null"), "is not a regular file"),
        (("--report", "r.txt"), "the name must end in"),
        (("--markdown", "MODEL"), "is read by this call"),
        (("--sarif", "BASE", "--against", "BASE"), "is read by this call"),
        (("-o", "BASE", "--against", "BASE"), "is read by this call"),
        (("--junit", "IMAGES", "--eval", "IMAGES"), "is read by this call"),
        (("-o", "same.onnx", "--markdown", "same.onnx"), "is written by -o as well"),
        (("--markdown", "same.md", "--report", "same.md"), "is written by --markdown as well"),
    ],
)
def test_wrong_calls(
    run: Any,
    cnn: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with np.load(images) as file:
        np.savez("unlabelled.npz", x=file["x"])
    base = Path("base.onnx")
    base.write_bytes(cnn.read_bytes())
    Path("corrupt.onnx").write_bytes(cnn.read_bytes()[:2000])
    Path("misspelt.yaml").write_text("# limits\nmax_lattency: 5ms\n")
    Path("needy.yaml").write_text("min_speedup: 1.2\n")
    Path("elsewhere.yaml").write_text("target: tensort\n")
    named = {
        "MODEL": cnn, "BASE": base, "IMAGES": images, "UNLABELLED": "unlabelled.npz", "CORRUPT": "corrupt.onnx",
        "MISSPELT": "misspelt.yaml", "NEEDY": "needy.yaml", "ELSEWHERE": "elsewhere.yaml",
    }  # fmt: skip
    before = base.read_bytes()
    got = run("check", cnn, *(named.get(argument, argument) for argument in arguments))
    assert (got.code, got.out) == (2, "")
    assert words in got.err
    assert len(got.err.splitlines()) <= 2
    assert base.read_bytes() == before == cnn.read_bytes()


@pytest.mark.parametrize("flag", ["--junit", "--markdown", "--sarif", "-o"])
def test_weights_beside_a_model_are_not_written_over(run: Any, cnn: Path, tmp_path: Path, flag: str) -> None:
    data = tmp_path / "weights.onnx"
    beside = tmp_path / "beside.onnx"
    onnx.save(onnx.load(cnn), beside, save_as_external_data=True, location=data.name, size_threshold=0)
    before = data.read_bytes()
    for arguments in ((beside,), (cnn, "--against", beside)):
        got = run("check", *arguments, flag, data)
        assert (got.code, data.read_bytes()) == (2, before)
        assert "weights of a model that is read lie there" in got.err


def test_a_share_where_percent_are_meant_is_told_of(run: Any, cnn: Path, images: Path) -> None:
    got = run("check", cnn, "--eval", images, "--min-accuracy", "0.7")
    assert "min_accuracy is in percent: 0.7 means 0.7 %, 70 would be 70 %" in got.err


def test_scalars_in_the_data(run: Any, make: Any, tmp_path: Path) -> None:
    """A model with a branch: its condition is a scalar, and the data hold one for every feed."""
    branch = helper.make_node("If", ["c"], ["y"])
    for name, operator in (("then_branch", "Relu"), ("else_branch", "Neg")):
        ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]
        body = helper.make_graph([helper.make_node(operator, ["x"], [name])], name, [], ports)
        branch.attribute.append(helper.make_attribute(name, body))
    model = make([branch], {}, inputs=(("x", TensorProto.FLOAT, ["N", 10]), ("c", TensorProto.BOOL, [])))
    np.savez(tmp_path / "d.npz", x=np.ones((3, 2, 10), np.float32), c=np.array([True, False, True]))
    flags = ("--data", tmp_path / "d.npz", "--min-sqnr", "40", "--min-speedup", "0.001", "--max-memory", "900")
    got = run("check", model, "--against", model, *flags, "--json")
    assert got.code == 0, got.err + got.out


def test_shapes_hold_for_the_base_as_well(run: Any, cnn: Path, make: Any, tmp_path: Path) -> None:
    flags = ("--against", cnn, "--shapes", "x:1x3x16x16", "--min-speedup", "0.001", "-o", cnn)
    assert run("check", cnn, *flags).code == 0
    assert onnx.load(cnn).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    other = make([helper.make_node("Relu", ["x"], ["y"])], {}, inputs=(("x", 1, ["N", 10]),), name="other.onnx")
    got = run("check", cnn, "--against", other, "--shapes", "x:1x3x16x16", "--min-speedup", "0.001", "--json")
    assert (got.code, verdicts(got)["contract"]) == (1, "fail")


def test_data_that_no_limit_looks_at_are_told_of(run: Any, cnn: Path, images: Path) -> None:
    got = run("check", cnn, "--eval", images, "--max-size", "1MB")
    assert got.code == 0
    assert "warning: no limit looks at what --eval gives" in got.err


def test_the_same_call_from_python(cnn: Path, images: Path) -> None:
    import onnxcomp

    report = onnxcomp.check(cnn, against=cnn, eval=images, max_drop=0.5, max_size="1MB")
    assert report.passed
    assert report.headline == "passed: 5 of 5"
    with pytest.raises(onnxcomp.InputError, match="did you mean 'max_size'"):
        onnxcomp.check(cnn, max_sise="1MB")
    with pytest.raises(onnxcomp.InputError, match="give --against BASE"):
        onnxcomp.check(cnn, min_speedup=1.2)
