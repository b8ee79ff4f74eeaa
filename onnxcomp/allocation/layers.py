"""What a recipe says of single layers to a pass that allocates."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import onnx_ir as ir

from onnxcomp.allocation.assigned import Assigned
from onnxcomp.allocation.problem import key_of
from onnxcomp.contract import Override, Skip
from onnxcomp.errors import OptionError
from onnxcomp.graph.products import weighted_sites

__all__ = ["layer_options"]


def layer_options(
    model: ir.Model, overrides: Sequence[Override], use: str | None, owner: str, example: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the form that each layer was given, and why a layer is to be left alone, both by its key.

    Args:
        model: The model.
        overrides: The recipe's; the most specific match wins, a glob on the name before the operator type.
        use: The form of all other layers; None leaves them to the allocation.
        owner: Name of the pass.
        example: A form that it takes.
    """
    uses: dict[str, str] = {}
    left: dict[str, str] = {}
    for own in overrides:
        unknown = sorted(set(own.options or {}) - {"use"})
        if unknown:
            raise OptionError(f"{owner}: a layer ({own.match}) takes use= and nothing else, not {unknown[0]}")
        if own.options and own.options["use"] in (None, "none"):
            raise OptionError(
                f'{owner}: layer {own.match}: use={own.options["use"]} is no form; write use: "{example}", '
                "or null in place of the layer's options to leave it alone"
            )
    for site in weighted_sites(model, Assigned.kinds):
        if isinstance(site, Skip):
            continue
        by_name = [o for o in overrides if fnmatchcase(site.name, o.match) and o.match != site.kind]
        chosen = by_name or [o for o in overrides if o.match == site.kind]
        if chosen and chosen[-1].options is None:
            left[key_of(site)] = "left alone by the recipe"
        elif chosen and chosen[-1].options:
            uses[key_of(site)] = str(chosen[-1].options["use"])
        elif use is not None:
            uses[key_of(site)] = use
    return uses, left
