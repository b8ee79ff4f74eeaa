"""Checks that the tests of every pass share, ours and those of other packages.

They raise AssertionError, so that a test needs nothing but the call: ``assert_preserves(MyPass(), conv_model())``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxcomp import modelio
from onnxcomp.contract import Context, Objective, Pass, PassReport
from onnxcomp.data import Feeds, synthetic_feeds
from onnxcomp.errors import PassError
from onnxcomp.evaluate import evaluate
from onnxcomp.graph.fold import fold
from onnxcomp.targets.target import load_target
from onnxcomp.verify import check_structure

__all__ = ["assert_preserves", "assert_refuses", "context", "conv_model"]


def conv_model(
    weight: NDArray[np.floating] | None = None,
    bias: NDArray[np.floating] | None = None,
    *,
    name: str = "conv",
    size: int = 8,
    group: int = 1,
    **attributes: Any,
) -> ir.Model:
    """Build a model of one Conv and one Relu: float32 ``x`` (N, Ci, size, size) to ``y``.

    Args:
        weight: Shape (Co, Ci/group, kh, kw), kept as float32; None: seeded normal values, (32, 32/group, 3, 3).
        bias: Shape (Co,), or None.
        name: Name of the Conv.
        size: Height and width of the input.
        group: Groups of the Conv.
        attributes: Its other attributes, such as ``pads=[1, 1, 1, 1]``.
    """
    if weight is None:
        weight = np.random.default_rng(0).normal(0, 0.1, (32, 32 // group, 3, 3))
    constants = {"w": weight} if bias is None else {"w": weight, "b": bias}
    nodes = [
        helper.make_node("Conv", ["x", *constants], ["c"], name=name, group=group, **attributes),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    channels = weight.shape[1] * group
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", weight.shape[0], None, None])],
        [numpy_helper.from_array(np.asarray(array, np.float32), key) for key, array in constants.items()],
    )
    return modelio.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def context(
    workdir: Path,
    *,
    target: str = "ort-x86",
    objective: Objective = "macs",
    data: Feeds | None = None,
    stand_in: Feeds | None = None,
    seed: int = 0,
) -> Context:
    """Build what a pass is run with; under the default objective nothing is timed.

    Args:
        workdir: An existing folder for spills, such as pytest's ``tmp_path``.
        target: Name of the runtime.
        objective: As in :class:`onnxcomp.Context`, and so are the others.
        data: Calibration data.
        stand_in: Whether they are made up.
        seed: Seed of everything random.
    """
    return Context(load_target(target), workdir, objective, data, stand_in, seed)


def assert_preserves(
    pass_: Pass, model: ir.Model, feeds: Feeds | None = None, tolerance: float = 1e-5, *, objective: Objective = "macs"
) -> PassReport:
    """Assert that a pass rewrites a model and keeps what it computes.

    A canonical copy is rewritten twice. Something has to change, the signature has to stay, the result has to be valid
    ONNX, both rewrites have to give the same bytes, and in ONNX Runtime each output has to be within `tolerance`.

    Args:
        pass_: The pass.
        model: The model; not modified.
        feeds: What calibrates the pass and is run; None: 64 seeded samples that the pass gets as a stand-in.
        tolerance: Largest norm of the difference of an output, relative to the norm of that output; for integers,
            largest fraction of elements that differ.
        objective: What a rewrite has to improve.

    Returns:
        The report of the pass, for further assertions.
    """
    before, after, report = _run(pass_, model, feeds, objective)
    skips = "; ".join(f"{skip.site}: {skip.reason}" for skip in report.skips)
    assert report.changes, f"{pass_.name} changed nothing ({skips or 'and skipped nothing'})"
    try:
        check_structure(after, before)
    except PassError as broken:
        raise AssertionError(f"{pass_.name}: {broken}") from None
    again = _run(pass_, model, feeds, objective)[1]
    assert modelio.to_bytes(after) == modelio.to_bytes(again), f"{pass_.name}: a second run gave other bytes"
    quality = evaluate(after, feeds or synthetic_feeds(model, 0), before)
    errors = {output: 10 ** (-sqnr / 20) for output, sqnr in quality.sqnr.items()}
    for output, error in (errors | {output: 1 - share for output, share in quality.equal.items()}).items():
        assert error <= tolerance, f"{pass_.name}: output {output!r} is off by {error:.3g}, more than {tolerance:g}"
    return report


def assert_refuses(pass_: Pass, model: ir.Model, site: str, reason_part: str) -> PassReport:
    """Assert that a pass leaves a site alone and says why; where it changes nothing, the model has to stay as it is.

    Returns:
        The report of the pass.
    """
    before, after, report = _run(pass_, model, None, "macs")
    reasons = [skip.reason for skip in report.skips if skip.site == site]
    assert reasons, f"{pass_.name} did not skip {site!r}; it skipped {[skip.site for skip in report.skips]}"
    assert all(reason_part in reason for reason in reasons), f"{reason_part!r} is not in {reasons}"
    assert site not in {change.site for change in report.changes}, f"{pass_.name} changed {site!r} and skipped it"
    untouched = report.changes or modelio.to_bytes(before) == modelio.to_bytes(after)
    assert untouched, f"{pass_.name} reports no change, but the model is another one"
    return report


def _run(
    pass_: Pass, model: ir.Model, feeds: Feeds | None, objective: Objective
) -> tuple[ir.Model, ir.Model, PassReport]:
    """The canonical model, what the pass made of it, and its report."""
    before = model.clone()
    fold(before)
    after = before.clone()
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        stand_in = synthetic_feeds(model, 0) if feeds is None else None
        given = context(Path(folder), objective=objective, data=feeds, stand_in=stand_in)
        pass_.requires(after, given)
        return before, after, pass_.run(after, given)
