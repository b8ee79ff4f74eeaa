"""What a run says about its target: one failure, few warnings, and whose fault it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxcomp.legality import checker
from onnxcomp.legality.checker import check_model, rules_of
from onnxcomp.legality.finding import Breach, Rule, Subject
from onnxcomp.legality.verdict import judge
from onnxcomp.targets.target import Target, load_target, target_names

TENSORRT = load_target("tensorrt")


def test_a_pass_is_at_fault(groups: Any) -> None:
    good, bad = groups(runtime="tensorrt", signed=True), groups()
    (failure,) = judge(good, bad, TENSORRT).failures
    assert failure.startswith("the result breaks rule trt-zero-point of tensorrt: quantize: ")
    assert "--target tensorrt" in failure
    assert "more; 'onnxcomp check' lists them)" in failure
    assert "\n" not in failure


def test_the_input_is_at_fault(groups: Any) -> None:
    bad = groups()
    (failure,) = judge(bad, bad.clone(), TENSORRT).failures
    assert failure.startswith("the input itself breaks rule trt-zero-point of tensorrt: quantize: ")


def test_nobody_is_at_fault(groups: Any) -> None:
    good = groups(runtime="tensorrt", signed=True)
    assert judge(groups(), good, TENSORRT).failures == ()


def test_one_line_a_rule(groups: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def many(subject: Subject) -> Iterator[Breach]:
        yield from (Breach(f"n{i}", "is slow", "wait") for i in range(3))

    model = groups()

    def rules(target: Target) -> tuple[Rule, ...]:
        return tuple(Rule(f"r{i}", "warning", many) for i in range(8))

    monkeypatch.setattr(checker, "rules_of", rules)
    warnings = judge(model, model, TENSORRT).warnings
    assert warnings[0] == "tensorrt: n0: is slow (and at 2 more places)"
    assert len(warnings) == 5
    assert warnings[-1] == "tensorrt: 4 more rules are not kept; 'onnxcomp check --target tensorrt' lists them"


def test_known_fates_spare_the_runtime(groups: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise AssertionError("loaded again")

    monkeypatch.setattr("onnxcomp.legality.finding.fusion_proof", fail)
    monkeypatch.setattr("onnxcomp.legality.finding.open_session", fail)
    assert check_model(groups(), "ort-x86", fates=()) == ()


def test_the_model_is_left_alone(groups: Any) -> None:
    model = groups()
    value = model.graph[0].outputs[0]
    value.shape = None
    for name in target_names():
        check_model(model, name)
    assert value.shape is None


@pytest.mark.parametrize("name", target_names())
def test_every_rule_has_a_name_of_its_own_and_a_source(name: str) -> None:
    rules = rules_of(load_target(name))
    names = [rule.name for rule in rules]
    assert len(set(names)) == len(names)
    assert [rule.name for rule in rules if not (rule.find.__doc__ or "").strip()] == []


def test_the_documented_rules_are_those_that_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "targets.md").read_text("utf-8")
    written = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (error|warning) \|", page, re.M))
    rules = {rule.name: rule.severity for name in target_names() for rule in rules_of(load_target(name))}
    assert written == rules
