"""Builders of the shared values: each gives a valid one, of which a test names what it is about."""

from __future__ import annotations

from eastwest.blocks import blocks_for
from eastwest.layout import KVSpec, ParallelLayout
from eastwest.messages import Load, ModelInfo, RankEndpoint, Ticket, WorkerInfo
from eastwest.types import Role, SampledToken


def a_model(*, fingerprint: str = "f" * 32, kv_dtype: str = "float32") -> ModelInfo:
    """A model of two layers and two KV heads."""
    return ModelInfo(
        name="a-model",
        fingerprint=fingerprint,
        architecture="llama",
        dtype=kv_dtype,
        context_tokens=8192,
        vocab_size=49152,
        eos_ids=(2,),
        kv=KVSpec(num_layers=2, num_kv_heads=2, key_dim=8, value_dim=8, dtype=kv_dtype),
    )


def a_worker(
    worker_id: str = "d0",
    role: Role = Role.DECODE,
    *,
    epoch: int = 1,
    num_blocks: int = 1024,
    block_tokens: int = 16,
    running_max: int = 64,
    step_tokens: int = 1_000_000,
    model: ModelInfo | None = None,
) -> WorkerInfo:
    """A worker of one rank."""
    return WorkerInfo(
        worker_id=worker_id,
        epoch=epoch,
        role=role,
        address=f"{worker_id}.test:50052",
        model=model or a_model(),
        layout=ParallelLayout(),
        block_tokens=block_tokens,
        num_blocks=num_blocks,
        running_max=running_max,
        step_tokens=step_tokens,
    )


def a_load(
    *,
    free_blocks: int = 1024,
    cached_blocks: int = 0,
    num_blocks: int = 1024,
    running: int = 0,
    waiting: int = 0,
    waiting_tokens: int = 0,
    sessions_inactive: int = 0,
) -> Load:
    """A report of a worker that holds nothing else."""
    return Load(
        free_blocks=free_blocks,
        cached_blocks=cached_blocks,
        num_blocks=num_blocks,
        running=running,
        waiting=waiting,
        waiting_tokens=waiting_tokens,
        leaked_blocks=0,
        spilled_blocks=0,
        sessions_inactive=sessions_inactive,
        sessions_spilled=0,
        transfer_bytes=0,
        store_available=True,
    )


def a_ticket(
    worker: WorkerInfo,
    *,
    transfer_id: str = "t1",
    tokens: int = 16,
    first_block: int = 0,
    lease_s: float = 30.0,
) -> Ticket:
    """Room on `worker` for a prompt of `tokens` tokens."""
    return Ticket(
        transfer_id=transfer_id,
        worker_id=worker.worker_id,
        epoch=worker.epoch,
        address=worker.address,
        endpoints=(RankEndpoint(0, f"{worker.worker_id}.test:50053"),),
        layout=worker.layout.of_group,
        kv=worker.model.kv,
        fingerprint=worker.model.fingerprint,
        block_tokens=worker.block_tokens,
        first_block=first_block,
        num_blocks=blocks_for(tokens, worker.block_tokens),
        num_tokens=tokens,
        lease_s=lease_s,
    )


def some_tokens(*ids: int) -> tuple[SampledToken, ...]:
    """Output tokens without log-probabilities."""
    return tuple(SampledToken(i) for i in ids)
