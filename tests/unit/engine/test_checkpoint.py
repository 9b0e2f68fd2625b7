"""Opening a Hugging Face directory: what is read, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from eastwest.errors import ModelError
from engine.checkpoint import open_checkpoint
from engine.digest import file_digest

CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "rope_theta": 10000.0}
TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b.weight": torch.linspace(-1, 1, 6).bfloat16(),
    "c.weight": torch.ones(2, 2, 2, dtype=torch.float16),
}
INDEX = "model.safetensors.index.json"


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def single(directory: Path, **config: Any) -> Path:
    directory.mkdir(exist_ok=True)
    write_json(directory / "config.json", CONFIG | config)
    save_file(TENSORS, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def sharded(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    write_json(directory / "config.json", CONFIG)
    placed = {name: f"model-{i + 1}-of-2.safetensors" for i, name in zip([0, 1, 1], TENSORS)}  # noqa: B905
    for shard in set(placed.values()):
        save_file({n: TENSORS[n] for n in placed if placed[n] == shard}, directory / shard)
    write_json(directory / INDEX, {"metadata": {}, "weight_map": placed})
    return directory


@pytest.mark.parametrize("make", [single, sharded])
def test_tensors_come_back_as_they_were_stored(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(make(tmp_path / "model"))
    assert checkpoint.config == CONFIG
    assert checkpoint.names() == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.tensor(name).dtype == tensor.dtype
        assert torch.equal(checkpoint.tensor(name), tensor)


def test_a_tensor_is_a_view_of_the_file_and_outlives_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(single(tmp_path))
    first, second = checkpoint.tensor("a.weight"), checkpoint.tensor("a.weight")
    assert first.data_ptr() == second.data_ptr()
    del checkpoint, second
    assert torch.equal(first, TENSORS["a.weight"])


def test_an_absent_tensor_is_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(single(tmp_path))
    with pytest.raises(ModelError, match=r"no tensor 'd\.weight'"):
        checkpoint.tensor("d.weight")
    with pytest.raises(ModelError, match=r"no tensor 'd\.weight'"):
        checkpoint.shape("d.weight")


def header(tensors: object, data: bytes = b"") -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08\0\0\0\0\0\0\0{",
        struct.pack("<Q", 1 << 40) + b"{}",
        header({"a": entry([4], 0, 16)}, bytes(12)),
        header({"a": entry([4], 0, 16)}, bytes(20)),
        header({"a": entry([4], 0, 12)}, bytes(12)),
        header({"a": entry([4], 8, 24)}, bytes(24)),
        header({"a": entry([2**40, 2**40], 0, 16)}, bytes(16)),
        header({"a": entry([4], 0, 16, "Z32")}, bytes(16)),
        header({"a": entry([4], 0, 16), "b": entry([4], 0, 16)}, bytes(16)),
        header([1, 2]),
        header({}),
    ],
)
def test_unsound_safetensors_are_refused(content: bytes, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", CONFIG)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"not an intact|no tensors at all") as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in caught.value.message


@settings(deadline=None, max_examples=30)
@given(fraction=st.floats(0, 1, exclude_max=True))
def test_a_weight_file_cut_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, fraction: float
) -> None:
    directory = single(tmp_path_factory.mktemp("cut"))
    weights = directory / "model.safetensors"
    os.truncate(weights, int(fraction * weights.stat().st_size))
    with pytest.raises(ModelError, match=r"model\.safetensors is not an intact"):
        open_checkpoint(directory)


def remove_shard(d: Path) -> None:
    (d / "model-2-of-2.safetensors").unlink()


def misplace_tensor(d: Path) -> None:
    write_json(d / INDEX, {"weight_map": {"z": "model-1-of-2.safetensors"}})


def escape_directory(d: Path) -> None:
    write_json(d / INDEX, {"weight_map": {"z": "../model-1-of-2.safetensors"}})


def point_at_pickle(d: Path) -> None:
    write_json(d / INDEX, {"weight_map": {"z": "pytorch_model.bin"}})


def number_shards(d: Path) -> None:
    write_json(d / INDEX, {"weight_map": {"z": 1}})


def drop_map(d: Path) -> None:
    write_json(d / INDEX, {"metadata": {}})


def empty_map(d: Path) -> None:
    write_json(d / INDEX, {"weight_map": {}})


def break_index(d: Path) -> None:
    (d / INDEX).write_text("{'weight_map'")


def break_config(d: Path) -> None:
    (d / "config.json").write_bytes(b"\xff\xfe{}")


def list_config(d: Path) -> None:
    (d / "config.json").write_text("[]")


def nest_config(d: Path) -> None:
    (d / "config.json").write_text("[" * 100_000)


def remove_config(d: Path) -> None:
    (d / "config.json").unlink()


def config_is_directory(d: Path) -> None:
    (d / "config.json").unlink()
    (d / "config.json").mkdir()


def only_pickles(d: Path) -> None:
    (d / INDEX).unlink()
    (d / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")


def no_weights(d: Path) -> None:
    (d / INDEX).unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove_shard, r"model-2-of-2\.safetensors is absent, but model\.safetensors\.index"),
        (misplace_tensor, "has no tensor 'z', but"),
        (escape_directory, r"'\.\./model-1-of-2\.safetensors'; allowed: the name of a"),
        (point_at_pickle, r"'pytorch_model\.bin'; allowed: the name of a \.safetensors file"),
        (number_shards, "says that z is in 1; allowed"),
        (drop_map, "has no weight_map"),
        (empty_map, "no tensors at all"),
        (break_index, r"index\.json is not valid JSON"),
        (break_config, r"config\.json is not valid JSON"),
        (list_config, r"config\.json holds a list; allowed: a JSON object"),
        (nest_config, r"config\.json is not valid JSON"),
        (remove_config, r"config\.json is absent"),
        (config_is_directory, r"cannot read .*config\.json"),
        (only_pickles, "only as pickles .*run code"),
        (no_weights, "has neither model.safetensors nor"),
        (shutil.rmtree, "is not a directory"),
    ],
)
def test_a_damaged_directory_is_refused_with_its_reason(
    damage: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    directory = sharded(tmp_path / "model")
    damage(directory)
    with pytest.raises(ModelError, match=reason) as caught:
        open_checkpoint(directory)
    assert "\n" not in caught.value.message


# The fingerprint.


def test_equal_models_have_one_fingerprint_wherever_they_are(tmp_path: Path) -> None:
    here, there = single(tmp_path / "here"), single(tmp_path / "there", torch_dtype="bfloat16")
    assert open_checkpoint(here).fingerprint == open_checkpoint(there).fingerprint
    assert len(bytes.fromhex(open_checkpoint(here).fingerprint)) == 16


def test_a_config_fact_changes_the_fingerprint(tmp_path: Path) -> None:
    plain, other = single(tmp_path / "plain"), single(tmp_path / "other", rope_theta=10001.0)
    assert open_checkpoint(plain).fingerprint != open_checkpoint(other).fingerprint


def test_one_bit_of_the_weights_changes_the_fingerprint(tmp_path: Path) -> None:
    directory = single(tmp_path)
    before = open_checkpoint(directory).fingerprint
    weights = directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(1, 1))
    assert open_checkpoint(directory).fingerprint != before


def test_the_fingerprint_needs_no_memo(tmp_path: Path) -> None:
    directory = single(tmp_path / "model")
    (directory / ".eastwest-digests.json").mkdir()
    copy = single(tmp_path / "copy")
    assert open_checkpoint(directory).fingerprint == open_checkpoint(copy).fingerprint
    left = {p.name for p in directory.iterdir()}
    assert left == {"config.json", "model.safetensors", ".eastwest-digests.json"}


def test_a_digest_is_remembered_for_one_version_of_a_file(tmp_path: Path) -> None:
    path, memo = tmp_path / "file", tmp_path / "memo.json"
    path.write_bytes(b"first")
    os.utime(path, ns=(7, 7))
    assert file_digest(path, memo) == blake3(b"first").hexdigest()
    path.write_bytes(b"other")
    os.utime(path, ns=(7, 7))
    assert file_digest(path, memo) == blake3(b"first").hexdigest()
    os.utime(path, ns=(8, 8))
    assert file_digest(path, memo) == blake3(b"other").hexdigest()


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"file": 3}'])
def test_an_unreadable_memo_is_replaced(content: bytes, tmp_path: Path) -> None:
    path, memo = tmp_path / "file", tmp_path / "memo.json"
    path.write_bytes(b"content")
    memo.write_bytes(content)
    assert file_digest(path, memo) == blake3(b"content").hexdigest()
    assert str(path) in json.loads(memo.read_text())
