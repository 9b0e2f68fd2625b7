"""Number formats: their sizes, what they are multiplied in, and mixtures by name."""

from __future__ import annotations

import pytest

from eastwest.errors import ConfigError
from planner.precision import BITS, Precision, bytes_of, multiplied_in


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("fp32", 4), ("bf16", 2), ("fp16", 2), ("fp8", 1), ("int8", 1), ("fp4", 0.5),
     ("mxfp4", 0.5 + 1 / 32), ("nvfp4", 0.5 + 1 / 16), ("int4", 0.53125)],
)  # fmt: skip
def test_bytes_count_scales(dtype: str, size: float) -> None:
    assert bytes_of(dtype) == size


_H100 = {"bf16": 1.0, "fp8": 2.0, "int8": 2.0}
_B200 = {"bf16": 1.0, "fp8": 2.0, "fp4": 4.0}
_OLD = {"fp16": 1.0}


@pytest.mark.parametrize(
    ("dtype", "rates", "used"),
    [
        ("bf16", _H100, "bf16"), ("fp16", _H100, "bf16"), ("fp32", _H100, "bf16"),
        ("fp8", _H100, "fp8"), ("int8", _H100, "int8"), ("int8", _B200, "bf16"),
        ("int8w", _H100, "bf16"), ("int4", _B200, "bf16"),
        ("mxfp4", _H100, "bf16"), ("mxfp4", _B200, "fp8"), ("nvfp4", _B200, "fp4"),
        ("nvfp4", _H100, "bf16"), ("bf16", {"fp32": 1.0}, "fp32"),
        ("fp16", _OLD, "fp16"), ("bf16", _OLD, "fp16"), ("int4", _OLD, "fp16"),
    ],
)  # fmt: skip
def test_what_weights_are_multiplied_in(dtype: str, rates: dict[str, float], used: str) -> None:
    assert multiplied_in(dtype, rates) == used


def test_a_device_that_multiplies_nothing_wide_is_told() -> None:
    with pytest.raises(ConfigError, match="rates for fp4 multiplies no bf16"):
        multiplied_in("bf16", {"fp4": 1.0})


@pytest.mark.parametrize("name", BITS)
def test_every_format_is_a_mixture_by_name(name: str) -> None:
    mixture = Precision.named(name)
    assert mixture.experts == name
    assert mixture.head == mixture.kv == ("fp32" if name == "fp32" else "bf16")
    assert mixture.attention == ("bf16" if name in ("mxfp4", "int4") else name)


def test_kv_has_a_format_of_its_own() -> None:
    assert Precision.named("fp8", "fp8").kv == "fp8"
    assert Precision.named("fp8").kv == "bf16"


@pytest.mark.parametrize("name", ["int4", "mxfp4"])
def test_four_bits_are_for_experts_where_there_are_some(name: str) -> None:
    assert Precision.named(name).attention == "bf16"
    assert Precision.named(name, sparse=False).attention == name


@pytest.mark.parametrize(("weights", "kv"), [("fp9", None), ("bf16", "fp9"), ("BF-16", None)])
def test_unknown_formats_are_told_with_the_nearest(weights: str, kv: str | None) -> None:
    with pytest.raises(ConfigError, match=r"number format .* is not known; .*allowed: bf16"):
        Precision.named(weights, kv)
