"""``onnxcomp profile``: one document of a profile or of two, and what a person reads of it.

The document, ``onnxcomp.profile/1``, is described by its JSON Schema (:mod:`onnxcomp.report.schemas`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from onnxcomp.report.figures import Bars
from onnxcomp.report.schema import plain
from onnxcomp.report.table import Table
from onnxcomp.report.text import count
from onnxcomp.report.view import View

if TYPE_CHECKING:
    from onnxcomp.runtime.pairprofile import LayerPair, PairProfile
    from onnxcomp.runtime.profiling import Profile

__all__ = ["profile_document", "profile_view"]

Document = dict[str, Any]

_DRAWN = 40  # bars that can be told apart
_FEW = 3
_CHANGE = 3  # the column that says by how much a layer changed
_RUNTIME = "(outside of the layers)"
_MANY = 10  # runs a second that are worth a word
_TRUSTED = 0.1  # by which the profile may part from the clock


def profile_document(
    found: Profile | PairProfile,
    *,
    model: str,
    against: str | None = None,
    data: str,
    synthetic: bool,
    inputs: Mapping[str, Sequence[int]],
    seed: int,
) -> Document:
    """Return a profile, or two of them, as plain data that ``json.dumps(..., allow_nan=False)`` accepts.

    Args:
        found: What was measured.
        model: What the model is called.
        against: What the base is called, where there is one.
        data: Where the inputs are from, in words.
        synthetic: Whether they are made up.
        inputs: Shapes of the inputs that were fed, by name.
        seed: Seed of made-up inputs and of the bootstrap.
    """
    from onnxcomp.runtime.pairprofile import PairProfile

    pair = found if isinstance(found, PairProfile) else None
    own = found.other if isinstance(found, PairProfile) else found
    document: Document = {
        "schema": "onnxcomp.profile/1",
        "version": version("onnxcomp"),
        "headline": "",
        "model": model,
        "against": against,
        "data": data,
        "synthetic": synthetic,
        "inputs": {name: list(shape) for name, shape in inputs.items()},
        "seed": seed,
        "settings": {**plain(own.settings), "entries": dict(own.settings.entries)},
        "machine": plain(own.machine),
        "warmup": own.warmup,
        "profile": _profile(own),
        "base": None if pair is None else _profile(pair.base),
        "comparison": None if pair is None else _comparison(pair),
        "warnings": [],
    }
    document["warnings"] = list(_warnings(document))
    document["headline"] = _headline(document)
    return document


def profile_view(document: Document, *, full: bool, top: int | None = None) -> View:
    """Lay out a profile.

    Args:
        document: What `profile_document` returns.
        full: Whether figures and single kernels are there, as in a file.
        top: Number of layers that are listed; None: all.
    """
    compared = document["comparison"] is not None
    tables = [_layer_pairs(document, full, top) if compared else _layers(document["profile"], full, top)]
    if full:
        tables.append(_kernels(document["profile"], "Kernels"))
        tables += [_kernels(document["base"], "Kernels of the base")] if compared else []
    return View(
        document["headline"],
        (),
        tuple(document["warnings"]),
        tuple(tables),
        tuple(_notes(document)),
        title=f"onnxcomp profile: {document['model']}",
        facts=tuple((what, document[what]) for what in ("model", "against") if document[what]) if full else (),
    )


def _profile(profile: Profile) -> Document:
    found: Document = plain(profile)
    for shared in ("settings", "machine", "warmup"):
        del found[shared]
    return found


def _comparison(pair: PairProfile) -> Document:
    return {"verdict": pair.verdict, "speed": plain(pair.speed), "layers": [_layer_pair(p) for p in pair.layers]}


def _layer_pair(pair: LayerPair) -> Document:
    speedup = pair.speedup
    return {
        "layer": pair.layer,
        "origins": list(pair.origins),
        "base_kernels": list(pair.base_kernels),
        "other_kernels": list(pair.other_kernels),
        "passes": list(pair.passes),
        "base_ms": pair.base_ms,
        "other_ms": pair.other_ms,
        "change_ms": pair.change_ms,
        "speedup": None if speedup is None else {"ratio": speedup.median, "low": speedup.low, "high": speedup.high},
    }


def _headline(document: Document) -> str:
    comparison = document["comparison"]
    if comparison is None:
        wall = document["profile"]["wall"]
        p50, p90, p99 = (_exact(wall[key]) for key in ("p50", "p90", "p99"))
        each = f"{p50} a run (90 % of them under {p90}, 99 % under {p99})"
        runs = 1e3 / wall["p50"]
        return f"{each}: {runs:,.0f} runs a second" if runs >= _MANY else each
    speed = comparison["speed"]
    figures = f"{speed['ratio']:.2f}x ({speed['low']:.2f} to {speed['high']:.2f})"
    times = f"{_exact(speed['other_ms'])} a run against {_exact(speed['base_ms'])}"
    base = document["against"]
    if comparison["verdict"] in ("faster", "slower"):
        return f"{comparison['verdict']} than {base}: {figures}, {times}"
    if comparison["verdict"] == "same":
        within = max(speed["high"] - 1.0, 1.0 - speed["low"])
        return f"as fast as {base}, within {100 * within:.1f} %: {figures}, {times}"
    return f"no conclusion: {figures} of the speed of {base} may be faster or slower; {_remedy(document)}"


def _remedy(document: Document) -> str:
    """What makes an interval narrower."""
    threads, cores = document["settings"]["threads"], document["machine"]["cores"]
    fewer = f"; use {cores} threads at most" if threads > cores else ""
    return f"measure longer (--runs, --budget), on a quiet machine, with cores of your own (taskset){fewer}"


def _warnings(document: Document) -> Iterable[str]:
    sides = [("", document["profile"])] + ([("the base: ", document["base"])] if document["base"] else [])
    for name, profile in sides:
        agreement = profile["agreement"]
        if abs(agreement["difference"]) > _TRUSTED:
            yield (
                f"{name}the profile adds up to {_exact(agreement['profile_ms'])}, but a run takes"
                f" {_exact(agreement['wall_ms'])} without the profiler ({_signed(agreement['difference'])}): do not"
                f" trust its times; {_remedy(document)}"
            )
    machine, threads = document["machine"], document["settings"]["threads"]
    cores = machine["cores"] if machine["quota"] is None else min(machine["cores"], machine["quota"])
    if threads > cores:
        yield f"{threads} threads on {cores:g} core{'s' if cores != 1 else ''}: they wait for each other"
    if machine["load"] is not None and machine["load"] + threads > cores + 1:
        busy = f"load {machine['load']:g} on {machine['cores']} core{'s' if machine['cores'] != 1 else ''}"
        yield f"the machine was busy ({busy}): times are not those of a quiet one"


def _layers(profile: Document, full: bool, top: int | None) -> Table:
    layers = profile["layers"]
    total = profile["total_ms"]
    shown = layers if top is None else layers[:top]
    rows = [
        (
            layer["layer"],
            _ms(layer["ms"]),
            _share(layer["share"]),
            _several(layer["kernels"]),
            layer["arithmetic"],
            ", ".join(layer["passes"]),
            _names(layer["origins"][1:], full),
        )
        for layer in shown
    ]
    rest = layers[len(shown) :]
    if rest:
        ms = sum(layer["ms"] for layer in rest)
        rows.append((f"... and {len(rest)} more", _ms(ms), _share(ms / total), "", "", "", ""))
    outside = profile["outside_ms"]
    rows.append((_RUNTIME, _ms(outside), _share(outside / total), "", "", "", ""))
    rows.append(("together", _ms(total), "", "", "", "", ""))
    columns = ("layer", "time", "share", "kernels", "arithmetic", "rewritten by", "with")
    drawn = layers[:_DRAWN]
    plot = Bars(tuple(layer["layer"] for layer in drawn), (("time", tuple(layer["ms"] for layer in drawn)),), unit="ms")
    return _filled("Layers, the slowest first", columns, rows, {1, 2}, plot if full else None)


def _layer_pairs(document: Document, full: bool, top: int | None) -> Table:
    base, other = document["base"], document["profile"]
    layers = document["comparison"]["layers"]
    shown = layers if top is None else layers[:top]
    rows: list[tuple[str, ...]] = [
        (
            layer["layer"],
            _ms(layer["base_ms"]) if layer["base_kernels"] else "-",
            _ms(layer["other_ms"]) if layer["other_kernels"] else "-",
            _change(layer["change_ms"]),
            _speedup(layer["speedup"]),
            _several(layer["base_kernels"]),
            _several(layer["other_kernels"]),
            ", ".join(layer["passes"]),
            ", ".join(layer["origins"][1:]) if full else "",
        )
        for layer in shown
    ]
    rest = layers[len(shown) :]
    if rest:
        before, after = (sum(layer[key] for layer in rest) for key in ("base_ms", "other_ms"))
        rows.append((f"... and {len(rest)} more", _ms(before), _ms(after), _change(after - before), *[""] * 5))
    for name, key in ((_RUNTIME, "outside_ms"), ("together", "total_ms")):
        rows.append((name, _ms(base[key]), _ms(other[key]), _change(other[key] - base[key]), *[""] * 5))
    columns = ("layer", "before", "after", "change", "speed", "kernels before", "after", "rewritten by", "with")
    drawn = layers[:_DRAWN]
    series = tuple(
        (name, tuple(layer[key] for layer in drawn)) for name, key in (("before", "base_ms"), ("after", "other_ms"))
    )
    plot = Bars(tuple(layer["layer"] for layer in drawn), series, unit="ms")
    table = _filled("Layers, the largest change first", columns, rows, {1, 2, 3, 4}, plot if full else None)
    told = [(row, layer["speedup"]) for row, layer in enumerate(shown) if layer["speedup"] is not None]
    good = frozenset((row, _CHANGE) for row, interval in told if interval["low"] > 1.0)
    return replace(table, good=good, bad=frozenset((row, _CHANGE) for row, interval in told if interval["high"] < 1.0))


def _kernels(profile: Document, title: str) -> Table:
    rows = [
        (
            str(place + 1),
            kernel["layer"],
            kernel["kernel"],
            kernel["arithmetic"],
            _ms(kernel["ms"]),
            _share(kernel["share"]),
            _ms(kernel["p50"]),
            _ms(kernel["p90"]),
            _ms(kernel["p99"]),
            kernel["provider"].removesuffix("ExecutionProvider"),
            _names(kernel["nodes"], full=True),
        )
        for place, kernel in enumerate(profile["kernels"])
    ]
    columns = ("", "layer", "kernel", "arithmetic", "time", "share", "half", "90 %", "99 %", "runs on", "nodes")
    return Table(f"{title}, in the order in which they run", columns, tuple(rows), frozenset({0, 4, 5, 6, 7, 8}))


def _filled(
    title: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]], numbers: set[int], plot: Bars | None
) -> Table:
    """A table without the columns that nothing stands in."""
    kept = [k for k in range(len(columns)) if any(row[k] for row in rows)]
    return Table(
        title,
        tuple(columns[k] for k in kept),
        tuple(tuple(row[k] for k in kept) for row in rows),
        frozenset(place for place, k in enumerate(kept) if k in numbers),
        plot,
    )


def _notes(document: Document) -> Iterable[str]:
    own, settings, machine = document["profile"], document["settings"], document["machine"]
    made = "" if not document["synthetic"] else " (made up: give --data for real ones)"
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in document["inputs"].items())
    yield f"inputs: {shapes}{made}"
    sides = [("profile", own)] + ([("profile of the base", document["base"])] if document["base"] else [])
    for name, profile in sides:
        agreement = profile["agreement"]
        yield (
            f"{name}: adds up to {_exact(agreement['profile_ms'])}; without the profiler a run takes"
            f" {_exact(agreement['wall_ms'])} ({_signed(agreement['difference'])},"
            f" {_signed(agreement['unadjusted'])} before the profiler's cost was fitted to the model);"
            f" the profiler's own {_exact(agreement['profiler_ms'])} a run are taken out"
        )
    yield (
        f"runs: {count(own['profiled_runs'])} profiled, {count(own['runs'])} not, after {document['warmup']} to warm up"
    )
    if document["comparison"] is not None:
        speed = document["comparison"]["speed"]
        yield f"speed: {count(speed['rounds'])} pairs in {speed['sessions']} pairs of sessions, 95 % interval"
    entries = "".join(f", {key}={value}" for key, value in settings["entries"].items())
    arena = "" if settings["arena"] else ", no arena"
    threads = f"{settings['threads']} thread{'s' if settings['threads'] != 1 else ''}"
    yield f"session: {settings['provider']}, {threads}, optimization {settings['optimization']}{arena}{entries}"
    cores = f"{machine['cores']} core{'s' if machine['cores'] != 1 else ''}"
    quota = "" if machine["quota"] is None else f", limited to {machine['quota']:g}"
    governor = "" if machine["governor"] is None else f"; governor {machine['governor']}"
    load = "" if machine["load"] is None else f"; load {machine['load']:.2f}"
    yield f"machine: {machine['cpu']}, {cores}{quota}{governor}{load}; {' '.join(machine['features'])}"
    yield (
        f"software: onnxruntime {machine['onnxruntime']}, onnxcomp {machine['onnxcomp']}, Python {machine['python']},"
        f" {machine['system']}"
    )


def _several(kernels: Sequence[str]) -> str:
    """Operators, each once, with their number."""
    counts = Counter(kernels)
    return ", ".join(name if number == 1 else f"{name} x{number}" for name, number in counts.items())


def _names(names: Sequence[str], full: bool) -> str:
    if full or len(names) <= _FEW:
        return ", ".join(names)
    return f"{', '.join(names[:_FEW])} and {len(names) - _FEW} more"


def _ms(value: float) -> str:
    """Milliseconds; below one microsecond the profiler tells nothing."""
    return f"{value:.3f} ms" if value < 100 else f"{value:.0f} ms"


def _exact(value: float) -> str:
    """Milliseconds of a whole run, with three digits however short it is."""
    return f"{value:#.3g} ms" if value < 99.9 else f"{value:.0f} ms"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _change(value: float) -> str:
    return f"{value:+.3f} ms"


def _speedup(interval: Document | None) -> str:
    return "" if interval is None else f"{interval['ratio']:.2f}x ({interval['low']:.2f} to {interval['high']:.2f})"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f} %"
