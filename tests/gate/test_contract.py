from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from onnxcomp.gate.contract import Port, contract_line, ports_line, signature

Parsed = Callable[..., ir.Model]
BASE = "agraph (float[N,3] x, int64[2] k) => (float[N,3] y, float[M] z) { y = Relu(x) z = Cast<to=1>(k) }"


def port(text: str, name: str = "x") -> Port:
    return Port.parse(name, text)


def test_a_signature_is_read(parsed: Parsed) -> None:
    found = signature(parsed(BASE))
    assert [str(one) for one in found.inputs] == ["float32[N,3]", "int64[2]"]
    assert [one.name for one in found.outputs] == ["y", "z"]
    assert contract_line(found, found).verdict == "pass"


@pytest.mark.parametrize(
    ("changed", "where", "words"),
    [
        ("(float[N,3] x, int64[2] k) => (float[N,3] probs, float[M] z)", ("y",), "output 'y' is now called 'probs'"),
        ("(float[N,3] x, int64[2] k) => (float[1,3] y, float[M] z)", ("y",), "was float32[N,3] and is float32[1,3]"),
        (
            "(float[B,3] x, int64[2] k) => (float[B,3] y, float[M] z)",
            ("x", "y"),
            "'x' was float32[N,3] and is float32[B,3]",
        ),
        ("(double[N,3] x, int64[2] k) => (double[N,3] y, float[M] z)", ("x", "y"), "is float64[N,3]"),
        ("(float[N,3] x, int64[2] k) => (float[N,3] y)", ("z",), "output 'z' (float32[2]) is gone"),
        ("(float[N,3] x, int64[2] k, float e) => (float[N,3] y, float[M] z)", ("e",), "input 'e' (float32[]) is new"),
        (
            "(int64[2] k, float[N,3] x) => (float[N,3] y, float[M] z)",
            ("k",),
            "inputs changed their order: x, k became k, x",
        ),
        ("(float[N,3] data, int64[2] k) => (float[N,3] y, float[M] z)", ("x",), "input 'x' is now called 'data'"),
    ],
)
def test_each_change_is_told_by_name(parsed: Parsed, changed: str, where: tuple[str, ...], words: str) -> None:
    source = "data" if " data" in changed else "x"
    result = "probs" if "probs" in changed else "y"
    body = f"{{ {result} = Relu({source}) z = Cast<to=1>(k) }}"
    line = contract_line(signature(parsed(BASE)), signature(parsed(f"agraph {changed} {body}")))
    assert line.verdict == "fail"
    assert line.where == where
    assert words in line.why


def test_a_budget_names_ports(parsed: Parsed) -> None:
    own = signature(parsed(BASE))
    wanted = {"x": "float32[N,3]", "k": "int64[2]"}
    assert ports_line("inputs", wanted, own.inputs).verdict == "pass"
    assert ports_line("inputs", {"x": "*", "k": "int64[*]"}, own.inputs).verdict == "pass"
    assert ports_line("outputs", {"y": "float32", "z": "*[*]"}, own.outputs).verdict == "pass"
    for key, text, words in (
        ("x", "float32[1,3]", "input 'x' is float32[N,3], not float32[1,3]"),
        ("x", "float32[N,3,1]", "not float32[N,3,1]"),
        ("x", "float16[N,3]", "not float16[N,3]"),
    ):
        line = ports_line("inputs", {**wanted, key: text}, own.inputs)
        assert (line.verdict, line.where) == ("fail", (key,))
        assert words in line.why
    line = ports_line("inputs", {"x": "*", "mask": "bool"}, own.inputs)
    assert line.where == ("mask", "k")
    assert "there is no input 'mask'; input 'k' (int64[2]) is not among them" in line.why


def test_ports_are_read_as_they_are_shown() -> None:
    for text in ("float32[N,3,224,224]", "int8[]", "string[?]", "float32[...]"):
        assert str(port(text.replace("[...]", ""))) == text
    assert port("FLOAT32[ N , 3 ]") == port("float32[N,3]")
    for bad in ("", "float32[", "[3]", "float32[3] x", "what"):
        with pytest.raises(ValueError, match=r"not a type and a shape|no element type"):
            port(bad)
