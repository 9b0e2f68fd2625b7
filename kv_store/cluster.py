"""Pipes to a Redis or Valkey Cluster: each command goes to the node that has its slot.

A request is cut into groups, single commands or whole transactions, whose keys are of one slot. The
groups of one node go down one of its pipes in their order, those of different nodes at once, and
replies come back in the order of the commands. A node that says that a slot has moved is believed:
the map is asked for again, and those groups go where they belong, a bounded number of times. While
a slot is being moved its keys are refused, as by a server that is full.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

from redis.crc import key_slot
from redis.exceptions import RedisError

from kv_store.pipe import MakeConnection, Pipes
from kv_store.resp import Command, Reply, ReplyError

Node = tuple[str, int]

MOVES_MAX = 3  # of one group, in one request
_SLOTS = 16384
# Drawn, and sent, before the next commands are drawn.
_RUN_BYTES = 8 << 20
_MAP_BYTES_MAX = 1 << 20


@dataclass(slots=True)
class _Group:
    """Commands of one slot that belong together."""

    slot: int
    commands: list[Command]
    replies: Sequence[Reply] = ()

    @property
    def moved(self) -> bool:
        """Whether the slot is another node's."""
        return any(isinstance(r, ReplyError) and r.code == "MOVED" for r in self.replies)


class ClusterPipes:
    """Looks like `Pipes`. seeds: any nodes of the cluster; connect_to: makes connections to one.
    size: pipes to each node."""

    def __init__(
        self, seeds: Sequence[Node], connect_to: Callable[[Node], MakeConnection], size: int
    ) -> None:
        self._seeds = seeds
        self._connect_to = connect_to
        self._size = size
        self._pipes: dict[Node, Pipes] = {}
        self._map: list[Node | None] = []
        self._mapping = asyncio.Lock()

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[ClusterPipe]:
        """Raises `OSError` or `RedisError` where no node answers."""
        if not self._map:
            await self.refresh(self._map)
        yield ClusterPipe(self)

    async def close(self) -> None:
        """See `Pipes`."""
        await asyncio.gather(*(pipes.close() for pipes in self._pipes.values()))

    def node_of(self, slot: int) -> Node:
        """Who has it. Raises `OSError` where nobody does."""
        node = self._map[slot]
        if node is None:
            raise ConnectionError(f"no node of the cluster has slot {slot}")
        return node

    def at(self, node: Node) -> Pipes:
        """Those to one node."""
        if node not in self._pipes:
            self._pipes[node] = Pipes(self._connect_to(node), self._size)
        return self._pipes[node]

    @property
    def map(self) -> list[Node | None]:
        """Nodes by slot."""
        return self._map

    async def refresh(self, known: list[Node | None]) -> None:
        """Ask who has which slot, unless somebody has since the map was `known`."""
        async with self._mapping:
            if self._map is not known:
                return
            nodes = dict.fromkeys(chain(filter(None, self._map), self._seeds))
            failure: Exception = ConnectionError("the cluster has no nodes")
            for node in nodes:
                try:
                    self._map = await self._ask(node)
                    return
                except (OSError, RedisError) as error:
                    failure = error
            raise failure

    async def _ask(self, node: Node) -> list[Node | None]:
        async with self.at(node).borrow() as pipe:
            asked = await pipe.request([Command((b"CLUSTER", b"SLOTS"))], _MAP_BYTES_MAX)
        reply: Any = asked[0]
        slots: list[Node | None] = [None] * _SLOTS
        try:
            for first, last, (host, port, *_), *_ in reply:
                # A node that does not know its own name is the one that was asked.
                owner = (host.decode() or node[0], port)
                slots[first : last + 1] = [owner] * (last + 1 - first)
        except (TypeError, ValueError, AttributeError):
            raise ConnectionError(f"{node[0]}:{node[1]} is not of a cluster") from None
        return slots


class ClusterPipe:
    """Looks like `Pipe`, to all nodes."""

    def __init__(self, pipes: ClusterPipes) -> None:
        self._pipes = pipes
        self.refused = False

    async def request(self, commands: Iterable[Command], value_max: int = 0) -> list[Reply]:
        """See `Pipe.request`. Commands are drawn some megabytes at a time."""
        self.refused = False
        replies: list[Reply] = []
        for run in _runs(_groups(commands)):
            await self._send(run, value_max)
            for group in run:
                replies += group.replies
            self.refused = self.refused or any(isinstance(r, ReplyError) for r in replies)
        return replies

    async def _send(self, groups: Sequence[_Group], value_max: int) -> None:
        for _ in range(MOVES_MAX):
            known = self._pipes.map
            nodes: defaultdict[Node, list[_Group]] = defaultdict(list)
            for group in groups:
                nodes[self._pipes.node_of(group.slot)].append(group)
            try:
                async with asyncio.TaskGroup() as sending:
                    for node, own in nodes.items():
                        sending.create_task(self._send_to(node, own, value_max))
            except* (OSError, RedisError) as errors:
                # Perhaps another node has taken the place of this one: who asks next will know.
                await self._pipes.refresh(known)
                raise errors.exceptions[0] from None
            groups = [group for group in groups if group.moved]
            if not groups:
                return
            await self._pipes.refresh(known)

    async def _send_to(self, node: Node, groups: Sequence[_Group], value_max: int) -> None:
        async with self._pipes.at(node).borrow() as pipe:
            commands = chain.from_iterable(group.commands for group in groups)
            replies = await pipe.request(commands, value_max)
        at = 0
        for group in groups:
            group.replies = replies[at : at + len(group.commands)]
            at += len(group.commands)


def _groups(commands: Iterable[Command]) -> Iterator[_Group]:
    group: _Group | None = None
    for command in commands:
        name = bytes(command.args[0]).upper()
        if group is None:
            group = _Group(-1, [])
        group.commands.append(command)
        if name == b"MULTI":
            continue
        if name != b"EXEC" and group.slot < 0:
            key = command.args[3 if name in (b"EVAL", b"EVALSHA") else 1]
            group.slot = key_slot(bytes(key))
        if name == b"EXEC" or bytes(group.commands[0].args[0]).upper() != b"MULTI":
            yield group
            group = None
    assert group is None, "a transaction has no end"


def _runs(groups: Iterator[_Group]) -> Iterator[list[_Group]]:
    run: list[_Group] = []
    size = 0
    for group in groups:
        run.append(group)
        size += sum(len(arg) for command in group.commands for arg in command.args)
        size += sum(len(command.into) for command in group.commands if command.into is not None)
        if size >= _RUN_BYTES:
            yield run
            run, size = [], 0
    if run:
        yield run
