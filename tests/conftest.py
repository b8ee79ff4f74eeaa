"""Small models from text, run in ONNX Runtime, and the context of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx.shape_inference
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

from onnxcomp import pipeline
from onnxcomp.contract import Context
from onnxcomp.runtime.session import open_session, output_names, run
from onnxcomp.runtime.timing import Speedup, paired
from onnxcomp.targets.target import load_target

# A busy machine is no failure; where nobody watches, the examples are the same every time.
settings.register_profile(
    "onnxcomp", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("onnxcomp")

Arrays = Mapping[str, NDArray[Any]]
Parsed = Callable[..., ir.Model]
OutputsOf = Callable[[ir.Model, Arrays], dict[str, NDArray[Any]]]
InContext = Callable[..., Context]
Planted = Callable[..., NDArray[np.float32]]


class Machine:
    """What makes timings of real machines unreliable, simulated. Its clock moves on when a model is opened or runs.

    Jitter is log-normal, 5 %; one run in twenty takes twice as long; the frequency falls by a fifth and recovers every
    few seconds; the whole drifts by 10 % over minutes; and a session is faster or slower by up to `bias` for as long as
    it lives.
    """

    def __init__(self, seed: int, *, bias: float = 0.02, opening: float = 0.1) -> None:
        self.rng = np.random.default_rng(seed)
        self.now = 0.0
        self.opened: list[str] = []
        self.turns: list[str] = []
        self._bias, self._opening = bias, opening
        self._fast, self._until = True, 0.0
        self._phase = self.rng.uniform(0, 2 * np.pi)

    def clock(self) -> float:
        """Seconds since the machine was switched on."""
        return self.now

    def opener(self, seconds: float, name: str = "") -> Callable[[], Callable[[], None]]:
        """What opens a session of a model whose run takes so long when nothing disturbs it."""

        def open_session() -> Callable[[], None]:
            self.now += self._opening
            self.opened.append(name)
            own = seconds * (1 + self.rng.uniform(-self._bias, self._bias))

            def call() -> None:
                self.turns.append(name)
                self.now += own * self.disturbance()

            return call

        return open_session

    def disturbance(self) -> float:
        """How much longer than undisturbed a run that begins now takes."""
        while self.now >= self._until:
            self._fast = not self._fast
            self._until = max(self._until, self.now) + self.rng.exponential(1.5)
        steady = (1.0 if self._fast else 1.25) * (1 + 0.05 * np.sin(self._phase + self.now / 20))
        spike = 2.0 if self.rng.random() < 0.05 else 1.0
        return float(steady * spike * np.exp(self.rng.normal(0, 0.05)))


@pytest.fixture(scope="session")
def machine() -> type[Machine]:
    """A simulated machine, for timings without waiting: ``machine(seed)``."""
    return Machine


@pytest.fixture(scope="session")
def parsed() -> Parsed:
    """A valid model from the text of its graph, with shapes inferred; keyword arguments become initializers."""

    def make(graph: str, *, opset: int = 17, **arrays: NDArray[Any]) -> ir.Model:
        proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]>\n{graph}')
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in arrays.items())
        onnx.checker.check_model(proto, full_check=True)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto))

    return make


@pytest.fixture(scope="session")
def outputs_of() -> OutputsOf:
    """Check a model and run it on one feed, without the runtime's own rewrites."""

    def go(model: ir.Model, feed: Arrays) -> dict[str, NDArray[Any]]:
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        session = open_session(model, optimize="off")
        return dict(zip(output_names(session), run(session, feed), strict=True))

    return go


@pytest.fixture
def in_context(tmp_path: Path) -> InContext:
    """A context for ONNX Runtime on this kind of machine that decides by bytes, so that nothing is timed."""

    def make(**fields: Any) -> Context:
        given: dict[str, Any] = {"target": load_target("ort-x86"), "workdir": tmp_path, "objective": "size"}
        return Context(**(given | fields))

    return make


@pytest.fixture
def brief_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are timed for a second at most: a busy machine would have all of the seconds that a run may take."""

    def brief(*models: Any, **options: Any) -> Speedup:
        return paired(*models, **{**options, "rounds": 24, "budget_s": 1.0})

    monkeypatch.setattr(pipeline, "paired", brief)


@pytest.fixture(scope="session")
def planted() -> Planted:
    """A float32 weight (groups * Co, Ci, *kernel) whose groups have exactly these Tucker ranks; full where None."""

    def make(
        shape: tuple[int, ...], rank_in: int | None, rank_out: int | None, *, groups: int = 1, seed: int = 0
    ) -> NDArray[np.float32]:
        rng = np.random.default_rng(seed)
        weights: list[NDArray[np.float64]] = []
        for _ in range(groups):
            first = rng.standard_normal((rank_in, shape[1])) if rank_in else np.eye(shape[1])
            last = rng.standard_normal((shape[0], rank_out)) if rank_out else np.eye(shape[0])
            core = rng.standard_normal((last.shape[1], first.shape[0], *shape[2:]))
            weights.append(np.einsum("oa,ab...,bi->oi...", last, core, first))
        joined = np.concatenate(weights)
        return np.asarray(joined / (joined.std() * np.sqrt(np.prod(shape[1:]))), np.float32)

    return make


STACK = """g (float[N,16,8,8] x) => (float[N,10] y) {
  [a] a1 = Conv<pads=[1,1,1,1]>(x, wa, ba) [act_a] a2 = Relu(a1)
  [b] b1 = Conv<pads=[1,1,1,1], strides=[2,2]>(a2, wb, bb) [act_b] b2 = Relu(b1)
  [c] c1 = Conv<pads=[1,1,1,1]>(b2, wc) [act_c] c2 = Relu(c1)
  [pool] p = GlobalAveragePool(c2) [flat] f = Flatten(p) [head] y = Gemm<transB=1>(f, wh, bh) }"""


@pytest.fixture(scope="session")
def fading() -> Planted:
    """A float32 weight (Co, Ci, *kernel) whose spectra fall on both sides, as those of trained layers do."""

    def make(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
        rng = np.random.default_rng(seed)
        outs, ins = (rng.standard_normal((n, n)) * np.exp(-np.arange(n) / 4) for n in shape[:2])
        weight = np.einsum("oa,ab...,ib->oi...", outs, rng.standard_normal(shape), ins)
        return np.asarray(weight / weight.std() * np.sqrt(2 / np.prod(shape[1:])), np.float32)

    return make


@pytest.fixture
def stack(parsed: Parsed, fading: Planted) -> ir.Model:
    """A classifier of three convolutions, ``a``, ``b`` and ``c``, and a Gemm, ``head``."""
    shapes = {"wa": (24, 16, 3, 3), "wb": (32, 24, 3, 3), "wc": (32, 32, 3, 3), "wh": (10, 32)}
    arrays = {name: fading(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    biases = {name: np.full(count, 0.1, np.float32) for name, count in (("ba", 24), ("bb", 32), ("bh", 10))}
    return parsed(STACK, **arrays, **biases)


@pytest.fixture(scope="session")
def samples() -> Arrays:
    """Inputs for ``stack``."""
    return {"x": np.random.default_rng(9).standard_normal((64, 16, 8, 8)).astype(np.float32)}
