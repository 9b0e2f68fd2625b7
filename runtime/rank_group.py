"""All ranks of a replica, as its leader drives them.

A step, a read or a write is over when every rank has said so; what the leader then hands on, every
rank has let go of. A group with a lost rank is of no use: `broken` says so, once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Protocol

import grpc.aio

from eastwest.errors import Incompatible
from eastwest.layout import KVSpec, ParallelLayout, Shard, shard_of
from eastwest.messages import ModelInfo, RankEndpoint, Transport
from eastwest.paged_kv import PagedKV
from eastwest.ports import Buffer, StepRow
from eastwest.types import SampledToken
from kv_transfer.ranks import ReceiverEvents, ReceivingRank, SendingRank
from kv_transfer.service import Commits
from runtime.rank import Rank
from runtime.rank_link import RankLink
from runtime.rank_service import Place


class LeaderEvents(Commits, ReceiverEvents, Protocol):
    """The leader's books of transfers: told what arrives, asked to commit."""


class ShardIO(Protocol):
    """Blocks of one rank's shard, wherever the rank runs."""

    async def read(self, blocks: Sequence[int]) -> list[Buffer]: ...
    async def write(self, blocks: Sequence[int], payloads: Sequence[Buffer]) -> None: ...


class Breakage:
    """Whether and why a rank of the group is lost."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.reason = ""

    def tell(self, reason: str) -> None:
        """The first reason stays."""
        self.reason = self.reason or reason
        self.event.set()


class RankGroup:
    """`local`: the leader's own rank; links: to all others, joined. `close` ends them all."""

    def __init__(self, local: Rank, links: Sequence[RankLink], breakage: Breakage) -> None:
        engine = local.engine
        self.model: ModelInfo = engine.model
        self.layout: ParallelLayout = engine.layout
        self.block_tokens = engine.kv.block_tokens
        self.num_blocks = engine.kv.num_blocks * self.layout.dp
        self.breakage = breakage
        self._local = local
        self._links = {link.place.rank: link for link in links}
        expected = set(range(self.layout.world_size)) - {engine.rank}
        assert self._links.keys() == expected, "a link to each other rank"
        for link in links:
            self._check(link)
        size = self.layout.world_size
        self.receiving: list[ReceivingRank] = [local.receiving] * size
        self.sending: list[SendingRank] = [local.sending] * size
        shards: list[ShardIO] = [local] * size
        for rank, link in self._links.items():
            self.receiving[rank] = self.sending[rank] = shards[rank] = link
        self.kv = GroupKV(engine.kv.spec, self.layout, engine.kv.num_blocks, self.block_tokens,
                          shards)  # fmt: skip
        self._address = ""

    @property
    def host(self) -> str:
        """Where all ranks can share memory; "" where they are on several hosts."""
        hosts = {self._local.ways.host, *(link.joined.host for link in self._links.values())}
        return hosts.pop() if len(hosts) == 1 else ""

    @property
    def transports(self) -> tuple[Transport, ...]:
        """What all ranks have."""
        others = [link.transports for link in self._links.values()]
        return tuple(t for t in self._local.ways.transports if all(t in o for o in others))

    @property
    def expert_tokens(self) -> tuple[int, ...]:
        """Pairs of token and expert that each rank has computed; empty for dense models."""
        links, own = self._links, self._local.engine.expert_tokens
        if not own:
            return ()
        return tuple(
            links[rank].expert_tokens if rank in links else sum(own)
            for rank in range(self.layout.world_size)
        )

    async def listen(self, host: str, server: grpc.aio.Server, books: LeaderEvents) -> None:
        """Take frames on all ranks from now on; and commits on `server`, from its start on."""
        self._address = await self._local.listen(host, books)
        self._local.take_commits(server, books)
        for link in self._links.values():
            link.listen(books)

    def endpoints(self, group: int, transport: Transport) -> tuple[RankEndpoint, ...]:
        """Where the ranks of a data-parallel group take KV by a transport, by their number within
        it."""
        own = self._address, self._local.ways.memory.get(transport, "")
        ranks = self.layout.ranks_of_group(group)
        places = [self._links[r].place_of(transport) if r in self._links else own for r in ranks]
        return tuple(RankEndpoint(i, *place) for i, place in enumerate(places))

    async def settled(self) -> None:
        """Until every rank has begun all that was asked of it before, such as to take frames."""
        if self._links:
            await asyncio.gather(*(link.settled() for link in self._links.values()))

    async def step(self, rows: Sequence[StepRow]) -> list[SampledToken | None]:
        """Run a batch on all ranks; see `Engine.step`."""
        others = [asyncio.ensure_future(link.step(rows)) for link in self._links.values()]
        try:
            tokens = await self._local.step(rows)
        except Exception as error:
            if others:
                # The ranks are not at the same place any more.
                self.breakage.tell(f"a step of the leading rank failed: {error}")
            raise
        finally:
            if others:
                await asyncio.wait(others)
        for other in others:
            other.result()
        return tokens

    async def close(self) -> None:
        """End all ranks. Idempotent."""
        await asyncio.gather(*(link.end() for link in self._links.values()))
        await self._local.close()

    def _check(self, link: RankLink) -> None:
        kv, joined = self._local.engine.kv, link.joined
        mine = (self.model.fingerprint, kv.num_blocks, kv.block_tokens)
        theirs = (joined.fingerprint, joined.num_blocks, joined.block_tokens)
        if mine != theirs:
            raise Incompatible(
                f"rank {link.place.rank} has model, blocks and block size {theirs}, the leader "
                f"{mine}; allowed: equal ones"
            )


async def form_group(
    load: Awaitable[Rank], addresses: Sequence[str], place: Place, *, silence_s: float
) -> RankGroup:
    """Load the leader's own rank while all others, at `addresses` in the order of their ranks,
    load theirs. place: the leader's. Raises the first error, with no rank left behind."""
    breakage, layout = Breakage(), place.layout
    others = [rank for rank in range(layout.world_size) if rank != layout.leader]
    assert place.rank == layout.leader
    links = [
        RankLink(address, replace(place, rank=rank), silence_s=silence_s, broken=breakage.tell)
        for rank, address in zip(others, addresses, strict=True)
    ]
    loading = asyncio.ensure_future(load)
    joining = [asyncio.ensure_future(link.join()) for link in links]
    try:
        # The first error, whichever rank has it: the others may be waiting for that one.
        await asyncio.gather(loading, *joining)
        return RankGroup(loading.result(), links, breakage)
    except BaseException:
        for task in joining:
            task.cancel()
        await asyncio.gather(*(link.end() for link in links), return_exceptions=True)
        await asyncio.wait([loading])
        if not loading.cancelled() and loading.exception() is None:
            await loading.result().close()
        raise


class GroupKV:
    """Is a `ReplicaKV`: puts each block together from the shards of its group's ranks.

    ranks: of the whole replica. num_blocks: of one rank.
    """

    def __init__(
        self,
        spec: KVSpec,
        layout: ParallelLayout,
        num_blocks: int,
        block_tokens: int,
        ranks: Sequence[ShardIO],
    ) -> None:
        self.spec = spec
        self.num_blocks = num_blocks * layout.dp
        self.block_tokens = block_tokens
        self._layout = layout
        self._group_blocks = num_blocks
        self._ranks = ranks
        self._shards = [shard_of(spec, layout, rank) for rank in range(layout.group_size)]
        self._whole = Shard(range(spec.num_layers), range(spec.num_kv_heads))

    async def read(self, blocks: Sequence[int]) -> list[Buffer]:
        """See `ReplicaKV.read`. Of ranks that hold the same, the first is asked."""
        own, ranks = self._of_group(blocks)
        if len(ranks) == 1:
            return await self._ranks[ranks.start].read(own)
        firsts = {shard: i for i, shard in reversed(list(enumerate(self._shards)))}
        parts = await asyncio.gather(*(self._ranks[ranks[i]].read(own) for i in firsts.values()))
        return [self._joined(list(firsts), [p[b] for p in parts]) for b in range(len(own))]

    async def write(self, blocks: Sequence[int], payloads: Sequence[Buffer]) -> None:
        """See `ReplicaKV.write`."""
        own, ranks = self._of_group(blocks)
        if len(ranks) == 1:
            await self._ranks[ranks.start].write(own, payloads)
            return
        wholes = [self._block(payload) for payload in payloads]
        await asyncio.gather(
            *(
                self._ranks[rank].write(
                    own, [whole.read([0], shard.layers, shard.heads) for whole in wholes]
                )
                for rank, shard in zip(ranks, self._shards, strict=True)
            )
        )

    def _of_group(self, blocks: Sequence[int]) -> tuple[list[int], range]:
        """The blocks as the ranks of their group count them, and those ranks."""
        group = blocks[0] // self._group_blocks if blocks else 0
        first = group * self._group_blocks
        return [block - first for block in blocks], self._layout.ranks_of_group(group)

    def _joined(self, shards: Sequence[Shard], parts: Sequence[Buffer]) -> Buffer:
        payload = bytearray(self.spec.bytes_per_token * self.block_tokens)
        whole = self._block(payload)
        for shard, part in zip(shards, parts, strict=True):
            whole.write([0], shard.layers, shard.heads, part)
        return payload

    def _block(self, payload: Buffer) -> PagedKV:
        return PagedKV(payload, self.spec, self._whole, 1, self.block_tokens)
