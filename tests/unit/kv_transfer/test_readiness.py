"""What leaves of a push: all that is ready, in as few frames as can be."""

from __future__ import annotations

from eastwest.layout import KVSpec, ParallelLayout
from eastwest.messages import Ticket
from kv_transfer.plan import Region, Slice
from kv_transfer.readiness import Readiness, Unsent

KV = KVSpec(num_layers=8, num_kv_heads=2, key_dim=4, value_dim=4, dtype="float32")
LAYERS, HEADS = range(2, 6), range(1)
TICKET = Ticket(
    transfer_id="t",
    worker_id="d0",
    epoch=1,
    address="",
    endpoints=(),
    layout=ParallelLayout(),
    kv=KV,
    fingerprint="",
    block_tokens=10,
    first_block=1,
    num_blocks=4,
    num_tokens=35,
    lease_s=1.0,
)
CELL_BYTES = KV.slice_bytes(10, 1, 1)


def a_rank(frame_bytes: int = 1 << 20) -> tuple[Readiness, Unsent]:
    return Readiness(range(8)), Unsent([Slice(0, 0, LAYERS, HEADS)], TICKET, frame_bytes)


def test_neighbouring_layers_that_are_equally_far_leave_together() -> None:
    ready, unsent = a_rank()
    ready.raise_to(range(0, 4), 25)
    ready.raise_to(range(4, 6), 30)
    assert unsent.take(ready) == [Region(range(2, 4), range(1, 2), HEADS)]
    assert unsent.take(ready) == [Region(range(4, 6), range(1, 3), HEADS)]
    assert unsent.take(ready) == []
    ready.raise_to(range(8), 34)
    assert unsent.take(ready) == [Region(range(2, 4), range(2, 3), HEADS)]
    assert unsent.take(ready) == []
    ready.raise_to(range(8), 35)
    assert unsent.take(ready) == [Region(LAYERS, range(3, 4), HEADS)]
    assert unsent.done


def test_what_the_receiver_has_does_not_leave() -> None:
    ready, unsent = a_rank()
    ready.raise_to(range(8), 19)
    assert unsent.take(ready) == []
    ready.raise_to(range(8), 1000)
    assert unsent.take(ready) == [Region(LAYERS, range(1, 4), HEADS)]


def test_what_was_ready_stays_so() -> None:
    ready, unsent = a_rank()
    ready.raise_to(range(8), 20)
    ready.raise_to(range(8), 10)
    assert unsent.take(ready) == [Region(LAYERS, range(1, 2), HEADS)]


def test_frames_are_as_large_as_allowed() -> None:
    ready, unsent = a_rank(frame_bytes=6 * CELL_BYTES)
    ready.raise_to(range(8), 35)
    assert unsent.take(ready) == [
        Region(range(2, 4), range(1, 4), HEADS),
        Region(range(4, 6), range(1, 4), HEADS),
    ]
