"""What a Hugging Face config.json says of a model: sizes, rotary embedding, windows, biases.

Supported are the Llama family's shapes: Llama, Mistral, Qwen2 and Qwen3. Everything that this
engine does not compute is refused here, so that no model is ever run almost right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eastwest.errors import ModelError
from eastwest.layout import KVSpec

SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_WINDOW = 4096  # what transformers assumes where sliding_window is not written
_QWEN3_HEAD_DIM = 128  # likewise for head_dim, which Qwen3 does not derive


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched. `kind` is default, linear or llama3; the last
    three fields are those of llama3."""

    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True, slots=True)
class ArchitectureConfig:
    """One decoder-only transformer. `windows[i]` is how many positions layer i sees, itself
    included; None for all."""

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

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    def kv_spec(self, dtype: str) -> KVSpec:
        return KVSpec(self.num_layers, self.num_kv_heads, self.head_dim, self.head_dim, dtype)

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> ArchitectureConfig:
        """Read a config.json object.

        Raises `ModelError` for an unsupported architecture or feature, and for fields that are
        absent, of the wrong kind or inconsistent.
        """
        name = _architecture(config)
        read = _Fields(name, config)
        hidden, heads = read.count("hidden_size"), read.count("num_attention_heads")
        kv_heads = read.count("num_key_value_heads", heads)
        if heads % kv_heads:
            raise read.error("num_attention_heads", f"a multiple of {kv_heads} KV heads")
        if config.get("hidden_act", "silu") != "silu":
            raise read.error("hidden_act", "silu")
        num_layers = read.count("num_hidden_layers")
        biased = name in ("LlamaForCausalLM", "Qwen3ForCausalLM")
        bias = biased and read.flag("attention_bias", False)
        theta, rope = _rope(read)
        return ArchitectureConfig(
            name=name,
            num_layers=num_layers,
            hidden_size=hidden,
            ffn_size=read.count("intermediate_size"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=_head_dim(read, name, hidden, heads),
            vocab_size=read.count("vocab_size"),
            context_tokens=read.count("max_position_embeddings"),
            norm_eps=read.positive("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope=rope,
            windows=_windows(read, name, num_layers),
            tied_embeddings=read.flag("tie_word_embeddings", False),
            qkv_bias=name == "Qwen2ForCausalLM" or bias,
            output_bias=bias,
            mlp_bias=name == "LlamaForCausalLM" and read.flag("mlp_bias", False),
            qk_norm=name == "Qwen3ForCausalLM",
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


class _Fields:
    """Typed reading of config.json; `given` leaves out what is null."""

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self._name = name
        self._all = config
        self.given = {key: value for key, value in config.items() if value is not None}

    def error(self, field: str, allowed: str) -> ModelError:
        value = self.given.get(field, "absent")
        return ModelError(f"{self._name}: {field} is {value!r}; allowed: {allowed}")

    def count(self, field: str, default: int | None = None) -> int:
        value = self.given.get(field, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(field, "an integer from 1")
        return value

    def positive(self, field: str, default: float | None = None) -> float:
        value = self.given.get(field, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
            raise self.error(field, "a number above 0")
        return float(value)

    def flag(self, field: str, default: bool) -> bool:
        value = self.given.get(field, default)
        if not isinstance(value, bool):
            raise self.error(field, "true or false")
        return value

    def null(self, field: str) -> bool:
        return field in self._all and self._all[field] is None

    def sub(self, field: str) -> _Fields:
        value = self.given.get(field, {})
        if not isinstance(value, Mapping):
            raise self.error(field, "an object")
        return _Fields(f"{self._name}: {field}", value)


def _rope(read: _Fields) -> tuple[float, RopeScaling]:
    """Theta and scaling, from `rope_parameters` or the older rope_theta and rope_scaling."""
    new = "rope_parameters" in read.given
    field = "rope_parameters" if new else "rope_scaling"
    fields = read.sub(field)
    theta_from = fields if "rope_theta" in fields.given else read
    theta = theta_from.positive("rope_theta", 10000.0)
    if read.given.get("partial_rotary_factor", fields.given.get("partial_rotary_factor", 1)) != 1:
        raise read.error("partial_rotary_factor", "1")
    kind = fields.given.get("rope_type", fields.given.get("type", "default"))
    if kind == "default":
        return theta, RopeScaling()
    if kind == "linear":
        return theta, RopeScaling("linear", fields.positive("factor"))
    if kind == "llama3":
        scaling = RopeScaling(
            "llama3",
            fields.positive("factor"),
            fields.positive("low_freq_factor"),
            fields.positive("high_freq_factor"),
            fields.count("original_max_position_embeddings", read.count("max_position_embeddings")),
        )
        if scaling.high_freq_factor <= scaling.low_freq_factor:
            raise fields.error("high_freq_factor", f"above {scaling.low_freq_factor}")
        return theta, scaling
    raise ModelError(f"{field}: rope_type is {kind!r}; allowed: default, linear, llama3")


def _head_dim(read: _Fields, name: str, hidden: int, heads: int) -> int:
    derived = _QWEN3_HEAD_DIM if name == "Qwen3ForCausalLM" else hidden // heads
    head_dim = read.count("head_dim", derived)
    if "head_dim" not in read.given and derived * heads != hidden and name != "Qwen3ForCausalLM":
        raise read.error("hidden_size", f"a multiple of {heads} heads")
    if head_dim % 2:
        raise read.error("head_dim", "an even number")
    return head_dim


def _windows(read: _Fields, name: str, num_layers: int) -> tuple[int | None, ...]:
    """Mistral's window is for all layers; Qwen's, where it is switched on, for the layers that
    layer_types names, or those from max_window_layers on."""
    everywhere: tuple[int | None, ...] = (None,) * num_layers
    if name == "LlamaForCausalLM":
        return everywhere
    if name == "MistralForCausalLM":
        window = read.count("sliding_window", _WINDOW) if not read.null("sliding_window") else None
        return (window,) * num_layers
    if not read.flag("use_sliding_window", False):
        return everywhere
    window = read.count("sliding_window", _WINDOW)
    types = read.given.get("layer_types")
    if types is None:
        first = read.count("max_window_layers", 28)
        return tuple(window if i >= first else None for i in range(num_layers))
    allowed = {"full_attention": None, "sliding_attention": window}
    known = isinstance(types, list) and all(isinstance(t, str) and t in allowed for t in types)
    if not known or len(types) != num_layers:
        raise read.error("layer_types", f"{num_layers} of {', '.join(allowed)}")
    return tuple(allowed[t] for t in types)
