"""Sealed messages. Invariants:

1. unseal(seal(x)) says what x says.
2. With any bit flipped, a message is refused, or still says the same.
3. A message without a check, as another implementation may send it, is taken as it is.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eastwest.errors import CorruptData, InvalidArgument
from eastwest.v1 import kv_transfer_pb2 as wire
from eastwest.wire.sealed import seal, unseal

COMMITS = st.builds(
    wire.CommitRequest,
    transfer_id=st.text(max_size=12),
    epoch=st.integers(0, 2**62),
    first_token=st.builds(wire.CommitRequest().first_token.__class__, token=st.integers(0, 2**31)),
    finished=st.booleans(),
)


def meaning(message: wire.CommitRequest) -> tuple[str, int, int, bool]:
    return message.transfer_id, message.epoch, message.first_token.token, message.finished


@given(COMMITS)
def test_what_was_sealed_is_unsealed(commit: wire.CommitRequest) -> None:
    assert meaning(unseal(wire.CommitRequest, seal(commit))) == meaning(commit)


@given(COMMITS, st.data())
def test_a_flipped_bit_changes_no_meaning(commit: wire.CommitRequest, data: st.DataObject) -> None:
    damaged = bytearray(seal(commit))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        taken = unseal(wire.CommitRequest, bytes(damaged))
    except (CorruptData, InvalidArgument):
        return
    assert meaning(taken) == meaning(commit)


def test_without_a_check_nothing_is_compared() -> None:
    commit = wire.CommitRequest(transfer_id="t1", epoch=3)
    assert unseal(wire.CommitRequest, commit.SerializeToString()) == commit
    with pytest.raises(CorruptData, match="check"):
        unseal(wire.CommitRequest, seal(commit).replace(b"t1", b"t2"))
