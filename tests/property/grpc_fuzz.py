"""What the fuzz tests of gRPC services share: a running deployment, hostile calls, and what must
hold after them.

1. Every call ends, by a status of `eastwest.errors.STATUS`; never by UNKNOWN or INTERNAL.
2. Nothing is logged at level ERROR or above: no traceback, no background task that died.
3. A good request is answered correctly afterwards.
4. The auditors find no leak, and no work, block or transfer is left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from hypothesis import Phase, settings

from eastwest.errors import STATUS, ErrorCode
from eastwest.testing.engine import expected_output
from tests.rig import WAIT_S, Rig

T = TypeVar("T")
Call = Any  # grpc.aio's raw calls, of bytes

ALLOWED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.UNIMPLEMENTED,  # a method that is not there
    *(grpc.StatusCode[s.grpc] for code, s in STATUS.items() if code is not ErrorCode.INTERNAL),
}
# What grpc.aio makes of a write that fails since the server has ended the call: it forgets to look
# which status that had.
UNHEARD = "Internal error from Core"
_LONG = 25


def profiles(examples: int) -> pytest.MarkDecorator:
    """Parametrizes a test with its hypothesis settings: quick and always the same, or, among the
    chaos tests, long and never the same. Nothing is shrunk: a deployment outlives its examples."""
    base = settings(max_examples=examples, deadline=None, phases=[Phase.generate])
    quick = settings(base, derandomize=True)
    chaos = [pytest.mark.chaos, pytest.mark.timeout(1800)]
    long = pytest.param(
        settings(base, derandomize=False, max_examples=_LONG * examples), marks=chaos, id="long"
    )
    return pytest.mark.parametrize("profile", [pytest.param(quick, id="quick"), long])


class Complaints(logging.Handler):
    """Collects what is logged at ERROR and above."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name == "grpc._common" or "PollerCompletionQueue" in text:
            # gRPC's own words: on bytes that are no message, of which its caller gets none; and on
            # the event loops of earlier tests, which it still looks for.
            return
        if record.exc_info is not None and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]!r}"
        self.lines.append(f"{record.name}: {text}")


@dataclass
class Site:
    """A deployment on an event loop of its own, that outlives the examples of a test."""

    runner: asyncio.Runner
    rig: Rig
    complaints: Complaints
    channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)
    said: list[object] = field(default_factory=list)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def channel(self, address: str) -> grpc.aio.Channel:
        if address not in self.channels:
            self.channels[address] = grpc.aio.insecure_channel(address)
        return self.channels[address]

    async def check(self) -> None:
        """The invariants of the module."""
        try:
            await self.rig.settle()
        except TimeoutError:
            held = {name: r.audit().owners for name, r in self.rig.replicas.items()}
            raise AssertionError(f"left: {held}; {self.complaints.lines}") from None
        self.rig.assert_clean()
        prompt = [7, 8, 9] * 5
        completion = await self.rig.client.generate(prompt, temperature=0.0, max_tokens=3)
        assert list(completion.token_ids) == expected_output(prompt, 3)
        for replica in self.rig.replicas.values():
            assert not replica.defect.is_set()
        assert not self.complaints.lines, self.complaints.lines


@contextmanager
def a_site(make_rig: Callable[[], AbstractAsyncContextManager[Rig]]) -> Iterator[Site]:
    """Runs `make_rig` around the body, and checks once more at the end."""
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    stack = AsyncExitStack()
    try:
        with asyncio.Runner() as runner:
            rig = runner.run(stack.enter_async_context(make_rig()))
            site = Site(runner, rig, complaints)
            try:
                yield site
                runner.run(site.check())
            finally:
                runner.run(_closed(site, stack))
            assert not complaints.lines, complaints.lines
    finally:
        logging.getLogger().removeHandler(complaints)


async def _closed(site: Site, stack: AsyncExitStack) -> None:
    for channel in site.channels.values():
        await channel.close()
    await stack.aclose()


async def ended(call: Call) -> grpc.StatusCode:
    """The status that a call ends with, which must be one of ours."""
    async with asyncio.timeout(WAIT_S):
        code: grpc.StatusCode = await call.code()
        details = await call.details()
    assert code in ALLOWED or details == UNHEARD, f"{code.name}: {details}"
    return code


async def unary(channel: grpc.aio.Channel, method: str, request: bytes) -> grpc.StatusCode:
    """A call of one answer, to its end."""
    call: Call = channel.unary_unary(method)(request)  # type: ignore[arg-type]
    with suppress(grpc.aio.AioRpcError):
        await call
    return await ended(call)


async def streamed(
    channel: grpc.aio.Channel, method: str, request: bytes, reads: int | None
) -> grpc.StatusCode | None:
    """A call of many answers: read to its end, or cut off after so many; its status if it has
    one of the server's."""
    call: Call = channel.unary_stream(method)(request)  # type: ignore[arg-type]
    try:
        async with asyncio.timeout(WAIT_S):
            while reads is None or reads:
                if await call.read() is grpc.aio.EOF:
                    return await ended(call)
                reads = None if reads is None else reads - 1
    except grpc.aio.AioRpcError:
        return await ended(call)
    finally:
        call.cancel()
    return None


class RawStream:
    """A bidirectional or client stream, spoken as bytes."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.open = True

    async def write(self, data: bytes | Message) -> None:
        """Send, unless the server has ended the call."""
        if not self.open:
            return
        message = data if isinstance(data, bytes) else data.SerializeToString()
        try:
            async with asyncio.timeout(WAIT_S):
                await self.call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            self.open = False

    async def read(self) -> bytes | None:
        """What comes next; None at the end."""
        try:
            async with asyncio.timeout(WAIT_S):
                message = await self.call.read()
        except grpc.aio.AioRpcError:
            message = grpc.aio.EOF
        if message is grpc.aio.EOF:
            self.open = False
            return None
        assert isinstance(message, bytes)
        return message

    async def close(self, *, cut: bool) -> None:
        """End it from this side, politely or not; a status that the server gave must be ours."""
        if self.call.done() and not self.call.cancelled():
            await ended(self.call)
        elif cut:
            self.call.cancel()
        else:
            await self._finish()
        self.open = False

    async def _finish(self) -> None:
        try:
            async with asyncio.timeout(WAIT_S):
                await self.call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        while await self.read() is not None:
            pass
        await ended(self.call)
