"""Sites are given back, worst first, until the budget holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from glob import escape
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp.backoff import Outcome, within_budget
from onnxcomp.budget import Budget
from onnxcomp.contract import Change, Context, Pass, PassReport, Saves
from onnxcomp.cost import model_cost
from onnxcomp.data import Feeds, open_feeds
from onnxcomp.errors import InputError
from onnxcomp.evaluate import evaluate
from onnxcomp.intake import Intake
from onnxcomp.pipeline import Plan, run_passes

Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]
# The more a site is hurt, the larger its error; the names read as globs that match something else.
HURT = {"conv[1]": 0.5, "b?": 0.1, "c*": 0.02, "d": 0.004, "e": 0.001}


@dataclass(frozen=True)
class Hurt(Pass):
    """Scales the weight of every site down, each by its own share."""

    name: ClassVar[str] = "hurt"
    saves: ClassVar[Saves] = "nothing"  # kept for what it is, neither timed nor weighed
    predicts: bool = True
    wanted: bool = True
    scale: float = 1.0

    def explicit(self) -> bool:
        return self.wanted

    def run(self, model: ir.Model, context: Context) -> PassReport:
        changes: list[Change] = []
        for node in model.graph:
            name = node.name or ""
            if name in HURT and not context.excluded(name):
                weight = node.inputs[1]
                assert weight is not None and weight.const_value is not None
                scaled = weight.const_value.numpy() * (1 - self.scale * HURT[name])
                weight.const_value = ir.tensor(np.asarray(scaled, np.float32), name=weight.name)
                cost = model_cost(model)
                changes.append(Change(name, "hurt", cost, cost, self.scale * HURT[name] if self.predicts else None))
        return PassReport(tuple(changes))


@pytest.fixture
def model(parsed: Parsed) -> ir.Model:
    """Five products in a row, with names full of glob characters."""
    body = " ".join(f"[n{i}] h{i + 1} = MatMul(h{i}, w{i})" for i in range(5)).replace("h0", "x").replace("h5", "y")
    arrays = {f"w{i}": np.linalg.qr(np.random.default_rng(i).standard_normal((8, 8)))[0] for i in range(5)}
    model = parsed(
        f"g (float[N,8] x) => (float[N,8] y) {{ {body} }}", **{k: v.astype(np.float32) for k, v in arrays.items()}
    )
    for node, name in zip(model.graph, HURT, strict=True):
        node.name = name
    return model


def _feeds(model: ir.Model) -> Feeds:
    return open_feeds({"x": np.random.default_rng(9).standard_normal((64, 8)).astype(np.float32)}, model)


def _intake(model: ir.Model, *, data: bool = True, labels: bool = False, scored: Feeds | None = None) -> Intake:
    """The model with samples to measure on."""
    feeds = _feeds(model)
    return Intake(model, feeds if data else None, None if data else feeds, scored, ())


def _given(*sites: str, position: int = 0) -> tuple[tuple[int, str], ...]:
    return tuple((position, site) for site in sites)


def _given_back(outcome: Outcome) -> tuple[tuple[int, str], ...]:
    assert all(relief.options is None for relief in outcome.reliefs)
    return tuple((relief.position, relief.site) for relief in outcome.reliefs)


def _changed(outcome: Outcome) -> list[str]:
    return [change.site for step in outcome.steps for change in step.report.changes]


@pytest.mark.parametrize(
    ("limit", "left"),
    [
        (None, ["conv[1]", "b?", "c*", "d", "e"]),
        (3.0, ["conv[1]", "b?", "c*", "d", "e"]),
        (15.0, ["b?", "c*", "d", "e"]),
        (30.0, ["c*", "d", "e"]),
        (45.0, ["d", "e"]),
        (80.0, []),
    ],
)
def test_the_worst_go_first(model: ir.Model, in_context: InContext, limit: float | None, left: list[str]) -> None:
    """No more is given back than it takes: what stays hurts less than the limit allows."""
    outcome = within_budget(_intake(model), model, Plan((Hurt(),)), in_context(), Budget(min_sqnr=limit))
    assert _changed(outcome) == left and outcome.failures == ()
    assert _given_back(outcome) == _given(*tuple(HURT)[: 5 - len(left)])


@pytest.mark.parametrize("limit", [10.0, 13.0, 20.0, 28.0, 35.0, 41.0, 50.0, 58.0])
def test_one_less_would_not_do(model: ir.Model, in_context: InContext, limit: float) -> None:
    budget = Budget(min_sqnr=limit)
    back = [
        site for _, site in _given_back(within_budget(_intake(model), model, Plan((Hurt(),)), in_context(), budget))
    ]
    assert back == list(HURT)[: len(back)]
    context = in_context(exclude=tuple(map(escape, back[:-1])))
    one_less = Outcome(*run_passes(model, Plan((Hurt(),)), context))
    sqnr = evaluate(one_less.model, _feeds(model), model).sqnr
    assert not back or min(sqnr.values()) < limit


def _mild(model: ir.Model, in_context: InContext, limit: float | None) -> tuple[Outcome, list[int]]:
    """What comes of a pass with a milder form, a thousandth of the hurt; and the number of changes in each run."""
    runs: list[int] = []

    @dataclass(frozen=True)
    class Mild(Hurt):
        def run(self, model: ir.Model, context: Context) -> PassReport:
            own = {o.match: o.options or {} for o in context.overrides}
            before = {v.name: v.const_value for v in model.graph.initializers.values()}
            report = super().run(model, context)
            changes: list[Change] = []
            for change in report.changes:
                mild = "hurt" in own.get(escape(change.site), {})
                if mild:
                    weight = next(n for n in model.graph if n.name == change.site).inputs[1]
                    assert weight is not None
                    original = before[weight.name]
                    assert original is not None
                    less = original.numpy() * (1 - HURT[change.site] / 1000)
                    weight.const_value = ir.tensor(less.astype(np.float32), name=weight.name)
                    changes.append(replace(change, error=HURT[change.site] / 1000))
                else:
                    changes.append(replace(change, milder={"hurt": 1e-3}))
            runs.append(len(changes))
            return PassReport(tuple(changes))

    return within_budget(_intake(model), model, Plan((Mild(),)), in_context(), Budget(min_sqnr=limit)), runs


def test_milder_options_come_before_giving_back(model: ir.Model, in_context: InContext) -> None:
    outcome, _ = _mild(model, in_context, 30.0)
    assert [(r.site, r.options) for r in outcome.reliefs] == [("conv[1]", {"hurt": 1e-3}), ("b?", {"hurt": 1e-3})]
    facts = {c.site: c.facts for c in outcome.steps[0].report.changes}
    assert len(facts) == 5
    assert facts["b?"] == {"budget": "hurt=0.001, to hold the accuracy budget"} and facts["c*"] == {}
    assert _mild(model, in_context, None)[0].reliefs == ()


def test_what_is_left_where_all_are_mild_is_given_back(model: ir.Model, in_context: InContext) -> None:
    outcome, runs = _mild(model, in_context, 70.0)
    assert outcome.failures == ()
    assert [r.site for r in outcome.reliefs if r.options is None] == ["conv[1]"]
    assert len([r for r in outcome.reliefs if r.options is not None]) == 5
    assert len(runs) <= 8 and _changed(outcome) == ["b?", "c*", "d", "e"]


def test_what_the_user_excludes_stays_excluded(model: ir.Model, in_context: InContext) -> None:
    context = in_context(exclude=("d",))
    outcome = within_budget(_intake(model), model, Plan((Hurt(),)), context, Budget(min_sqnr=15.0))
    assert _changed(outcome) == ["b?", "c*", "e"] and _given_back(outcome) == _given("conv[1]")


def test_a_budget_that_cannot_hold_is_said(model: ir.Model, in_context: InContext) -> None:
    broken = model.clone()
    weight = broken.graph.initializers["w0"]
    weight.const_value = ir.tensor(np.zeros((8, 8), np.float32), name="w0")
    outcome = within_budget(_intake(model), broken, Plan((Hurt(),)), in_context(), Budget(min_sqnr=20.0))
    assert _changed(outcome) == [] and _given_back(outcome) == _given(*HURT)
    assert outcome.failures == ("the worst output has an SQNR of 0.0 dB, less than the 20 dB asked for",)


def test_sites_without_prediction_go_last_by_name(model: ir.Model, in_context: InContext) -> None:
    plan = Plan((Hurt(predicts=False),))
    outcome = within_budget(_intake(model), model, plan, in_context(), Budget(min_sqnr=15.0))
    assert _given_back(outcome) == _given("b?", "c*", "conv[1]") and outcome.failures == ()


def test_labels_measure_the_drop(model: ir.Model, in_context: InContext) -> None:
    x = np.random.default_rng(3).standard_normal((200, 8)).astype(np.float32)
    weights = [v.const_value.numpy() for v in model.graph.initializers.values() if v.const_value is not None]
    labels = np.linalg.multi_dot([x, *weights]).argmax(1)
    intake = _intake(model, scored=open_feeds({"x": x, "labels": labels}, model))
    outcome = within_budget(intake, model, Plan((Hurt(),)), in_context(), Budget(max_drop=0.0))
    assert outcome.failures == () and len(_changed(outcome)) == 5  # scaling alone changes no class
    wrong = _intake(model, scored=open_feeds({"x": x, "labels": (labels + 1) % 8}, model))
    negated = model.clone()
    first = negated.graph.initializers["w0"]
    first.const_value = ir.tensor(-weights[0], name="w0")
    assert within_budget(intake, negated, Plan(()), in_context(), Budget(max_drop=99.0)).failures == (
        "top-1 drops 100.00 points, more than the 99 allowed",
    )
    assert within_budget(wrong, negated, Plan(()), in_context(), Budget(max_drop=0.0)).failures == ()


def test_a_budget_needs_data(model: ir.Model, in_context: InContext) -> None:
    nothing = Intake(model, None, None, None, ())
    with pytest.raises(InputError, match="an accuracy budget needs data to measure on; give --eval or --data"):
        within_budget(nothing, model, Plan((Hurt(),)), in_context(), Budget(min_sqnr=15.0))
    assert _changed(within_budget(nothing, model, Plan((Hurt(),)), in_context(), Budget())) == list(HURT)


def test_defaults_never_write_garbage(model: ir.Model, in_context: InContext) -> None:
    """Without a budget, what the user did not ask for by amount is given back until the outputs resemble."""
    plan = Plan((Hurt(wanted=False),))
    outcome = within_budget(_intake(model), model, plan, in_context(), Budget())
    assert _given_back(outcome) == _given("conv[1]") and outcome.failures == ()
    made_up = within_budget(_intake(model, data=False), model, plan, in_context(), Budget())
    assert _given_back(made_up) == _given("conv[1]")
    for intake, steps in ((Intake(model, None, None, None, ()), plan), (_intake(model), Plan((Hurt(),)))):
        assert _changed(within_budget(intake, model, steps, in_context(), Budget())) == list(HURT)


def test_a_replay_gives_nothing_more_back(model: ir.Model, in_context: InContext) -> None:
    plan = Plan((Hurt(wanted=False),), replay=({"conv[1]": {}},))
    assert _changed(within_budget(_intake(model), model, plan, in_context(), Budget())) == list(HURT)


def test_only_the_pass_at_fault_gives_back(model: ir.Model, in_context: InContext) -> None:
    plan = Plan((Hurt(scale=0.0), Hurt()))
    outcome = within_budget(_intake(model), model, plan, in_context(), Budget(min_sqnr=15.0))
    assert _given_back(outcome) == _given("conv[1]", position=1)
    assert [len(step.report.changes) for step in outcome.steps] == [5, 4]


def test_passes_know_that_errors_decide(model: ir.Model, in_context: InContext) -> None:
    told: list[bool] = []

    class Listening(Hurt):
        def run(self, model: ir.Model, context: Context) -> PassReport:
            told.append(context.budgeted)
            return super().run(model, context)

    within_budget(_intake(model), model, Plan((Listening(),)), in_context(), Budget(min_sqnr=15.0))
    assert told[0] and all(told)
    told.clear()
    within_budget(_intake(model), model, Plan((Listening(),)), in_context(), Budget())
    assert told == [False]


@dataclass(frozen=True)
class Dialled(Hurt):
    """A pass that hurts less, or more, where it is told to."""

    name: ClassVar[str] = "dialled"
    turns: ClassVar[list[float]] = []
    wanted: bool = False
    most: float = 1.0

    def eased(self, amount: float) -> Pass | None:
        return replace(self, scale=min(self.scale * amount, self.most)) if self.most else None

    def run(self, model: ir.Model, context: Context) -> PassReport:
        self.turns.append(self.scale)
        return super().run(model, context)


@pytest.fixture
def turns() -> list[float]:
    """The scales with which a dialled pass ran."""
    Dialled.turns.clear()
    return Dialled.turns


def test_a_dial_comes_before_giving_back(model: ir.Model, in_context: InContext, turns: list[float]) -> None:
    plan = Plan((Dialled(),))
    outcome = within_budget(_intake(model), model, plan, in_context(), Budget(min_sqnr=15.0))
    assert outcome.failures == () and outcome.reliefs == () and _changed(outcome) == list(HURT)
    assert turns[0] == 1.0 and min(turns) < 0.5 and len(turns) <= 6
    assert outcome.steps[0].spec.startswith("dialled(scale=0.")


def test_a_dial_is_turned_up_where_there_is_room(model: ir.Model, in_context: InContext, turns: list[float]) -> None:
    gentle = Dialled(scale=0.05)
    free = within_budget(_intake(model), model, Plan((gentle,)), in_context(), Budget(min_sqnr=15.0))
    assert max(turns) > 0.2 and free.failures == ()
    assert min(evaluate(free.model, _feeds(model), model).sqnr.values()) < 22
    turns.clear()
    asked = replace(gentle, wanted=True)  # an amount that the user named
    within_budget(_intake(model), model, Plan((asked,)), in_context(), Budget(min_sqnr=15.0))
    assert turns == [0.05]


def test_where_the_dial_is_not_enough_sites_are_given_back(
    model: ir.Model, in_context: InContext, turns: list[float]
) -> None:
    outcome = within_budget(_intake(model), model, Plan((Dialled(),)), in_context(), Budget(min_sqnr=150.0))
    assert outcome.failures == () and outcome.reliefs
    assert len(set(turns)) == 6  # turned five times, then given back at the least amount
    assert turns[6:] and set(turns[6:]) == {min(turns)}


def test_a_dial_stays_where_there_is_no_budget_or_a_replay(
    model: ir.Model, in_context: InContext, turns: list[float]
) -> None:
    within_budget(_intake(model), model, Plan((Dialled(scale=0.2),)), in_context(), Budget())
    replayed = Plan((Dialled(),), replay=({"conv[1]": {}},))
    within_budget(_intake(model), model, replayed, in_context(), Budget(min_sqnr=15.0))
    assert set(turns) == {0.2, 1.0}
