from __future__ import annotations

from pathlib import Path

import pytest

from onnxcomp.errors import InputError
from onnxcomp.gate.budgetfile import budget_from_yaml, load_budget
from onnxcomp.gate.limits import UNITS, Limits, from_words, in_words, merged, require

FULL = """
# kept beside the model
target: tensorrt
max_size: 4MB
max_params: 1.5M
max_macs: 300M
max_memory: 64
max_latency: 12ms
max_latency_p99: 20
min_speedup: 1.2x
max_layer_slowdown: 10%
min_accuracy: 70
max_drop: 0.5
min_agreement: 95%
min_sqnr: 20dB
fusion:
  required: true
  allow_float: ["head/*", /stem/conv]
ops:
  allow: [Conv, "com.microsoft:*"]
  deny: [Loop]
opset: {min: 17, max: 21}
inputs:
  x: float32[N,3,224,224]
outputs:
  y: float32[N,10]
  on: "*"
metadata:
  author: "me*"
  onnxcomp.recipe:
"""


def test_every_limit_can_be_in_a_budget() -> None:
    limits = budget_from_yaml(FULL)
    assert set(limits.asked()) == set(Limits.__dataclass_fields__)
    assert limits.max_size == 4 * 2**20
    assert limits.max_memory == 64 * 2**20
    assert limits.max_params == 1_500_000
    assert limits.allow_float == ("head/*", "/stem/conv")
    assert (limits.min_opset, limits.max_opset) == (17, 21)
    assert limits.inputs == {"x": "float32[N,3,224,224]"}
    assert limits.metadata == {"author": "me*", "onnxcomp.recipe": "*"}
    for name in UNITS:
        assert in_words(name, getattr(limits, name))


def test_layers_that_need_not_be_fused() -> None:
    assert budget_from_yaml("fusion: {required: true}").require_fused
    assert budget_from_yaml("fusion: {required: True}").require_fused  # as YAML 1.2 has it
    off = budget_from_yaml("fusion: {required: false, allow_float: [head]}")
    assert not off.require_fused
    assert off.allow_float == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "sets no limit"),
        ("# nothing\n", "sets no limit"),
        ("- a\n- b", r"line 1: the budget: expected 'key: value' pairs"),
        ("\nmax-size: 4MB", r"line 2: unknown key 'max-size' in the budget; did you mean 'max_size'\?"),
        ("max_size: 4MB\nmax_size: 5MB", r"line 2: the key 'max_size' is given twice"),
        ("max_size: [1, 2]", r"line 1: max_size: expected one value"),
        ("max_size:", r"line 1: max_size: expected one value"),
        ("min_speedup: -1", r"line 1: min_speedup: '-1' is out of range"),
        ("max_drop: a lot", r"line 1: max_drop: 'a lot' is not a number"),
        ("ops: {deny: Loop}", r"line 1: deny: expected a list"),
        ("ops: {forbid: [Loop]}", r"unknown key 'forbid' in ops \(keys: allow, deny\)"),
        ("ops: {}", r"line 1: ops is empty"),
        ("opset: {min: old}", r"line 1: opset, min: 'old' is not the number"),
        ("opset: {max: 0}", r"line 1: opset, max: '0' is not the number"),
        ("opset:\n  min: 21\n  max: 13", r"line 2: opset: no operator set is at least 21 and at most 13"),
        ("ops:\n  deny: [If,\n   conv]", r"line 3: ops, deny: ONNX has no operator 'conv'; did you mean 'Conv'\?"),
        ("ops: {allow: ['Qlin*']}", r"line 1: ops, allow: ONNX has no operator 'Qlin\*'"),
        ("opset: 17", r"line 1: opset: expected 'key: value'"),
        ("fusion: {required: maybe}", r"line 1: required: 'maybe' is not true or false"),
        ("inputs:\n  x: float33[N]", r"line 2: x: there is no element type 'float33'"),
        ("inputs:\n  x: float32[N,,3]", r"line 2: x: 'float32\[N,,3\]' has a size that is empty"),
        ("a: &x [1]\nb: *x", r"line 2: an alias \(\*x\); write the value out"),
        ("max_size: {", r"line 1: not valid YAML"),
        ("? [a, b]\n: 1", r"line 1: the budget: a key must be a word"),
        ("a: \x00", "not valid YAML"),
        ("target: [x]", "line 1: target: expected one value"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_a_budget_cannot_say(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        budget_from_yaml(text)


def test_files_that_are_no_budget(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_budget(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="directory"):
        load_budget(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        load_budget(tmp_path / "binary")
    (tmp_path / "large").write_bytes(b"#" * (1 << 20) + b"\nmax_size: 1")
    with pytest.raises(InputError, match="over 1 MB"):
        load_budget(tmp_path / "large")


def test_a_bomb_of_aliases_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12)]
    with pytest.raises(InputError, match="line 2: an alias"):
        budget_from_yaml("\n".join(lines))


def test_a_limit_of_nothing_is_a_limit() -> None:
    assert budget_from_yaml("max_drop: 0\nmax_params: 0").asked() == ("max_params", "max_drop")
    assert merged(Limits(max_drop=1.0), from_words({"max_drop": 0})).max_drop == 0
    zeros = Limits(max_drop=0, max_params=0, max_macs=0, min_sqnr=0, max_layer_slowdown=0, max_opset=0)
    assert len(zeros.asked()) == 6
    assert Limits().asked() == ()


def test_flags_go_over_the_file() -> None:
    file = budget_from_yaml("max_size: 4MB\nmax_drop: 1\nfusion: {allow_float: [a]}")
    both = merged(file, from_words({"max_drop": "0.5", "min_sqnr": 20}))
    assert (both.max_size, both.max_drop, both.min_sqnr, both.allow_float) == (4 * 2**20, 0.5, 20, ("a",))
    with pytest.raises(InputError, match=r"there is no limit 'max_sise'; did you mean 'max_size'\?"):
        from_words({"max_sise": "1"})
    with pytest.raises(InputError, match="--max-drop: 'x' is not a number"):
        from_words({"max_drop": "x"})


@pytest.mark.parametrize(
    ("words", "given", "flag"),
    [
        ({"min_speedup": 1}, {}, "--against BASE"),
        ({"max_layer_slowdown": 1}, {"data": True}, "--against BASE"),
        ({"max_drop": 1}, {"against": True}, "--eval E"),
        ({"max_drop": 1}, {"against": True, "data": True}, "--eval E"),
        ({"min_accuracy": 1}, {}, "--eval E"),
        ({"min_sqnr": 1}, {"against": True}, "--eval E or --data D"),
        ({"min_agreement": 1}, {"labelled": True}, "--against BASE"),
    ],
)
def test_what_a_limit_needs_is_asked_for(words: dict[str, float], given: dict[str, bool], flag: str) -> None:
    everything = {"against": False, "labelled": False, "data": False, **given}
    with pytest.raises(InputError, match=f"{next(iter(words))} needs .*{flag}"):
        require(from_words(words), **everything)


def test_limits_that_need_nothing_are_let_through() -> None:
    require(from_words({"max_size": 1, "max_latency": 1}), against=False, labelled=False, data=False)
    require(from_words({"min_sqnr": 1, "min_speedup": 1}), against=True, labelled=False, data=True)
