"""Commits over a connection that damages bytes: what was damaged is refused, and what comes after
it is not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import grpc.aio
import pytest

from eastwest.clock import SystemClock
from eastwest.errors import EastWestError, ErrorCode, TransferFailed
from eastwest.testing.proxy import FaultyProxy
from eastwest.types import SampledToken
from eastwest.v1 import kv_transfer_pb2 as wire
from eastwest.wire import token_to_wire
from kv_transfer.commit_line import CommitLine
from kv_transfer.ranks import Missing
from kv_transfer.service import KvTransferService
from tests.unit.kv_transfer.builders import Receiving

WAIT_S = 30.0
TOKENS = {f"t{i}": 1000 + i for i in range(6)}


class HonestCommits:
    """`Commits` that fail the test where a transfer comes with another one's token."""

    def __init__(self) -> None:
        self.committed: set[str] = set()
        self.mixed_up: list[str] = []

    async def commit(
        self, transfer_id: str, epoch: int, first_token: SampledToken, *, finished: bool
    ) -> Sequence[Missing]:
        if (TOKENS.get(transfer_id), 1, False) != (first_token.token, epoch, finished):
            self.mixed_up.append(transfer_id)
        self.committed.add(transfer_id)
        return []

    async def abort(self, transfer_id: str, epoch: int, reason: str) -> None:
        raise AssertionError("nobody gives up")


def a_commit(transfer_id: str) -> wire.CommitRequest:
    token = token_to_wire(SampledToken(TOKENS[transfer_id]))
    return wire.CommitRequest(transfer_id=transfer_id, epoch=1, first_token=token)


async def answered(line: CommitLine) -> bool:
    try:
        return (await line.commit(a_commit("t0"), 5.0)).committed
    except EastWestError:
        return False


@pytest.mark.parametrize("seed", range(12))
async def test_damage_is_noticed_and_over_with_its_connection(seed: int) -> None:
    commits, proxy = HonestCommits(), FaultyProxy(random.Random(seed))
    server = grpc.aio.server()
    KvTransferService(Receiving().receiver, commits, SystemClock(), idle_s=30.0).add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    line = CommitLine(await proxy.start(), message_bytes=1 << 20)
    proxy.lead_to(f"127.0.0.1:{port}")
    told: set[str] = set()
    for transfer_id in TOKENS:
        proxy.corrupt = 0.5
        try:
            if (await line.commit(a_commit(transfer_id), 0.5)).committed:
                told.add(transfer_id)
        except EastWestError as error:
            if not error.status.retriable and error.code is not ErrorCode.DEADLINE_EXCEEDED:
                raise
    assert told <= commits.committed
    assert not commits.mixed_up
    assert proxy.corrupted
    proxy.heal()
    # gRPC takes up to a second to dial again.
    async with asyncio.timeout(WAIT_S):
        while not await answered(line):  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.05)
    await line.close()
    await proxy.close()
    await server.stop(None)


async def test_a_receipt_of_another_transfer_is_none() -> None:
    async def answer(request: bytes, context: object) -> bytes:
        return wire.CommitReceipt(committed=True, transfer_id="t1").SerializeToString()

    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]]
    handlers = {"Commit": grpc.unary_unary_rpc_method_handler(answer)}
    service = grpc.method_handlers_generic_handler("eastwest.v1.KvTransfer", handlers)
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    line = CommitLine(f"127.0.0.1:{port}", message_bytes=1 << 20)
    assert (await line.commit(a_commit("t1"), 5.0)).committed
    with pytest.raises(TransferFailed, match="is of transfer 't1'"):
        await line.commit(a_commit("t2"), 5.0)
    await line.close()
    await server.stop(None)
