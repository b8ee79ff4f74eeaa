"""The cluster pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.offering import Fit
from onnxcomp.allocation.problem import Setting
from onnxcomp.choose import overridden
from onnxcomp.contract import Context, PassReport, Value
from onnxcomp.cost import Cost, stored_bytes
from onnxcomp.errors import OptionError
from onnxcomp.graph.edit import Link
from onnxcomp.graph.products import weighted_sites
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.blockwise import Coder
from onnxcomp.numeric.templates import Coefficients, Linear, coefficient_ratio, find_templates, fit_linear
from onnxcomp.options import Bounds, replace_options
from onnxcomp.quantize.layout import Layout
from onnxcomp.quantize.storage import narrow
from onnxcomp.storage.base import Storage, Wanted, kept, reads_image
from onnxcomp.storage.codes import index_links, numbers_link, operator_links

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Cluster"]

Float = NDArray[np.float64]
Kernel = tuple[int, ...]

_TEMPLATES = "templates"
_INTEGERS: dict[str, int] = {"int8": 8, "int4": 4}
_OFFERED: tuple[tuple[int, Coefficients], ...] = ((10, "int8"), (8, "int8"), (10, "int4"), (8, "int4"), (6, "int4"))
# Entries of templates are stored as whole numbers of this many steps.
_STEPS = 127.0


@dataclass(frozen=True)
class Cluster(Storage):
    """Store every k x k kernel as a K + b with K one of a few template kernels (24 bits a 3x3 kernel: a twelfth).

    Templates are the k-lines of all kernels under Pearson correlation, whatever its sign (1 - rho^2), those of more
    energy counting more. With data, a, b and (assignment=data) the template of each kernel are fitted to the layer's
    output, kernel after kernel, so that each makes up for the errors of those before it. Depthwise kernels are
    included; 1x1 kernels have no shape to share, and a layer that reads an image keeps its few. ONNX Runtime turns the
    codes into kernels once, at load (Cast, Gather, Mul, Add); the speed is that of the original.

    Attributes:
        fit: Whether a and b follow the kernels, the data, or the data where there are any (auto).
        bits: Of a template's number; there are 2^bits templates.
        coefficients: How a and b are stored; integers have one scale for each output channel.
        scope: Whether each layer has templates of its own, or all kernels of a size in the model share them.
        assignment: Whether a kernel's template is that of the least error of the output, or the one of most
            correlation.

    Sources: Chen, Chen and Su, Deep convolutional neural networks compression method based on linear representation of
    kernels, 2018.
    """

    name: ClassVar[str] = "cluster"
    kinds: ClassVar[tuple[str, ...]] = ("Conv",)

    bits: Annotated[int, Bounds(1, 12)] = 8
    coefficients: Coefficients = "int8"
    scope: Literal["layer", "model"] = "model"
    assignment: Literal["data", "correlation"] = "data"

    @property
    def least_bits(self) -> int:
        """Of the number of a template, of its planes, or of a coefficient."""
        return 2 if self.bits <= 2 else 8 if self.bits == 8 and self.coefficients != "int4" else 4

    def plain(self, fit: Fit, *, relu: bool) -> Cluster:
        """The pass with templates for each layer, which can be chosen for one layer at a time."""
        del relu
        return Cluster(fit=fit, scope="layer")

    def explicit(self) -> bool:
        """Whether templates or coefficients were named."""
        return (self.bits, self.coefficients) != (Cluster.bits, Cluster.coefficients)

    def refuse(self, site: Site) -> str | None:
        """Say why a site stays as it is."""
        if prod(site.geometry.kernel) < 3:
            return f"kernels of {'x'.join(map(str, site.geometry.kernel))} have no shape to share"
        if reads_image(site):
            return f"it reads {site.channels_in} channels: its kernels are few, and count most"
        if kept(Layout(site).rows()) is not None:
            return "its zeros would be lost; use palettize, or leave sparsity out"
        return None

    def settings(self, site: Site, step: int) -> list[Setting]:
        """Numbers of templates and kinds of coefficients."""
        del step
        return [] if self.refuse(site) else [Setting((bits,), coefficients) for bits, coefficients in _OFFERED]

    def asked(self, site: Site) -> list[Setting]:
        """The options."""
        del site
        return [Setting((self.bits,), self.coefficients)]

    def choice(self, setting: Setting) -> dict[str, Value]:
        """The options of a setting."""
        return {"bits": setting.ranks[0], "coefficients": setting.order}

    def setting(self, site: Site, choice: Mapping[str, Value]) -> Setting:
        """The setting of a choice."""
        del site
        return Setting((int(choice["bits"]),), str(choice["coefficients"]))

    def milder(self, setting: Setting) -> Setting | None:
        """More bits for the coefficients, then more templates."""
        finer = {"int4": "int8", "int8": "fp16"}
        if setting.order in finer:
            return Setting(setting.ranks, finer[setting.order])
        return Setting((setting.ranks[0] + 1,), setting.order) if setting.ranks[0] < 12 else None

    def describe(self, setting: Setting) -> str:
        """Number of templates and kind of coefficients."""
        shared = " of the model" if self.scope == "model" else ""
        return f"{2 ** setting.ranks[0]} templates{shared}, {setting.order} coefficients"

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Find the templates of the model first where all layers share them."""
        if any("scope" in (own.options or {}) for own in context.overrides):
            raise OptionError("cluster: scope is of the whole pass; a layer cannot have its own")
        if self.scope == "layer":
            return super().run(model, context)
        own = {option.name: getattr(self, option.name) for option in fields(self)}
        return _Shared(**own).run(model, context)

    def templates_of(self, kernels: Float, kernel: tuple[int, ...], bits: int) -> tuple[Float, float]:
        """The templates (M, taps) of a layer's kernels (n, taps), and the ratio of its coefficients."""
        del kernel
        return _templates([kernels], bits)

    def fitted(self, setting: Setting, kernel: tuple[int, ...], wanted: Wanted, *, quick: bool) -> Coder:
        """Templates, their numbers, and the coefficients."""
        templates, ratio = self.templates_of(wanted.target.reshape(-1, prod(kernel)), kernel, setting.ranks[0])
        return fit_linear(
            wanted.target,
            wanted.gram,
            templates,
            cast("Coefficients", setting.order),
            ratio=ratio,
            correlated=self.assignment == "correlation",
            sweeps=0 if quick else 3,
        )

    def empty(self, site: Site, setting: Setting) -> Linear:
        """Kernels of zeros."""
        shape = (1, site.channels_out, site.weight[0].size)
        templates = np.zeros((2 ** setting.ranks[0], prod(site.geometry.kernel)))
        return Linear(shape, templates, cast("Coefficients", setting.order))

    def links(self, site: Site, setting: Setting, coder: Coder, bias: NDArray[np.float32] | None) -> list[Link]:
        """Index -> Gather of the templates -> times a -> plus b (-> times a scale) -> the layer."""
        assert isinstance(coder, Linear), "made by fitted() or empty()"
        bits = _INTEGERS.get(coder.coefficients)
        templates = np.rint(coder.templates * _STEPS).astype(np.int8).reshape(-1, *site.geometry.kernel)
        unit = np.array((coder.ratio if bits else 1.0) / _STEPS, np.float32)
        links = [
            *index_links("index", coder.index.reshape(site.channels_out, -1), setting.ranks[0]),
            numbers_link(_TEMPLATES, templates),
            Link("units", "Mul", (unit,), {}, (_TEMPLATES,)),
            Link("shapes", "Gather", (), {}, ("units", "index")),
        ]
        ones = (1,) * len(site.geometry.kernel)
        per_kernel = (site.channels_out, -1, *ones)
        if bits is None:
            links += _floats(coder.a.reshape(per_kernel), coder.b.reshape(per_kernel), coder.coefficients)
        else:
            a, b = (narrow(own.reshape(per_kernel), bits) for own in coder.whole())
            steps = coder.steps.astype(np.float32).reshape(-1, 1, *ones)
            # Steps multiply the coefficients, not the kernels: what is computed at load is small as long as it can be.
            links += [
                numbers_link("a", a),
                numbers_link("b", b),
                Link("gain", "Mul", (steps,), {}, ("a",)),
                Link("level", "Mul", (steps,), {}, ("b",)),
                Link("scaled", "Mul", (), {}, ("shapes", "gain")),
                Link("weight", "Add", (), {}, ("scaled", "level")),
            ]
        return [*links, *operator_links(Layout(site), "weight", bias, rows=False)]


def _floats(a: Float, b: Float, kind: Coefficients) -> list[Link]:
    """Links from shapes to kernels where the coefficients are floats."""
    if kind == "fp32":
        return [
            Link("scaled", "Mul", (a.astype(np.float32),), {}, ("shapes",)),
            Link("weight", "Add", (b.astype(np.float32),), {}, ("scaled",)),
        ]
    return [
        numbers_link("a", a.astype(np.float16)),
        numbers_link("b", b.astype(np.float16)),
        Link("scaled", "Mul", (), {}, ("shapes", "a")),
        Link("weight", "Add", (), {}, ("scaled", "b")),
    ]


@dataclass(frozen=True)
class _Shared(Cluster):
    """Cluster with templates for the whole model.

    Attributes:
        pool: The kernels of the layers that share templates, by the size of the kernel.
        known: The templates found so far, by the size of the kernel and the bits of their number.
        few: Sizes of kernels of which the model has so few that their templates would take more than they save.
    """

    pool: dict[Kernel, list[Float]] = field(
        default_factory=dict[Kernel, list[Float]], compare=False, metadata={"option": False}
    )
    known: dict[tuple[Kernel, int], tuple[Float, float]] = field(
        default_factory=dict[tuple[Kernel, int], tuple[Float, float]], compare=False, metadata={"option": False}
    )
    few: set[Kernel] = field(default_factory=set[Kernel], compare=False, metadata={"option": False})

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Gather the kernels, then store them layer by layer."""
        saved: dict[Kernel, int] = {}
        tables: dict[Kernel, set[int]] = {}
        for site in weighted_sites(model, self.kinds):
            configured = self._taking(site, context) if isinstance(site, Site) else None
            if isinstance(site, Site) and configured is not None:
                kernel = site.geometry.kernel
                self.pool.setdefault(kernel, []).append(site.weight.reshape(-1, prod(kernel)).astype(np.float64))
                less = site.cost.bytes - configured.cost(site, configured.asked(site)[0]).bytes
                saved[kernel] = saved.get(kernel, 0) + less
                tables.setdefault(kernel, set()).add(2**configured.bits)
        if context.replay is None:
            self.few.update(kernel for kernel in saved if saved[kernel] <= prod(kernel) * sum(tables[kernel]))
        return Storage.run(self, model, context)

    def refuse(self, site: Site) -> str | None:
        """Say why a site stays as it is."""
        reason = super().refuse(site)
        if reason is None and site.geometry.kernel in self.few:
            size = "x".join(map(str, site.geometry.kernel))
            return f"templates of {size} would take more than the model's few kernels of that size save"
        return reason

    def templates_of(self, kernels: Float, kernel: tuple[int, ...], bits: int) -> tuple[Float, float]:
        """The templates of all layers."""
        if (kernel, bits) not in self.known:
            self.known[kernel, bits] = _templates(self.pool.get(kernel) or [kernels], bits)
        return self.known[kernel, bits]

    def taken(self, site: Site, chain: list[Link]) -> Cost:
        """The chain without the templates, which are stored once."""
        cost = super().taken(site, chain)
        shared = sum(stored_bytes(c) for link in chain if link.role == _TEMPLATES for c in link.constants)
        return replace(cost, bytes=cost.bytes - shared)

    def _taking(self, site: Site, context: Context) -> Cluster | None:
        """The options of a layer that will have templates, in a replay the same layers; None for the others."""
        configured = overridden(self, site, context.overrides)
        if context.excluded(site.name) or not isinstance(configured, Cluster) or configured.refuse(site):
            return None
        if context.replay is not None:
            if site.name not in context.replay:
                return None
            replayed = replace_options(configured, context.replay[site.name])
            assert isinstance(replayed, Cluster), "options leave the pass what it is"
            configured = replayed
        smaller = configured.cost(site, configured.asked(site)[0]).bytes < site.cost.bytes
        return configured if smaller else None


def _templates(kernels: list[Float], bits: int) -> tuple[Float, float]:
    """Templates as they are stored, and the ratio of the coefficients."""
    return np.rint(find_templates(kernels, 2**bits) * _STEPS) / _STEPS, coefficient_ratio(kernels)
