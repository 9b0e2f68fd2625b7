"""Messages that carry a check of their own bytes, for what must not be taken for something else.

A connection without TLS has TCP's checksum alone, which misses one in tens of thousands of
damaged segments. A sealed message ends with its field `check` (fixed64, number 15).
"""

from __future__ import annotations

import struct
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from xxhash import xxh3_64_intdigest

from eastwest.errors import CorruptData, InvalidArgument

MessageT = TypeVar("MessageT", bound=Message)

_TAIL = struct.Struct("<BQ")
_TAG = 15 << 3 | 1


def seal(message: Message) -> bytes:
    """The bytes of a message that has a field `check`, which must not be set."""
    data = message.SerializeToString()
    return data + _TAIL.pack(_TAG, xxh3_64_intdigest(data))


def unseal(kind: type[MessageT], data: bytes) -> MessageT:
    """The message, whose check holds where it has one.

    Raises `CorruptData` where it does not, `InvalidArgument` where the bytes are no such message.
    """
    body = len(data) - _TAIL.size
    if body >= 0 and data[body] == _TAG:
        (_, check) = _TAIL.unpack_from(data, body)
        if check != xxh3_64_intdigest(data[:body]):
            raise CorruptData("a message does not match its check")
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise InvalidArgument("the message is not valid protobuf") from None
    return message
