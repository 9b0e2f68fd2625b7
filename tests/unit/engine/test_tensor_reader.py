"""A rank reads its rows and columns of a checkpoint, and leaves the rest of the file alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from engine.checkpoint import Checkpoint, open_checkpoint
from engine.linear import DenseLinear
from engine.tensor_reader import TensorReader

SIDE = 2048  # 16 MiB of float32


BIASED = {"a.weight": torch.eye(4), "a.bias": torch.arange(4.0), "b.weight": torch.eye(4)}


def a_checkpoint(directory: Path, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    (directory / "config.json").write_text(json.dumps({}))
    save_file(tensors, directory / "model.safetensors")
    return open_checkpoint(directory)


def resident_bytes(path: Path) -> int:
    """Of all mappings of a file, what this process has touched."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


def a_reader(checkpoint: Checkpoint) -> TensorReader:
    return TensorReader(checkpoint, torch.float32, torch.device("cpu"), DenseLinear)


def test_only_the_rows_asked_for_are_touched(tmp_path: Path) -> None:
    weight = torch.arange(SIDE * SIDE, dtype=torch.float32).view(SIDE, SIDE)
    checkpoint = a_checkpoint(tmp_path, {"a.weight": weight})
    held = checkpoint.tensor("a.weight")  # keeps the mapping alive
    before = resident_bytes(tmp_path / "model.safetensors")
    part = a_reader(checkpoint).tensor("a.weight", slice(512, 768))
    assert torch.equal(part[:, 0], torch.arange(512, 768) * float(SIDE))
    touched = resident_bytes(tmp_path / "model.safetensors") - before
    # The kernel maps in large steps, so an eighth of the file may be a few times as much.
    assert part.nbytes // 2 < touched <= held.nbytes // 2


def test_rows_below_each_other_keep_their_biases(tmp_path: Path) -> None:
    reader = a_reader(a_checkpoint(tmp_path, BIASED))
    fused = reader.fused([("a", torch.tensor([3, 1]), True), ("b", slice(0, 1), False)])
    assert fused(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist() == [[7.0, 3.0, 1.0]]
    first = reader.columns("a", slice(0, 2), has_bias=True)
    second = reader.columns("a", slice(2, 4), has_bias=True)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert (first(x[:, :2]) + second(x[:, 2:])).tolist() == [[1.0, 3.0, 5.0, 7.0]]
