"""Puts one replica together: its ranks, their blocks, prefill and decode over them, and the gRPC
server that speaks for it.

Every replica has both sides; its role says what a router sends to it. It lives in the process of
its leading rank and reaches the others through their `RankGroup`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, replace

import grpc.aio

from decode_pool.worker import DecodeWorker
from eastwest.clock import Clock, ns
from eastwest.config import Config, PoolConfig
from eastwest.decoding import RefuseMalformed
from eastwest.errors import ConfigError, Unavailable
from eastwest.kv_events import KvEvents
from eastwest.messages import (
    Abort,
    Command,
    Erase,
    Heartbeat,
    Load,
    Prefill,
    Reserve,
    StepBudget,
    Ticket,
    WorkerInfo,
)
from eastwest.ports import BlockStore
from eastwest.rpc import CONTROL_MESSAGE_BYTES, server_options
from eastwest.types import Role
from engine.block_groups import BlockGroups
from kv_transfer.auditor import Audit
from kv_transfer.frame_codec import message_bytes
from kv_transfer.group_push import GroupSender
from kv_transfer.ledger import OwnerKind
from kv_transfer.lent_blocks import LentBlocks
from prefill_pool.worker import PrefillWorker
from runtime.block_service import BlockService
from runtime.control import ControlService
from runtime.holdings import Holdings
from runtime.leaving import LeaveState, Leaving
from runtime.rank_group import RankGroup
from runtime.step_loop import StepLoop

log = logging.getLogger(__name__)

TICK_S = 0.2
# How long streams that were told to end may take to do so.
STOP_GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a replica is. epoch: larger than that of any former incarnation of `worker_id`."""

    worker_id: str
    epoch: int
    role: Role
    host: str
    port: int = 0


def pool_of(config: Config, role: Role) -> PoolConfig:
    """The section that describes replicas of `role`."""
    return {
        Role.PREFILL: config.prefill,
        Role.DECODE: config.decode,
        Role.AGGREGATED: config.aggregated,
    }[role]


class Replica:
    """One replica. `start` binds its port; `stop` ends everything it began.

    Made on the event loop it lives on. The ranks and the store are the caller's until `start` and
    closed by `stop`.
    """

    def __init__(
        self,
        identity: Identity,
        ranks: RankGroup,
        store: BlockStore | None,
        config: Config,
        clock: Clock,
    ) -> None:
        self._identity = identity
        self._ranks = ranks
        self._store = store
        self._config = config
        self._clock = clock
        self._info: WorkerInfo | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.defect = asyncio.Event()
        self._pool = pool_of(config, identity.role)
        self._holdings = Holdings(BlockGroups(ranks.num_blocks, ranks.layout.dp))
        self._loop = StepLoop(ranks, clock)
        self._control = ControlService(self, self._welcome, config.router.heartbeat_s)
        self._decode = self._decode_side()
        self._sender = GroupSender(
            ranks.sending,
            ranks.layout,
            clock,
            blocks_per_group=self._holdings.pool.group_blocks,
            idle_s=config.kv.lease_s,
        )
        self._lent = LentBlocks(
            ranks.model,
            ranks.block_tokens,
            message_bytes=message_bytes(config.kv.frame_bytes),
            timeout_s=config.store.timeout_s,
        )
        self._blocks = BlockService(
            self.info,
            ranks.kv,
            self._holdings,
            frame_bytes=config.kv.frame_bytes,
            idle_s=config.kv.lease_s,
        )
        self._prefill = self._prefill_side()
        # Decode rows first: a prompt chunk joins the batch, it does not displace it.
        self._loop.add(self._decode)
        self._loop.add(self._prefill)
        self._leaving = self._make_leaving()
        self.left = self._leaving.left

    def _decode_side(self) -> DecodeWorker:
        return DecodeWorker(
            info=self.info,
            model=self._ranks.model,
            layout=self._ranks.layout,
            kv=self._ranks.kv,
            ranks=self._ranks.receiving,
            endpoints=self._ranks.endpoints,
            settled=self._ranks.settled,
            holdings=self._holdings,
            loop=self._loop,
            epoch=self._identity.epoch,
            store=self._store,
            emit=self._control.emit,
            pool=self._pool,
            kv_config=self._config.kv,
            store_config=self._config.store,
            clock=self._clock,
        )

    def _prefill_side(self) -> PrefillWorker:
        return PrefillWorker(
            model=self._ranks.model,
            kv=self._ranks.kv,
            holdings=self._holdings,
            loop=self._loop,
            sender=self._sender,
            store=self._store,
            lenders=self._lent,
            local=self._decode.in_place,
            is_self=self._is_self,
            emit=self._control.emit,
            pool=self._pool,
            kv_config=self._config.kv,
            clock=self._clock,
        )

    def _make_leaving(self) -> Leaving:
        return Leaving(
            sides=(self._prefill, self._decode),
            sessions=self._decode.spiller,
            load=self.load,
            routers=lambda: self._control.routers,
            emit=self._control.emit,
            clock=self._clock,
        )

    def info(self) -> WorkerInfo:
        """Who this replica is; known once it has started."""
        assert self._info is not None
        return self._info

    def _welcome(self) -> WorkerInfo:
        return replace(self.info(), draining_s=self._leaving.left_s)

    async def start(self) -> WorkerInfo:
        """Serve; returns the address and all else a router needs."""
        self._server = grpc.aio.server(
            interceptors=[RefuseMalformed()], options=server_options(CONTROL_MESSAGE_BYTES)
        )
        self._control.add_to(self._server)
        self._blocks.add_to(self._server)
        await self._ranks.listen(self._identity.host, self._server, self._decode.transfers)
        identity = self._identity
        try:
            port = self._server.add_insecure_port(f"{identity.host}:{identity.port}")
        except RuntimeError as error:
            raise ConfigError(
                f"cannot listen on {identity.host}:{identity.port}: is the port in use?"
            ) from error
        address = f"{identity.host}:{port}"
        self._info = WorkerInfo(
            worker_id=identity.worker_id,
            epoch=identity.epoch,
            role=identity.role,
            address=address,
            model=self._ranks.model,
            layout=self._ranks.layout,
            block_tokens=self._ranks.block_tokens,
            num_blocks=self._ranks.num_blocks,
            running_max=self._pool.running_max,
            step_tokens=self._pool.step_tokens,
            host=self._ranks.host,
            transports=self._ranks.transports,
        )
        await self._server.start()
        self._spawn(self._loop.run(), "steps")
        self._spawn(self._decode.spiller.run(), "spiller")
        self._spawn(self._tick(), "ticks")
        self._spawn(self._watch_ranks(), "ranks")
        self._spawn(self._leaving.run(), "leaving")
        return self._info

    def drain(self, timeout_s: float) -> None:
        """Begin to leave; `left` is set when nothing is here any more."""
        self._leaving.begin(timeout_s)

    async def stop(self) -> None:
        """End all work and release everything. Idempotent."""
        if self._info is None:
            return
        if self._leaving.state is LeaveState.DRAINED:
            self._control.finish()
        else:
            self._control.close()
        await self._server.stop(STOP_GRACE_S)
        await self._prefill.close()
        await self._decode.close()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._sender.close()
        await self._lent.close()
        await self._ranks.close()
        if self._store is not None:
            await self._store.close()
        self._info = None

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._judge)
        self._tasks.append(task)

    def _judge(self, task: asyncio.Task[None]) -> None:
        """A background task that ends by an error is a defect: this incarnation is finished."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("background task %s has ended", task.get_name(), exc_info=error)
            self._control.close()
            self.defect.set()

    # CommandHandler.

    def handle(self, router_id: str, command: Command) -> None:
        if self._leaving.handle(router_id, command):
            return
        match command:
            case Reserve():
                self._decode.reserve(router_id, command)
            case Prefill():
                self._prefill.prefill(router_id, command)
            case Abort():
                self._prefill.abort(command.request_id)
                self._decode.abort(command.request_id)
            case StepBudget():
                self._prefill.spend(router_id, command)
            case Erase():
                self._decode.spiller.erase(command)
            case Heartbeat():
                until = self._clock.now_ns() + ns(self._config.kv.lease_s)
                self._holdings.ledger.renew_router(router_id, until)

    def router_gone(self, router_id: str) -> None:
        self._prefill.router_gone(router_id)
        self._decode.router_gone(router_id)

    def load(self) -> Load:
        pool = self._holdings.pool
        spiller = self._decode.spiller
        return Load(
            free_blocks=pool.free_blocks,
            cached_blocks=pool.cached_blocks + self._decode.spiller.spillable_blocks(),
            num_blocks=pool.num_blocks,
            running=self._decode.running,
            waiting=self._decode.waiting + self._prefill.waiting,
            waiting_tokens=self._prefill.waiting_tokens,
            leaked_blocks=self.audit().leaked_blocks,
            spilled_blocks=spiller.spilled_blocks,
            sessions_inactive=len(self._decode.residency),
            sessions_spilled=spiller.spilled_sessions,
            transfer_bytes=self._decode.transfer_bytes,
            store_available=self._store is not None and getattr(self._store, "available", True),
            links=self._decode.transfers.links,
            expert_tokens=self._ranks.expert_tokens,
            kv_sequence=pool.journal.sequence,
            draining_s=self._leaving.left_s,
        )

    def kv_events(self) -> list[KvEvents]:
        return self._holdings.kv_events()

    def kv_whole(self) -> list[KvEvents]:
        return self._holdings.kv_whole()

    def audit(self) -> Audit:
        """Who holds what, and what does not add up."""
        sides = (self._prefill, self._decode, self._blocks)
        return self._holdings.audit({owner for side in sides for owner in side.owners()})

    @property
    def transfers_open(self) -> int:
        return self._decode.transfers.transfers_open

    # Time.

    async def _tick(self) -> None:
        while True:
            now = self._clock.now_ns()
            self._prefill.tick(now)
            self._decode.tick(now)
            for owner in self._holdings.ledger.expired(now):
                if owner.kind is OwnerKind.PREFILL:
                    self._prefill.abort(owner.id)
                else:
                    self._decode.expire(owner.id)
            await asyncio.sleep(TICK_S)

    async def _watch_ranks(self) -> None:
        """A replica with one dead rank is dead as a whole."""
        await self._ranks.breakage.event.wait()
        raise Unavailable(self._ranks.breakage.reason)

    def _is_self(self, ticket: Ticket) -> bool:
        info = self.info()
        return (ticket.worker_id, ticket.epoch) == (info.worker_id, info.epoch)
