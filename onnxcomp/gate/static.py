"""What a file weighs and what a model counts, without running it."""

from __future__ import annotations

from collections.abc import Iterator

from onnxcomp.cost import Cost
from onnxcomp.gate.limits import Limits, in_words
from onnxcomp.gate.line import Line, Outcome, skipped
from onnxcomp.report.text import count, size

__all__ = ["cost_lines", "size_line"]


def size_line(own: int, limit: float, base: int | None) -> Line:
    """Judge the bytes of the file and its external data; `base` are those of the base, if there is one."""
    told = [f"{own:,} bytes to {limit:,.0f}"] if own > limit else []
    told += [f"the base takes {size(base)}"] if base is not None else []
    why = "; ".join(told)
    figures = {"limit": limit, "value": float(own)}
    return Line("max_size", in_words("max_size", limit), size(own), _verdict(own, limit), why, (), figures)


def cost_lines(own: Cost, ran: bool, limits: Limits) -> Iterator[Line]:
    """Judge parameters and multiply-accumulates; `ran`: these are known from the shapes of a run."""
    if limits.max_params is not None:
        yield _counted("max_params", own.parameters, limits.max_params)
    if limits.max_macs is not None:
        if own.macs is None:
            why = "the shape of a layer is not known; where an input's is free, give it with --shapes"
            yield skipped("max_macs", in_words("max_macs", limits.max_macs), why)
        else:
            yield _counted(
                "max_macs", own.macs, limits.max_macs, "shapes are those of a run on one sample" if ran else ""
            )


def _counted(name: str, own: int, limit: float, how: str = "") -> Line:
    figures = {"limit": limit, "value": float(own)}
    why = "; ".join(part for part in (f"{own:,} to {limit:,.0f}" if own > limit else "", how) if part)
    return Line(name, in_words(name, limit), count(own), _verdict(own, limit), why, (), figures)


def _verdict(own: float, limit: float) -> Outcome:
    return "pass" if own <= limit else "fail"
