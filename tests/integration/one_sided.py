"""A process that writes KV into the memory of another one by itself, and what it is given.

The tests stop, continue and kill it. Nothing here waits for a time.
"""

from __future__ import annotations

import asyncio
import enum
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from eastwest.clock import SystemClock
from eastwest.errors import EastWestError, ErrorCode
from eastwest.layout import KVSpec, ParallelLayout, shard_of
from eastwest.messages import RankEndpoint, Ticket, Transport
from eastwest.paged_kv import Blocks, PagedKV
from eastwest.ports import Buffer
from eastwest.testing.kv_memory import ArrayKVMemory
from kv_transfer.digest import digest
from kv_transfer.frame_codec import Header, checksum_seed, decode
from kv_transfer.nixl_delivery import Nixl
from kv_transfer.outgoing import PushedKV
from kv_transfer.plan import Region
from kv_transfer.shared_memory import SharedMemory
from kv_transfer.transport import Delivery, TransportProvider

SPEC = KVSpec(num_layers=4, num_kv_heads=2, key_dim=8, value_dim=8, dtype="float32")
SHARD = shard_of(SPEC, ParallelLayout(), 0)
BLOCK_TOKENS = 4
NUM_BLOCKS = 8
THEIRS = (5, 2, 3)
OURS = (1, 4, 0)
REGION = Region(SHARD.layers, range(3), SHARD.heads)
WAIT_S = 30


def a_ticket(memory: str, transport: Transport, transfer_id: str = "t1") -> Ticket:
    """For blocks `THEIRS` of the memory that `memory` describes."""
    endpoint = RankEndpoint(0, "127.0.0.1:1", memory)
    return Ticket(
        transfer_id=transfer_id,
        worker_id="d0",
        epoch=1,
        address=endpoint.address,
        endpoints=(endpoint,),
        layout=ParallelLayout(),
        kv=SPEC,
        fingerprint="model",
        block_tokens=BLOCK_TOKENS,
        first_block=0,
        num_blocks=len(THEIRS),
        num_tokens=len(THEIRS) * BLOCK_TOKENS,
        lease_s=30.0,
        transport=transport,
        blocks=THEIRS,
    )


def a_source() -> ArrayKVMemory:
    source = ArrayKVMemory(SPEC, SHARD, NUM_BLOCKS, BLOCK_TOKENS)
    source.fill(1)
    return source


class StopsHalfway:
    """An `Outgoing` whose process stops itself between the two halves of a copy."""

    converts = False

    def __init__(self, source: ArrayKVMemory, ticket: Ticket) -> None:
        self._whole = PushedKV(source, OURS, ticket)

    def read(self, region: Region) -> Buffer:
        raise AssertionError("shared memory is written, not read")

    def parts(self, region: Region) -> Sequence[Buffer]:
        raise AssertionError("shared memory is written, not read")

    def copy_to(self, pool: PagedKV, blocks: Blocks, region: Region, seed: int) -> int:
        middle = len(region.layers) // 2
        for layers in (region.layers[:middle], region.layers[middle:]):
            self._whole.copy_to(pool, blocks, replace(region, layers=layers), seed)
            if layers.start == 0:
                os.kill(os.getpid(), signal.SIGSTOP)
        return seed


class Todo(enum.Enum):
    """What the sending process does with the transfer of a ticket."""

    PACK = enum.auto()
    PACK_AND_STOP = enum.auto()
    SETTLE = enum.auto()
    CLOSE = enum.auto()


def _send(connection: Connection) -> None:
    """The sending process: does one thing for each ticket that comes, and says how it ended."""
    asyncio.run(_serve(connection))


async def _serve(connection: Connection) -> None:
    providers: dict[Transport, TransportProvider] = {}
    deliveries: dict[str, Delivery] = {}
    source = a_source()
    while True:
        ticket, todo = connection.recv()
        stops = todo is Todo.PACK_AND_STOP
        outgoing = StopsHalfway(source, ticket) if stops else PushedKV(source, OURS, ticket)
        try:
            if ticket.transport not in providers:
                shared = ticket.transport is Transport.SHARED_MEMORY
                providers[ticket.transport] = SharedMemory() if shared else Nixl(SystemClock())
            if ticket.transfer_id not in deliveries:
                provider = providers[ticket.transport]
                deliveries[ticket.transfer_id] = provider.deliver(ticket, ticket.endpoints[0])
            delivery = deliveries[ticket.transfer_id]
            answer: bytes | ErrorCode = b""
            if todo is Todo.CLOSE:
                await delivery.close()
            elif todo is Todo.SETTLE:
                delivery.settle()
            else:
                header = Header(ticket.transfer_id, ticket.epoch, 0, REGION)
                answer = b"".join(await delivery.pack(header, outgoing))
        except EastWestError as error:
            answer = error.code
        connection.send(answer)


@dataclass
class Child:
    """The sending process, from the receiver's side."""

    pid: int
    connection: Connection

    def send(self, ticket: Ticket, *, stopping: bool = False) -> None:
        """Have it pack the whole transfer."""
        self.connection.send((ticket, Todo.PACK_AND_STOP if stopping else Todo.PACK))

    def close(self, ticket: Ticket) -> None:
        """Have it close its delivery."""
        self.connection.send((ticket, Todo.CLOSE))
        assert self.answer() == b""

    def settle(self, ticket: Ticket) -> None:
        """Have it settle its delivery."""
        self.connection.send((ticket, Todo.SETTLE))
        assert self.answer() == b""

    def answer(self) -> bytes | ErrorCode:
        assert self.connection.poll(WAIT_S), "the sender does not answer"
        answer: bytes | ErrorCode = self.connection.recv()
        return answer

    def wait_until_stopped(self) -> None:
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


@contextmanager
def a_sending_process() -> Iterator[Child]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send, args=(theirs,), daemon=True)
    process.start()
    assert process.pid is not None
    theirs.close()
    yield Child(process.pid, ours)
    process.kill()
    process.join()
    ours.close()


def check_arrived(message: bytes | ErrorCode, transfer_id: str, buffer: Buffer) -> None:
    """`message` tells of all of a transfer, which lies in its blocks and nowhere else."""
    assert isinstance(message, bytes)
    frame = decode(message)
    assert frame.header == Header(transfer_id, 1, 0, REGION, in_place=True)
    assert not frame.payload
    kv = PagedKV(buffer, SPEC, SHARD, NUM_BLOCKS, BLOCK_TOKENS)
    tokens = range(len(THEIRS) * BLOCK_TOKENS)
    assert digest(kv, THEIRS, REGION, tokens, checksum_seed(frame.header)) == frame.checksum
    expected = ArrayKVMemory(SPEC, SHARD, NUM_BLOCKS, BLOCK_TOKENS)
    sent = a_source().read(OURS, SHARD.layers, SHARD.heads)
    expected.write(THEIRS, SHARD.layers, SHARD.heads, sent)
    assert bytes(buffer) == expected.buffer.tobytes()


def overwrite(buffer: memoryview) -> bytes:
    """The blocks belong to somebody else, who writes to them."""
    buffer[:] = bytes([7]) * len(buffer)
    return bytes(buffer)
