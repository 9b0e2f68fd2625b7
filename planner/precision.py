"""Number formats: how many bits an element takes, and what a device multiplies it in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from eastwest.errors import ConfigError
from planner.nearest import nearest

# Bits of one element, its share of scales included: mxfp4 has 8 bits for 32 elements, nvfp4 for 16.
BITS: dict[str, float] = {
    "fp32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "int8w": 8, "mxfp4": 4.25,
    "nvfp4": 4.5, "fp4": 4, "int4": 4.25,
}  # fmt: skip
# What weights of a format are multiplied in: the first that the device has. Formats that are for
# weights alone (int8w, int4) are multiplied as bf16. mxfp4 meets activations of 8 bits on devices
# with 4-bit units, and is unpacked elsewhere.
_MULTIPLIED: dict[str, tuple[str, ...]] = {
    "fp32": ("fp32", "bf16"),
    "bf16": ("bf16",),
    "fp16": ("fp16", "bf16"),
    "fp8": ("fp8", "bf16"),
    "int8": ("int8", "bf16"),
    "int8w": ("bf16",),
    "mxfp4": ("bf16",),
    "nvfp4": ("fp4", "bf16"),
    "fp4": ("fp4", "bf16"),
    "int4": ("bf16",),
}


def bytes_of(dtype: str) -> float:
    """Bytes of one element."""
    return BITS[dtype] / 8


def multiplied_in(dtype: str, rates: Mapping[str, float]) -> str:
    """The format in which a device with these rates multiplies weights of `dtype`."""
    if dtype == "mxfp4" and "fp4" in rates and "fp8" in rates:
        return "fp8"
    for name in (*_MULTIPLIED[dtype], "bf16", "fp16", "fp32"):
        if name in rates:
            return name
    raise ConfigError(f"a device with rates for {', '.join(rates)} multiplies no {dtype}")


@dataclass(frozen=True, slots=True)
class Precision:
    """The format of each part of a model. activations: what moves between ranks and layers."""

    attention: str
    ffn: str
    experts: str
    head: str
    kv: str
    activations: str = "bf16"

    @staticmethod
    def named(weights: str, kv: str | None = None, *, sparse: bool = True) -> Precision:
        """The usual mixture under one name: what checkpoints called so hold.

        8 and 4 bits leave the output head in bf16; mxfp4 and int4 are for experts alone where the
        model has some (`sparse`). KV is bf16 (fp32 under fp32) unless `kv` says otherwise. Raises
        `ConfigError`, with near names.
        """
        for name in filter(None, (weights, kv)):
            if name not in BITS:
                raise ConfigError(f"number format {name!r} is not known; {nearest(name, BITS)}")
        wide = "fp32" if weights == "fp32" else "bf16"
        body = wide if sparse and weights in ("mxfp4", "int4") else weights
        return Precision(body, body, weights, wide, kv or wide, wide)
