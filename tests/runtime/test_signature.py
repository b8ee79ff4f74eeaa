from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.contract import Context
from onnxcomp.graph.edit import Link
from onnxcomp.graph.products import weighted_sites
from onnxcomp.graph.sites import Site
from onnxcomp.registry import build_pipeline
from onnxcomp.runtime.signature import chain_signature, run_signature, site_signature

Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]
CONV = "g (float[N,8,9,9] x) => (float[N,a,b,c] y) { y = Conv<pads=[1,1,1,1]>(x, w) }"
GEMM = "g (float[N,8] x) => (float[N,a] y) { y = Gemm<transB=1>(x, w) }"


def _array(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _site(parsed: Parsed, text: str, **arrays: NDArray[Any]) -> Site:
    (site,) = weighted_sites(parsed(text, **arrays), ("Conv", "Gemm", "MatMul"))
    assert isinstance(site, Site)
    return site


def test_a_signature_reads_well(parsed: Parsed) -> None:
    text = "Conv(8x9x9; 4x8x3x3) dilations=1x1 group=1 kernel_shape=3x3 pads=1x1x1x1 strides=1x1"
    assert site_signature(_site(parsed, CONV, w=_array(4, 8, 3, 3))) == text
    assert site_signature(_site(parsed, GEMM, w=_array(4, 8))) == "Gemm(8; 4x8x1) transB=1"


def test_names_and_values_do_not_count(parsed: Parsed) -> None:
    one = _site(parsed, CONV, w=_array(4, 8, 3, 3))
    other = _site(parsed, CONV.replace("y", "z"), w=_array(4, 8, 3, 3, seed=1))
    assert site_signature(one) == site_signature(other)


@pytest.mark.parametrize(
    "change",
    [
        ("9,9]", "9,10]"),
        ("pads=[1,1,1,1]", "pads=[1,1,1,0]"),
        ("pads=[1,1,1,1]", "strides=[2,2], pads=[1,1,1,1]"),
        ("pads=[1,1,1,1]", "dilations=[2,1], pads=[1,1,1,1]"),
        ("(x, w)", "(x, w, b)"),
    ],
)
def test_geometry_shape_and_bias_count(parsed: Parsed, change: tuple[str, str]) -> None:
    weight = _array(4, 8, 3, 3)
    bias = {"b": _array(4)} if "b)" in change[1] else {}
    signature = site_signature(_site(parsed, CONV, w=weight))
    assert site_signature(_site(parsed, CONV.replace(*change), w=weight, **bias)) != signature
    assert site_signature(_site(parsed, CONV, w=_array(5, 8, 3, 3))) != signature


def test_how_a_gemm_reads_its_weight_counts(parsed: Parsed) -> None:
    square = _array(8, 8)
    plain = _site(parsed, GEMM.replace("<transB=1>", ""), w=square)
    assert site_signature(plain) != site_signature(_site(parsed, GEMM, w=square))


def _chain(**fields: Any) -> list[Link]:
    first = Link("first", "Conv", (_array(2, 8, 1, 1),), {"strides": (1, 1)})
    shape = Link("shape", "Reshape", (np.array([1, 2, 81]),))
    return [first, replace(Link("last", "Add", (), {}, ("first", "shape")), **fields), shape]


@pytest.mark.parametrize(
    ("fields", "equal"),
    [
        ({}, True),
        ({"role": "sum"}, True),
        ({"op_type": "Mul"}, False),
        ({"inputs": ("shape", "first")}, False),
        ({"inputs": ("", "first")}, False),
        ({"inputs": None}, False),
        ({"constants": (_array(2),)}, False),
        ({"attributes": {"alpha": 1.0}}, False),
        ({"ahead": 1}, False),
    ],
)
def test_a_chain_is_its_operators_shapes_and_wires(fields: dict[str, Any], equal: bool) -> None:
    assert (chain_signature(_chain(**fields)) == chain_signature(_chain())) is equal


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (_array(4), _array(4, seed=1), True),
        (_array(4), _array(4).astype(np.float16), False),
        (np.array([1, 8]), np.array([1, 8]), True),
        (np.array([1, 8]), np.array([8, 1]), False),
        (np.zeros(100, np.uint8), np.ones(100, np.uint8), True),
        (np.zeros(100, np.uint8), np.zeros(100, np.int8), False),
        (np.float32(1), np.zeros(1, np.float32), False),
    ],
)
def test_values_count_where_they_are_shapes(one: NDArray[Any], other: NDArray[Any], equal: bool) -> None:
    signatures = [chain_signature([Link("r", "Reshape", (np.asarray(array),))]) for array in (one, other)]
    assert (signatures[0] == signatures[1]) is equal


def test_a_run_is_its_machine_threads_target_and_followers(in_context: InContext) -> None:
    base = in_context()
    others = [replace(base, threads=2), replace(base, followers=build_pipeline("int8"))]
    others += [replace(base, followers=build_pipeline("int8(weight_bits=7)"))]
    signatures = [run_signature(context, 17) for context in (base, *others)] + [run_signature(base, 18)]
    assert len(set(signatures)) == len(signatures)
    assert signatures[0].split("; ")[2:] == ["1 thread", "ort-x86", "opset 17"]
    assert signatures[2].endswith("; then int8")
    assert run_signature(replace(base, seed=1), 17) == signatures[0]


def test_another_processor_is_another_run(in_context: InContext, monkeypatch: pytest.MonkeyPatch) -> None:
    here = run_signature(in_context(), 17)
    monkeypatch.setattr("onnxcomp.runtime.signature.cpu_name", lambda: "another")
    assert run_signature(in_context(), 17) != here
