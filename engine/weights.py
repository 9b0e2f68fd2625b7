"""One rank's weights, fused and in the form that its device multiplies fastest.

A tensor is read, sliced, fused, converted and packed before the next one is touched, so that
loading never holds the model twice. The embedding table is the exception: it stays a view of the
mapped file, since a step reads a few of its rows only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from eastwest.errors import ModelError
from engine.architecture import ArchitectureConfig
from engine.comm import Comm
from engine.kv_memory import LayerKV, TorchKVMemory
from engine.layers import Attention, DenseFeedForward, FeedForward, GroupedAttention, Layer
from engine.linear import Linear
from engine.norm import RmsNorm
from engine.rank_slice import RankSlice

MakeLinear = Callable[[torch.Tensor, torch.Tensor | None], Linear]


class TensorSource(Protocol):
    """What loading needs of an `engine.checkpoint.Checkpoint`."""

    def names(self) -> frozenset[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def tensor(self, name: str) -> torch.Tensor: ...


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
        self._config = config
        self._part = part
        self._dtype = dtype
        self._device = device
        self._make_linear = make_linear
        self._kv = kv
        self._comm = comm

    def check(self) -> None:
        """Raise `ModelError` naming the first tensor that is absent or has a wrong shape."""
        names = self._source.names()
        for name, expected in self._expected():
            if name not in names:
                raise ModelError(f"{self._config.name}: the checkpoint has no tensor {name!r}")
            found = self._source.shape(name)
            if found != expected:
                raise ModelError(
                    f"{self._config.name}: {name} has shape {list(found)}; config.json makes it "
                    f"{list(expected)}"
                )

    def layers(self) -> Iterator[Layer]:
        """The rank's layers, one at a time."""
        for index, kv in zip(self._part.layers, self._kv.layers, strict=True):
            prefix = f"model.layers.{index}."
            yield Layer(self._attention(prefix, kv, index), self._feed_forward(prefix))

    def norm(self) -> RmsNorm:
        return self._norm("model.norm.weight")

    def head(self) -> Linear:
        name = "model.embed_tokens.weight" if self._config.tied_embeddings else "lm_head.weight"
        vocab = self._part.vocab
        return self._make_linear(
            self._ready(self._source.tensor(name)[vocab.start : vocab.stop]), None
        )

    def _attention(self, prefix: str, kv: LayerKV, index: int) -> Attention:
        config, part = self._config, self._part
        query = _rows(part.query_heads, config.head_dim)
        rows = _rows(part.kv_heads, config.head_dim)
        name = f"{prefix}self_attn."
        qkv = [(f"{name}q_proj", query), (f"{name}k_proj", rows), (f"{name}v_proj", rows)]
        return GroupedAttention(
            self._norm(f"{prefix}input_layernorm.weight"),
            self._fused(qkv, config.qkv_bias),
            self._qk_norm(name) if config.qk_norm else None,
            self._columns(f"{name}o_proj", query, config.output_bias),
            kv,
            num_heads=len(part.query_heads),
            num_kv_heads=len(part.kv_heads),
            head_dim=config.head_dim,
            window=config.windows[index],
            group=self._comm.tensor,
        )

    def _feed_forward(self, prefix: str) -> FeedForward:
        config, name = self._config, f"{prefix}mlp."
        ffn = slice(self._part.ffn.start, self._part.ffn.stop)
        gate_up = [(f"{name}gate_proj", ffn), (f"{name}up_proj", ffn)]
        return DenseFeedForward(
            self._norm(f"{prefix}post_attention_layernorm.weight"),
            self._fused(gate_up, config.mlp_bias),
            self._columns(f"{name}down_proj", ffn, config.mlp_bias),
            self._comm.tensor,
        )

    def _fused(self, parts: list[tuple[str, slice]], has_bias: bool) -> Linear:
        weight = self._stacked([(f"{name}.weight", rows) for name, rows in parts])
        bias = self._stacked([(f"{name}.bias", rows) for name, rows in parts]) if has_bias else None
        return self._make_linear(weight, bias)

    def _columns(self, name: str, columns: slice, has_bias: bool) -> Linear:
        weight = self._ready(self._source.tensor(f"{name}.weight")[:, columns])
        # Partial products of the ranks are summed, so one rank alone adds the bias.
        first = has_bias and columns.start == 0
        return self._make_linear(
            weight, self._ready(self._source.tensor(f"{name}.bias")) if first else None
        )

    def _stacked(self, parts: list[tuple[str, slice]]) -> torch.Tensor:
        return torch.cat([self._ready(self._source.tensor(name)[rows]) for name, rows in parts])

    def _qk_norm(self, attention: str) -> RmsNorm:
        query = self._norm_weight(f"{attention}q_norm.weight")
        key = self._norm_weight(f"{attention}k_norm.weight")
        queries, keys = len(self._part.query_heads), len(self._part.kv_heads)
        weight = torch.cat([query.expand(queries, -1), key.expand(keys, -1)])
        return RmsNorm(weight, self._config.norm_eps)

    def _norm(self, name: str) -> RmsNorm:
        return RmsNorm(self._norm_weight(name), self._config.norm_eps)

    def _norm_weight(self, name: str) -> torch.Tensor:
        """A norm's weight times the root of its size; see `engine.norm`."""
        weight = self._source.tensor(name).float()
        return self._ready(weight * len(weight) ** 0.5)

    def _ready(self, tensor: torch.Tensor) -> torch.Tensor:
        # Always a copy: one view that stays would keep the whole file mapped and resident.
        return tensor.to(self._device, self._dtype, copy=True)

    def _expected(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        c = self._config
        query, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        yield "model.embed_tokens.weight", (c.vocab_size, c.hidden_size)
        yield "model.norm.weight", (c.hidden_size,)
        if not c.tied_embeddings:
            yield "lm_head.weight", (c.vocab_size, c.hidden_size)
        matrices = (
            ("self_attn.q_proj", query, c.hidden_size, c.qkv_bias),
            ("self_attn.k_proj", kv, c.hidden_size, c.qkv_bias),
            ("self_attn.v_proj", kv, c.hidden_size, c.qkv_bias),
            ("self_attn.o_proj", c.hidden_size, query, c.output_bias),
            ("mlp.gate_proj", c.ffn_size, c.hidden_size, c.mlp_bias),
            ("mlp.up_proj", c.ffn_size, c.hidden_size, c.mlp_bias),
            ("mlp.down_proj", c.hidden_size, c.ffn_size, c.mlp_bias),
        )
        norms = [("input_layernorm", c.hidden_size), ("post_attention_layernorm", c.hidden_size)]
        if c.qk_norm:
            norms += [("self_attn.q_norm", c.head_dim), ("self_attn.k_norm", c.head_dim)]
        for index in range(c.num_layers):
            prefix = f"model.layers.{index}."
            for name, rows, columns, has_bias in matrices:
                yield f"{prefix}{name}.weight", (rows, columns)
                if has_bias:
                    yield f"{prefix}{name}.bias", (rows,)
            for name, size in norms:
                yield f"{prefix}{name}.weight", (size,)


def _rows(heads: range, head_dim: int) -> slice:
    return slice(heads.start * head_dim, heads.stop * head_dim)
