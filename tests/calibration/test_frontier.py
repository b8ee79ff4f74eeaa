"""The tensors at the cut are those of a plain run, wherever the walk stops and wherever they are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.calibration.frontier import Frontier, Store, data_input, lifetimes
from onnxcomp.data import Feeds, open_feeds

Parsed = Callable[..., ir.Model]
OutputsOf = Callable[[ir.Model, Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]

# A residual sum, a weight made of constants, a body that captures an outer value, and a tail without a stop.
NET = """g (float[4,4,6,6] x, float[4,4,6,6] z) => (float[4,4,6,6] y, float[4,4,6,6] tail) {
  [one] c = Conv(x, v) r = Relu(c)
  half = Constant<value = float {0.5}>() scaled = Mul(w, half)
  [two] d = Conv(r, scaled) s = Add(d, r) t = Add(s, z)
  low = ReduceMin<keepdims=0>(t) zero = Constant<value = float {0.0}>() cond = Less(low, zero)
  picked = If(cond) <then_branch = p () => (float[4,4,6,6] q) { q = Add(t, r) },
                     else_branch = n () => (float[4,4,6,6] m) { m = Neg(r) }>
  [three] y = Conv(picked, u) tail = Tanh(s) }"""
SHAPES = {"u": (4, 4, 1, 1), "v": (4, 4, 1, 1), "w": (4, 4, 1, 1)}
INNER = ("r", "s", "t", "picked")


@pytest.fixture
def net(parsed: Parsed) -> ir.Model:
    """The net above."""
    rng = np.random.default_rng(0)
    return parsed(NET, **{n: rng.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()})


@pytest.fixture
def feeds(net: ir.Model) -> Feeds:
    """Three batches of four."""
    rng = np.random.default_rng(1)
    return open_feeds({n: rng.standard_normal((12, 4, 6, 6)).astype(np.float32) for n in "xz"}, net)


def _places(model: ir.Model) -> dict[str, tuple[int, str]]:
    """Position and data input of every convolution, by name."""
    return {n.name or "": (i, data_input(n)) for i, n in enumerate(model.graph) if n.op_type == "Conv"}


def _frontier(model: ir.Model, feeds: Feeds, folder: Path, memory: int = 1 << 30, **options: Any) -> Frontier:
    alive = lifetimes(model.graph, lambda node: node.op_type == "Conv")
    return Frontier(model, alive, feeds, folder, [memory], **options)


def _plain(model: ir.Model, feeds: Feeds, outputs_of: OutputsOf) -> list[dict[str, NDArray[Any]]]:
    """Every batch of the inputs and of some inner tensors."""
    clone = model.clone()
    values = {v.name: v for node in clone.graph for v in node.outputs}
    clone.graph.outputs[:] = [values[name] for name in INNER]
    return [{**feed, **outputs_of(clone, feed)} for feed in feeds.batches()]


@pytest.mark.parametrize("memory", [1 << 30, 1000, 0])
@pytest.mark.parametrize("stops", [("one", "two", "three"), ("two",), ("three",)])
def test_it_holds_what_a_plain_run_shows(
    net: ir.Model, feeds: Feeds, outputs_of: OutputsOf, tmp_path: Path, memory: int, stops: tuple[str, ...]
) -> None:
    wanted = _plain(net, feeds, outputs_of)
    frontier = _frontier(net, feeds, tmp_path, memory)
    for stop in stops:
        position, name = _places(net)[stop]
        frontier.advance(position, [name])
        got = list(frontier.values(name))
        assert len(got) == len(wanted) == 3
        for one, batch in zip(got, wanted, strict=True):
            np.testing.assert_allclose(one, batch[name], rtol=1e-5, atol=1e-6)
    frontier.close()
    assert not list(tmp_path.iterdir())


def test_what_memory_does_not_hold_is_spilled_and_freed(net: ir.Model, feeds: Feeds, tmp_path: Path) -> None:
    size = 4 * 4 * 4 * 6 * 6
    frontier = _frontier(net, feeds, tmp_path, memory=2 * size)
    position, name = _places(net)["two"]
    frontier.advance(position, [name])
    assert len(list(tmp_path.iterdir())) == 1
    position, name = _places(net)["three"]
    frontier.advance(position, [name])
    frontier.close()
    assert not list(tmp_path.iterdir())


def test_no_more_samples_than_asked_for(net: ir.Model, feeds: Feeds, tmp_path: Path) -> None:
    frontier = _frontier(net, feeds, tmp_path, limit=8)
    position, name = _places(net)["two"]
    frontier.advance(position, [name])
    assert sum(len(batch) for batch in frontier.values(name)) == 8
    assert sum(len(batch) for batch in frontier.values("x")) == 8


def test_constants_and_what_leads_nowhere_are_not_kept(net: ir.Model) -> None:
    alive = lifetimes(net.graph, lambda node: node.op_type == "Conv")
    assert "scaled" not in alive and "half" not in alive and "zero" not in alive  # computed from constants
    assert "tail" not in alive and "y" not in alive
    assert set(alive) == {"c", "r", "d", "s", "t", "low", "cond", "picked"}
    position = {value.name: index for index, node in enumerate(net.graph) for value in node.outputs}
    assert alive["r"] == (position["r"], position["picked"])  # the body reads it


def test_a_weight_may_be_replaced_on_the_way(
    net: ir.Model, feeds: Feeds, outputs_of: OutputsOf, tmp_path: Path
) -> None:
    frontier = _frontier(net, feeds, tmp_path)
    position, name = _places(net)["two"]
    frontier.advance(position, [name])
    net.graph.initializers["w"].const_value = ir.tensor(np.zeros(SHAPES["w"], np.float32), name="w")
    position, name = _places(net)["three"]
    frontier.advance(position, [name])
    for got, batch in zip(frontier.values(name), _plain(net, feeds, outputs_of), strict=True):
        np.testing.assert_allclose(got, batch[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_a_fork_goes_its_own_way(
    net: ir.Model, feeds: Feeds, outputs_of: OutputsOf, tmp_path: Path, memory: int
) -> None:
    frontier = _frontier(net, feeds, tmp_path, memory)
    place = _places(net)
    frontier.advance(place["two"][0], ["r"])
    other = net.clone()
    other.graph.initializers["w"].const_value = ir.tensor(np.ones(SHAPES["w"], np.float32), name="w")
    twin = frontier.fork(other)
    frontier.advance(place["three"][0], ["picked"])
    twin.advance(place["three"][0], ["picked"])  # from what both held, which the first has let go
    for model, walk in ((net, frontier), (other, twin)):
        for got, batch in zip(walk.values("picked"), _plain(model, feeds, outputs_of), strict=True):
            np.testing.assert_allclose(got, batch["picked"], rtol=1e-5, atol=1e-6)
    frontier.close()
    twin.close()
    assert not list(tmp_path.iterdir())


def test_a_store_gives_its_memory_back(tmp_path: Path) -> None:
    allowance = [1000]
    store = Store(tmp_path, allowance, holders=2)
    batches = [np.full(100, k, np.float32) for k in range(4)]
    for batch in batches:
        store.append(batch)
    assert allowance == [200] and len(list(tmp_path.iterdir())) == 2
    assert all(np.array_equal(store.get(k), batch) for k, batch in enumerate(batches))
    store.drop()
    assert allowance == [200] and np.array_equal(store.get(3), batches[3])
    store.drop()
    assert allowance == [1000] and not list(tmp_path.iterdir())
