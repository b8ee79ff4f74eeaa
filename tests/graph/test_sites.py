from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.contract import Skip
from onnxcomp.cost import Cost
from onnxcomp.graph.edit import ORIGIN
from onnxcomp.graph.geometry import Geometry
from onnxcomp.graph.sites import Site, conv_sites, geometry_of, is_default_domain, static_shape

Parsed = Callable[..., ir.Model]
TEXT = """g (float[N,8,10,12] x) => (float[N,a,b,c] y) {
  [conv] h = Conv<strides=[2,1], pads=[1,0,1,2], dilations=[1,2], group=2>(x, w, b) [act] r = Relu(h)
  [up] y = ConvTranspose<strides=[2,2], group=2, output_padding=[1,0]>(r, v) }"""


def _ones(*shape: int) -> NDArray[np.float32]:
    return np.ones(shape, np.float32)


@pytest.fixture
def sites(parsed: Parsed) -> list[Site]:
    """A grouped convolution and a grouped transposed one."""
    model = parsed(TEXT, w=_ones(12, 4, 3, 2), b=_ones(12), v=_ones(12, 5, 3, 3))
    found = list(conv_sites(model))
    return [site for site in found if isinstance(site, Site)]


def test_a_site_is_what_the_node_says(sites: list[Site]) -> None:
    conv, up = sites
    assert (conv.name, conv.kind, up.name, up.kind) == ("conv", "Conv", "up", "ConvTranspose")
    assert conv.geometry == Geometry((3, 2), (2, 1), (1, 2), (1, 0, 1, 2), 2)
    assert up.geometry == Geometry((3, 3), (2, 2), (1, 1), (0, 0, 0, 0), 2, (1, 0), "NOTSET", True)
    assert (conv.channels_in, conv.channels_out, up.channels_in, up.channels_out) == (8, 12, 12, 10)
    assert conv.bias is not None and conv.bias.shape == (12,) and up.bias is None
    assert (conv.input_shape, conv.output_shape) == ((None, 8, 10, 12), (None, 12, 5, 12))
    assert (conv.input_positions, conv.output_positions) == (120, 60)
    assert (up.input_shape, up.output_shape) == ((None, 12, 5, 12), (None, 10, 12, 25))


def test_cost_counted_by_hand(sites: list[Site]) -> None:
    conv, up = sites
    assert conv.cost == Cost(12 * 4 * 6 + 12, 12 * 4 * 6 * 60, 4 * (12 * 4 * 6 + 12))
    assert up.cost == Cost(12 * 5 * 9, 12 * 5 * 9 * 60, 4 * 12 * 5 * 9)  # each weight meets each input position


def test_unknown_sizes_have_no_macs(parsed: Parsed) -> None:
    model = parsed("g (float[N,8,H,12] x) => (float[N,a,b,c] y) { y = Conv(x, w) }", w=_ones(8, 8, 3, 3))
    (site,) = conv_sites(model)
    assert isinstance(site, Site)
    assert (site.cost.macs, site.input_positions, site.input_shape) == (None, None, (None, 8, None, 12))
    assert static_shape(None) == () == static_shape(ir.Value(name="v"))


def test_names_are_those_of_the_users_model(parsed: Parsed) -> None:
    text = "g (float[N,8,9,9] x) => (float[N,8,3,3] y) { h = Conv(x, w) [b] i = Conv(h, v) [c] y = Conv(i, u) }"
    model = parsed(text, w=_ones(8, 8, 3, 3), v=_ones(8, 8, 3, 3), u=_ones(8, 8, 3, 3))
    model.graph[1].metadata_props[ORIGIN] = "theirs"
    assert [getattr(site, "name", None) for site in conv_sites(model)] == ["h", "theirs", "c"]
    assert list(conv_sites(model, ("?", "th*"))) == [Skip(n, "excluded by the user") for n in ("h", "theirs", "c")]


def test_every_convolution_is_yielded_once(parsed: Parsed) -> None:
    branch = "float[N,8,k,k] {0}) {{ [{0}] {0} = Conv(x, w) }}"
    text = f"""g (float[N,8,9,9] x, bool c) => (float[N,8,a,a] y) {{
      [first] p = Conv(x, v)
      [if] q = If(c) <then_branch = t () => ({branch.format("m")}, else_branch = e () => ({branch.format("n")}>
      [mix] s = Add(p, q) [last] y = Conv(s, u) }}"""
    model = parsed(text, **{name: _ones(8, 8, 3, 3) for name in "wvu"})
    names = [(type(item), item.site if isinstance(item, Skip) else item.name) for item in conv_sites(model)]
    assert sorted(names[1:-1], key=str) == [(Skip, "m"), (Skip, "n")]
    assert (names[0], names[-1]) == ((Site, "first"), (Site, "last"))


def test_operators_of_other_domains_are_none(parsed: Parsed) -> None:
    node = ir.node("Conv", [], domain="com.acme")
    assert not is_default_domain(node, "Conv")
    assert is_default_domain(ir.node("Conv", [], domain="ai.onnx"), "Conv", "Gemm")


@pytest.mark.parametrize(
    ("kind", "attributes", "size", "expected"),
    [
        ("Conv", {"auto_pad": "SAME_UPPER"}, (8, 8), (1, 0, 1, 1)),
        ("Conv", {"auto_pad": "SAME_LOWER"}, (8, 8), (1, 1, 1, 0)),
        ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (8, 7), (0, 0, 1, 1)),
        ("Conv", {"auto_pad": "SAME_LOWER", "strides": [4, 4]}, (8, 8), (0, 0, 0, 0)),
        ("Conv", {"auto_pad": "SAME_UPPER", "dilations": [2, 3]}, (8, 8), (2, 1, 2, 2)),
        ("Conv", {"auto_pad": "VALID", "pads": [1, 1, 1, 1]}, (8, 8), (0, 0, 0, 0)),
        ("Conv", {"pads": [1, 2, 3, 4]}, (8, 8), (1, 2, 3, 4)),
        ("Conv", {"auto_pad": "SAME_UPPER"}, (None, 8), None),
        ("ConvTranspose", {"auto_pad": "SAME_UPPER"}, (8, 8), None),
    ],
)
def test_auto_pad_is_made_explicit(
    kind: str, attributes: dict[str, Any], size: tuple[int | None, ...], expected: tuple[int, ...] | None
) -> None:
    node = ir.node(kind, [ir.Value(name="x"), ir.Value(name="w")], attributes=attributes)
    geometry = geometry_of(node, (4, 4, 3, 2), (None, 4, *size))
    if expected is None:  # the size is not known, so the runtime has to pad
        assert (geometry.auto_pad, geometry.pads) == (attributes["auto_pad"], (0, 0, 0, 0))
        assert geometry.attributes()["auto_pad"] == attributes["auto_pad"] and "pads" not in geometry.attributes()
    else:
        assert (geometry.auto_pad, geometry.pads) == ("NOTSET", expected)
        assert "auto_pad" not in geometry.attributes()
