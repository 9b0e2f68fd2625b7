"""What config.json says of a mixture of experts: sizes, routing, and which layers have one."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from eastwest.hf_fields import HfFields


class Scoring(enum.StrEnum):
    """How router logits become scores."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


@dataclass(frozen=True, slots=True)
class Routing:
    """How a token's router logits choose its experts and weigh them.

    renormalise: weights of the chosen sum to 1 before `scale`. groups: equal runs of experts, of
    which the best `groups_kept` compete; a group is as good as its best `group_best` experts
    together. corrected: choices, not weights, add a learned bias to the scores.
    """

    top_k: int
    scoring: Scoring = Scoring.SOFTMAX
    renormalise: bool = False
    scale: float = 1.0
    groups: int = 1
    groups_kept: int = 1
    group_best: int = 1
    corrected: bool = False


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """ffn_size: of one expert. shared_ffn_size: of the shared experts together, 0 for none.
    sparse: which layers have experts; the others are dense."""

    num_experts: int
    ffn_size: int
    shared_ffn_size: int
    sparse: tuple[bool, ...]
    routing: Routing

    @property
    def top_k(self) -> int:
        """Experts of one token."""
        return self.routing.top_k


def read_moe(read: HfFields, name: str, num_layers: int) -> MoeConfig | None:
    """The experts of architecture `name`; None for a dense one."""
    if name == "MixtralForCausalLM":
        experts = read.count("num_local_experts")
        routing = Routing(_top_k(read, experts), renormalise=True)
        return MoeConfig(experts, read.count("intermediate_size"), 0, (True,) * num_layers, routing)
    if name == "Qwen3MoeForCausalLM":
        field = "num_experts" if "num_experts" in read.given else "num_local_experts"
        experts = read.count(field)
        routing = Routing(_top_k(read, experts), renormalise=read.flag("norm_topk_prob", False))
        return MoeConfig(
            experts, read.count("moe_intermediate_size"), 0, _qwen_layers(read, num_layers), routing
        )
    if name in ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"):
        experts = read.count("n_routed_experts")
        size = read.count("moe_intermediate_size")
        # Not assumed where it is not written: readers of these configs assume different numbers.
        shared = 0 if read.null("n_shared_experts") else read.count("n_shared_experts", at_least=0)
        route = _deepseek_v2 if name == "DeepseekV2ForCausalLM" else _deepseek_v3
        first = read.count("first_k_dense_replace", 0, at_least=0)
        step = read.count("moe_layer_freq", 1)
        sparse = tuple(i >= first and i % step == 0 for i in range(num_layers))
        return MoeConfig(experts, size, shared * size, sparse, route(read, experts))
    return None


def _qwen_layers(read: HfFields, num_layers: int) -> tuple[bool, ...]:
    dense = read.given.get("mlp_only_layers", [])
    if not isinstance(dense, list) or not all(type(i) is int for i in dense):
        raise read.error("mlp_only_layers", "a list of layer numbers")
    step = read.count("decoder_sparse_step", 1)
    return tuple(i not in dense and (i + 1) % step == 0 for i in range(num_layers))


def _deepseek_v2(read: HfFields, experts: int) -> Routing:
    _only(read, "scoring_func", "softmax")
    if read.flag("norm_topk_prob", False):
        raise read.error("norm_topk_prob", "false")
    method = read.one_of("topk_method", ("greedy", "group_limited_greedy"), "greedy")
    scale = read.positive("routed_scaling_factor", 1.0)
    if method == "greedy":
        return Routing(_top_k(read, experts), scale=scale)
    groups, kept = _groups(read, experts, group_best=1)
    return Routing(_top_k(read, experts), scale=scale, groups=groups, groups_kept=kept)


def _deepseek_v3(read: HfFields, experts: int) -> Routing:
    _only(read, "scoring_func", "sigmoid")
    _only(read, "topk_method", "noaux_tc")
    groups, kept = _groups(read, experts, group_best=2)
    return Routing(
        _top_k(read, experts),
        Scoring.SIGMOID,
        renormalise=read.flag("norm_topk_prob", True),
        scale=read.positive("routed_scaling_factor"),
        groups=groups,
        groups_kept=kept,
        group_best=2,
        corrected=True,
    )


def _only(read: HfFields, field: str, allowed: str) -> None:
    read.one_of(field, (allowed,), allowed)


def _top_k(read: HfFields, experts: int) -> int:
    top_k = read.count("num_experts_per_tok")
    if top_k > experts:
        raise read.error("num_experts_per_tok", f"at most {experts} experts")
    return top_k


def _groups(read: HfFields, experts: int, group_best: int) -> tuple[int, int]:
    groups, kept = read.count("n_group"), read.count("topk_group")
    if experts % groups or experts // groups < group_best:
        raise read.error(
            "n_group", f"a divisor of {experts} experts that leaves {group_best} to a group"
        )
    if kept > groups:
        raise read.error("topk_group", f"at most {groups} groups")
    if kept * (experts // groups) < _top_k(read, experts):
        raise read.error(
            "num_experts_per_tok", f"at most the {kept * (experts // groups)} of {kept} groups"
        )
    return groups, kept
