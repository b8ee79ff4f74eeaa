"""ONNX Runtime's own graph of a model, with every kernel traceable to the nodes that it was made of.

The runtime renames what it fuses. So the copy that is loaded has a token in every node and value name: node ``i`` is
``@i@`` and its output ``k`` is ``@i@k``. A kernel carries the token of something that it was made of, in its name or
in those of its outputs.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from onnxcomp.runtime.session import open_with
from onnxcomp.runtime.settings import SessionSettings

__all__ = ["Token", "kernel_name", "nodes_of", "open_dumped", "optimised", "tokenised", "tokens"]

_TOKEN = re.compile(r"@(\d+)@(\d*)")
# A dump is one message, and protobuf ends at 2 GB: weights go beside it.
_BESIDE = "session.optimized_model_external_initializers_file_name"


@dataclass(frozen=True, slots=True)
class Token:
    """What a name says of its making.

    Attributes:
        node: Index of a node in :func:`nodes_of`.
        output: Index of the output whose value is meant; None where the node is.
    """

    node: int
    output: int | None


def nodes_of(model: ir.Model) -> list[ir.Node]:
    """All nodes in a fixed order, bodies included; functions are left out (the runtime inlines them)."""
    return list(model.graph.all_nodes())


def tokenised(model: ir.Model) -> ir.Model:
    """Return a copy whose nodes and computed values are named by tokens; inputs and initializers keep their names."""
    copy = model.clone()
    for i, node in enumerate(nodes_of(copy)):
        node.name = f"@{i}@"
        for k, value in enumerate(node.outputs):
            if value.name:
                value.name = f"@{i}@{k}"
    return copy


def tokens(text: str | None) -> list[Token]:
    """The tokens in a name, in order."""
    return [Token(int(node), int(output) if output else None) for node, output in _TOKEN.findall(text or "")]


def open_dumped(
    model: ir.Model, settings: SessionSettings, trace: Path | None = None
) -> tuple[ort.InferenceSession, ir.Model]:
    """Open a session and read back the graph that it runs, without its weights.

    Args:
        model: A model, from :func:`tokenised`.
        settings: How the session is opened.
        trace: As for :func:`onnxcomp.runtime.session.open_with`.

    Raises:
        ModelError: The runtime cannot load the model.
    """
    with tempfile.TemporaryDirectory(prefix="onnxcomp-", ignore_cleanup_errors=True) as folder:
        dump = Path(folder) / "optimised.onnx"
        beside = replace(settings, entries=(*settings.entries, (_BESIDE, "weights.data")))
        session = open_with(model, beside, dump=dump, trace=trace)
        graph = ir.load(dump)
        for value in graph.graph.initializers.values():
            value.const_value = None  # external data of the dump goes with the folder
    return session, graph


def optimised(model: ir.Model, settings: SessionSettings) -> ir.Model:
    """The runtime's graph of a model, its names made of tokens (raises as :func:`open_dumped`)."""
    return open_dumped(tokenised(model), settings)[1]


def kernel_name(kernel: ir.Node) -> str:
    """The operator of a kernel, with the layout that it works in."""
    return f"{kernel.op_type} (NCHWc)" if kernel.domain == "com.microsoft.nchwc" else kernel.op_type
