"""A Hugging Face model directory: its config and its memory-mapped safetensors.

Everything is checked when the directory is opened, so that a broken checkpoint is refused at
start with one clear line and never half-way through a request. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from blake3 import blake3
from safetensors import SafetensorError, safe_open

from eastwest.errors import ModelError
from engine.digest import file_digest

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DIGESTS = ".eastwest-digests.json"

# Facts that say how a checkpoint was made or is to be held, not what it computes. All others
# count, known or not: one too many costs sharing, one too few would share wrong KV.
_NOT_COMPUTED = frozenset({"_name_or_path", "dtype", "torch_dtype", "transformers_version",
                           "use_cache"})  # fmt: skip
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


class _Slice(Protocol):
    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...


class _Shard(Protocol):
    """What is used of an open safetensors file."""

    def keys(self) -> list[str]: ...
    def get_tensor(self, name: str) -> torch.Tensor: ...
    def get_slice(self, name: str) -> _Slice: ...


class Checkpoint:
    """The weights and config of one model; made by `open_checkpoint`.

    config: the object in config.json, as it is. Weights stay in the page cache, shared by all
    processes that open the same files, for as long as a tensor or this object lives.
    """

    def __init__(
        self, directory: Path, config: dict[str, Any], shards: Mapping[str, _Shard],
        shard_of: Mapping[str, str],
    ) -> None:  # fmt: skip
        self.directory = directory
        self.config = config
        self._shards = shards
        self._shard_of = shard_of

    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return frozenset(self._shard_of)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor as stored: a view of the mapped file, not to be written to.

        Raises `ModelError` where there is none of that name.
        """
        return self._shard(name).get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, without touching its data. Raises as `tensor` does."""
        return tuple(self._shard(name).get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """As safetensors calls it, likewise."""
        return self._shard(name).get_slice(name).get_dtype()

    @cached_property
    def fingerprint(self) -> str:
        """Hex; equal for equal config facts and equal weight files, on any machine.

        Reads all weights once for each version of the files, and remembers their digests in
        the directory where that can be written.
        """
        facts = {k: v for k, v in self.config.items() if k not in _NOT_COMPUTED}
        memo = self.directory / DIGESTS
        try:
            digests = {n: file_digest(self.directory / n, memo) for n in self._shards}
        except OSError as error:
            raise ModelError(f"cannot read the weights of {self.directory}: {error}") from error
        identity = {"config": facts, "files": digests, "shards": dict(self._shard_of)}
        text = "eastwest-checkpoint/1\0" + json.dumps(identity, sort_keys=True)
        return blake3(text.encode()).hexdigest(length=16)

    def _shard(self, name: str) -> _Shard:
        shard = self._shard_of.get(name)
        if shard is None:
            raise ModelError(
                f"{self.directory} has no tensor {name!r}; it holds {len(self._shard_of)} others"
            )
        return self._shards[shard]


def open_checkpoint(directory: Path) -> Checkpoint:
    """Open and check a directory with config.json and safetensors (one file, or shards).

    Raises `ModelError` saying which file is absent, truncated, inconsistent or unreadable.
    """
    if not directory.is_dir():
        raise ModelError(f"{directory} is not a directory; allowed: a Hugging Face model directory")
    config = _read_object(directory / CONFIG)
    if (directory / WEIGHTS).exists():
        shards = {WEIGHTS: _open_shard(directory / WEIGHTS)}
        shard_of = dict.fromkeys(shards[WEIGHTS].keys(), WEIGHTS)
    elif (directory / INDEX).exists():
        shard_of = _read_index(directory / INDEX)
        shards = {n: _open_shard(directory / n) for n in sorted(set(shard_of.values()))}
        _check_index(directory, shards, shard_of)
    else:
        raise _no_weights(directory)
    if not shard_of:
        raise ModelError(f"{directory} holds no tensors at all")
    return Checkpoint(directory, config, shards, shard_of)


def _open_shard(path: Path) -> _Shard:
    try:
        return cast(_Shard, safe_open(path, framework="pt", device="cpu"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is absent, but {INDEX} names it") from error
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is not an intact safetensors file: {error}") from error


def _read_index(path: Path) -> dict[str, str]:
    shard_of = _read_object(path).get("weight_map")
    if not isinstance(shard_of, dict):
        raise ModelError(f"{path} has no weight_map; allowed: an object of tensor and file names")
    for name, shard in shard_of.items():
        plain = isinstance(shard, str) and Path(shard).name == shard
        if not plain or not shard.endswith(".safetensors"):
            raise ModelError(
                f"{path} says that {name} is in {shard!r}; allowed: the name of a .safetensors "
                f"file beside it"
            )
    return shard_of


def _check_index(
    directory: Path, shards: Mapping[str, _Shard], shard_of: Mapping[str, str]
) -> None:
    present = {name: frozenset(shard.keys()) for name, shard in shards.items()}
    for name, shard in shard_of.items():
        if name not in present[shard]:
            raise ModelError(f"{directory / shard} has no tensor {name!r}, but {INDEX} names it")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(f"{path} is absent; a model directory needs it") from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}; allowed: a JSON object")
    return value


def _no_weights(directory: Path) -> ModelError:
    pickled = sorted(p.name for p in directory.iterdir() if p.suffix in _PICKLED)
    if pickled:
        return ModelError(
            f"{directory} has its weights only as pickles ({pickled[0]}), which can run code when "
            f"they are read; allowed: safetensors"
        )
    return ModelError(f"{directory} has neither {WEIGHTS} nor {INDEX}; one of them is needed")
