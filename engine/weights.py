"""One rank's weights, fused and in the form that its device multiplies fastest.

A tensor is read, sliced, fused, converted and packed before the next one is touched, so that
loading never holds the model twice. The embedding table is the exception: it stays a view of the
mapped file, since a step reads a few of its rows only. Experts that other ranks keep are not read.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from engine.architecture import ArchitectureConfig
from engine.comm import Comm
from engine.experts import ExpertFeedForward, Network, Router
from engine.kv_memory import LayerKV, TorchKVMemory
from engine.latent import LatentAttention
from engine.layers import Attention, DenseFeedForward, FeedForward, GroupedAttention, Layer
from engine.linear import HeadwiseLinear, Linear
from engine.norm import RmsNorm
from engine.placement import Placement
from engine.rank_slice import RankSlice
from engine.tensor_reader import ALL, MakeLinear, TensorReader, TensorSource
from engine.weight_check import check_tensors
from engine.weight_shapes import expert_names

# DeepSeek's norms of latents have an epsilon of their own, which its config does not tell.
_LATENT_EPS = 1e-6


class WeightLoader:
    """Reads one rank's weights from a checkpoint as `dtype` on `device`."""

    def __init__(
        self,
        source: TensorSource,
        config: ArchitectureConfig,
        part: RankSlice,
        dtype: torch.dtype,
        device: torch.device,
        make_linear: MakeLinear,
        kv: TorchKVMemory,
        comm: Comm,
    ) -> None:
        self._source = source
        self._reader = TensorReader(source, dtype, device, make_linear, config.block_scales)
        self._config = config
        self._part = part
        self._device = device
        self._kv = kv
        self._comm = comm

    def check(self) -> None:
        """See `check_tensors`."""
        check_tensors(self._source, self._config, self._part.layers)

    def layers(self) -> Iterator[Layer]:
        """The rank's layers, one at a time."""
        moe, latent = self._config.moe, self._config.latent
        placement = self._placement() if moe is not None else ()
        for index, kv in zip(self._part.layers, self._kv.layers, strict=True):
            prefix = f"model.layers.{index}."
            make_attention = self._grouped_attention if latent is None else self._latent_attention
            ffn: FeedForward
            if moe is not None and moe.sparse[index]:
                ffn = self._experts(prefix, placement)
            else:
                ffn = self._dense(prefix)
            yield Layer(make_attention(prefix, kv, index), ffn)

    def norm(self) -> RmsNorm:
        return self._norm("model.norm")

    def head(self) -> Linear:
        name = "model.embed_tokens" if self._config.tied_embeddings else "lm_head"
        return self._reader.fused([(name, _rows(self._part.vocab), False)])

    def _grouped_attention(self, prefix: str, kv: LayerKV, index: int) -> Attention:
        config, part = self._config, self._part
        query = _rows(part.query_heads, config.head_dim)
        rows = _rows(part.kv_heads, config.head_dim)
        name, bias = f"{prefix}self_attn.", config.qkv_bias
        return GroupedAttention(
            self._norm(f"{prefix}input_layernorm"),
            self._reader.fused(
                [
                    (f"{name}q_proj", query, bias),
                    (f"{name}k_proj", rows, bias),
                    (f"{name}v_proj", rows, bias),
                ]
            ),
            self._qk_norm(name) if config.qk_norm else None,
            self._reader.columns(f"{name}o_proj", query, config.output_bias),
            kv,
            num_heads=len(part.query_heads),
            num_kv_heads=len(part.kv_heads),
            head_dim=config.head_dim,
            window=config.windows[index],
            group=self._comm.tensor,
        )

    def _latent_attention(self, prefix: str, kv: LayerKV, index: int) -> Attention:
        config, heads, read = self._config, self._part.query_heads, self._reader
        latent = config.latent
        assert latent is not None
        name, bias = f"{prefix}self_attn.", config.qkv_bias
        down_key = (f"{name}kv_a_proj_with_mqa", self._turning(latent.rank, range(1)), bias)
        query_rows = self._turning(latent.plain_dim, heads)
        if latent.query_rank is None:
            down = read.fused([(f"{name}q_proj", query_rows, False), down_key])
            query_norm, query_up = None, None
        else:
            down = read.fused([(f"{name}q_a_proj", ALL, bias), down_key])
            query_norm = read.norm(f"{name}q_a_layernorm", _LATENT_EPS)
            query_up = read.fused([(f"{name}q_b_proj", query_rows, False)])
        made = latent.plain_dim + latent.value_dim
        both = read.tensor(f"{name}kv_b_proj.weight", _rows(heads, made))
        both = both.view(len(heads), made, latent.rank)
        return LatentAttention(
            self._norm(f"{prefix}input_layernorm"),
            down,
            query_norm,
            query_up,
            read.norm(f"{name}kv_a_layernorm", _LATENT_EPS),
            HeadwiseLinear(both[:, : latent.plain_dim].contiguous()),
            HeadwiseLinear(both[:, latent.plain_dim :].transpose(1, 2).contiguous()),
            read.columns(f"{name}o_proj", _rows(heads, latent.value_dim), config.output_bias),
            kv,
            num_heads=len(heads),
            latent_dim=latent.rank,
            plain_dim=latent.plain_dim,
            rope_dim=latent.rope_dim,
            value_dim=latent.value_dim,
            scale=config.rope.score_factor * config.head_dim**-0.5,
            group=self._comm.tensor,
        )

    def _turning(self, plain: int, heads: range) -> torch.Tensor:
        """The rows of `heads`, each `plain` and then the rotated ones in the two-halves order."""
        latent = self._config.latent
        assert latent is not None
        turned = torch.arange(latent.rope_dim)
        if latent.interleaved:
            turned = turned.view(-1, 2).T.flatten()
        one = torch.cat([torch.arange(plain), plain + turned])
        starts = torch.tensor(list(heads)).unsqueeze(1) * len(one)
        return (starts + one).flatten()

    def _dense(self, prefix: str) -> FeedForward:
        bias, name, ffn = self._config.mlp_bias, f"{prefix}mlp.", _rows(self._part.ffn)
        return DenseFeedForward(
            self._norm(f"{prefix}post_attention_layernorm"),
            self._reader.fused([(f"{name}gate_proj", ffn, bias), (f"{name}up_proj", ffn, bias)]),
            self._reader.columns(f"{name}down_proj", ffn, bias),
            self._comm.tensor,
        )

    def _experts(self, prefix: str, placement: Placement) -> FeedForward:
        moe, part, names = self._config.moe, self._part, expert_names(self._config)
        assert moe is not None
        gate = f"{prefix}{names.block}.gate"
        correction = None
        if moe.routing.corrected:
            name = f"{gate}.e_score_correction_bias"
            correction = self._reader.tensor(name, dtype=torch.float32)
        shared = None
        if moe.shared_ffn_size:
            shared = self._network(f"{prefix}{names.block}.shared_experts", part.shared_ffn)
        return ExpertFeedForward(
            self._norm(f"{prefix}post_attention_layernorm"),
            Router(
                self._reader.tensor(f"{gate}.weight", dtype=torch.float32),
                moe.routing,
                correction,
            ),
            [
                self._network(f"{prefix}{names.expert(expert)}", part.expert_ffn)
                for expert in part.experts
            ],
            shared,
            placement,
            self._comm,
        )

    def _network(self, name: str, ffn: range) -> Network:
        names, rows = expert_names(self._config), _rows(ffn)
        return Network(
            self._reader.fused(
                [(f"{name}.{names.gate}", rows, False), (f"{name}.{names.up}", rows, False)]
            ),
            self._reader.columns(f"{name}.{names.down}", rows),
        )

    def _placement(self) -> Placement:
        """Which experts each member of the group keeps, as the members themselves say."""
        kept = torch.tensor(self._part.experts, device=self._device)
        shares = self._comm.experts.all_gather(kept)
        return tuple(tuple(share.tolist()) for share in shares)

    def _qk_norm(self, attention: str) -> RmsNorm:
        query = self._reader.norm_weight(f"{attention}q_norm")
        key = self._reader.norm_weight(f"{attention}k_norm")
        queries, keys = len(self._part.query_heads), len(self._part.kv_heads)
        weight = torch.cat([query.expand(queries, -1), key.expand(keys, -1)])
        return RmsNorm(weight, self._config.norm_eps)

    def _norm(self, name: str) -> RmsNorm:
        return self._reader.norm(name, self._config.norm_eps)


def _rows(parts: range, size: int = 1) -> slice:
    """The rows of some parts of `size` rows each."""
    return slice(parts.start * size, parts.stop * size)
