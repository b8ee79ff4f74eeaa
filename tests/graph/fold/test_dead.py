from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxcomp.graph.fold import Log, fold

Build = Callable[..., ir.Model]
Check = Callable[..., Log]


def test_unread_nodes_and_initializers_go(build: Build, check: Check) -> None:
    model = build(
        "g (float[N,3] x, float[N,3] spare) => (float[N,3] y) { y = Relu(x) a = Neg(x) b = Add(a, k) }",
        k=np.ones(3, np.float32),
    )
    log = check(model)
    assert log.lines == ("removed 2 nodes whose outputs nothing reads", "removed 1 unused initializer")
    assert [v.name for v in model.graph.inputs] == ["x", "spare"]


def test_custom_operators_and_optional_outputs_stay(build: Build) -> None:
    model = build(
        """<ir_version: 8, opset_import: ["" : 17, "my.domain" : 1]>
        g (float[N,4] x) => (float[N,2] y) { log = my.domain.Print(x) y, i = TopK(x, k) }""",
        k=np.array([2], np.int64),
    )
    assert fold(model) == ()
    assert [len(n.outputs) for n in model.graph] == [1, 2]


def test_values_that_a_live_branch_reads_stay(build: Build, check: Check) -> None:
    model = build(
        """g (float[N,3] x, bool t) => (float[N,3] o) { r = Relu(x) s = Neg(x) o = If(t) <
          then_branch = a () => (float[N,3] y) { y = Abs(r) },
          else_branch = b () => (float[N,3] z) { d = Abs(s) z = Neg(r) }> }"""
    )
    log = check(model, free=(2, 3, 4, 5))
    assert log.lines == ("removed 2 nodes whose outputs nothing reads",)
    assert sorted(n.op_type for n in model.graph.all_nodes()) == ["Abs", "If", "Neg", "Relu"]


def test_initializers_that_only_a_quantization_annotation_names_stay(build: Build) -> None:
    model = build("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }", scale=np.ones(1, np.float32))
    proto = ir.to_proto(model)
    note = proto.graph.quantization_annotation.add(tensor_name="y")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    model = ir.from_proto(proto)
    assert fold(model) == () and set(model.graph.initializers) == {"scale"}
