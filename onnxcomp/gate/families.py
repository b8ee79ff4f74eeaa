"""What each family of limits has to look at: the examination goes in, lines come out."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from onnxcomp import modelio
from onnxcomp.errors import OnnxcompError
from onnxcomp.gate import contract, fusion, layers, memory, metadata, operators, quality, speed, static
from onnxcomp.gate.costing import cost_of
from onnxcomp.gate.examination import Examination, Specimen, Unfit
from onnxcomp.gate.layers import LayerTimes
from onnxcomp.gate.limits import Limits, in_words
from onnxcomp.gate.line import Line, listed, skipped
from onnxcomp.options import did_you_mean
from onnxcomp.runtime.latency import Latency, PairedSpeed, latency_of, paired_speed

__all__ = ["FAMILIES", "Family", "warnings"]

_QUALITY = (*quality.LABELLED, "min_agreement", "min_sqnr")


@dataclass(frozen=True)
class Family:
    """Limits that are looked at together.

    Attributes:
        stage: What is done, for a progress bar.
        names: The limits.
        lines: Yields their lines.
    """

    stage: str
    names: tuple[str, ...]
    lines: Callable[[Examination, Limits], Iterator[Line]]

    def concerns(self, exam: Examination, limits: Limits) -> bool:
        """Whether any of the limits is asked for."""
        asked = limits.asked()
        return any(name in asked for name in self.names) or ("contract" in self.names and exam.base is not None)

    def judge(self, exam: Examination, limits: Limits) -> list[Line]:
        """Return the lines."""
        return list(self.lines(exam, limits))


def warnings(exam: Examination, limits: Limits) -> tuple[str, ...]:
    """Say which globs of layers match nothing, that data were given for no limit, and what looks like a mistake."""
    names = {*exam.own.origins, *exam.own.origins.values()}
    idle = [glob for glob in limits.allow_float if not any(fnmatchcase(name, glob) for name in names)]
    found = [f"--allow-float {glob!r} matches no layer{did_you_mean(glob, names)}" for glob in idle]
    if exam.given.eval is not None and not any(name in limits.asked() for name in _QUALITY):
        found.append(f"no limit looks at what --eval gives: ask for one of {', '.join(_QUALITY)}")
    found += [
        f"{name} is in percent: {value:g} means {value:g} %, {100 * value:g} would be {100 * value:g} %"
        for name in ("min_accuracy", "min_agreement")
        if (value := getattr(limits, name)) is not None and 0 < value <= 1
    ]
    return tuple(found)


def _static(exam: Examination, limits: Limits) -> Iterator[Line]:
    if limits.max_size is not None:
        yield static.size_line(exam.own.bytes, limits.max_size, None if exam.base is None else exam.base.bytes)
    if limits.max_params is not None or limits.max_macs is not None:
        yield from static.cost_lines(*cost_of(exam.own.model, lambda: exam.feed), limits)


def _contract(exam: Examination, limits: Limits) -> Iterator[Line]:
    if exam.base is not None:
        yield contract.contract_line(exam.base.signature, exam.own.signature)
    if limits.inputs:
        yield contract.ports_line("inputs", limits.inputs, exam.own.signature.inputs)
    if limits.outputs:
        yield contract.ports_line("outputs", limits.outputs, exam.own.signature.outputs)


def _operators(exam: Examination, limits: Limits) -> Iterator[Line]:
    yield from operators.operator_lines(exam.own.model, limits.allow_ops, limits.deny_ops)
    if limits.min_opset is not None or limits.max_opset is not None:
        yield operators.opset_line(exam.own.model, limits.min_opset, limits.max_opset)


def _metadata(exam: Examination, limits: Limits) -> Iterator[Line]:
    held = exam.own.model.metadata_props
    yield from (metadata.metadata_line(key, glob, held) for key, glob in limits.metadata.items())


def _fusion(exam: Examination, limits: Limits) -> Iterator[Line]:
    try:
        exam.runnable()
    except Unfit as unfit:
        yield skipped("fusion", "no layer in float", str(unfit))
        return
    fates = (*(exam.fates or ()), *fusion.float_only(exam.own.model))
    yield fusion.fusion_line(fates, exam.own.origins, limits.allow_float)


def _quality(exam: Examination, limits: Limits) -> Iterator[Line]:
    """One pass over the data for all; where the base cannot go along, the limits that need none are judged alone."""
    asked = [name for name in _QUALITY if getattr(limits, name) is not None]
    paired = [name for name in asked if name in quality.PAIRED]
    labelled = any(name in quality.LABELLED for name in asked)
    try:
        yield from quality.quality_lines(exam.quality(paired=bool(paired), labelled=labelled), limits)
        return
    except Unfit as unfit:
        why = str(unfit)
    alone = [name for name in asked if name not in paired]
    yield from (skipped(name, in_words(name, getattr(limits, name)), why) for name in paired)
    if not paired:
        yield from (skipped(name, in_words(name, getattr(limits, name)), why) for name in alone)
    elif alone:
        yield from _quality(exam, dataclasses.replace(limits, max_drop=None, min_agreement=None, min_sqnr=None))


def _memory(exam: Examination, limits: Limits) -> Iterator[Line]:
    assert limits.max_memory is not None
    base = exam.base
    try:
        exam.runnable()
        measure = _growth(exam, exam.own)
        same = base is not None and base.signature.inputs == exam.own.signature.inputs
        beside = _growth(exam, base) if base is not None and same else None
        yield memory.memory_line(measure, limits.max_memory, beside)
    except Unfit as unfit:
        yield skipped("max_memory", in_words("max_memory", limits.max_memory), str(unfit))


def _growth(exam: Examination, specimen: Specimen) -> Callable[[], int]:
    def measure() -> int:
        if specimen.path is not None:
            return memory.peak_growth(specimen.path, exam.feed, threads=exam.given.threads)
        with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
            path = Path(folder) / "model.onnx"
            modelio.save(specimen.model, path)
            return memory.peak_growth(path, exam.feed, threads=exam.given.threads)

    return measure


def _latency(exam: Examination, limits: Limits) -> Iterator[Line]:
    lines: tuple[tuple[str, Callable[[Callable[[int], Latency], float], tuple[Line, Latency]]], ...] = (
        ("max_latency", speed.latency_line),
        ("max_latency_p99", speed.tail_line),
    )
    found: Latency | None = None
    for name, judge in lines:
        limit = getattr(limits, name)
        if limit is None:
            continue
        earlier = found

        def measure(attempt: int, limit: float = limit, earlier: Latency | None = earlier) -> Latency:
            if attempt == 0 and earlier is not None:
                return earlier
            opener, seed = exam.opener(exam.own), exam.given.seed + attempt
            return latency_of(opener, against=limit, sessions=speed.sessions(attempt), seed=seed)

        try:
            exam.runnable()
            line, found = judge(measure, limit)
            yield line
        except Unfit as unfit:
            yield skipped(name, in_words(name, limit), str(unfit))


def _speedup(exam: Examination, limits: Limits) -> Iterator[Line]:
    """The whole model and its layers, which explain each other."""
    times: LayerTimes | None = None
    if limits.max_layer_slowdown is not None:
        try:
            line, times = layers.layers_line(lambda attempt: _layer_times(exam, attempt), limits.max_layer_slowdown)
            yield line
        except Unfit as unfit:
            name = "max_layer_slowdown"
            yield skipped(name, in_words(name, limits.max_layer_slowdown), str(unfit))
    if limits.min_speedup is None:
        return
    limit = limits.min_speedup
    try:
        base = exam.paired()

        def measure(attempt: int) -> PairedSpeed:
            openers = exam.opener(base), exam.opener(exam.own)
            seed = exam.given.seed + attempt
            number, swapped = speed.sessions(attempt), bool(attempt % 2)
            return paired_speed(*openers, against=limit, sessions=number, swapped=swapped, seed=seed)

        line, _ = speed.speedup_line(measure, limit)
        if not line.passed:
            with suppress(Unfit, OnnxcompError):  # what was measured stays true where it cannot be explained
                line = _explained(line, times or _layer_times(exam, 0))
        yield line
    except Unfit as unfit:
        yield skipped("min_speedup", in_words("min_speedup", limit), str(unfit))


def _layer_times(exam: Examination, attempt: int) -> LayerTimes:
    from onnxcomp.gate.pairing import layer_times  # what profiles takes a tenth of a second to import

    return layer_times(exam, attempt)


def _explained(line: Line, times: LayerTimes) -> Line:
    """Name the layers that slowed most."""
    slow: Sequence[layers.SlowLayer] = layers.slowed_most(times)
    if not slow:
        return line
    shown = listed([f"{one.name} ({one.base_ms:.3g} -> {one.other_ms:.3g} ms)" for one in slow])
    return dataclasses.replace(line, why=f"{line.why}; slowed most: {shown}", where=tuple(one.name for one in slow))


# What is told apart by machine time goes last: what is quick has then been said already where a run is broken off.
FAMILIES: tuple[Family, ...] = (
    Family("contract", ("contract", "inputs", "outputs"), _contract),
    Family("operators", ("allow_ops", "deny_ops", "min_opset", "max_opset"), _operators),
    Family("metadata", ("metadata",), _metadata),
    Family("size", ("max_size", "max_params", "max_macs"), _static),
    Family("fusion", ("require_fused", "allow_float"), _fusion),
    Family("evaluate", _QUALITY, _quality),
    Family("memory", ("max_memory",), _memory),
    Family("latency", ("max_latency", "max_latency_p99"), _latency),
    Family("speed-up", ("min_speedup", "max_layer_slowdown"), _speedup),
)
