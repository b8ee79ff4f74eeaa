"""How sessions are opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxcomp.errors import InputError
from onnxcomp.runtime.optimised import optimised
from onnxcomp.runtime.session import open_with
from onnxcomp.runtime.settings import SessionSettings, parse_entries

Parsed = Callable[..., ir.Model]
PAIR = "g (float[1,8] x) => (float[1,8] y) { [a] h = MatMul(x, w) [b] y = Relu(h) }"


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider"])
def test_a_provider_goes_by_its_short_name(name: str) -> None:
    assert SessionSettings(provider=name).providers == ["CPUExecutionProvider"]


def test_a_provider_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(InputError, match=r"no execution provider .tpu.; it has: .*CPUExecutionProvider"):
        SessionSettings(provider="tpu")


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"inter_op_threads": 0}, {"optimization": "most"}])
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        SessionSettings(**wrong)


def test_settings_reach_the_runtime(parsed: Parsed) -> None:
    model = parsed(PAIR, w=np.eye(8, dtype=np.float32))
    entries = parse_entries(("session.disable_prepacking=1", "some.key=a=b"))
    settings = SessionSettings(3, 2, "basic", entries=entries, arena=False)
    options = open_with(model, settings).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert not options.enable_cpu_mem_arena
    assert options.get_session_config_entry("session.disable_prepacking") == "1"
    assert options.get_session_config_entry("some.key") == "a=b"


def test_the_level_decides_what_the_runtime_makes_of_a_graph(parsed: Parsed) -> None:
    model = parsed(
        "g (float[1,8,4,4] x) => (float[1,8,4,4] y) { h = Conv(x, w) y = Relu(h) }", w=np.ones((8, 8, 1, 1), np.float32)
    )
    kernels = {
        level: [node.op_type for node in optimised(model, SessionSettings(optimization=level)).graph]
        for level in ("off", "all")
    }
    assert kernels["off"] == ["Conv", "Relu"]
    assert "Relu" not in kernels["all"]


@pytest.mark.parametrize("text", ["key", "=1", " =1"])
def test_entries_are_pairs(text: str) -> None:
    with pytest.raises(InputError, match="is not KEY=VALUE"):
        parse_entries((text,))


def test_an_entry_comes_once() -> None:
    with pytest.raises(InputError, match="'a' is given twice"):
        parse_entries(("a=1", "a=2"))
