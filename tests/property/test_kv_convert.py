"""KV from one dtype to another, over rows of finite values of any size.

1. The same dtype is the same buffer.
2. What the new dtype can hold is kept exactly: widening loses nothing, and there and back is what
   it was.
3. Otherwise values are rounded to nearest, ties to even: within half a step of the new dtype, of
   the row's scale in a quantized one.
4. Nothing finite becomes NaN or infinite, whatever its size.
5. Each layer, plane, head and token is converted on its own: cutting a payload commutes with it.
"""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest.errors import Incompatible, InvalidArgument
from eastwest.layout import KVSpec
from kv_transfer.convert import check_convertible, convert

untimed = settings(deadline=None)  # machines may be busy

FLOAT = KVSpec(num_layers=8, num_kv_heads=4, key_dim=5, value_dim=3, dtype="float32")
LATENT = replace(FLOAT, num_kv_heads=1, value_dim=0)
QUANTIZED = {"int8": 127.0, "float8_e4m3": 448.0}
HALVES = ("bfloat16", "float16")
ALL = ("float32", *HALVES, *QUANTIZED)
Floats = npt.NDArray[np.float32]


@st.composite
def payloads(draw: st.DrawFn) -> tuple[KVSpec, tuple[int, int, int], bytes]:
    """A float32 payload of finite values: its spec, shape and bytes."""
    spec = draw(st.sampled_from((FLOAT, LATENT)))
    heads = draw(st.integers(1, spec.num_kv_heads))
    shape = (draw(st.integers(1, 3)), heads, draw(st.integers(1, 3)))
    layers, heads, tokens = shape
    count = layers * heads * tokens * (spec.key_dim + spec.value_dim)
    sizes = st.sampled_from((0.0, 1e-45, 1e-38, 1e-8, 1e-3, 1.0, 300.0, 1e5, 1e30, 3e38))
    scale = draw(sizes)
    values = draw(
        st.lists(st.floats(-1, 1, width=32) | st.just(0.0), min_size=count, max_size=count)
    )
    return spec, shape, (np.array(values, np.float32) * np.float32(scale)).tobytes()


def rows(payload: bytes, spec: KVSpec, shape: tuple[int, int, int]) -> list[Floats]:
    """Keys, then values, of a float32 payload: ``[layer][head, token][dim]``."""
    layers, heads, tokens = shape
    flat = np.frombuffer(payload, np.float32).reshape(layers, -1)
    split = heads * tokens * spec.key_dim
    planes = [flat[:, :split].reshape(layers, -1, spec.key_dim)]
    if spec.value_dim:
        planes.append(flat[:, split:].reshape(layers, -1, spec.value_dim))
    return planes


def through(payload: bytes, spec: KVSpec, shape: tuple[int, int, int], dtype: str) -> bytes:
    """To `dtype` and back to float32."""
    other = replace(spec, dtype=dtype)
    made = convert(payload, spec, other, shape)
    assert memoryview(made).nbytes == other.slice_bytes(shape[2], shape[0], shape[1])
    return bytes(convert(made, other, spec, shape))


@pytest.mark.parametrize("dtype", ALL)
def test_the_same_dtype_is_the_same_buffer(dtype: str) -> None:
    spec = replace(FLOAT, dtype=dtype)
    payload = bytes(spec.slice_bytes(2, 1, 1))
    assert convert(payload, spec, spec, (1, 1, 2)) is payload


@pytest.mark.parametrize("dtype", HALVES)
@untimed
@given(payloads())
def test_halves_are_the_nearest_and_come_back_exactly(
    dtype: str, case: tuple[KVSpec, tuple[int, int, int], bytes]
) -> None:
    spec, shape, payload = case
    half = np.dtype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else np.float16)
    largest = float(ml_dtypes.finfo(half).max)  # type: ignore[no-untyped-call]
    back = np.frombuffer(through(payload, spec, shape, dtype), np.float32)
    values = np.frombuffer(payload, np.float32)
    # The scalar conversion of one value at a time is the oracle.
    nearest = [float(half.type(min(max(float(v), -largest), largest))) for v in values]
    assert back.tolist() == nearest
    again = np.frombuffer(through(back.tobytes(), spec, shape, dtype), np.float32)
    assert again.tobytes() == back.tobytes()


@pytest.mark.parametrize("dtype", QUANTIZED)
@untimed
@given(payloads())
def test_quantized_rows_are_within_half_a_step(
    dtype: str, case: tuple[KVSpec, tuple[int, int, int], bytes]
) -> None:
    spec, shape, payload = case
    for given_, back in zip(
        rows(payload, spec, shape),
        rows(through(payload, spec, shape, dtype), spec, shape),
        strict=True,
    ):
        values, largest = given_.astype(np.float64), np.abs(given_).max(-1, keepdims=True)
        scale = largest.astype(np.float64) / QUANTIZED[dtype]
        if dtype == "int8":
            step = np.broadcast_to(scale, values.shape)
        else:
            # Three bits of mantissa; below 2**-6 the steps are those of subnormal numbers.
            size = np.abs(values) / np.where(scale == 0, 1, scale)
            step = scale * 2.0 ** np.floor(np.log2(np.maximum(size, 2.0**-6))) / 8
        # Float32 has its own rounding: of the scale, the quotient and the product, and steps of
        # 2**-149 near zero, by which a scale can be off for each unit of an element.
        slack = np.abs(values) * 2.0**-21 + QUANTIZED[dtype] * 2.0**-149
        assert (np.abs(back - values) <= step / 2 * (1 + 2.0**-20) + slack).all()
        assert (back[given_ == 0] == 0).all()


@pytest.mark.parametrize("dtype", ALL[1:])
@untimed
@given(payloads())
def test_nothing_finite_is_lost(
    dtype: str, case: tuple[KVSpec, tuple[int, int, int], bytes]
) -> None:
    spec, shape, payload = case
    assert np.isfinite(np.frombuffer(through(payload, spec, shape, dtype), np.float32)).all()


@pytest.mark.parametrize("dst", ALL)
@pytest.mark.parametrize("src", ALL)
def test_cutting_a_payload_commutes_with_converting_it(src: str, dst: str) -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_normal(2 * 3 * 4 * 8, np.float32)
    src_kv, dst_kv = replace(FLOAT, dtype=src), replace(FLOAT, dtype=dst)
    payload = convert(values.tobytes(), FLOAT, src_kv, (2, 3, 4))
    converted = memoryview(bytes(convert(payload, src_kv, dst_kv, (2, 3, 4))))
    half, new_half = src_kv.slice_bytes(4, 1, 3), dst_kv.slice_bytes(4, 1, 3)
    second = convert(memoryview(payload)[half:], src_kv, dst_kv, (1, 3, 4))
    assert bytes(second) == bytes(converted[new_half:])


def test_a_row_that_is_not_finite_leaves_the_others_alone() -> None:
    spec = replace(LATENT, key_dim=2)
    values = np.array([[1, np.inf], [np.nan, 1], [2, 2]], np.float32)
    for dtype in ALL[1:]:
        back = np.frombuffer(through(values.tobytes(), spec, (1, 1, 3), dtype), np.float32)
        assert back[4:].tolist() == [2, 2]


def test_a_payload_of_another_size_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="allowed: exactly 32"):
        convert(bytes(31), FLOAT, replace(FLOAT, dtype="int8"), (1, 1, 1))


@pytest.mark.parametrize(
    "other",
    [
        replace(FLOAT, num_layers=9),
        replace(FLOAT, num_kv_heads=2),
        replace(FLOAT, key_dim=4),
        replace(FLOAT, value_dim=0),
    ],
)
def test_other_forms_cannot_be_converted(other: KVSpec) -> None:
    with pytest.raises(Incompatible, match="allowed: forms that differ in their dtype only"):
        check_convertible(FLOAT, other, "at p0", "at d0")


def test_a_dtype_that_nobody_knows_is_named() -> None:
    check_convertible(FLOAT, replace(FLOAT, dtype="int8"), "at p0", "at d0")
    with pytest.raises(Incompatible, match=r"int4 at d0; allowed: float32, bfloat16"):
        check_convertible(FLOAT, replace(FLOAT, dtype="int4"), "at p0", "at d0")
