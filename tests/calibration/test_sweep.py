"""The sweep hands out what a plain run of both models would show, in time and memory that do not grow with depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.calibration.sweep import Sweep
from onnxcomp.data import Feeds, open_feeds
from onnxcomp.graph.edit import Link, replace_by_chain
from onnxcomp.graph.sites import Site, conv_sites
from onnxcomp.runtime.session import open_session

Array = NDArray[np.float32]
Parsed = Callable[..., ir.Model]
OutputsOf = Callable[[ir.Model, Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]

# Three batches of four; convolutions that share an input, a residual sum, a Concat, a Constant, a body that captures
# two outer values, a convolution of constants, one of the graph's input at the very end, and a head of no interest.
NET = """g (float[4,4,6,6] x) => (float[4,a,b,c] y, float[4,d] head) {
  [stem] c0 = Conv<pads=[1,1,1,1]>(x, w0) r0 = Relu(c0)
  [left] c1 = Conv<pads=[1,1,1,1]>(r0, w1) [right] c2 = Conv<pads=[1,1,1,1]>(r0, w2)
  res = Add(c1, r0) half = Constant<value = float {0.5}>() scaled = Mul(c2, half) both = Concat<axis=1>(res, scaled)
  [wide] c3 = Conv<pads=[1,1,1,1]>(both, w3)
  low = ReduceMin<keepdims=0>(c3) zero = Constant<value = float {0.0}>() cond = Less(low, zero)
  picked = If(cond) <then_branch = t () => (float[4,4,6,6] p) { q = Add(c3, r0) p = Relu(q) },
                     else_branch = e () => (float[4,4,6,6] n) { n = Neg(r0) }>
  [after] c4 = Conv<strides=[2,2]>(picked, w4) [up] c5 = ConvTranspose<strides=[2,2]>(c4, w5)
  [fixed] c6 = Conv(k, w6) [late] c7 = Conv(x, w7) sum = Add(c5, c6) y = Add(sum, c7)
  pool = GlobalAveragePool(c3) head = Flatten(pool) }"""
ENDS = {
    "stem": ("x", "c0"),
    "left": ("r0", "c1"),
    "right": ("r0", "c2"),
    "wide": ("both", "c3"),
    "after": ("picked", "c4"),
    "up": ("c4", "c5"),
    "fixed": ("k", "c6"),
    "late": ("x", "c7"),
}
SHAPES = {f"w{i}": (4, 8 if i == 3 else 4, 3, 3) for i in range(8)} | {"k": (1, 4, 6, 6)}


def _arrays() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    arrays = {n: np.asarray(0.4 * rng.standard_normal(s), np.float32) for n, s in SHAPES.items()}
    arrays["w5"], arrays["k"] = arrays["w5"][..., :2, :2].copy(), arrays["k"][..., :6, :6].copy()
    return arrays


@pytest.fixture
def net(parsed: Parsed) -> ir.Model:
    """The net with everything that can stand between two convolutions."""
    return parsed(NET, **_arrays())


@pytest.fixture
def feeds(net: ir.Model) -> Feeds:
    """Three batches, of which one takes the other branch of the If."""
    x = np.random.default_rng(1).standard_normal((12, 4, 6, 6)).astype(np.float32)
    x[4:8] *= 0
    return open_feeds({"x": x}, net)


def _sites(model: ir.Model) -> list[Site]:
    return [site for site in conv_sites(model) if isinstance(site, Site)]


def _perturb(site: Site) -> None:
    """Replace a site by a chain of two whose weight differs by a tenth."""
    attributes = site.geometry.attributes()
    eye = np.eye(site.channels_in, dtype=np.float32)[:, :, None, None]
    replace_by_chain(
        site.node, [Link("first", "Conv", (eye,)), Link("core", site.kind, (site.weight * 0.9,), attributes)], "test"
    )


def _exposed(model: ir.Model, names: list[str]) -> ir.Model:
    """The model with inner tensors among its outputs."""
    clone = model.clone()
    values = {v.name: v for node in clone.graph for v in node.outputs}
    clone.graph.outputs[:] = [values[name] for name in names]
    for value in clone.graph.outputs:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    return clone


def _visits(
    model: ir.Model, feeds: Feeds, workdir: Path, memory: int, kept: tuple[str, ...]
) -> Iterator[tuple[Site, list[tuple[Array, Array, Array]]]]:
    """Sweep over a model, rewriting every site but those of `kept`."""
    sweep = Sweep(model.clone(), model, feeds, workdir, memory=memory)
    for site in _sites(model):
        sweep.advance(site)
        yield site, list(sweep.batches(site))
        if site.name not in kept:
            _perturb(site)
            sweep.mark_changed()
    sweep.close()


@pytest.mark.parametrize("memory", [1 << 30, 5000, 0])
@pytest.mark.parametrize("kept", [(), ("stem",), ("stem", "left", "up"), ("right", "wide")])
def test_it_shows_what_plain_runs_show(
    net: ir.Model, feeds: Feeds, outputs_of: OutputsOf, tmp_path: Path, memory: int, kept: tuple[str, ...]
) -> None:
    original = net.clone()
    seen = {site.name: batches for site, batches in _visits(net, feeds, tmp_path, memory, kept)}
    assert list(seen) == list(ENDS) and all(len(batches) == 3 for batches in seen.values())
    inner = sorted({name for ends in ENDS.values() for name in ends} - {"x", "k"})
    befores, afters = _exposed(original, inner), _exposed(net, inner)
    for index, feed in enumerate(feeds.batches()):
        constant: dict[str, NDArray[Any]] = {**feed, "k": _arrays()["k"]}
        before, after = constant | outputs_of(befores, feed), constant | outputs_of(afters, feed)
        for name, (source, output) in ENDS.items():
            wanted = (before[source], after[source], before[output])
            for got, value in zip(seen[name][index], wanted, strict=True):
                np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert any(not np.allclose(before, after) for before, after, _ in seen["up"])


def test_an_initializer_that_a_caller_may_override_keeps_its_value(net: ir.Model, feeds: Feeds, tmp_path: Path) -> None:
    net.graph.inputs.append(net.graph.initializers["k"])
    seen = {site.name: batches for site, batches in _visits(net, feeds, tmp_path, 1 << 30, ())}
    for before, after, _ in seen["fixed"]:
        np.testing.assert_array_equal(before, _arrays()["k"])
        np.testing.assert_array_equal(after, _arrays()["k"])
    assert list(seen) == list(ENDS)


def test_both_inputs_are_one_array_until_something_changes(net: ir.Model, feeds: Feeds, tmp_path: Path) -> None:
    for site, batches in _visits(net, feeds, tmp_path, 1 << 30, ("stem", "left", "right")):
        same = [before is after for before, after, _ in batches]
        assert all(same) if site.name in ("stem", "left", "right", "wide", "late") else not any(same), site.name


def test_the_models_are_left_as_they_are(net: ir.Model, feeds: Feeds, tmp_path: Path) -> None:
    before = ir.to_proto(net)
    everything = tuple(site.name for site in _sites(net))
    assert len(list(_visits(net, feeds, tmp_path, 1 << 30, everything))) == 8
    assert ir.to_proto(net) == before


def test_spills_are_bounded_and_removed(parsed: Parsed, tmp_path: Path) -> None:
    """Only what crosses the cut lies on the disk: the same number of files at any depth, none afterwards."""
    model = _chain(parsed, 10)
    feeds = open_feeds({"x": np.ones((12, 4, 6, 6), np.float32)}, model)
    counts = [len(list(tmp_path.iterdir())) for _ in _visits(model, feeds, tmp_path, 0, ())]
    assert counts[0] == 0 and counts[2:] == [counts[2]] * 8 and counts[2] > 0
    assert list(tmp_path.iterdir()) == []
    assert len(list(_visits(_chain(parsed, 3), feeds, tmp_path, 1 << 30, ()))) == 3
    assert list(tmp_path.iterdir()) == []


def test_memory_given_back_is_used_again(parsed: Parsed, tmp_path: Path) -> None:
    """An allowance for the activations of a few cuts is enough for a chain of any depth."""
    model = _chain(parsed, 10)
    feeds = open_feeds({"x": np.ones((12, 4, 6, 6), np.float32)}, model)
    cut = 2 * 12 * 4 * 6 * 6 * 4  # the input of a block, and its sum with what the block makes
    assert all(not list(tmp_path.iterdir()) for _ in _visits(model, feeds, tmp_path, 4 * cut, ()))


@pytest.mark.parametrize("late", [0, 4])
def test_work_grows_linearly(parsed: Parsed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: int) -> None:
    """Each node of either model runs a constant number of times, however deep the net and its first change."""
    nodes: list[int] = []
    kept = tuple(f"conv{i}" for i in range(late))

    def counting(model: ir.Model, **options: Any) -> Any:
        nodes.append(model.graph.num_nodes())
        return open_session(model, **options)

    monkeypatch.setattr("onnxcomp.calibration.sweep.open_session", counting)
    totals: list[int] = []
    for depth in (6, 9, 12):
        nodes.clear()
        model = _chain(parsed, depth)
        feeds = open_feeds({"x": np.ones((4, 4, 6, 6), np.float32)}, model)
        assert len(list(_visits(model, feeds, tmp_path, 1 << 30, kept))) == depth
        totals.append(sum(nodes))
    assert totals[2] - totals[1] == totals[1] - totals[0]
    # A block is Conv, Relu, Add; the rewritten one has a second Conv; and the site runs once more, alone.
    # Before the first change nothing runs twice, and the two models part with the activations that they share.
    assert totals[2] <= late * (3 + 1) + (12 - late) * (3 + 4 + 1)


def _chain(parsed: Parsed, depth: int) -> ir.Model:
    """Residual blocks in a row, of a fixed batch of four."""
    blocks = " ".join(
        f"[conv{i}] c{i} = Conv<pads=[1,1,1,1]>(s{i}, w{i}) r{i} = Relu(c{i}) s{i + 1} = Add(r{i}, s{i})"
        for i in range(depth)
    )
    text = f"g (float[4,4,6,6] s0) => (float[4,4,6,6] s{depth}) {{ {blocks} }}".replace("s0", "x")
    weights = {f"w{i}": np.full((4, 4, 3, 3), 0.01, np.float32) for i in range(depth)}
    return parsed(text, **weights)
