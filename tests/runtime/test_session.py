from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxcomp.errors import DataError, ModelError
from onnxcomp.runtime import session as session_module
from onnxcomp.runtime.session import input_names, open_session, output_names, run

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
small (float[N, 3] x) => (float[N, 3] y, float[N, 3] z)
<float[3] b = {1, 2, 3}> {
    a = Add(x, b)
    y = Relu(a)
    z = Neg(a)
}
"""


def proto() -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT)


def feed() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {"x": np.array([[-2, 0, 5]], np.float32)}


def test_models_bytes_and_paths_run_alike(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    onnx.save(proto(), path)
    for model in (ir.from_proto(proto()), proto().SerializeToString(), path, str(path)):
        session = open_session(model)
        assert input_names(session) == ["x"]
        assert output_names(session) == ["y", "z"]
        y, z = run(session, feed())
        np.testing.assert_array_equal(y, [[0, 2, 8]])
        np.testing.assert_array_equal(z, [[1, -2, -8]])


def test_outputs_come_in_the_order_asked_for_and_spare_inputs_are_ignored() -> None:
    session = open_session(proto().SerializeToString())
    z, y = run(session, {**feed(), "unused": np.zeros(1)}, ["z", "y"])
    assert z[0, 0] == 1
    assert y[0, 0] == 0


def test_large_models_go_through_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(session_module, "_IN_MEMORY_LIMIT", 4)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = open_session(ir.from_proto(proto()))
    np.testing.assert_array_equal(run(session, feed())[0], [[0, 2, 8]])
    assert list(tmp_path.iterdir()) == []


def test_the_optimised_graph_can_be_dumped(tmp_path: Path) -> None:
    dump = tmp_path / "dump.onnx"
    open_session(proto().SerializeToString(), optimize="extended", dump=dump)
    assert {node.op_type for node in onnx.load(dump).graph.node} == {"Add", "Relu", "Neg"}


@pytest.mark.parametrize("data", [b"", b"garbage"])
def test_what_is_no_model_is_refused_in_one_line(data: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="ONNX Runtime cannot load model") as caught:
        open_session(data)
    assert "\n" not in str(caught.value)
    assert "ONNXRuntimeError" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_an_unknown_operator_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    model = onnx.parser.parse_model(TEXT.replace("Neg", "Nonsense"))
    with pytest.raises(ModelError, match=r"cannot load small: .*Nonsense"):
        open_session(ir.from_proto(model))
    assert capfd.readouterr() == ("", "")


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such file: .*nothing\.onnx"):
        open_session(tmp_path / "nothing.onnx")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 4), np.float32), "do not fit the model: Got invalid dimensions for input: x"),
        (np.zeros((1, 3), np.float64), "do not fit the model: Unexpected input data type"),
        (np.zeros(3, np.float32), "do not fit the model: Invalid rank for input: x"),
    ],
)
def test_a_feed_that_does_not_fit(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        run(open_session(proto().SerializeToString()), {"x": array})


def test_a_missing_input_is_named() -> None:
    with pytest.raises(DataError, match=r"no input 'x' \(they hold: images\)"):
        run(open_session(proto().SerializeToString()), {"images": np.zeros((1, 3), np.float32)})


def test_a_failure_inside_the_run_is_the_models() -> None:
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3] x, int64[K] shape) => (float[A] y) { y = Reshape(x, shape) }
    """
    session = open_session(onnx.parser.parse_model(text).SerializeToString())
    with pytest.raises(ModelError, match="could not run the model"):
        run(session, {"x": np.zeros((1, 3), np.float32), "shape": np.array([7])})
