"""The tables of ``onnxcomp inspect``."""

from __future__ import annotations

from collections.abc import Iterator

from onnxcomp.inspection import Inspection, Layer
from onnxcomp.proposals import Proposal
from onnxcomp.report.table import Table
from onnxcomp.report.terminal import print_table
from onnxcomp.report.text import count, printable, size

__all__ = ["print_inspection"]

Row = tuple[str, ...]


def print_inspection(inspection: Inspection, file_bytes: int) -> None:
    """Print an inspection on stdout."""
    print_table(Table("Model", ("", ""), tuple(_facts(inspection, file_bytes))))
    print()
    if not inspection.layers:
        print("The model has no layer with weights.")
    elif not inspection.proposed:
        print_table(_overview(inspection))
    else:
        print(printable(_basis(inspection)))
        print()
        print_table(_proposals(inspection))
        print()
        print_table(_totals(inspection))


def _facts(inspection: Inspection, file_bytes: int) -> Iterator[Row]:
    cost = inspection.cost
    opsets = ", ".join(f"{domain} {version}" for domain, version in inspection.opsets.items())
    yield "file size", size(file_bytes)
    yield "parameters", count(cost.parameters)
    yield "MACs", count(cost.macs)
    yield "nodes", f"{inspection.nodes} ({', '.join(f'{n} {op}' for op, n in inspection.operators.items())})"
    yield "opset", f"{opsets}; IR {inspection.ir_version}"
    yield from ((f"input {name}", text) for name, text in inspection.inputs.items())
    yield from ((f"output {name}", text) for name, text in inspection.outputs.items())
    yield from ((f"{spec} cannot run", reason) for spec, reason in inspection.refusals.items())
    if inspection.whole:
        names = ", ".join(inspection.whole)
        yield names, f"{'works' if len(inspection.whole) == 1 else 'work'} on the whole model; only a run tells more"


def _overview(inspection: Inspection) -> Table:
    """One row a layer, and the passes that may be tried on it."""
    rows = [
        (
            layer.name,
            layer.op_type,
            layer.input_shape,
            layer.output_shape,
            layer.dtype,
            count(layer.parameters),
            count(layer.macs),
            ", ".join(layer.answers.open) or _refused(layer),
        )
        for layer in inspection.layers
    ]
    columns = ("layer", "operator", "input", "output", "weights", "parameters", "MACs", "may try")
    return Table("Layers", columns, tuple(rows), frozenset({5, 6}))


def _refused(layer: Layer) -> str:
    """Why nothing may be tried, where all passes say the same."""
    reasons = set(layer.answers.refusals.values())
    return f"no: {reasons.pop()}" if len(reasons) == 1 else ""


def _basis(inspection: Inspection) -> str:
    if inspection.data is None:
        return "error: share of the energy of the layer's weights that is lost; with --data, of the layer's output"
    words = f"error: share of the variance of the layer's output that is lost, on {inspection.data}"
    others = (p.error_of == "weight" for layer in inspection.layers for p in layer.answers.proposals)
    return f"{words}; w: of the energy of its weights" if any(others) else words


def _proposals(inspection: Inspection) -> Table:
    """For each layer a row that says what it is, and one for each pass."""
    rows: list[Row] = []
    for layer in inspection.layers:
        what = f"{layer.op_type} {layer.input_shape} > {layer.output_shape}"
        weights = next((p.before.weights for p in layer.answers.proposals), layer.parameters)
        rows.append((layer.name, what, count(layer.macs), "", count(weights), "", "", ""))
        rows.extend(_proposal(proposal, inspection) for proposal in layer.answers.proposals)
        rows.extend(_grouped(layer))
    columns = ("layer, pass", "becomes", "MACs", "kept", "weights", "kept", "saves", "error")
    return Table("What each pass would make of each layer", columns, tuple(rows), frozenset(range(2, 8)))


def _proposal(proposal: Proposal, inspection: Inspection) -> Row:
    other = " w" if inspection.data is not None and proposal.error_of == "weight" else ""
    return (
        f"  {proposal.spec}",
        proposal.summary,
        count(proposal.after.macs),
        _share(proposal.macs_kept),
        count(proposal.after.weights),
        _share(proposal.weights_kept),
        _signed(proposal.bytes_saved),
        "" if proposal.error is None else f"{_lost(proposal.error)}{other}",
    )


def _grouped(layer: Layer) -> Iterator[Row]:
    """One row for all passes that leave a layer alone for the same reason."""
    by_reason: dict[str, list[str]] = {}
    for spec, reason in layer.answers.refusals.items():
        by_reason.setdefault(reason, []).append(spec)
    for reason, specs in by_reason.items():
        yield "  no", f"{', '.join(specs)}: {reason}", "", "", "", "", "", ""


def _totals(inspection: Inspection) -> Table:
    """What each pass alone would leave of the model, all layers together."""
    by_spec: dict[str, list[Proposal]] = {spec: [] for spec in inspection.asked}
    for layer in inspection.layers:
        for proposal in layer.answers.proposals:
            by_spec[proposal.spec].append(proposal)
    rows = [
        (spec, f"{len(taken)} of {len(inspection.layers)}", *_left(taken, inspection), _worst(taken))
        for spec, taken in by_spec.items()
        if taken
    ]
    columns = ("pass", "layers", "MACs", "kept", "saves", "worst error")
    return Table("Each pass alone, on all layers that it takes", columns, tuple(rows), frozenset(range(1, 6)))


def _left(taken: list[Proposal], inspection: Inspection) -> tuple[str, str, str]:
    saved = [
        None if None in (p.before.macs, p.after.macs) else (p.before.macs or 0) - (p.after.macs or 0) for p in taken
    ]
    whole = inspection.cost.macs
    left = None if whole is None or None in saved else whole - sum(s for s in saved if s is not None)
    kept = left / whole if left is not None and whole else None
    return count(left), _share(kept), _signed(sum(p.bytes_saved for p in taken))


def _worst(taken: list[Proposal]) -> str:
    errors = [p.error for p in taken if p.error is not None]
    return _lost(max(errors)) if errors else ""


def _share(value: float | None) -> str:
    return "?" if value is None else f"{100 * value:.3g} %" if value < 9.995 else f"{100 * value:.0f} %"


def _signed(value: int) -> str:
    return size(value) if value >= 0 else f"-{size(-value)}"


def _lost(error: float) -> str:
    """A relative squared error as a percentage."""
    share = 100 * error
    return (
        "0 %" if share <= 0 else "<0.001 %" if share < 0.001 else f"{share:.2g} %" if share < 99.5 else f"{share:.0f} %"
    )
