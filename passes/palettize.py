"""The palettize pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.offering import Fit
from onnxcomp.allocation.problem import Setting
from onnxcomp.contract import Value
from onnxcomp.errors import OptionError
from onnxcomp.graph.edit import Link
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.blockwise import Coder
from onnxcomp.numeric.palette import Effort, Palette, fit_palette
from onnxcomp.options import Bounds
from onnxcomp.quantize.layout import Layout
from onnxcomp.storage.base import Storage, Wanted, kept, reads_image
from onnxcomp.storage.codes import index_links, numbers_link, operator_links, spread_links

__all__ = ["Palettize"]

Float = NDArray[np.float64]
Per = Literal["tensor", "group", "channel"]

_FULL, _QUICK = Effort(rounds=2, sweeps=1), Effort(rounds=0, sweeps=0)
# Bits an index and weights an entry that an allocator chooses from, from 8 bits a weight to less than one.
_SCALAR = ((8, 1), (6, 1), (5, 1), (4, 1), (3, 1))
_VECTOR = ((8, 2), (8, 3), (8, 4), (4, 2), (8, 6), (8, 8), (8, 9), (4, 4), (8, 16), (8, 18))
# Rows of a group that shares a table.
_GROUP = 16


@dataclass(frozen=True)
class Palettize(Storage):
    """Store weights as indices into a small table of shared values (4 bits a weight: an eighth of the size).

    The table is the k-means of the weights. With data, its entries are fitted to the layer's output in closed form, and
    indices are assigned in GPTQ order and by coordinate descent, so that every layer makes up for the errors of those
    before it. With `vector` above 1 an entry holds so many consecutive weights (product quantization): 8 bits for 4
    weights take 2 bits each. Entries are whole numbers up to 127, times a scale for each output channel: int8 behind
    takes them as they are. ONNX Runtime turns indices into weights once, at load; the speed is that of the original.

    Attributes:
        fit: Whether the table follows the weights, the data, or the data where there are any (auto).
        bits: Of an index; the table has 2^bits entries.
        vector: Weights an entry, at most: the largest divisor of a layer's weights a channel is taken; 1 in a first
            layer, which has few and needs them most.
        per: What shares a table: the whole tensor, every 16 output channels, or each channel.

    Sources: Han, Mao and Dally, Deep Compression, 2016, section 3; Stock et al., And the Bit Goes Down, 2020,
    section 3.
    """

    name: ClassVar[str] = "palettize"

    bits: Annotated[int, Bounds(1, 8)] = 4
    vector: Annotated[int, Bounds(1, 64)] = 1
    per: Per = "tensor"

    def __post_init__(self) -> None:
        """Refuse tables of vectors for a few channels each: they would outweigh the indices."""
        if self.vector > 1 and self.per != "tensor":
            raise OptionError(f"palettize: vector={self.vector} and per={self.per} exclude each other; give one")

    @property
    def least_bits(self) -> int:
        """Planes of bits, too, take operators that are not older than types of 4 bits."""
        return 2 if self.bits <= 2 else 8 if self.bits == 8 else 4

    def plain(self, fit: Fit, *, relu: bool) -> Palettize:
        """The pass with its defaults."""
        del relu
        return Palettize(fit=fit)

    def refuse(self, site: Site) -> str | None:
        """Say why a site stays as it is."""
        if site.geometry.transposed and self.vector > 1:
            return "vectors of a ConvTranspose would cross channels; give vector=1"
        if self.vector > 1 and kept(Layout(site).rows()) is not None:
            return "its zeros would be lost in vectors; give vector=1, or leave sparsity out"
        return None

    def settings(self, site: Site, step: int) -> list[Setting]:
        """Every size of table and length of vector that is worth a look."""
        del step
        length = Layout(site).rows().shape[1]
        single = bool(Palettize(vector=2).refuse(site))
        return [
            Setting((bits, vector), "tensor")
            for bits, vector in (_SCALAR if single else _SCALAR + _VECTOR)
            if length % vector == 0
        ]

    def asked(self, site: Site) -> list[Setting]:
        """The options."""
        length = Layout(site).rows().shape[1]
        longest = 1 if reads_image(site) else self.vector
        vector = max(v for v in range(1, longest + 1) if length % v == 0)
        return [Setting((self.bits, vector), self.per)]

    def choice(self, setting: Setting) -> dict[str, Value]:
        """The options of a setting."""
        bits, vector = setting.ranks
        return {"bits": bits, "vector": vector, "per": setting.order}

    def setting(self, site: Site, choice: Mapping[str, Value]) -> Setting:
        """The setting of a choice."""
        del site
        return Setting((int(choice["bits"]), int(choice["vector"])), str(choice["per"]))

    def milder(self, setting: Setting) -> Setting | None:
        """Shorter vectors, then more bits."""
        bits, vector = setting.ranks
        if vector > 1:
            return Setting((bits, next(v for v in range(vector // 2, 0, -1) if vector % v == 0)), setting.order)
        return Setting((bits + 1, 1), setting.order) if bits < 8 else None

    def describe(self, setting: Setting) -> str:
        """Size of the table and length of the vectors."""
        bits, vector = setting.ranks
        per = {"tensor": "", "group": f" for up to {_GROUP} channels", "channel": " a channel"}[setting.order]
        what = "values" if vector == 1 else f"vectors of {vector}"
        return f"{2**bits} {what}{per}, {bits / vector:.3g} bits a weight"

    def fitted(self, setting: Setting, kernel: tuple[int, ...], wanted: Wanted, *, quick: bool) -> Coder:
        """Table, scales and indices."""
        del kernel
        bits, vector = setting.ranks
        tables = _tables(wanted.target.shape[0] * wanted.target.shape[1], setting.order)
        effort = _QUICK if quick else _FULL
        return fit_palette(wanted.target, wanted.gram, 2**bits, vector, tables=tables, keep=wanted.keep, effort=effort)

    def empty(self, site: Site, setting: Setting) -> Palette:
        """A table of zeros."""
        bits, vector = setting.ranks
        rows = site.channels_out
        tables = _tables(rows, setting.order)
        weight = Layout(site).rows()[None]
        table_of = (np.arange(rows) // (rows // tables))[None]
        return Palette(weight.shape, np.zeros((tables, 2**bits, vector)), np.ones((1, rows)), table_of, kept(weight))

    def links(self, site: Site, setting: Setting, coder: Coder, bias: NDArray[np.float32] | None) -> list[Link]:
        """Index -> Gather of the table -> times the scales -> the layer."""
        assert isinstance(coder, Palette), "made by fitted() or empty()"
        bits, vector = setting.ranks
        layout, vectors = Layout(site), vector > 1
        rows = coder.index.reshape(site.channels_out, -1)
        index = rows if vectors else layout.stored(rows.astype(np.float64)).astype(np.intp)
        count, entries = coder.tables.shape[:2]
        first = layout.scales((coder.table_of.reshape(-1) * entries).astype(np.float64)).astype(np.int32)
        keep = None
        if coder.keep is not None:
            keep = layout.stored(coder.keep.reshape(rows.shape).astype(np.float64)) > 0.0
            first = np.broadcast_to(first, index.shape)[keep]
            index = index[keep]
        links = index_links("index", index, bits)
        if count > 1:
            links.append(Link("entry", "Add", (first,), {}, ("index",)))
        table = coder.tables.reshape(count * entries, *(() if not vectors else (vector,)))
        scales = coder.scales.reshape(-1)
        factors = scales.astype(np.float32)[:, None, None] if vectors else layout.scales(scales)
        links += [
            numbers_link("table", table.astype(np.int8)),
            Link("codes", "Gather", (), {}, ("table", links[-1].role)),
            *([] if keep is None else spread_links("codes", keep)),
            Link("weight", "Mul", (factors,), {}, ("codes" if keep is None else "spread",)),
        ]
        return [*links, *operator_links(layout, "weight", bias, rows=vectors)]


def _tables(rows: int, per: str) -> int:
    """How many tables so many rows have."""
    if per == "tensor":
        return 1
    return rows if per == "channel" else rows // max(n for n in range(1, _GROUP + 1) if rows % n == 0)
