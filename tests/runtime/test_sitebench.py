from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.contract import Context
from onnxcomp.graph.edit import Link
from onnxcomp.graph.sites import Site, conv_sites
from onnxcomp.runtime import sitebench
from onnxcomp.runtime.sitebench import chain_speedups, site_model

Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]
OutputsOf = Callable[[ir.Model, Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
SAME = "g (float[N,8,9,9] x) => (float[N,a,b,c] y) { y = Conv<pads=[1,1,1,1]>(x, w, b) }"
STRIDED = "g (float[N,8,9,9] x) => (float[N,a,b,c] y) { y = Conv<strides=[2,1], dilations=[2,2]>(x, w) }"
UP = "g (float[N,8,9,9] x) => (float[N,a,b,c] y) { y = ConvTranspose<strides=[2,2], output_padding=[1,1]>(x, w) }"


def _weight() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((8, 8, 3, 3)).astype(np.float32)


def _site(parsed: Parsed, text: str) -> Site:
    bias = {"b": np.ones(8, np.float32)} if ", b)" in text else {}
    (site,) = conv_sites(parsed(text, w=_weight(), **bias))
    assert isinstance(site, Site)
    return site


def _chain(site: Site) -> list[Link]:
    """The site behind a 1x1 that does nothing."""
    eye = np.eye(8, dtype=np.float32)[:, :, None, None]
    constants = (site.weight,) if site.bias is None else (site.weight, site.bias)
    return [Link("first", "Conv", (eye,)), Link("core", site.kind, constants, site.geometry.attributes())]


@pytest.mark.parametrize(("text", "copies"), [(SAME, 1), (SAME, 3), (STRIDED, 1), (UP, 1)])
def test_the_bench_computes_what_the_site_does(parsed: Parsed, outputs_of: OutputsOf, text: str, copies: int) -> None:
    site = _site(parsed, text)
    bench, chain = site_model(site, None, 17, copies), site_model(site, _chain(site), 17, copies)
    assert [n.op_type for n in bench.graph] == [site.kind, "Relu"] * copies
    assert [n.op_type for n in chain.graph] == ["Conv", site.kind, "Relu"] * copies
    x = np.random.default_rng(1).standard_normal((1, 8, 9, 9)).astype(np.float32)
    (wanted,), (got,) = outputs_of(bench, {"x": x}).values(), outputs_of(chain, {"x": x}).values()
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    assert wanted.shape[2:] == site.output_shape[2:] and (wanted > 0).any()


def test_chains_are_timed_for_real(parsed: Parsed, in_context: InContext) -> None:
    site = _site(parsed, STRIDED)
    speedups = chain_speedups(site, [_chain(site), _chain(site)], 17, in_context())
    assert speedups is not None and len(speedups) == 2 and all(0 < s < 100 for s in speedups)


def test_without_a_shape_nothing_is_timed(parsed: Parsed, in_context: InContext) -> None:
    site = _site(parsed, STRIDED.replace("8,9,9", "8,H,9"))
    assert chain_speedups(site, [_chain(site)], 17, in_context()) is None


def test_it_must_pay_on_busy_and_quiet_machines() -> None:
    base = np.array([2.0, 2.0, 2.0, 2.0, 1.8, 1.8])
    other = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert sitebench._ratio(other, base) == pytest.approx(1 / 1.8)
    assert sitebench._ratio(other, base * [1, 1, 1, 1, 1.5, 1.5]) == pytest.approx(1 / 2.0)
