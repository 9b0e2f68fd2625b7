"""What config.json says of rotary positions: the base, and how frequencies are stretched."""

from __future__ import annotations

import math
from dataclasses import dataclass

from eastwest.hf_fields import HfFields

_KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched. `kind` is default, linear, llama3 or yarn.

    low_freq_factor, high_freq_factor: of llama3. beta_fast, beta_slow: of yarn, turns within the
    original context above which a frequency is kept, and below which it is stretched. amplitude:
    a factor on cosines and sines. score_factor: one on the scores of latent attention.
    """

    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    amplitude: float = 1.0
    score_factor: float = 1.0


def read_rope(read: HfFields, default_theta: float) -> tuple[float, RopeScaling]:
    """Theta and scaling, from `rope_parameters` or the older rope_theta and rope_scaling."""
    field = "rope_parameters" if "rope_parameters" in read.given else "rope_scaling"
    fields = read.sub(field)
    theta_from = fields if "rope_theta" in fields.given else read
    theta = theta_from.positive("rope_theta", default_theta)
    for source in (read, fields):
        if source.given.get("partial_rotary_factor", 1) != 1:
            raise source.error("partial_rotary_factor", "1")
    name = "rope_type" if "rope_type" in fields.given else "type"
    kind = fields.one_of(name, _KINDS, "default")
    if kind == "default":
        return theta, RopeScaling()
    if kind == "linear":
        factor = fields.positive("factor")
        return theta, RopeScaling("linear", factor, score_factor=_score_factor(fields, factor))
    # The model's own field, where there is one, goes before that of the rope.
    of_model = "original_max_position_embeddings" in read.given
    original = (read if of_model else fields).count(
        "original_max_position_embeddings", read.count("max_position_embeddings")
    )
    read_kind = _llama3 if kind == "llama3" else _yarn
    return theta, read_kind(fields, original)


def _llama3(fields: HfFields, original: int) -> RopeScaling:
    factor = fields.positive("factor")
    scaling = RopeScaling(
        "llama3",
        factor,
        fields.positive("low_freq_factor"),
        fields.positive("high_freq_factor"),
        original,
        score_factor=_score_factor(fields, factor),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise fields.error("high_freq_factor", f"above {scaling.low_freq_factor}")
    return scaling


def _yarn(fields: HfFields, original: int) -> RopeScaling:
    if not fields.flag("truncate", True):
        raise fields.error("truncate", "true")
    factor = fields.positive("factor")
    part, whole = fields.number("mscale", 0.0), fields.number("mscale_all_dim", 0.0)
    implied = _mscale(factor, part) / _mscale(factor, whole) if part and whole else None
    scaling = RopeScaling(
        "yarn",
        factor,
        original_context=original,
        beta_fast=fields.positive("beta_fast", 32.0),
        beta_slow=fields.positive("beta_slow", 1.0),
        amplitude=fields.positive("attention_factor", implied or _mscale(factor, 1.0)),
        score_factor=_score_factor(fields, factor),
    )
    if scaling.beta_fast <= scaling.beta_slow:
        raise fields.error("beta_fast", f"above {scaling.beta_slow}")
    return scaling


def _score_factor(fields: HfFields, factor: float) -> float:
    """Scores of latent attention grow with every kind of stretching, not with yarn alone."""
    return _mscale(factor, fields.number("mscale_all_dim", 0.0)) ** 2


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
