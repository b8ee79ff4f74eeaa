"""The options of int8, for the model and for a single layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import onnx_ir as ir

from onnxcomp.contract import Context, Value
from onnxcomp.graph.edit import origin_of
from onnxcomp.numeric.ranges import Method
from onnxcomp.quantize.emit import WeightRules
from onnxcomp.quantize.weights import WeightScales
from onnxcomp.runtime.processor import saturates

__all__ = ["Configure", "Layers", "Settings"]

Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of the int8 pass; see there."""

    calibration: Literal["auto"] | Method
    percentile: float
    weights: WeightScales
    bias_correction: Switch
    reduce_range: Switch
    samples: int | None
    overrides: str = ""
    rounding: Literal["auto", "nearest", "gram"] = "auto"
    weight_bits: int = 8
    equalize: Literal["auto", "off", "weights", "activations"] = "auto"
    smooth: float = 0.0
    absorb: bool = False
    inputs: Literal["auto", "tensor"] = "auto"
    sensitivity: Switch = "auto"


# From the options that a recipe gives a layer to all of its settings; raises OptionError.
Configure = Callable[[Mapping[str, Value]], Settings]


@dataclass(frozen=True)
class Layers:
    """Which settings hold for which node.

    Attributes:
        whole: Those of the model.
        configure: The same with a layer's own options.
        context: Where the user's exclusions and the recipe's layers are.
        synthetic: Whether the calibration data are made up.
        stored: Names of the weights that the file holds in another form; their codes are not to be changed.
    """

    whole: Settings
    configure: Configure
    context: Context
    synthetic: bool = True
    stored: frozenset[str] = frozenset()

    def refusal(self, node: ir.Node) -> str | None:
        """Why the user or the recipe leaves a node alone; None where they do not."""
        left_alone = "left alone by the recipe" if self._options(node) is None else None
        return self.context.excluded(origin_of(node)) or left_alone

    def settings(self, node: ir.Node) -> Settings:
        """The settings of a node."""
        options = self._options(node)
        return self.configure(options) if options else self.whole

    def rules(self, node: ir.Node) -> WeightRules:
        """How the weight and the bias of a node become integers.

        ``auto`` leaves biases alone where data are made up: those say nothing about means.
        """
        own = self.settings(node)
        correct = not self.synthetic if own.bias_correction == "auto" else own.bias_correction == "on"
        stored = self.keeps_codes(node)
        wanted = 8 if stored else own.weight_bits
        bits = min(wanted, 7) if self._seven(own) else wanted
        return WeightRules(bits, own.weights, correct, stored)

    def keeps_codes(self, node: ir.Node) -> bool:
        """Whether the file holds the weight of a node in a form that stays."""
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        return weight is not None and weight.name in self.stored

    @property
    def overridden(self) -> bool:
        """Whether the user fixed the parameters of single tensors, which rescaling would make wrong."""
        return bool(self.whole.overrides)

    @property
    def measured(self) -> bool:
        """Whether it is measured what each site alone does to the outputs; ``auto``: where a budget may need it."""
        needed = self.context.budgeted and self.context.replay is None
        return self.whole.sensitivity == "on" or (self.whole.sensitivity == "auto" and needed)

    def milder(self, node: ir.Node) -> Mapping[str, Value]:
        """The options with which a node would keep weights of 8 bits; empty where it does."""
        bits = 8 if self.keeps_codes(node) else self.settings(node).weight_bits
        return {**(self._options(node) or {}), "weight_bits": 8} if bits < 8 else {}

    def rounds_by_gram(self, node: ir.Node) -> bool:
        """Whether the weight of a node is rounded by its Gram; ``auto``: where there are real data."""
        if self.keeps_codes(node):
            return False
        rounding = self.settings(node).rounding
        return not self.synthetic if rounding == "auto" else rounding == "gram"

    def _seven(self, own: Settings) -> bool:
        return own.reduce_range == "on" or (own.reduce_range == "auto" and self.context.target.host and saturates())

    def _options(self, node: ir.Node) -> Mapping[str, Value] | None:
        """Options of the recipe for one node; None: leave it alone. A name's glob beats an operator's type."""
        overrides, site = self.context.overrides, origin_of(node)
        by_name = [o.options for o in overrides if o.match != node.op_type and fnmatchcase(site, o.match)]
        by_type = [o.options for o in overrides if o.match == node.op_type]
        found = (by_name or by_type)[-1:]
        return found[0] if found else {}
