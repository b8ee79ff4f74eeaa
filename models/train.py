"""Train the sample models from scratch and write them, with their images, next to this file.

    pip install -r models/requirements.txt
    python models/train.py [--out FOLDER] [--epochs N] [--threads N]

The data are scikit-learn's handwritten digits (1,797 images of 8x8, 17 grey levels), resized to 32x32. 30 % of each
class are held out; nothing of the held-out part is seen in training or among the calibration images. Weights are
reproducible for a seed, a torch version and a thread count.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from export import Exporter
from networks import ResNet, Vgg
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

HELD_OUT = 0.3
CALIBRATION = 512
SIDE = 32
MEAN, STD = 0.31, 0.35
BATCH = 64


def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return all images, normalised, float32 (n, 1, 32, 32), and the digits on them, int64 (n,).

    Pixel values are rounded to 8 bits after the resize, as those of an image file would be, and then normalised.
    """
    data = load_digits()
    small = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    large = F.interpolate(small, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    pixels = torch.round(large * 255).numpy() / np.float32(255)
    return (pixels - np.float32(MEAN)) / np.float32(STD), data.target.astype(np.int64)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate by up to 10 degrees, scale by up to 10 %, shift by up to 2.5 pixels and add a little noise."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(len(images), generator=generator) * (high - low) + low

    angle, zoom = uniform(-0.175, 0.175), uniform(0.9, 1.1)
    shift_x, shift_y = uniform(-0.16, 0.16), uniform(-0.16, 0.16)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    theta = torch.stack([cos, -sin, shift_x, sin, cos, shift_y], dim=1).reshape(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    background = images.min()  # grid_sample pads with zeros, which is grey once normalised
    moved = F.grid_sample(images - background, grid, align_corners=False) + background
    return moved + 0.1 * torch.randn(images.shape, generator=generator)


def train(net: nn.Module, images: Tensor, digit: Tensor, epochs: int, seed: int) -> None:
    """Fit `net` in place: AdamW, one cycle.

    The decay is strong on purpose. Batch normalisation makes the network indifferent to the scale of its filters, so
    that decay costs no accuracy, but it wears off what is left of the random initialisation: the filters' spectra then
    fall quickly, as those of networks trained for long on large data do.
    """
    generator = torch.Generator().manual_seed(seed)
    filters = [p for p in net.parameters() if p.ndim == 4]
    others = [p for p in net.parameters() if p.ndim != 4]
    groups = [{"params": filters, "weight_decay": 4.0}, {"params": others, "weight_decay": 0.01}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps, pct_start=0.2)
    net.train()
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        total = 0.0
        started = time.monotonic()
        for start in range(0, len(images) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            batch = augment(images[chosen], generator).to(memory_format=torch.channels_last)
            logits = net(batch)
            loss = F.cross_entropy(logits, digit[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        mean = total / (len(images) // BATCH)
        print(f"  epoch {epoch + 1}/{epochs}: loss {mean:.3f}, {time.monotonic() - started:.1f} s", flush=True)
    net.eval()


def accuracy(net: nn.Module, images: Tensor, digit: Tensor) -> float:
    """Return the top-1 accuracy of `net`, 0..1."""
    with torch.no_grad():
        return float((net(images).argmax(dim=1) == digit).float().mean())


def main() -> None:
    """Train, export and save everything."""
    parser = argparse.ArgumentParser(description="Train the sample models.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)

    images, digit = digits()
    everything = np.arange(len(digit))
    seen, held_out = train_test_split(everything, test_size=HELD_OUT, stratify=digit, random_state=options.seed)
    calibration = seen[:CALIBRATION]
    np.savez_compressed(options.out / "digits_calibration.npz", input=images[calibration], labels=digit[calibration])
    np.savez_compressed(options.out / "digits_eval.npz", input=images[held_out], labels=digit[held_out])
    x, y = torch.from_numpy(images), torch.from_numpy(digit)
    for name, make in (("digits_vgg", Vgg), ("digits_resnet", ResNet)):
        torch.manual_seed(options.seed)
        net = make().to(memory_format=torch.channels_last)  # the fast layout on CPUs
        print(f"{name}: {sum(p.numel() for p in net.parameters()):,} parameters")
        train(net, x[seen], y[seen], options.epochs, options.seed)
        print(f"  held-out accuracy {accuracy(net, x[held_out], y[held_out]):.4f} on {len(held_out)} images")
        exporter = Exporter(name)
        net.export(exporter)
        onnx.save(exporter.model(SIDE), options.out / f"{name}.onnx")


if __name__ == "__main__":
    main()
