"""The control stream, with the network left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from eastwest.messages import PROTOCOL_VERSION, Command, Heartbeat
from eastwest.testing.builders import a_load, a_worker
from eastwest.types import Role
from eastwest.v1 import worker_pb2
from runtime.control import ControlService

INFO = a_worker("w", Role.DECODE)
HELLO = worker_pb2.RouterMessage(
    hello=worker_pb2.Hello(router_id="r", protocol_version=PROTOCOL_VERSION)
)
HEARTBEAT = worker_pb2.RouterMessage(
    commands={"epoch": INFO.epoch, "commands": [worker_pb2.Command(heartbeat={})]}
)


class Handler:
    """A `CommandHandler` that holds nothing and remembers what it was told."""

    transfers_open = 0

    def __init__(self) -> None:
        self.told: list[Command | str] = []

    def handle(self, router_id: str, command: Command) -> None:
        self.told.append(command)

    def router_gone(self, router_id: str) -> None:
        self.told.append("gone")

    def load(self) -> Any:
        return a_load()

    def kv_events(self) -> list[Any]:
        return []

    def kv_whole(self) -> list[Any]:
        return []

    def audit(self) -> Any:
        raise AssertionError("nobody asks")


class Stream:
    """One router's call. The status that ends it takes as long as the test wants."""

    def __init__(self, service: ControlService) -> None:
        self._messages: asyncio.Queue[worker_pb2.RouterMessage] = asyncio.Queue()
        self.welcomed, self.ending, self.may_end = (asyncio.Event() for _ in range(3))
        context: Any = self
        self.task = asyncio.create_task(service.Control(self._said(), context))

    def say(self, message: worker_pb2.RouterMessage) -> None:
        self._messages.put_nowait(message)

    async def _said(self) -> AsyncIterator[worker_pb2.RouterMessage]:
        while True:
            yield await self._messages.get()

    async def write(self, message: worker_pb2.WorkerMessage) -> None:
        self.welcomed.set()

    async def abort(self, code: grpc.StatusCode, details: str, metadata: object) -> None:
        self.ending.set()
        await self.may_end.wait()
        raise grpc.aio.AbortError


async def test_a_stream_that_ends_takes_no_command_any_more() -> None:
    handler = Handler()
    service = ControlService(handler, lambda: INFO, heartbeat_s=30.0)
    old, new = Stream(service), Stream(service)
    old.say(HELLO)
    await old.welcomed.wait()
    old.say(HEARTBEAT)
    while Heartbeat() not in handler.told:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0)
    new.say(HELLO)
    await new.welcomed.wait()
    # What the old one asks for now, nobody would end.
    old.say(HEARTBEAT)
    await old.ending.wait()
    old.say(HEARTBEAT)
    for _ in range(10):
        await asyncio.sleep(0)
    assert handler.told == [Heartbeat(), "gone"]
    old.may_end.set()
    with pytest.raises(grpc.aio.AbortError):
        await old.task
    new.task.cancel()
    await asyncio.wait([new.task])
    assert handler.told == [Heartbeat(), "gone", "gone"]
