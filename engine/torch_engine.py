"""One model replica on torch: the engine port over model, paged KV and sampling."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3

from eastwest.config import KVConfig, ModelConfig, PoolConfig
from eastwest.errors import ConfigError, ModelError
from eastwest.layout import ParallelLayout, Shard
from eastwest.messages import ModelInfo
from eastwest.paged_kv import pool_bytes
from eastwest.ports import Buffer, KVMemory, StepProgress, StepRow
from eastwest.types import SampledToken
from engine.architecture import ArchitectureConfig
from engine.checkpoint import Checkpoint, open_checkpoint
from engine.comm import Comm
from engine.kv_memory import TorchKVMemory
from engine.kv_planes import TORCH_DTYPES
from engine.linear import cpu_computes_bfloat16, make_linear
from engine.model import Model
from engine.quantize import Int8Linear
from engine.rank_slice import RankSlice
from engine.sampling import sample
from engine.tensor_reader import MakeLinear
from engine.weights import WeightLoader

_BLOCKS_MIN = 2


class TorchEngine:
    """`eastwest.ports.Engine`. Made by `load_engine`."""

    def __init__(
        self,
        info: ModelInfo,
        layout: ParallelLayout,
        rank: int,
        kv: TorchKVMemory,
        model: Model,
        threads: int,
    ) -> None:
        self.model = info
        self.layout = layout
        self.rank = rank
        self.kv: KVMemory = kv.paged or kv
        self._forward: Model | None = model
        self._threads = threads

    @property
    def expert_tokens(self) -> tuple[int, ...]:
        """See `Engine.expert_tokens`; over all layers of this rank, in the order of experts."""
        return () if self._forward is None else self._forward.expert_tokens()

    def step(
        self, rows: Sequence[StepRow], progress: StepProgress | None = None
    ) -> list[SampledToken | None]:
        """See `Engine.step`. Rows are checked by assertions: they come from our own batching."""
        assert self._forward is not None, "the engine is closed"
        if not rows:
            return []
        # OpenMP keeps its thread count per calling thread, so the stepping thread sets it.
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            logits = self._forward.logits(rows, progress)
            if logits is None or self.rank != self.layout.leader:
                return [None] * len(rows)
            sampled = iter(sample(logits, [row.sample for row in rows if row.sample is not None]))
        return [None if row.sample is None else next(sampled) for row in rows]

    def close(self) -> None:
        """Drop the weights. KV stays readable for as long as somebody holds `kv`. Idempotent."""
        self._forward = None


def compute_device() -> torch.device:
    """What this process computes on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_engine(
    directory: Path,
    model: ModelConfig,
    pool: PoolConfig,
    kv: KVConfig,
    *,
    rank: int = 0,
    comm: Comm | None = None,
    allocate: Callable[[int], Buffer] | None = None,
    expert_loads: Sequence[int] | None = None,
) -> TorchEngine:
    """Load one rank of a Hugging Face directory; of the weights only what the rank needs.

    comm: the rank's groups; none for a layout of one rank. allocate: makes the host memory of the
    paged KV, of the size asked for; none takes memory of the engine's own. expert_loads: see
    `RankSlice.of`. Raises `ModelError` for
    a checkpoint that is unsupported or inconsistent, `ConfigError` for settings that cannot serve
    it. Sets this process's torch thread count to ``pool.threads``.
    """
    layout = pool.layout.layout()
    assert comm is not None or layout.world_size == 1, "ranks without groups"
    block_tokens = pool.block_tokens or kv.block_tokens
    num_blocks = pool.kv_tokens // block_tokens
    if num_blocks < _BLOCKS_MIN:
        raise ConfigError(
            f"kv_tokens is {pool.kv_tokens}, which is {num_blocks} blocks of {block_tokens}; "
            f"allowed: at least {_BLOCKS_MIN} blocks, {_BLOCKS_MIN * block_tokens} tokens"
        )
    torch.set_num_threads(pool.threads)
    device = compute_device()
    dtype = _resolve_dtype(model, device)
    checkpoint = open_checkpoint(directory)
    config = ArchitectureConfig.from_hf(checkpoint.config)
    kv_dtype = dtype if pool.kv_dtype == "auto" else pool.kv_dtype
    info = _describe(checkpoint, config, model, dtype, kv_dtype)
    part = RankSlice.of(config, layout, rank, expert_loads)
    shard = Shard(part.layers, part.kv_heads)
    size = pool_bytes(info.kv, shard, num_blocks, block_tokens)
    buffer = allocate(size) if allocate is not None and device.type == "cpu" else None
    compute = TORCH_DTYPES[dtype]
    memory = TorchKVMemory(info.kv, shard, num_blocks, block_tokens, device, buffer, compute)
    groups = comm or Comm.alone()
    with torch.inference_mode():
        forward = _load_model(
            checkpoint, config, part, model, compute, memory, groups, layout, rank
        )
    return TorchEngine(info, layout, rank, memory, forward, pool.threads)


def _load_model(
    checkpoint: Checkpoint,
    config: ArchitectureConfig,
    part: RankSlice,
    model: ModelConfig,
    dtype: torch.dtype,
    kv: TorchKVMemory,
    comm: Comm,
    layout: ParallelLayout,
    rank: int,
) -> Model:
    linear: MakeLinear = Int8Linear if model.quantization == "int8" else make_linear
    loader = WeightLoader(checkpoint, config, part, dtype, kv.device, linear, kv, comm)
    loader.check()
    layers = tuple(loader.layers())
    norm, head = (loader.norm(), loader.head()) if part.last_stage else (None, None)
    embedding = None
    if part.first_stage:
        # A mapping of its own, of which only the rows that are looked up become resident.
        embedding = open_checkpoint(checkpoint.directory).tensor("model.embed_tokens.weight")
        if kv.device.type != "cpu":
            embedding = embedding.to(kv.device, dtype)
    return Model(config, part, embedding, layers, norm, head, kv, dtype, comm, layout, rank)


def _resolve_dtype(model: ModelConfig, device: torch.device) -> str:
    if model.dtype != "auto":
        return model.dtype
    native = device.type != "cpu" or cpu_computes_bfloat16()
    # The int8 kernels take bfloat16, so float32 around them would cost time and gain little.
    return "bfloat16" if native or model.quantization == "int8" else "float32"


def _describe(
    checkpoint: Checkpoint,
    config: ArchitectureConfig,
    model: ModelConfig,
    dtype: str,
    kv_dtype: str,
) -> ModelInfo:
    identity = f"{checkpoint.fingerprint}\0{dtype}\0{model.quantization}"
    return ModelInfo(
        name=model.source,
        fingerprint=blake3(identity.encode()).hexdigest(length=16),
        architecture=config.name,
        dtype=dtype,
        context_tokens=config.context_tokens,
        vocab_size=config.vocab_size,
        eos_ids=_eos_ids(checkpoint, config.vocab_size),
        kv=config.kv_spec(kv_dtype),
    )


def _eos_ids(checkpoint: Checkpoint, vocab_size: int) -> tuple[int, ...]:
    """Tokens that end a text: those of generation_config.json, else of config.json."""
    value = _generation_config(checkpoint.directory).get("eos_token_id")
    if value is None:
        value = checkpoint.config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int and 0 <= i < vocab_size for i in ids):
        raise ModelError(
            f"{checkpoint.directory}: eos_token_id is {value!r}; allowed: one id or a list of "
            f"ids, from 0 to {vocab_size - 1}"
        )
    return tuple(ids)


def _generation_config(directory: Path) -> dict[str, Any]:
    path = directory / "generation_config.json"
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}; allowed: a JSON object")
    return value
