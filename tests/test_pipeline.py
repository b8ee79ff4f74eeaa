"""The pipeline: what a pass may not do, what is timed, and that a pass rolled back leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.contract import Change, Context, Override, Pass, PassReport, Saves
from onnxcomp.cost import Cost, model_cost
from onnxcomp.data import open_feeds
from onnxcomp.errors import InputError
from onnxcomp.pipeline import Plan, run_passes, time_models
from onnxcomp.runtime.timing import Speedup
from onnxcomp.targets.target import load_target

Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]
Clock = Callable[..., list[tuple[ir.Model, ir.Model]]]
Edit = Callable[[ir.Model], None]
TEXT = "g (float[N,4] x) => (float[N,4] y) { [mul] h = MatMul(x, w) [add] s = Add(h, b) [act] y = Relu(s) }"


@dataclass(frozen=True)
class Fake(Pass):
    """Does what it is told to and remembers its context."""

    name: ClassVar[str] = "fake"
    contexts: ClassVar[list[tuple[str, Context]]] = []
    edit: str = "nothing"
    fine: bool = True

    def requires(self, model: ir.Model, context: Context) -> None:
        if not self.fine:
            raise InputError("not today")

    def run(self, model: ir.Model, context: Context) -> PassReport:
        self.contexts.append((self.edit, context))
        before = model_cost(model)
        EDITS[self.edit](model)
        return PassReport((Change("mul", "edited", before, model_cost(model)),))

    def rehearse(self, model: ir.Model, context: Context) -> ir.Model:
        copy = model.clone()
        copy.metadata_props["rehearsed"] = "yes"
        return copy


@dataclass(frozen=True)
class Smaller(Fake):
    """Saves bytes."""

    name: ClassVar[str] = "smaller"
    saves: ClassVar[Saves] = "bytes"


@dataclass(frozen=True)
class Idle(Pass):
    """Changes nothing."""

    name: ClassVar[str] = "idle"

    def run(self, model: ir.Model, context: Context) -> PassReport:
        return PassReport(notes=("nothing to do",))


def _weights(fill: float) -> Edit:
    def edit(model: ir.Model) -> None:
        value = model.graph.initializers["w"]
        assert value.const_value is not None
        value.const_value = ir.tensor(np.full((4, 4), fill, np.float32), name="w")

    return edit


def _renamed(model: ir.Model) -> None:
    model.graph.outputs[0].name = "z"


def _reshaped(model: ir.Model) -> None:
    model.graph.inputs[0].shape = ir.Shape([1, 4])


def _another_input(model: ir.Model) -> None:
    model.graph.inputs.append(ir.Value(name="more", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1])))


def _another_output(model: ir.Model) -> None:
    model.graph.outputs.append(model.graph[0].outputs[0])


def _unknown_operator(model: ir.Model) -> None:
    model.graph[0].op_type = "NoSuchOperator"


def _shapes_that_clash(model: ir.Model) -> None:
    model.graph.initializers["b"].const_value = ir.tensor(np.ones(3, np.float32), name="b")


def _halved_bias(model: ir.Model) -> None:
    model.graph.initializers["b"].const_value = ir.tensor(np.ones(1, np.float32), name="b")
    model.graph.initializers["b"].shape = ir.Shape([1])


EDITS: dict[str, Edit] = {
    "nothing": lambda model: None,
    "half": _weights(0.5),
    "nan": _weights(np.nan),
    "inf": _weights(np.inf),
    "rename": _renamed,
    "reshape": _reshaped,
    "input": _another_input,
    "output": _another_output,
    "operator": _unknown_operator,
    "clash": _shapes_that_clash,
    "bias": _halved_bias,
}


@pytest.fixture(autouse=True)
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Context]]:
    """What every fake pass was run with, by its edit."""
    seen: list[tuple[str, Context]] = []
    monkeypatch.setattr(Fake, "contexts", seen)
    return seen


@pytest.fixture
def model(parsed: Parsed) -> ir.Model:
    """A matrix product, a bias and a Relu."""
    return parsed(TEXT, w=np.eye(4, dtype=np.float32), b=np.ones(4, np.float32))


@pytest.fixture
def data(model: ir.Model) -> Any:
    """A hundred samples."""
    return open_feeds({"x": np.ones((100, 4), np.float32)}, model)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the stopwatch: every comparison gives these ratios in turn, the last one for ever."""

    def install(*ratios: float, width: float = 0.0) -> list[tuple[ir.Model, ir.Model]]:
        timed: list[tuple[ir.Model, ir.Model]] = []

        def paired(base: ir.Model, other: ir.Model, feed: object, **options: object) -> Speedup:
            timed.append((base, other))
            ratio = ratios[min(len(timed), len(ratios)) - 1]
            return Speedup(ratio, ratio - width, ratio + width, ratio, 1.0, 100)

        monkeypatch.setattr("onnxcomp.pipeline.paired", paired)
        return timed

    return install


def _bytes(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        ("nan", "output 'y' holds NaN or Inf where the original has none"),
        ("inf", "output 'y' holds NaN or Inf where the original has none"),
        ("rename", "the signature changed: y FLOAT [N,4] became z FLOAT [N,4]"),
        ("reshape", "the signature changed: x FLOAT [N,4] became x FLOAT [1,4]"),
        ("input", "the signature changed: an input was added or removed"),
        ("output", "the signature changed: an output was added or removed"),
        ("operator", "the rewritten model is not valid ONNX: No Op registered for NoSuchOperator"),
        ("clash", "the rewritten model does not run: "),
    ],
)
def test_a_pass_that_breaks_the_model_is_rolled_back(
    model: ir.Model, data: Any, in_context: InContext, clock: Clock, edit: str, why: str
) -> None:
    timed = clock(9.0)
    before = _bytes(model)
    after, (broken, fine) = run_passes(
        model, Plan((Fake(edit), Fake("half"))), in_context(objective="latency", data=data)
    )
    assert not broken.kept and broken.why.startswith(why), broken.why
    assert broken.speedup is None and broken.report.changes
    assert fine.kept and fine.why == "" and len(timed) == 1
    assert timed[0][0].graph.initializers["w"].const_value is model.graph.initializers["w"].const_value
    assert _bytes(model) == before != _bytes(after)


@pytest.mark.parametrize(
    ("kind", "ratio", "kept"), [(Fake, 1.01, True), (Fake, 0.97, False), (Smaller, 0.985, True), (Smaller, 0.97, False)]
)
def test_what_slows_the_model_down_is_rolled_back(
    model: ir.Model, data: Any, in_context: InContext, clock: Clock, kind: type[Fake], ratio: float, kept: bool
) -> None:
    timed = clock(ratio)
    before = _bytes(model)
    after, (step,) = run_passes(model, Plan((kind("half"),)), in_context(objective="latency", data=data))
    assert len(timed) == 1 and step.speedup is not None and step.speedup.ratio == ratio
    assert step.kept is kept and (after is model) is not kept and _bytes(model) == before
    assert step.why == ("" if kept else "slower: 0.97x of the speed before (95 % interval 0.97 to 0.97)")


def test_an_interval_that_holds_one_is_measured_again(
    model: ir.Model, data: Any, in_context: InContext, clock: Clock
) -> None:
    timed = clock(0.99, 1.02, width=0.05)
    _, (step,) = run_passes(model, Plan((Fake(),)), in_context(objective="latency", data=data))
    assert len(timed) == 2 and step.kept and step.speedup is not None and step.speedup.ratio == 1.02


@pytest.mark.parametrize("fields", [{"objective": "macs"}, {"data": None}, {"replay": {"a": {}}}])
def test_nothing_is_timed_without_need(
    model: ir.Model, data: Any, in_context: InContext, clock: Clock, fields: dict[str, Any]
) -> None:
    timed = clock(0.5)
    replay = fields.pop("replay", None)
    context = in_context(**({"objective": "latency", "data": data} | fields))
    _, (step,) = run_passes(model, Plan((Fake(),), replay=None if replay is None else (replay,)), context)
    assert step.kept and step.speedup is None and not timed


@pytest.mark.parametrize(("grows", "why"), [(0, "no smaller: "), (-8, "")])
def test_under_size_a_pass_must_shrink_the_file(
    model: ir.Model,
    data: Any,
    in_context: InContext,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    grows: int,
    why: str,
) -> None:
    timed, sizes = clock(0.5), iter([1000, 1000 + grows])

    def size_of(model: ir.Model) -> int:
        return next(sizes)

    monkeypatch.setattr("onnxcomp.pipeline.serialized_bytes", size_of)
    _, (step,) = run_passes(model, Plan((Fake(),)), in_context(objective="size", data=data))
    assert step.why.startswith(why) and step.kept == (not why) and not timed


def test_a_target_that_is_not_this_machine_is_never_timed(
    model: ir.Model, data: Any, in_context: InContext, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = clock(0.5)
    context = in_context(objective="latency", data=data, target=load_target("tensorrt"))
    assert not context.target.host
    _, (step,) = run_passes(model, Plan((Fake(),)), context)
    assert step.kept and step.speedup is None and not timed
    assert time_models(model, model, context) is None


def test_both_sides_are_timed_as_the_later_passes_leave_them(
    model: ir.Model, data: Any, in_context: InContext, clock: Clock, contexts: list[tuple[str, Context]]
) -> None:
    timed = clock(2.0)
    first, second = Fake("half"), Fake()
    after, _ = run_passes(model, Plan((first, second)), in_context(objective="latency", data=data))
    assert [["rehearsed" in m.metadata_props for m in pair] for pair in timed] == [[True, True], [False, False]]
    assert "rehearsed" not in after.metadata_props
    assert [(edit, context.followers) for edit, context in contexts] == [("half", (second,)), ("nothing", ())]


def test_synthetic_data_do_where_there_are_no_others(
    model: ir.Model, data: Any, in_context: InContext, clock: Clock
) -> None:
    timed = clock(2.0)
    plan = Plan((Fake("nan"), Fake()))
    _, (broken, fine) = run_passes(model, plan, in_context(objective="latency", stand_in=data))
    assert not broken.kept and fine.kept and len(timed) == 1


def test_each_pass_gets_what_is_its_own(
    model: ir.Model, in_context: InContext, contexts: list[tuple[str, Context]]
) -> None:
    own = (Override("mul", None),)
    said: list[str] = []
    run_passes(
        model, Plan((Fake(), Fake("half")), ((), own), ({"a": {}}, {"b": {"k": 1}}), progress=said.append), in_context()
    )
    assert [context.overrides for _, context in contexts] == [(), own]
    assert [context.replay for _, context in contexts] == [{"a": {}}, {"b": {"k": 1}}]
    assert said == ["fake", "fake(edit=half)"]


def test_what_was_rolled_back_is_rolled_back_when_replayed(model: ir.Model, in_context: InContext) -> None:
    after, (step,) = run_passes(model, Plan((Fake("half"),), replay=({},)), in_context())
    assert (step.kept, step.why) == (False, "not kept in the replayed run") and after is model


def test_a_pass_that_cannot_run_stops_the_run(
    model: ir.Model, in_context: InContext, contexts: list[tuple[str, Context]]
) -> None:
    with pytest.raises(InputError, match="not today"):
        run_passes(model, Plan((Fake(), Fake("half", fine=False))), in_context())
    assert [edit for edit, _ in contexts] == ["nothing"]


def test_a_pass_without_changes_is_neither_timed_nor_rolled_back(
    model: ir.Model, data: Any, in_context: InContext, clock: Clock
) -> None:
    timed = clock(0.5)
    after, (step,) = run_passes(model, Plan((Idle(),)), in_context(objective="latency", data=data))
    assert step.kept and not timed and step.report.notes == ("nothing to do",)
    assert _bytes(after) == _bytes(model)


def test_a_step_tells_the_cost_before_and_after(model: ir.Model, in_context: InContext) -> None:
    _, (step,) = run_passes(model, Plan((Fake("bias"),)), in_context())
    assert (step.before, step.after) == (Cost(20, 16, 80), Cost(17, 16, 68))
    assert step.spec == "fake(edit=bias)" and step.seconds > 0


@pytest.mark.parametrize(("what", "given"), [("overrides", {"overrides": ((), ())}), ("replay", {"replay": ()})])
def test_a_plan_has_one_entry_a_pass(what: str, given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{what}: {len(given[what])} entries for 1 passes; give one for each pass"):
        Plan((Idle(),), **given)


def test_constants_survive_a_roll_back_as_they_are(
    model: ir.Model, data: Any, in_context: InContext, clock: Clock
) -> None:
    clock(0.5)
    before: dict[str, NDArray[Any]] = {n: v.const_value.numpy() for n, v in model.graph.initializers.items()}  # type: ignore[union-attr]
    after, _ = run_passes(model, Plan((Fake("half"),)), in_context(objective="latency", data=data))
    for name, value in after.graph.initializers.items():
        assert value.const_value is not None
        np.testing.assert_array_equal(value.const_value.numpy(), before[name])
