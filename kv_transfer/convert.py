"""KV from one dtype to another: a canonical payload in, a canonical payload out.

Rounding is to nearest, ties to even. What is beyond the range of the new dtype becomes its largest
value; no finite input becomes NaN. In a quantized dtype each row has the scale absmax / largest
element, 0 for a row of zeros. A row that holds a value which is not finite may come out as NaN
throughout.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from eastwest.errors import Incompatible, InvalidArgument
from eastwest.layout import DTYPE_BYTES, QUANTIZED, SCALE_BYTES, KVSpec
from eastwest.ports import Buffer

_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype("<f2"),
    "float8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "int8": np.dtype(np.int8),
}
_LARGEST = {
    "bfloat16": 2.0**128 - 2.0**120,
    "float16": 65504.0,
    "float8_e4m3": 448.0,
    "int8": 127.0,
}
_SCALE = np.dtype("<f4")
# Rows are converted so many bytes at a time, so that what is between stays in the cache.
_CHUNK_BYTES = 1 << 18

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def _of_bfloat16() -> Bytes:
    """The nearest float8_e4m3 of each bfloat16, saturated: 64 KiB by its bits."""
    values = np.arange(1 << 16, dtype=np.uint16).view(_DTYPES["bfloat16"]).astype(np.float32)
    largest = _LARGEST["float8_e4m3"]
    with np.errstate(invalid="ignore"):
        nearest = np.clip(values, -largest, largest).astype(_DTYPES["float8_e4m3"])
    return nearest.view(np.uint8)


# Looked up, since element by element the conversion takes several times as long.
_TO_FLOAT8 = _of_bfloat16()
_FROM_FLOAT8 = np.arange(256, dtype=np.uint8).view(_DTYPES["float8_e4m3"]).astype(np.float32)


def check_convertible(src: KVSpec, dst: KVSpec, src_name: str, dst_name: str) -> None:
    """Raise `Incompatible`, naming both sides, unless KV of `src` can become KV of `dst`."""
    if replace(src, dtype=dst.dtype) != dst:
        raise Incompatible(
            f"KV form is {src} {src_name} and {dst} {dst_name}; allowed: forms that differ in "
            f"their dtype only"
        )
    for spec, name in ((src, src_name), (dst, dst_name)):
        if spec.dtype not in DTYPE_BYTES:
            raise Incompatible(
                f"KV dtype is {spec.dtype} {name}; allowed: {', '.join(DTYPE_BYTES)}"
            )


def convert(payload: Buffer, src: KVSpec, dst: KVSpec, shape: tuple[int, int, int]) -> Buffer:
    """A canonical payload of `shape` (layers, heads, tokens) in the dtype of `dst`.

    The payload itself where the dtypes are equal, else a new buffer.
    """
    if src.dtype == dst.dtype:
        return payload
    layers, heads, tokens = shape
    given = np.frombuffer(payload, np.uint8)
    expected = src.slice_bytes(tokens, layers, heads)
    if given.nbytes != expected:
        raise InvalidArgument(
            f"a canonical payload has {given.nbytes} bytes; allowed: exactly {expected}"
        )
    made = np.empty(dst.slice_bytes(tokens, layers, heads), np.uint8)
    planes = [(src.key_bytes, dst.key_bytes), (src.value_bytes, dst.value_bytes)]
    rows, at, new_at = heads * tokens, 0, 0
    with np.errstate(invalid="ignore", over="ignore"):
        for width, new_width in (plane for plane in planes * layers if all(plane)):
            old = given[at : at + rows * width].reshape(rows, width)
            new = made[new_at : new_at + rows * new_width].reshape(rows, new_width)
            step = 1 + _CHUNK_BYTES // (width + new_width)
            for first in range(0, rows, step):
                part = slice(first, first + step)
                _encode(_decode(old[part], src.dtype), new[part], dst.dtype)
            at += rows * width
            new_at += rows * new_width
    return made.data


def _decode(rows: Bytes, dtype: str) -> Floats:
    """Values of rows; a new array where they are not float32 already."""
    if dtype not in QUANTIZED:
        return rows.view(_DTYPES[dtype]).astype(np.float32, copy=False)
    elements = rows[..., :-SCALE_BYTES]
    if dtype == "int8":
        values = elements.view(np.int8).astype(np.float32)
    else:
        values = np.take(_FROM_FLOAT8, elements)
    scales = rows[..., -SCALE_BYTES:].view(_SCALE)
    return np.multiply(values, scales, out=values)


def _encode(values: Floats, rows: Bytes, dtype: str) -> None:
    """Fill `rows` with `values`."""
    largest = np.float32(_LARGEST.get(dtype, np.inf))
    if dtype not in QUANTIZED:
        kept = values if dtype == "float32" else np.clip(values, -largest, largest)
        rows.view(_DTYPES[dtype])[...] = kept.astype(_DTYPES[dtype], copy=False)
        return
    scales = np.abs(values).max(axis=-1, keepdims=True) / largest
    # Rows of zeros, and those too small for a scale, have zeros for elements.
    scaled = values / np.where(scales == 0, np.float32(1), scales)
    elements = rows[..., :-SCALE_BYTES]
    if dtype == "int8":
        np.clip(np.rint(scaled, out=scaled), -largest, largest, out=scaled)
        elements.view(np.int8)[...] = scaled.astype(np.int8)
    else:
        # Cut to bfloat16 with the last bit set where anything was cut off, which rounds to the
        # same float8 as the whole number does.
        bits = scaled.view(np.uint32)
        cut = (bits >> 16).astype(np.uint16)
        cut |= bits.astype(np.uint16) != 0
        elements[...] = np.take(_TO_FLOAT8, cut)
    rows[..., -SCALE_BYTES:].view(_SCALE)[...] = scales
