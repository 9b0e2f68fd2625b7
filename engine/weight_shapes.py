"""The names and shapes of a checkpoint's tensors, as Hugging Face writes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.architecture import ArchitectureConfig

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """What an architecture calls the parts of a mixture, within a layer."""

    block: str
    gate: str
    up: str
    down: str

    def expert(self, index: int) -> str:
        return f"{self.block}.experts.{index}"


def expert_names(config: ArchitectureConfig) -> ExpertNames:
    if config.name == "MixtralForCausalLM":
        return ExpertNames("block_sparse_moe", "w1", "w3", "w2")
    return ExpertNames("mlp", "gate_proj", "up_proj", "down_proj")


def expected_shapes(config: ArchitectureConfig, layers: range) -> Iterator[tuple[str, Shape]]:
    """Of all tensors that `layers`, the embedding and the head are made of."""
    c = config
    yield "model.embed_tokens.weight", (c.vocab_size, c.hidden_size)
    yield "model.norm.weight", (c.hidden_size,)
    if not c.tied_embeddings:
        yield "lm_head.weight", (c.vocab_size, c.hidden_size)
    for index in layers:
        prefix = f"model.layers.{index}."
        yield f"{prefix}input_layernorm.weight", (c.hidden_size,)
        yield f"{prefix}post_attention_layernorm.weight", (c.hidden_size,)
        attention = _grouped(c) if c.latent is None else _latent(c)
        sparse = c.moe is not None and c.moe.sparse[index]
        for name, shape in (*attention, *(_experts(c) if sparse else _dense(c))):
            yield f"{prefix}{name}", shape


def _grouped(c: ArchitectureConfig) -> Iterator[tuple[str, Shape]]:
    query, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    yield from _matrix("self_attn.q_proj", query, c.hidden_size, c.qkv_bias)
    yield from _matrix("self_attn.k_proj", kv, c.hidden_size, c.qkv_bias)
    yield from _matrix("self_attn.v_proj", kv, c.hidden_size, c.qkv_bias)
    yield from _matrix("self_attn.o_proj", c.hidden_size, query, c.output_bias)
    if c.qk_norm:
        yield "self_attn.q_norm.weight", (c.head_dim,)
        yield "self_attn.k_norm.weight", (c.head_dim,)


def _latent(c: ArchitectureConfig) -> Iterator[tuple[str, Shape]]:
    latent = c.latent
    assert latent is not None
    query = c.num_heads * c.head_dim
    if latent.query_rank is None:
        yield from _matrix("self_attn.q_proj", query, c.hidden_size)
    else:
        yield from _matrix("self_attn.q_a_proj", latent.query_rank, c.hidden_size, c.qkv_bias)
        yield "self_attn.q_a_layernorm.weight", (latent.query_rank,)
        yield from _matrix("self_attn.q_b_proj", query, latent.query_rank)
    rows = latent.rank + latent.rope_dim
    yield from _matrix("self_attn.kv_a_proj_with_mqa", rows, c.hidden_size, c.qkv_bias)
    yield "self_attn.kv_a_layernorm.weight", (latent.rank,)
    made = c.num_heads * (latent.plain_dim + latent.value_dim)
    yield from _matrix("self_attn.kv_b_proj", made, latent.rank)
    values = c.num_heads * latent.value_dim
    yield from _matrix("self_attn.o_proj", c.hidden_size, values, c.output_bias)


def _dense(c: ArchitectureConfig) -> Iterator[tuple[str, Shape]]:
    for name in ("mlp.gate_proj", "mlp.up_proj"):
        yield from _matrix(name, c.ffn_size, c.hidden_size, c.mlp_bias)
    yield from _matrix("mlp.down_proj", c.hidden_size, c.ffn_size, c.mlp_bias)


def _experts(c: ArchitectureConfig) -> Iterator[tuple[str, Shape]]:
    moe, names = c.moe, expert_names(c)
    assert moe is not None
    yield from _matrix(f"{names.block}.gate", moe.num_experts, c.hidden_size)
    if moe.routing.corrected:
        yield f"{names.block}.gate.e_score_correction_bias", (moe.num_experts,)
    networks = [(names.expert(index), moe.ffn_size) for index in range(moe.num_experts)]
    if moe.shared_ffn_size:
        networks.append((f"{names.block}.shared_experts", moe.shared_ffn_size))
    for network, size in networks:
        yield from _matrix(f"{network}.{names.gate}", size, c.hidden_size)
        yield from _matrix(f"{network}.{names.up}", size, c.hidden_size)
        yield from _matrix(f"{network}.{names.down}", c.hidden_size, size)


def _matrix(name: str, rows: int, columns: int, bias: bool = False) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)
