"""The compiler's choice: by time, bytes or MACs, with the later passes in mind; what is declined changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.calibration.gram import PatchGram
from onnxcomp.choose import PAYS, overridden
from onnxcomp.contract import Candidate, Context, Override, Pass, PassReport, SitePass, Skip
from onnxcomp.graph.edit import ORIGIN, PASS, Link
from onnxcomp.graph.sites import Site, conv_sites
from onnxcomp.options import replace_options
from onnxcomp.passes.tucker2 import Tucker2
from onnxcomp.targets.target import load_target

Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]
TEXT = """g (float[N,4,8,8] x) => (float[N,4,8,8] y) {
  [one] a = Conv<pads=[1,1,1,1]>(x, w) [act] r = Relu(a) [two] y = Conv<pads=[1,1,1,1]>(r, v) }"""


def _ones(*shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    return np.ones(shape, dtype)


# Against 144 weights that meet 64 positions each: fewer bytes and more MACs, the other way round, two thirds of both.
CHAINS: dict[str, tuple[Link, ...]] = {
    "bytes": (
        Link("shrink", "Conv", (_ones(1, 4, 1, 1),)),
        Link("wide", "Conv", (_ones(4, 1, 5, 5),), {"pads": (2, 2, 2, 2)}),
    ),
    "macs": (
        Link("pool", "Conv", (_ones(4, 4, 2, 2),), {"strides": (8, 8)}),
        Link("scale", "Mul", (_ones(1, 4, 8, 8),)),
    ),
    "time": (
        Link("plain", "Conv", (_ones(4, 4, 3, 1),), {"pads": (1, 0, 1, 0)}),
        Link("again", "Conv", (_ones(4, 4, 1, 3),), {"pads": (0, 1, 0, 1)}),
    ),
}


@dataclass(frozen=True)
class Proposer(SitePass):
    """Proposes fixed chains."""

    name: ClassVar[str] = "proposer"
    forms: str = "bytes-macs-time"

    def refuse(self, site: Site) -> str | None:
        return "not today" if self.forms == "none" else None

    def propose(self, site: Site, gram: PatchGram | None, context: Context) -> Sequence[Candidate] | Skip:
        assert gram is None
        if self.forms == "nothing":
            return Skip(site.name, "nothing comes to mind")
        return [Candidate(f, CHAINS[f], {"forms": f}, 0.25) for f in self.forms.split("-")]


@dataclass(frozen=True)
class Follower(Pass):
    """Leaves a mark on what it rehearses."""

    name: ClassVar[str] = "follower"

    def run(self, model: ir.Model, context: Context) -> PassReport:
        return PassReport()

    def rehearse(self, model: ir.Model, context: Context) -> ir.Model:
        copy = model.clone()
        copy.metadata_props["followed"] = "yes"
        return copy


@pytest.fixture
def model(parsed: Parsed) -> ir.Model:
    """Two equal sites."""
    return parsed(TEXT, w=_ones(4, 4, 3, 3), v=_ones(4, 4, 3, 3))


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Site]]:
    """Replace the timing of chains: these speed-ups, in the order of the candidates."""

    def install(*values: float | None) -> list[Site]:
        timed: list[Site] = []

        def fake(site: Site, chains: Sequence[object], opset: int, context: Context) -> list[float] | None:
            timed.append(site)
            return None if None in values else [v for v in values if v is not None][: len(chains)]

        monkeypatch.setattr("onnxcomp.choose.chain_speedups", fake)
        return timed

    return install


def _bytes(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("objective", "values", "chosen"),
    [
        ("size", (9.0, 1.2, 9.0), "time"),
        ("macs", (9.0, 1.2, 9.0), "macs"),
        ("latency", (9.0, 1.2, 9.5), "time"),
        ("latency", (1.2, 1.3, 1.25), "macs"),
        ("latency", (None,), "macs"),
    ],
)
def test_the_objective_decides(
    model: ir.Model,
    in_context: InContext,
    speeds: Callable[..., list[Site]],
    objective: str,
    values: tuple[float | None, ...],
    chosen: str,
) -> None:
    timed = speeds(*values)
    report = Proposer().run(model, in_context(objective=objective))
    assert [c.summary for c in report.changes] == [chosen] * 2 and report.skips == ()
    measured = max((v for v in values if v is not None), default=None) if objective == "latency" else None
    assert [c.speedup for c in report.changes] == [measured] * 2
    assert [s.name for s in timed] == (["one", "two"] if objective == "latency" else [])
    change = report.changes[0]
    assert (change.error, change.choice, change.before.parameters) == (0.25, {"forms": chosen}, 144)


def test_size_counts_bytes(model: ir.Model, in_context: InContext) -> None:
    report = Proposer(forms="bytes-macs").run(model, in_context(objective="size"))
    assert [(c.summary, c.after.bytes) for c in report.changes] == [("bytes", 416)] * 2


@pytest.mark.parametrize(
    ("objective", "forms", "values", "reason"),
    [
        ("latency", "bytes", (PAYS - 0.01,), "does not pay: bytes runs at 1.10x of the original's speed"),
        ("latency", "bytes-time", (0.4, 0.7), "does not pay: time runs at 0.70x of the original's speed"),
        ("size", "macs", (), "no gain: 576 -> 1,280 bytes"),
        ("macs", "none", (), "not today"),
        ("size", "nothing", (), "nothing comes to mind"),
    ],
)
def test_what_is_declined_changes_no_byte(
    model: ir.Model,
    in_context: InContext,
    speeds: Callable[..., list[Site]],
    objective: str,
    forms: str,
    values: tuple[float, ...],
    reason: str,
) -> None:
    speeds(*values)
    before = _bytes(model)
    report = Proposer(forms=forms).run(model, in_context(objective=objective))
    assert report == PassReport((), (Skip("one", reason), Skip("two", reason)))
    assert _bytes(model) == before


def test_no_gain_in_macs(parsed: Parsed, in_context: InContext) -> None:
    model = parsed(
        "g (float[N,4,8,8] x) => (float[N,4,a,b] y) { [one] y = Conv<strides=[8,8]>(x, w) }", w=_ones(4, 4, 3, 3)
    )
    report = Proposer(forms="bytes").run(model, in_context(objective="macs"))
    assert report.skips == (Skip("one", "no gain: 144 -> 6,656 MACs"),)


def test_a_foreign_target_is_never_timed(
    model: ir.Model, in_context: InContext, speeds: Callable[..., list[Site]]
) -> None:
    timed = speeds(0.1, 0.1, 0.1)
    report = Proposer().run(model, in_context(objective="latency", target=load_target("tensorrt")))
    assert [c.summary for c in report.changes] == ["macs"] * 2 and timed == []


def test_a_replay_takes_what_was_chosen(
    model: ir.Model, in_context: InContext, speeds: Callable[..., list[Site]]
) -> None:
    timed = speeds(0.1, 0.1, 0.1)
    context = in_context(objective="latency", replay={"two": {"forms": "bytes"}})
    report = Proposer().run(model, context)
    assert [(c.site, c.summary, c.speedup) for c in report.changes] == [("two", "bytes", None)] and timed == []
    assert report.skips == (Skip("one", "not rewritten in the replayed run"),)


def test_nobody_touches_what_is_excluded_or_given_back(model: ir.Model, in_context: InContext) -> None:
    report = Proposer().run(model, in_context(exclude=("o*",), given_back=frozenset({"two"})))
    assert report.changes == ()
    assert report.skips == (
        Skip("one", "excluded by the user"),
        Skip("two", "given back to hold the accuracy budget"),
    )


def test_what_was_made_is_known_to_be(model: ir.Model, in_context: InContext) -> None:
    Proposer(forms="time").run(model, in_context())
    made = [(n.metadata_props.get(ORIGIN), n.metadata_props.get(PASS)) for n in model.graph]
    assert made == [("one", "proposer")] * 2 + [(None, None)] + [("two", "proposer")] * 2
    assert [o.shape is not None for n in model.graph for o in n.outputs] == [True] * 5


def test_the_most_specific_override_wins(model: ir.Model) -> None:
    site = next(s for s in conv_sites(model) if isinstance(s, Site))
    base = Proposer()

    def form(*overrides: Override) -> str | None:
        found = overridden(base, site, overrides)
        return None if found is None else str(replace_options(found, {})).split("'")[1]

    kind, glob, exact = (Override(m, {"forms": f}) for m, f in (("Conv", "bytes"), ("o*", "macs"), ("one", "time")))
    assert form() == "bytes-macs-time" and form(Override("two", None)) == "bytes-macs-time"
    assert form(kind) == "bytes" and form(kind, glob) == form(glob, kind) == "macs"
    assert form(kind, glob, exact) == "time"  # among globs the last one written
    assert form(glob, Override("Conv", None)) == "macs"
    assert form(kind, Override("one", None)) is None and form(Override("Conv", None)) is None


def test_candidates_are_timed_as_later_passes_leave_them(
    planted: Callable[..., NDArray[np.float32]], parsed: Parsed, in_context: InContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain that is fast alone and slow once the next pass has been over it does not pay."""
    text = "g (float[N,32,8,8] x) => (float[N,32,8,8] y) { [one] y = Conv<pads=[1,1,1,1]>(x, w) }"
    seen: list[bool] = []
    rounds: list[list[bool]] = []

    class Session:
        """What notes, instead of running, whether its model is one that the next pass has been over."""

        def __init__(self, model: ir.Model, **options: object) -> None:
            self.followed = "followed" in model.metadata_props

        def run(self, *arguments: object) -> None:
            seen.append(self.followed)

    def interleaved(calls: Sequence[Callable[[], None]], *arguments: object) -> list[NDArray[np.float64]]:
        seen.clear()
        for call in calls:
            call()
        rounds.append([*seen])
        return [np.full(30, 1.0), *(np.full(30, 2.0 if followed else 1 / 3) for followed in seen[1:])]

    def checked(session: object, feed: object) -> None:
        del session, feed

    monkeypatch.setattr("onnxcomp.runtime.sitebench.open_session", Session)
    monkeypatch.setattr("onnxcomp.runtime.sitebench.run", checked)
    monkeypatch.setattr("onnxcomp.runtime.sitebench.interleaved", interleaved)
    model = parsed(text, w=planted((32, 32, 3, 3), 8, 8))
    alone = Tucker2(ranks="8x8").run(model.clone(), in_context(objective="latency"))
    assert [c.speedup for c in alone.changes] == [pytest.approx(3.0)]
    before = _bytes(model)
    followed = Tucker2(ranks="8x8").run(model, in_context(objective="latency", followers=(Follower(),)))
    reason = "does not pay: 1x1 32>8, 3x3 8>8, 1x1 8>32 runs at 0.50x of the original's speed"
    assert followed.skips == (Skip("one", reason),) and _bytes(model) == before
    assert rounds == [[False, False], [True, True]]
