"""Messages that no honest peer sends, made from the descriptors of the protocol itself.

`absurd` fills any message type with what its fields can hold and nobody means; `mangled` spoils a
good message in a place or two; `noise` is bytes: random ones, or those of a message that were cut,
flipped or repeated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

MessageT = TypeVar("MessageT", bound=Message)
# Good values of fields, by name: without them nothing gets past the first check.
Known = Mapping[str, st.SearchStrategy[Any]]

_MANY = 300


def _ints(low: int, high: int) -> st.SearchStrategy[int]:
    edges = (0, 1, 2, 7, -1, 255, 1 << 16, 1 << 31, low, high, low + 1, high - 1)
    return st.sampled_from([e for e in edges if low <= e <= high]) | st.integers(low, high)


_FLOATS = (
    st.sampled_from(
        [0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf, 2.0**63]
    )
    | st.floats()
)
_TEXTS = st.sampled_from(
    ["", " ", "\0", "x" * 5000, "\n\r", "\U0001f600" * 40, "../..", "%s{0}", "ä"]
) | st.text(max_size=12)
_BYTES = st.binary(max_size=40) | st.sampled_from([b"", b"\0" * 5000])
_F = FieldDescriptor
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    **dict.fromkeys((_F.TYPE_DOUBLE, _F.TYPE_FLOAT), _FLOATS),
    **dict.fromkeys(
        (_F.TYPE_INT64, _F.TYPE_SINT64, _F.TYPE_SFIXED64), _ints(-(1 << 63), (1 << 63) - 1)
    ),
    **dict.fromkeys((_F.TYPE_UINT64, _F.TYPE_FIXED64), _ints(0, (1 << 64) - 1)),
    **dict.fromkeys(
        (_F.TYPE_INT32, _F.TYPE_SINT32, _F.TYPE_SFIXED32), _ints(-(1 << 31), (1 << 31) - 1)
    ),
    **dict.fromkeys((_F.TYPE_UINT32, _F.TYPE_FIXED32), _ints(0, (1 << 32) - 1)),
    _F.TYPE_BOOL: st.booleans(),
    _F.TYPE_STRING: _TEXTS,
    _F.TYPE_BYTES: _BYTES,
    # Unknown values of an open enum are kept.
    _F.TYPE_ENUM: st.integers(0, 5) | st.sampled_from([-1, 99, (1 << 31) - 1]),
}


@st.composite
def absurd(
    draw: st.DrawFn, kind: type[MessageT], known: Known | None = None, depth: int = 4
) -> MessageT:
    """A `kind` with any of its fields set, to `known` values half of the time."""
    message = kind()
    _fill(draw, message, known or {}, depth)
    return message


def _fill(draw: st.DrawFn, message: Message, known: Known, depth: int) -> None:
    fields: list[Any] = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    for field in draw(st.lists(st.sampled_from(fields), max_size=len(fields), unique_by=_name)):
        _set(draw, message, field, known, depth)


def _name(field: FieldDescriptor) -> str:
    return field.name


def _set(
    draw: st.DrawFn, message: Message, field: FieldDescriptor, known: Known, depth: int
) -> None:
    if field.is_repeated:
        _extend(draw, message, field, known, depth)
    elif field.message_type is not None:
        getattr(message, field.name).SetInParent()
        if depth:
            _fill(draw, getattr(message, field.name), known, depth - 1)
    else:
        setattr(message, field.name, draw(_value(field, known)))


def _extend(
    draw: st.DrawFn, message: Message, field: FieldDescriptor, known: Known, depth: int
) -> None:
    values = getattr(message, field.name)
    if field.message_type is None:
        chosen = draw(st.lists(_value(field, known), max_size=4))
        values.extend(chosen * (_MANY if draw(st.integers(0, 9)) == 0 else 1))
    elif field.message_type.GetOptions().map_entry:
        values.update(draw(st.dictionaries(_TEXTS, _TEXTS, max_size=3)))
    else:
        for _ in range(draw(st.integers(0, 3)) if depth else 0):
            _fill(draw, values.add(), known, depth - 1)
        if len(values) and draw(st.integers(0, 9)) == 0:
            values.extend([values[0]] * _MANY)


def _value(field: FieldDescriptor, known: Known) -> st.SearchStrategy[Any]:
    any_value = _SCALARS[field.type]
    return known[field.name] | any_value if field.name in known else any_value


@st.composite
def mangled(draw: st.DrawFn, message: MessageT, known: Known | None = None) -> MessageT:
    """A copy of `message` that is wrong in one place, or two."""
    copy = type(message)()
    copy.CopyFrom(message)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(_places(copy)))
        fields: list[Any] = list(place.DESCRIPTOR.fields)
        field = draw(st.sampled_from(fields))
        match draw(st.integers(0, 3)):
            case 0:
                place.ClearField(field.name)
            case 1 if field.is_repeated and field.message_type is None:
                place.ClearField(field.name)
                _extend(draw, place, field, known or {}, 2)
            case _:
                _set(draw, place, field, known or {}, 2)
    return copy


def _places(message: Message) -> list[Message]:
    """The message, and those in it, that have fields at all."""
    places = [message] if message.DESCRIPTOR.fields else []
    for field, value in message.ListFields():
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for child in value if field.is_repeated else [value]:
                places += _places(child)
    return places


@st.composite
def noise(draw: st.DrawFn, *good: Message) -> bytes:
    """Bytes that may or may not be a message."""
    if not good or draw(st.integers(0, 2)) == 0:
        return draw(st.binary(max_size=60))
    data = bytearray(draw(st.sampled_from(good)).SerializeToString())
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 3)):
            case 0:
                del data[at:]
            case 1 if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 2:
                data[at:at] = draw(st.binary(max_size=8))
            case _:
                data += data[at:]
    return bytes(data)
