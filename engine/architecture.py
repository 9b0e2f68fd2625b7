"""What a Hugging Face config.json says of a model: sizes, rotary embedding, windows, biases.

Supported are the Llama family's shapes (Llama, Mistral, Qwen2 and Qwen3), mixtures of experts
(Mixtral, Qwen3-MoE) and DeepSeek's latent attention (V2 and V3). Everything that this engine does
not compute is refused here, so that no model is ever run almost right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eastwest.errors import ModelError
from eastwest.hf_fields import HfFields
from eastwest.layout import KVSpec
from engine.block_scales import BlockScales, read_block_scales
from engine.moe_config import MoeConfig, read_moe
from engine.rope_config import RopeScaling, read_rope

SUPPORTED = (
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
    "MixtralForCausalLM", "Qwen3MoeForCausalLM", "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM",
)  # fmt: skip
_LATENT = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM")
_WITH_ATTENTION_BIAS = (
    "LlamaForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", *_LATENT,
)  # fmt: skip
_WINDOW = 4096  # what transformers assumes where sliding_window is not written
_QWEN3_HEAD_DIM = 128  # likewise for head_dim, which Qwen3 does not derive
_MIXTRAL_THETA = 1e6  # likewise for rope_theta, which is 1e4 elsewhere
_MIXTRAL_EPS = 1e-5  # likewise for rms_norm_eps, which is 1e-6 elsewhere


@dataclass(frozen=True, slots=True)
class LatentConfig:
    """Multi-head latent attention. Keys and values of all heads are made from one latent a token.

    query_rank: of the queries' own latent, None where they have none. rank: of that of keys and
    values. plain_dim, rope_dim: dims of a query head without and with positions. value_dim: of a
    head. interleaved: the checkpoint has the two dims that turn together side by side.
    """

    query_rank: int | None
    rank: int
    plain_dim: int
    rope_dim: int
    value_dim: int
    interleaved: bool


@dataclass(frozen=True, slots=True)
class ArchitectureConfig:
    """One decoder-only transformer. `windows[i]` is how many positions layer i sees, itself
    included; None for all. head_dim: of queries. ffn_size: of the dense layers. Where there is a
    latent, it is the one KV head. block_scales: of the weights that are in FP8, if any are."""

    name: str
    num_layers: int
    hidden_size: int
    ffn_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_tokens: int
    norm_eps: float
    rope_theta: float
    rope: RopeScaling
    windows: tuple[int | None, ...]
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    moe: MoeConfig | None = None
    latent: LatentConfig | None = None
    block_scales: BlockScales | None = None

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def rotary_dim(self) -> int:
        """Dims of a head that turn with its position."""
        return self.head_dim if self.latent is None else self.latent.rope_dim

    def kv_spec(self, dtype: str) -> KVSpec:
        if self.latent is not None:
            return KVSpec(self.num_layers, 1, self.latent.rank + self.latent.rope_dim, 0, dtype)
        return KVSpec(self.num_layers, self.num_kv_heads, self.head_dim, self.head_dim, dtype)

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> ArchitectureConfig:
        """Read a config.json object.

        Raises `ModelError` for an unsupported architecture or feature, and for fields that are
        absent, of the wrong kind or inconsistent.
        """
        name = _architecture(config)
        read = HfFields(name, config)
        hidden, heads = read.count("hidden_size"), read.count("num_attention_heads")
        read.one_of("hidden_act", ("silu",), "silu")
        num_layers = read.count("num_hidden_layers")
        latent = _latent(read, name) if name in _LATENT else None
        bias = name in _WITH_ATTENTION_BIAS and read.flag("attention_bias", False)
        theta, rope = read_rope(read, _MIXTRAL_THETA if name == "MixtralForCausalLM" else 1e4)
        return ArchitectureConfig(
            name=name,
            num_layers=num_layers,
            hidden_size=hidden,
            ffn_size=read.count("intermediate_size"),
            num_heads=heads,
            num_kv_heads=1 if latent is not None else _kv_heads(read, heads),
            head_dim=_head_dim(read, name, hidden, heads, latent),
            vocab_size=read.count("vocab_size"),
            context_tokens=read.count("max_position_embeddings"),
            norm_eps=read.positive(
                "rms_norm_eps", _MIXTRAL_EPS if name == "MixtralForCausalLM" else 1e-6
            ),
            rope_theta=theta,
            rope=rope,
            windows=_windows(read, name, num_layers),
            tied_embeddings=read.flag("tie_word_embeddings", False),
            qkv_bias=name == "Qwen2ForCausalLM" or bias,
            output_bias=bias,
            mlp_bias=name == "LlamaForCausalLM" and read.flag("mlp_bias", False),
            qk_norm=name in ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM"),
            moe=read_moe(read, name, num_layers),
            latent=latent,
            block_scales=read_block_scales(read),
        )


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        raise ModelError(f"config.json names no architecture; allowed: {', '.join(SUPPORTED)}")
    if names[0] not in SUPPORTED:
        raise ModelError(
            f"architecture {names[0]!r} is not supported; allowed: {', '.join(SUPPORTED)}"
        )
    return str(names[0])


def _kv_heads(read: HfFields, heads: int) -> int:
    kv_heads = read.count("num_key_value_heads", heads)
    if heads % kv_heads:
        raise read.error("num_attention_heads", f"a multiple of {kv_heads} KV heads")
    return kv_heads


def _latent(read: HfFields, name: str) -> LatentConfig:
    if read.flag("mlp_bias", False):
        raise read.error("mlp_bias", "false")
    rope_dim = read.count("qk_rope_head_dim")
    if rope_dim % 2:
        raise read.error("qk_rope_head_dim", "an even number")
    if "q_lora_rank" not in read.given and not read.null("q_lora_rank"):
        raise read.error("q_lora_rank", "an integer from 1, or null")
    return LatentConfig(
        query_rank=None if read.null("q_lora_rank") else read.count("q_lora_rank"),
        rank=read.count("kv_lora_rank"),
        plain_dim=read.count("qk_nope_head_dim"),
        rope_dim=rope_dim,
        value_dim=read.count("v_head_dim"),
        interleaved=name == "DeepseekV2ForCausalLM" or read.flag("rope_interleave", True),
    )


def _head_dim(
    read: HfFields, name: str, hidden: int, heads: int, latent: LatentConfig | None
) -> int:
    if latent is not None:
        return latent.plain_dim + latent.rope_dim
    derived = _QWEN3_HEAD_DIM if name == "Qwen3ForCausalLM" else hidden // heads
    head_dim = read.count("head_dim", derived)
    if "head_dim" not in read.given and derived * heads != hidden and name != "Qwen3ForCausalLM":
        raise read.error("hidden_size", f"a multiple of {heads} heads")
    if head_dim % 2:
        raise read.error("head_dim", "an even number")
    return head_dim


def _windows(read: HfFields, name: str, num_layers: int) -> tuple[int | None, ...]:
    """Mistral's and Mixtral's window is for all layers, and so is Qwen3-MoE's where it is switched
    on; that of other Qwens for the layers that layer_types names, or those from max_window_layers
    on."""
    everywhere: tuple[int | None, ...] = (None,) * num_layers
    if name == "LlamaForCausalLM" or name in _LATENT:
        return everywhere
    if name in ("MistralForCausalLM", "MixtralForCausalLM"):
        assumed = _WINDOW if name == "MistralForCausalLM" else None
        if "sliding_window" not in read.given and (assumed is None or read.null("sliding_window")):
            return everywhere
        return (read.count("sliding_window", assumed),) * num_layers
    if not read.flag("use_sliding_window", False):
        return everywhere
    window = read.count("sliding_window", _WINDOW)
    if name == "Qwen3MoeForCausalLM":
        return (window,) * num_layers
    types = read.given.get("layer_types")
    if types is None:
        first = read.count("max_window_layers", 28)
        return tuple(window if i >= first else None for i in range(num_layers))
    allowed = {"full_attention": None, "sliding_attention": window}
    known = isinstance(types, list) and all(isinstance(t, str) and t in allowed for t in types)
    if not known or len(types) != num_layers:
        raise read.error("layer_types", f"{num_layers} of {', '.join(allowed)}")
    return tuple(allowed[t] for t in types)
