"""The two sample networks, and how each is written as ONNX."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ResNet", "Vgg", "Writer"]


class Writer(Protocol):
    """What a network needs in order to write itself; every method returns the name of the tensor it made."""

    def conv(self, name: str, data: str, conv: nn.Conv2d, folded: nn.BatchNorm2d | None = None) -> str:
        """Write a convolution, with `folded` merged into its weight and bias."""
        ...

    def batch_norm(self, name: str, data: str, norm: nn.BatchNorm2d) -> str:
        """Write an inference BatchNormalization."""
        ...

    def gemm(self, name: str, data: str, linear: nn.Linear, output: str | None = None) -> str:
        """Write a fully connected layer."""
        ...

    def node(self, op_type: str, name: str, *inputs: str, **attributes: int | list[int]) -> str:
        """Write a node without weights."""
        ...


class Vgg(nn.Module):
    """Six 3x3 convolutions of 64-64-128-128-128-128 channels, a 2x2 max pool after every two, and two dense layers."""

    CHANNELS = (64, 64, 128, 128, 128, 128)

    def __init__(self) -> None:
        super().__init__()
        sizes = zip((1, *self.CHANNELS[:-1]), self.CHANNELS, strict=True)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for o in self.CHANNELS)
        self.dense1 = nn.Linear(128 * 4 * 4, 128)
        self.dense2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, 10) of images (n, 1, 32, 32)."""
        for k, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = torch.relu(norm(conv(x)))
            if k % 2:
                x = F.max_pool2d(x, 2)
        return self.dense2(torch.relu(self.dense1(x.flatten(1))))

    def export(self, writer: Writer) -> None:
        """Write the network with its batch normalisation folded away: the plain form that exporters usually give."""
        data = "input"
        for k, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            data = writer.conv(f"conv{k + 1}", data, conv, folded=norm)
            data = writer.node("Relu", f"relu{k + 1}", data)
            if k % 2:
                data = writer.node("MaxPool", f"pool{k // 2 + 1}", data, kernel_shape=[2, 2], strides=[2, 2])
        data = writer.node("Flatten", "flatten", data, axis=1)
        data = writer.node("Relu", "relu7", writer.gemm("dense1", data, self.dense1))
        writer.gemm("dense2", data, self.dense2, output="logits")


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut; a strided 1x1 convolution on the shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = None if stride == 1 and inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.shortcut_norm = None if self.shortcut is None else nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(f(x) + shortcut(x))."""
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return torch.relu(x + y)

    def export(self, writer: Writer, name: str, data: str) -> str:
        """Write the block; return the name of its output."""
        y = writer.batch_norm(f"{name}_bn1", writer.conv(f"{name}_conv1", data, self.conv1), self.norm1)
        y = writer.node("Relu", f"{name}_relu1", y)
        y = writer.batch_norm(f"{name}_bn2", writer.conv(f"{name}_conv2", y, self.conv2), self.norm2)
        if self.shortcut is not None and self.shortcut_norm is not None:
            data = writer.conv(f"{name}_shortcut", data, self.shortcut)
            data = writer.batch_norm(f"{name}_shortcut_bn", data, self.shortcut_norm)
        return writer.node("Relu", f"{name}_relu2", writer.node("Add", f"{name}_add", y, data))


class ResNet(nn.Module):
    """A stem and three residual blocks of 32, 64 and 128 channels, global average pooling and one dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(32)
        self.blocks = nn.ModuleList([Block(32, 32, 1), Block(32, 64, 2), Block(64, 128, 2)])
        self.dense = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, 10) of images (n, 1, 32, 32)."""
        x = torch.relu(self.norm1(self.conv1(x)))
        for block in self.blocks:
            x = block(x)
        return self.dense(x.mean(dim=(2, 3)))

    def export(self, writer: Writer) -> None:
        """Write the network with its batch normalisation left in place, so that the compiler's `fold` has work."""
        data = writer.batch_norm("bn1", writer.conv("conv1", "input", self.conv1), self.norm1)
        data = writer.node("Relu", "relu1", data)
        for k, block in enumerate(self.blocks):
            data = block.export(writer, f"block{k + 1}", data)
        data = writer.node("Flatten", "flatten", writer.node("GlobalAveragePool", "pool", data), axis=1)
        writer.gemm("dense", data, self.dense, output="logits")
