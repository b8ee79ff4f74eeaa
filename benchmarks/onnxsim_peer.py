"""onnxsim as a peer: its interpreter, the images that it gets, and the files that its workers write."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import Array
from judging import pictures

__all__ = ["Peer", "peer_of"]


@dataclass(frozen=True)
class Peer:
    """onnxsim's interpreter, the images that it gets, and the script beside this file that it runs."""

    python: str
    calibration: Path
    worker: str

    def pruned(self, method: str, amount: str, source: Path, work: Path) -> tuple[Path, str]:
        """The pruned file and onnxsim's version; exits with onnxsim's message where it fails."""
        name = f"{self.calibration.stem}.{Path(self.worker).stem}-{method}.{amount.replace(':', '-')}.onnx"
        out, note = work / name, work / f"{name}.json"
        if not note.exists():
            worker = str(Path(__file__).with_name(self.worker))
            call = [self.python, worker, method, amount, str(source), str(out), str(self.calibration)]
            done = subprocess.run(call, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{method} {amount} of {source.stem}\n{done.stderr}")
            note.write_text(done.stdout.splitlines()[-1])
            print(f"{source.stem} {method} {amount}: {note.read_text()}", file=sys.stderr, flush=True)
        return out, json.loads(note.read_text())["version"]


def peer_of(python: str, model: str, work: Path, count: int, worker: str) -> Peer:
    """A peer that gets `count` training images of a model."""
    path = work / f"{model}.train.{count}.npz"
    if not path.exists():
        name, x, _ = pictures(model, "train", count)
        columns: dict[str, Array] = {name: x}
        np.savez(path, **columns)  # type: ignore[arg-type]
    return Peer(python, path, worker)
