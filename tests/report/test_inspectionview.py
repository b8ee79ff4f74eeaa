"""What `inspect` says of a model: the document against its schema, and the view of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.inspection import inspect_model
from onnxcomp.registry import build_pipeline
from onnxcomp.report.figures import Panels
from onnxcomp.report.inspectionview import inspection_document, inspection_view
from onnxcomp.report.markdown import to_markdown
from onnxcomp.report.schemas import load_schema
from onnxcomp.report.table import Table

Document = dict[str, Any]


def conv_net(sizes: list[int], *, batch: int | str = 1) -> ir.Model:
    """Convolutions of 3 x 3, one after the other, on images of 8 x 8."""
    nodes, weights = list[onnx.NodeProto](), list[onnx.TensorProto]()
    for index, (before, after) in enumerate(pairwise(sizes)):
        array = np.random.default_rng(index).normal(size=(after, before, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"w{index}"))
        inputs, name = [f"y{index}", f"w{index}"], f"layer{index:03}"
        nodes.append(helper.make_node("Conv", inputs, [f"y{index + 1}"], name=name, pads=[1, 1, 1, 1]))
    ends = [
        helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, [batch, sizes[index], 8, 8])
        for index in (0, len(nodes))
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    opset = [helper.make_opsetid("", 17)]
    made = helper.make_model(graph, opset_imports=opset, ir_version=9, producer_name="maker", producer_version="2")
    return ir.from_proto(made)


def document_of(model: ir.Model, passes: str = "tucker2,int4,fold", *, propose: bool = False) -> Document:
    asked = dict(zip(passes.split(","), build_pipeline(passes), strict=True))
    return inspection_document(inspect_model(model, asked, propose=propose), "a folder/net.onnx", 1234)


@pytest.fixture(scope="module")
def net() -> Document:
    return document_of(conv_net([4, 8, 24, 32, 16]))


def problems(document: Document) -> list[str]:
    validator = jsonschema.Draft202012Validator(load_schema(document["schema"]))
    return [error.message for error in validator.iter_errors(json.loads(json.dumps(document, allow_nan=False)))]


def table(document: Document, title: str, **options: Any) -> Table:
    shown = inspection_view(document, **options)
    (found,) = (table for table in shown.tables if table.title == title)
    return found


def test_documents_follow_their_schema(net: Document) -> None:
    assert problems(net) == []
    assert problems(document_of(conv_net([32, 32]), "tucker2(rank=8),int4", propose=True)) == []
    assert problems(document_of(conv_net([4, 8], batch="N"))) == []


def test_a_key_more_or_less_breaks_it(net: Document) -> None:
    edits: list[Callable[[Document], object]] = [
        lambda own: own.update(more=1),
        lambda own: own.pop("structure"),
        lambda own: own["structure"].update(quantized="maybe"),
        lambda own: own["layers"][0].pop("bytes"),
        lambda own: own["layers"][0].update(macs="many"),
        lambda own: own["cost"].update(more=1),
    ]
    for edit in edits:
        copy = json.loads(json.dumps(net))
        edit(copy)
        assert problems(copy)


@pytest.mark.parametrize(
    ("order", "title", "expected"),
    [
        ("macs", "Layers by MACs", [2, 3, 1, 0]),
        ("bytes", "Layers by size", [2, 3, 1, 0]),
        ("name", "Layers by name", [0, 1, 2, 3]),
        ("order", "Layers", [0, 1, 2, 3]),
    ],
)
def test_layers_in_every_order(net: Document, order: Any, title: str, expected: list[int]) -> None:
    rows = table(net, title, full=False, order=order).rows
    assert [row[0] for row in rows] == [f"layer{index:03}" for index in expected]


def test_layers_that_cost_the_same_stay_in_the_order_of_the_model() -> None:
    rows = table(document_of(conv_net([4, 4, 4, 4])), "Layers by MACs", full=False).rows
    assert [row[0] for row in rows] == ["layer000", "layer001", "layer002"]


def test_shares_add_up_and_what_is_not_listed_is_summed_up(net: Document) -> None:
    rows = table(net, "Layers by MACs", full=False, top=1).rows
    assert [row[0] for row in rows] == ["layer002", "... and 3 more"]
    assert sum(float(row[-1].removesuffix(" %")) for row in rows) == pytest.approx(100, abs=0.11)
    weights = sum(layer["parameters"] for layer in net["layers"] if layer["name"] != "layer002")
    assert rows[1][5] == f"{weights / 1000:.3g} k"


def test_where_a_cost_is_not_known_layers_are_sorted_by_size() -> None:
    document = document_of(conv_net([4, 8]))
    document["layers"][0]["macs"] = None
    assert table(document, "Layers by size", full=False, order="macs").columns[-1] == "share of bytes"


def test_narrow_tables_have_fewer_columns_and_files_have_all(net: Document) -> None:
    assert len(table(net, "Layers by MACs", full=False, narrow=True).columns) == 6
    assert table(net, "Layers by MACs", full=False).columns[-1] == "share of MACs"
    full = table(net, "Layers by MACs", full=True)
    assert full.columns[-1] == "may try" and "int4" in full.rows[0][-1]
    assert isinstance(full.plot, Panels)
    assert [name for name, _ in full.plot.figures] == ["MACs", "size", "parameters"]
    assert full.plot.figures[0][1].labels == ("layer000", "layer001", "layer002", "layer003")


def test_a_figure_has_as_many_bars_as_can_be_told_apart() -> None:
    document = document_of(conv_net([2] * 121 + [3]), "int4")
    full = table(document, "Layers by MACs", full=True)
    assert isinstance(full.plot, Panels)
    labels = full.plot.figures[0][1].labels
    assert (len(full.rows), len(labels)) == (121, 100)
    assert list(labels) == sorted(labels) and "layer120" in labels
    notes = inspection_view(document, full=True).notes
    assert "the figure shows the 100 layers that cost most; the table has all 121" in notes


def test_markdown_has_the_facts(net: Document) -> None:
    text = to_markdown(inspection_view(net, full=True), net["version"])
    for words in ("net.onnx: 13.5 k parameters", "maker 2", "Layers by MACs", "Left alone", "Operators", "Constants"):
        assert words in text


def test_reasons_are_grouped(net: Document) -> None:
    rows = table(net, "Left alone", full=True).rows
    assert ("too few channels: 4 in, 8 out", "tucker2", "1", "layer000") in rows
    tried = table(net, "What may be tried", full=False).rows
    assert sum(int(row[1]) for row in tried) == 4
