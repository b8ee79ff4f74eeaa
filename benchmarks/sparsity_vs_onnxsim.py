"""Zeros in weights side by side with onnxsim's pruning: 2:4 and half of all weights, from the same images.

    python benchmarks/sparsity_vs_onnxsim.py --onnxsim PYTHON [--work DIR] [--models NAME ...] [--only TEXT]

PYTHON is an interpreter that has onnxsim (see onnxsim_pruning.py), which runs in a process of its own. All methods see
the same 512 training images of CIFAR-10; 4,948 other images judge. Both count Convs in which TensorRT's sparse kernels
find 2 zeros in every 4 consecutive input channels of each output channel and kernel tap. onnxsim lays its groups of 4
along rows of channels and taps in one line; these are counted beside it. A first layer of 3 channels has no groups of 4
channels, so that onnxcomp leaves it alone at 2:4; rows "same layers" are onnxsim's files with such layers put back as
they were, which is what pruning the others alone gives, for onnxsim fits each layer to the original's activations.
Prints Markdown; files are kept in DIR and used again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
from judging import Bench, Job
from onnxsim_peer import peer_of
from onnxsim_pruning import METHODS
from real import model_file
from weights import conv_weights

MODELS = ("resnet20_cifar10", "resnet32_cifar10", "vgg16_cifar10")
AMOUNTS = ("2:4", "0.5")
OWN = {
    "2:4": ("sparsity(pattern=2:4,method=magnitude)", "sparsity(pattern=2:4)"),
    "0.5": ("sparsity(amount=0.5,method=magnitude)", "sparsity(amount=0.5)", "sparsity(amount=0.5,allocation=global)"),
}


def compare(model: str, bench: Bench, python: str, count: int) -> Iterator[str]:
    """The rows of a model."""
    source = model_file(model, bench.work)
    peer = peer_of(python, model, bench.work, count, "onnxsim_pruning.py")
    for amount in AMOUNTS:
        for method in METHODS:
            if not bench.wanted(model, f"onnxsim {method} {amount}") or (":" in amount and method.endswith("global")):
                continue
            path, version = peer.pruned(method, amount, source, bench.work)
            yield _row(bench, model, f"onnxsim {version} {method} {amount}", path)
            if ":" in amount:
                yield _row(bench, model, "the same, same layers", _put_back(source, path))
        for pipeline in OWN[amount]:
            if bench.wanted(model, pipeline):
                yield _row(bench, model, f"`{pipeline}`", bench.compiled(Job(model, pipeline, "size", images=count)))


def _row(bench: Bench, model: str, tool: str, path: Path) -> str:
    lost, half, decibels = bench.accuracy(model, path)
    weights = conv_weights(path)
    return (
        f"| {model} | {tool} | {100 * weights.zeros:.1f} % | {weights.two_of_four} | {weights.two_of_four_in_rows} "
        f"| {lost:.2f} ({lost - half:.2f} to {lost + half:.2f}) | {decibels:.1f} |\n"
    )


def _put_back(source: Path, pruned: Path) -> Path:
    """A pruned file in which Convs whose input channels do not fall into groups of 4 have the weights of the source."""
    out = pruned.with_suffix(".same.onnx")
    model = onnx.load(pruned)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    # onnxsim has names of its own; the order of the nodes is kept.
    for node, array in zip(convs, conv_weights(source).arrays.values(), strict=True):
        tensor = tensors[node.input[1]]
        assert array.shape == tuple(tensor.dims)
        if array.shape[1] % 4:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    content = model.SerializeToString()
    # Left alone where it is the same, so that its outputs are not computed anew.
    if not out.exists() or out.read_bytes() != content:
        out.write_bytes(content)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnxsim", required=True, metavar="PYTHON", help="an interpreter that has onnxsim")
    parser.add_argument("--work", type=Path, help="keep files and outputs here")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--only", default="", help="only rows whose model or method has this text")
    parser.add_argument("--images", type=int, default=512, help="training images that the methods see")
    arguments = parser.parse_args()
    print("| model | method | zeros in Convs | 2:4 Convs | 2:4 in rows | points lost (95 %) | SQNR dB |")
    print("|---|---|--:|--:|--:|--:|--:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work = (arguments.work or Path(folder)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        bench = Bench(work, only=arguments.only)
        for model in arguments.models:
            for text in compare(model, bench, arguments.onnxsim, arguments.images):
                print(text, end="", flush=True)


if __name__ == "__main__":
    main()
