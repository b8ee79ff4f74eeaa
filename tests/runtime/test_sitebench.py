from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from onnxcomp.runtime import sitebench
from onnxcomp.runtime.fusion import fusion_proof
from onnxcomp.runtime.sitebench import SiteTiming, chain_speedups, site_model, time_chains

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
    (site,) = weighted_sites(parsed(text, w=_weight(), **bias), ("Conv", "ConvTranspose"))
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


@pytest.mark.parametrize("text", [STRIDED, UP])
def test_copies_that_fit_in_no_row_stand_side_by_side(parsed: Parsed, outputs_of: OutputsOf, text: str) -> None:
    site = _site(parsed, text)
    x = {"x": np.random.default_rng(1).standard_normal((1, 8, 9, 9)).astype(np.float32)}
    (wanted,) = outputs_of(site_model(site, None, 17, 1), x).values()
    for chain in (None, _chain(site)):
        bench = site_model(site, chain, 17, 3)
        assert [n.op_type for n in bench.graph][-2:] == ["Relu", "GlobalAveragePool"]
        got = list(outputs_of(bench, x).values())
        assert len(got) == 3
        for own in got:
            np.testing.assert_allclose(own, wanted.mean((2, 3), keepdims=True), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", [SAME, STRIDED])
def test_with_int8_behind_the_bench_runs_on_integers(parsed: Parsed, in_context: InContext, text: str) -> None:
    site = _site(parsed, text)
    context = in_context(followers=build_pipeline("int8"))
    for chain in (None, _chain(site)):
        fates = fusion_proof(context.rehearsed(site_model(site, chain, 17, 3)))
        convolutions = [fate for fate in fates if fate.kernel and "Conv" in fate.kernel]
        assert len(convolutions) >= 3 and all(fate.integer for fate in convolutions)


def test_chains_are_timed_for_real(parsed: Parsed, in_context: InContext) -> None:
    site = _site(parsed, STRIDED)
    speedups = chain_speedups(site, [_chain(site), _chain(site)], 17, in_context())
    assert speedups is not None and len(speedups) == 2 and all(0 < s < 100 for s in speedups)


def test_without_a_shape_nothing_is_timed(parsed: Parsed, in_context: InContext) -> None:
    site = _site(parsed, STRIDED.replace("8,9,9", "8,H,9"))
    assert chain_speedups(site, [_chain(site)], 17, in_context()) is None


class FakeTimer:
    """Stands in for `interleaved`: hands out rows of times, a base's and a chain's, and remembers how many calls."""

    def __init__(self, *results: list[list[float]]) -> None:
        self.results = [np.array(result) for result in results]
        self.calls: list[int] = []

    def __call__(self, calls: Sequence[object], *arguments: object) -> NDArray[np.float64]:
        self.calls.append(len(calls))
        return self.results.pop(0) if self.results else np.ones((len(calls), 8))


@pytest.mark.parametrize(("rest", "expected"), [(1.8, 1 / 1.8), (2.5, 1 / 2)])
def test_it_must_pay_on_busy_and_quiet_machines(
    parsed: Parsed, in_context: InContext, monkeypatch: pytest.MonkeyPatch, rest: float, expected: float
) -> None:
    monkeypatch.setattr(sitebench, "interleaved", FakeTimer([[2.0] * 34 + [rest] * 6, [1.0] * 40]))
    site = _site(parsed, STRIDED)
    timing = time_chains(site, [_chain(site)], 17, in_context())
    assert timing is not None and timing.ratios == (expected,)


def test_what_is_not_known_well_is_measured_again(
    parsed: Parsed, in_context: InContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = _site(parsed, STRIDED)
    known, doubtful = _chain(site), [*_chain(site), Link("more", "Relu")]
    timer = FakeTimer(
        [[1.0] * 8, [0.5] * 8, [0.3, 1.5, 0.3, 1.5, 0.3, 1.5, 0.3, 1.5]],
        [[1.0] * 8, [0.8] * 8],
    )
    monkeypatch.setattr(sitebench, "interleaved", timer)
    timing = time_chains(site, [known, doubtful], 17, in_context())
    assert timing == SiteTiming(1000.0 / 3, (0.5, 0.8)) and timer.calls == [3, 2]


def _thin(site: Site, rank: int) -> list[Link]:
    """1x1, the kernel on `rank` channels, 1x1."""
    ones = np.ones((64, rank, 1, 1), np.float32)
    core = Link("core", "Conv", (np.ones((rank, rank, 3, 3), np.float32),), site.geometry.attributes())
    return [Link("first", "Conv", (ones.transpose(1, 0, 2, 3),)), core, Link("last", "Conv", (ones,))]


def _large(parsed: Parsed, name: str = "y") -> Site:
    text = f"g (float[N,64,28,28] x) => (float[N,64,28,28] {name}) {{ {name} = Conv<pads=[1,1,1,1]>(x, w) }}"
    weight = np.random.default_rng(0).standard_normal((64, 64, 3, 3)).astype(np.float32)
    (site,) = weighted_sites(parsed(text, w=weight), ("Conv",))
    assert isinstance(site, Site)
    return site


def test_fewer_macs_take_less_time_on_a_large_site(parsed: Parsed, in_context: InContext) -> None:
    site = _large(parsed)
    longer = [Link("whole", site.kind, (site.weight,), site.geometry.attributes()), *_thin(site, 16)]
    timing = time_chains(site, [_thin(site, 16), _thin(site, 48), longer], 17, in_context())
    assert timing is not None and timing.site_ms > 0
    small, middle, more = timing.ratios
    assert small < middle < more and small < 0.6 and more > 1


def test_what_is_equal_is_timed_once(parsed: Parsed, in_context: InContext, monkeypatch: pytest.MonkeyPatch) -> None:
    context = in_context()
    one, other = _large(parsed), _large(parsed, "z")
    first = time_chains(one, [_thin(one, 16), _thin(one, 16), _thin(one, 32)], 17, context)
    assert first is not None and first.ratios[0] == first.ratios[1] and context.timings.measured == 2

    def forbidden(*arguments: object) -> None:
        raise AssertionError("it was timed again")

    with monkeypatch.context() as patch:
        patch.setattr("onnxcomp.runtime.sitebench.open_session", forbidden)
        again = time_chains(other, [_thin(other, 32), _thin(other, 16)], 17, context)
        assert again == SiteTiming(first.site_ms, (first.ratios[2], first.ratios[0]))
        assert chain_speedups(other, [_thin(other, 32)], 17, context) == [1 / first.ratios[2]]
    third = time_chains(other, [_thin(other, 48), _thin(other, 16)], 17, context)
    assert third is not None and context.timings.measured == 3
    assert (third.site_ms, third.ratios[1]) == (first.site_ms, first.ratios[0])


def test_without_chains_the_site_alone_is_timed(parsed: Parsed, in_context: InContext) -> None:
    timing = time_chains(_large(parsed), [], 17, in_context())
    assert timing is not None and timing.site_ms > 0 and timing.ratios == ()


PRODUCTS = [
    ("g (float[N,8] x) => (float[N,m] y) { y = Gemm<transB=1>(x, w, b) }", (1, 8)),
    ("g (float[N,8] x) => (float[N,m] y) { y = Gemm(x, w) }", (1, 8)),
    ("g (float[N,5,8] x) => (float[N,5,m] y) { y = MatMul(x, w) }", (1, 5, 8)),
    ("g (float[N,2,5,8] x) => (float[N,2,5,m] y) { y = MatMul(x, w) }", (1, 2, 5, 8)),
]


@pytest.mark.parametrize(("text", "shape"), PRODUCTS)
def test_products_are_timed_in_their_own_form(
    parsed: Parsed, in_context: InContext, outputs_of: OutputsOf, text: str, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 6) if "transB" not in text else (6, 8)).astype(np.float32)
    bias = {"b": np.ones(6, np.float32)} if ", b)" in text else {}
    (site,) = weighted_sites(parsed(text, w=weight, **bias), ("Gemm", "MatMul"))
    assert isinstance(site, Site)
    x = rng.standard_normal(shape).astype(np.float32)
    outputs = list(outputs_of(site_model(site, None, 17, 3), {"x": x}).values())
    assert len(outputs) == 3
    matrix = weight.T if "transB" in text else weight
    for got in outputs:
        np.testing.assert_allclose(got, np.maximum(x @ matrix + sum(bias.values()), 0), rtol=1e-4, atol=1e-5)
    halves = [
        Link("first", "MatMul", (np.ones((8, 2), np.float32),)),
        Link("last", "MatMul", (np.ones((2, 6), np.float32),)),
    ]
    timing = time_chains(site, [halves], 17, in_context())
    assert timing is not None and 0 < timing.ratios[0] < 100


@pytest.mark.parametrize(("limit", "groups"), [(1 << 20, [8, 8, 4]), (4 * 3 * 256, [4] * 5), (100, [1] * 20)])
def test_sessions_that_are_open_together_hold_few_weights(
    parsed: Parsed, in_context: InContext, monkeypatch: pytest.MonkeyPatch, limit: int, groups: list[int]
) -> None:
    timer = FakeTimer()
    monkeypatch.setattr(sitebench, "interleaved", timer)
    monkeypatch.setattr(sitebench, "_WEIGHT_BYTES", limit)
    site = _site(parsed, STRIDED)
    eye = Link("a", "Conv", (np.eye(8, dtype=np.float32)[:, :, None, None],))
    chains = [[eye, *(Link(f"r{k}", "Relu") for k in range(i))] for i in range(20)]
    assert time_chains(site, chains, 17, in_context()) == SiteTiming(1000.0 / 3, (1.0,) * 20)
    assert timer.calls == [1 + count for count in groups]
