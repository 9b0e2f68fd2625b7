"""One replica in virtual time: the real prefill and decode worker over a SIMULATED engine.

Blocks, ledger, leases, intake, batching and residency are those that are deployed; the engine's
time, the bytes and the network are not. `kill` ends it as a lost process would: nothing that it
held is told to anybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from decode_pool.worker import DecodeWorker
from eastwest.clock import Clock, ns
from eastwest.config import Config, PoolConfig
from eastwest.layout import ParallelLayout
from eastwest.messages import (
    Abort,
    Command,
    Erase,
    Event,
    Heartbeat,
    Load,
    ModelInfo,
    Prefill,
    RankEndpoint,
    Reserve,
    ResyncKv,
    StepBudget,
    Ticket,
    WorkerInfo,
)
from eastwest.ports import BlockStore
from eastwest.types import Role
from engine.block_groups import BlockGroups
from kv_transfer.auditor import Audit
from kv_transfer.group_push import GroupSender
from kv_transfer.ledger import OwnerKind
from prefill_pool.worker import PrefillWorker
from runtime.holdings import Holdings
from runtime.leaving import Leaving
from sim.engine import SimulatedKV, SimulatedSteps, StepTime
from sim.links import Fabric, SimulatedLenders, SimulatedReceiving, SimulatedSender
from sim.virtual_loop import Call, running_loop

TICK_S = 0.2


class SimulatedReplica:
    """One incarnation. `emit` puts an event on a router's stream."""

    def __init__(
        self,
        worker_id: str,
        epoch: int,
        role: Role,
        *,
        model: ModelInfo,
        num_blocks: int,
        pool: PoolConfig,
        config: Config,
        step_time: StepTime,
        fabric: Fabric,
        clock: Clock,
        emit: Callable[[SimulatedReplica, str, Event], None],
        store: BlockStore | None = None,
    ) -> None:
        self._clock = clock
        self._config = config
        self._fabric = fabric
        self._emit = emit
        self._store = store
        self.alive = True
        self._routers: dict[str, None] = {}
        self.info = WorkerInfo(
            worker_id=worker_id,
            epoch=epoch,
            role=role,
            address=f"{worker_id}.{epoch}",
            model=model,
            layout=ParallelLayout(),
            block_tokens=config.kv.block_tokens,
            num_blocks=num_blocks,
            running_max=pool.running_max,
            step_tokens=pool.step_tokens,
        )
        self.steps = SimulatedSteps(step_time, clock)
        self.holdings = Holdings(BlockGroups(num_blocks, 1))
        self.sender = SimulatedSender(fabric, clock)
        self._kv = SimulatedKV(model.kv, num_blocks, config.kv.block_tokens)
        self.decode = self._decode_worker(pool)
        self.prefill = self._prefill_worker(pool)
        self.steps.add(self.decode)
        self.steps.add(self.prefill)
        self.leaving = Leaving(
            sides=(self.prefill, self.decode),
            sessions=self.decode.spiller,
            load=self.load,
            routers=lambda: self._routers,
            emit=self._tell,
            clock=clock,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._time = running_loop()
        self._next_tick: Call | None = None

    def _decode_worker(self, pool: PoolConfig) -> DecodeWorker:
        return DecodeWorker(
            info=lambda: self.info,
            model=self.info.model,
            layout=ParallelLayout(),
            kv=self._kv,
            ranks=[SimulatedReceiving()],
            endpoints=lambda group, transport: (RankEndpoint(0, self.info.address),),
            settled=_at_once,
            holdings=self.holdings,
            loop=self.steps,
            epoch=self.info.epoch,
            store=self._store,
            emit=self._tell,
            pool=pool,
            kv_config=self._config.kv,
            store_config=self._config.store,
            clock=self._clock,
        )

    def _prefill_worker(self, pool: PoolConfig) -> PrefillWorker:
        return PrefillWorker(
            model=self.info.model,
            kv=self._kv,
            holdings=self.holdings,
            loop=self.steps,
            sender=cast(GroupSender, self.sender),
            store=self._store,
            lenders=SimulatedLenders(self._fabric, self.info.model, self.info.block_tokens),
            local=self.decode.in_place,
            is_self=self._is_self,
            emit=self._tell,
            pool=pool,
            kv_config=self._config.kv,
            clock=self._clock,
        )

    def start(self) -> None:
        """Take commands and transfers."""
        self._fabric.listen(self.info.address, self.decode.transfers, self.holdings, self.sender)
        self.steps.start()
        self._tasks = [asyncio.create_task(self.leaving.run())]
        if self._store is not None:
            self._tasks.append(asyncio.create_task(self.decode.spiller.run()))
        self._next_tick = self._time.call_soon(self._tick)

    async def kill(self) -> None:
        """The process is gone, with all that it held."""
        self.alive = False
        self._fabric.leave(self.info.address)
        await self.close()

    async def close(self) -> None:
        """End everything that runs. Idempotent."""
        await self.prefill.close()
        await self.decode.close()
        if self._next_tick is not None:
            self._next_tick.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.steps.stop()
        self._fabric.leave(self.info.address)

    def handle(self, router_id: str, command: Command) -> None:
        """A command off the stream."""
        if self.leaving.handle(router_id, command):
            return
        match command:
            case Reserve():
                self.decode.reserve(router_id, command)
            case Prefill():
                self.prefill.prefill(router_id, command)
            case Abort():
                self.prefill.abort(command.request_id)
                self.decode.abort(command.request_id)
            case ResyncKv():
                self.tell_whole(router_id)
            case StepBudget():
                self.prefill.spend(router_id, command)
            case Erase():
                self.decode.spiller.erase(command)
            case Heartbeat():
                until = self._clock.now_ns() + ns(self._config.kv.lease_s)
                self.holdings.ledger.renew_router(router_id, until)

    def tell_whole(self, router_id: str) -> None:
        """All named blocks go to a router that knows nothing of them."""
        self._tell_changes()
        self._routers[router_id] = None
        for events in self.holdings.kv_whole():
            self._emit(self, router_id, events)

    def router_gone(self, router_id: str) -> None:
        """Its stream is broken: end what it owned."""
        self._routers.pop(router_id, None)
        self.prefill.router_gone(router_id)
        self.decode.router_gone(router_id)

    def load(self) -> Load:
        """What it reports."""
        pool = self.holdings.pool
        return Load(
            free_blocks=pool.free_blocks,
            cached_blocks=pool.cached_blocks + self.decode.spiller.spillable_blocks(),
            num_blocks=pool.num_blocks,
            running=self.decode.running,
            waiting=self.decode.waiting + self.prefill.waiting,
            waiting_tokens=self.prefill.waiting_tokens,
            leaked_blocks=0,
            spilled_blocks=self.decode.spiller.spilled_blocks,
            sessions_inactive=len(self.decode.residency),
            sessions_spilled=self.decode.spiller.spilled_sessions,
            transfer_bytes=self.decode.transfer_bytes,
            store_available=self._store is not None,
            kv_sequence=self.holdings.pool.journal.sequence,
            draining_s=self.leaving.left_s,
        )

    def audit(self) -> Audit:
        """Who holds what, and what does not add up."""
        return self.holdings.audit({*self.prefill.owners(), *self.decode.owners()})

    def _tick(self) -> None:
        now = self._clock.now_ns()
        self.prefill.tick(now)
        self.decode.tick(now)
        for owner in self.holdings.ledger.expired(now):
            if owner.kind is OwnerKind.PREFILL:
                self.prefill.abort(owner.id)
            else:
                self.decode.expire(owner.id)
        if self._store is not None:
            self._tell_changes()  # nothing else is said of what was stored
        self._next_tick = self._time.call_later(TICK_S, self._tick)

    def _tell(self, router_id: str, event: Event) -> None:
        if self.alive:
            self._emit(self, router_id, event)
            self._tell_changes()

    def _tell_changes(self) -> None:
        for events in self.holdings.kv_events():
            for router_id in self._routers:
                self._emit(self, router_id, events)

    def _is_self(self, ticket: Ticket) -> bool:
        return (ticket.worker_id, ticket.epoch) == (self.info.worker_id, self.info.epoch)


async def _at_once() -> None:
    """There is one rank, in this process."""
