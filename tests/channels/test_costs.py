"""Costs of picks against the models that they lead to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.allocation.deciding import Aim
from onnxcomp.channels import planning
from onnxcomp.channels.applying import carry_out
from onnxcomp.channels.costs import CoupledCosts
from onnxcomp.channels.joint import Joint, counts_of
from onnxcomp.channels.structural import Refusal
from onnxcomp.contract import Context
from onnxcomp.cost import model_cost
from onnxcomp.passes.compress import Compress
from onnxcomp.passes.prune import Prune
from onnxcomp.targets.target import load_target

Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]

C3 = "Conv<pads=[1,1,1,1]>"
# Residual blocks, one with a depthwise convolution, a grouped and a transposed one, a concatenation and products.
NET = f"""g (float[N,3,8,8] x) => (float[N,5] y) {{
  u = {C3}(x, ws, bs) a = Relu(u)
  a1 = {C3}(a, wa) a2 = Relu(a1) a3 = {C3}(a2, va) [one] a4 = Add(a3, a) b = Relu(a4)
  b1 = Conv(b, wb, bb) b2 = Relu(b1) b3 = Conv<pads=[1,1,1,1],group=24>(b2, wd) b4 = Conv(b3, vb) [two] c = Add(b4, b)
  d1 = Conv<group=2>(c, wg) d = Relu(d1) e1 = ConvTranspose<kernel_shape=[2,2],strides=[2,2]>(d, wt) e = Relu(e1)
  f1 = Conv<kernel_shape=[2,2],strides=[2,2]>(e, wf) f = Concat<axis=1>(f1, c) h1 = Conv(f, wh) h = Relu(h1)
  p = GlobalAveragePool(h) q = Flatten(p) r1 = Gemm<transB=1>(q, wq, bq) r = Relu(r1) y = MatMul(r, wy) }}"""
SHAPES: dict[str, tuple[int, ...]] = (
    {"ws": (16, 3, 3, 3), "bs": (16,), "wa": (12, 16, 3, 3), "va": (16, 12, 3, 3), "wb": (24, 16, 1, 1)}
    | {"bb": (24,), "wd": (24, 1, 3, 3), "vb": (16, 24, 1, 1), "wg": (20, 8, 1, 1), "wt": (20, 14, 2, 2)}
    | {"wf": (10, 14, 2, 2), "wh": (18, 26, 1, 1), "wq": (15, 18), "bq": (15,), "wy": (15, 5)}
)


@pytest.fixture(scope="module")
def net(parsed: Parsed) -> ir.Model:
    rng = np.random.default_rng(4)
    return parsed(NET, **{n: (rng.standard_normal(s) / np.sqrt(s[-1])).astype(np.float32) for n, s in SHAPES.items()})


@pytest.fixture(scope="module")
def offered(net: ir.Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[planning.Problem, Context]:
    """All that compress may do to the net, without data."""
    context = Context(target=load_target("ort-x86"), workdir=tmp_path_factory.mktemp("work"), objective="macs")
    planner = Compress(forms="prune:drop_blocks:tucker2:lowrank:spatial").planner(Refusal(context))
    return planner._problem(net, context), context  # pyright: ignore[reportPrivateUsage]


def _random_picks(problem: planning.Problem, rng: np.random.Generator, *, forms: bool) -> list[int]:
    options = problem.options
    layers = [rng.integers(len(layer.choices)) if forms and rng.random() < 0.5 else 0 for layer in options.layers]
    groups = [int(rng.integers(len(counts))) if not forms or rng.random() < 0.5 else 0 for counts in options.counts]
    return [*map(int, layers), *groups, *(int(rng.random() < 0.4) for _ in options.blocks)]


@pytest.mark.parametrize("seed", range(6))
def test_totals_are_those_of_the_models(net: ir.Model, offered: tuple[planning.Problem, Context], seed: int) -> None:
    """Exact for channels and blocks; forms of layers keep their ranks as long as these are less than what is left."""
    problem, context = offered
    rng = np.random.default_rng(seed)
    picks = _random_picks(problem, rng, forms=False)
    model = net.clone()
    carry_out(model, problem.decided(picks), Refusal(context), "compress", context, refit=False)
    cost = model_cost(model)
    for resource, got in (("macs", cost.macs), ("parameters", cost.parameters), ("bytes", cost.bytes)):
        joint = Joint(problem.options, resource, problem.totals.of(resource))  # type: ignore[arg-type]
        assert joint.total(joint.untouched) == joint.whole
        assert joint.total(picks) == pytest.approx(got, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_forms_beside_fewer_channels(net: ir.Model, offered: tuple[planning.Problem, Context], seed: int) -> None:
    """A form never takes more than was thought, and exactly that where its ranks still fit."""
    problem, context = offered
    rng = np.random.default_rng(seed)
    picks = _random_picks(problem, rng, forms=True)
    model = net.clone()
    carry_out(model, problem.decided(picks), Refusal(context), "compress", context, refit=False)
    joint = Joint(problem.options, "macs", problem.totals.of("macs"))
    macs = model_cost(model).macs
    assert macs is not None and macs <= joint.total(picks) * (1 + 1e-9)


@pytest.mark.parametrize("resource", ["macs", "bytes"])
def test_what_options_cost_is_what_they_change(offered: tuple[planning.Problem, Context], resource: Any) -> None:
    problem, _ = offered
    options = problem.options
    whole = problem.totals.of(resource)
    costs = CoupledCosts(options.layers, options.counts, len(options.blocks), resource, whole)
    rng = np.random.default_rng(0)
    sizes = [*(len(own.choices) for own in options.layers), *map(len, options.counts), *(2 for _ in options.blocks)]
    for _ in range(3):
        picks = _random_picks(problem, rng, forms=True)
        for variable, size in enumerate(sizes):
            totals = [costs.total([*picks[:variable], option, *picks[variable + 1 :]]) for option in range(size)]
            own: NDArray[np.float64] = costs.of(variable, picks)
            assert len(own) == size
            np.testing.assert_allclose(own - own[0], np.array(totals) - totals[0], rtol=1e-7, atol=1e-9 * whole)


def test_times_that_are_more_than_the_whole_are_scaled(offered: tuple[planning.Problem, Context]) -> None:
    options = offered[0].options
    layers = [replace(own, ms=1.0) for own in options.layers]
    for whole in (4.0, 40.0):
        costs = CoupledCosts(layers, options.counts, len(options.blocks), "ms", whole)
        nothing = [0] * (len(layers) + len(options.counts) + len(options.blocks))
        assert costs.total(nothing) == pytest.approx(whole)
        least = [0] * len(layers) + [len(counts) - 1 for counts in options.counts] + [1] * len(options.blocks)
        assert max(whole - len(layers), 0.0) <= costs.total(least) < whole - 2


def test_counts_are_multiples_of_the_step() -> None:
    assert counts_of(64, 16) == (64, 48, 32, 16)
    assert counts_of(24, 16) == (24, 16, 8)
    assert counts_of(5, 16) == (5,) and counts_of(3, 1) == (3, 2, 1)
    many = counts_of(1000, 8)
    assert many[0] == 1000 and len(many) == 17 and many[-1] == 8 and all(count % 8 == 0 for count in many)


def test_prune_alone_offers_no_forms(net: ir.Model, in_context: InContext) -> None:
    context = in_context(objective="macs")
    decided, note = Prune().planner(Refusal(context)).decided(net, Aim("macs", 0.6, 0.0), context)
    assert note == "" and decided.removed.any() and not decided.forms and not decided.blocks
