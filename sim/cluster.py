"""A whole deployment in virtual time: replicas, a router, clients, and what each of them saw.

`Cluster` brings it up from a few numbers; faults are methods on it. What happens to clients is
checked as it happens (`ExactlyOnce`), and written down (`Seen`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from operator import attrgetter

from eastwest.clock import Clock, seconds
from eastwest.config import Config, PoolConfig
from eastwest.errors import EastWestError, NotFound, Unavailable
from eastwest.layout import KVSpec
from eastwest.messages import Event, ModelInfo
from eastwest.ports import ServingCosts
from eastwest.testing.checkers import ExactlyOnce
from eastwest.types import Role
from router.decision_log import Write
from router.placement import PlacementPolicy
from router.requests import Action, Deliver, End, Outcome, Request
from sim.engine import VOCAB, StepTime, mark_of, token_at
from sim.links import Fabric
from sim.replica import SimulatedReplica
from sim.router import SimulatedRouter
from sim.store import SimulatedStore
from sim.virtual_loop import Call, running_loop

LOAD_S = 1.0
_ID = attrgetter("token")
RESTART_S = 3.0


@dataclass(frozen=True, slots=True)
class Shape:
    """What a cluster consists of. num_blocks: of each replica. message_s: of a control stream.
    costs: what each router goes by. routers: over the same replicas. store_bytes_per_s: of an
    offline store; 0: there is none."""

    replicas: tuple[tuple[Role, int], ...]
    num_blocks: int
    pool: PoolConfig
    kv: KVSpec
    context_tokens: int = 1 << 20
    link_bytes_per_s: float = 25e9
    message_s: float = 2e-4
    config: Config = field(default_factory=Config)
    costs: ServingCosts | None = None
    routers: int = 1
    store_bytes_per_s: float = 0.0
    store_latency_s: float = 1e-3


@dataclass(slots=True)
class Seen:
    """What one client saw, and of which router. mark: what its tokens are known by. Times are
    virtual nanoseconds. outcome: without its tokens, which have been checked and are not kept."""

    request: Request
    router: SimulatedRouter
    mark: int
    tokens: int = 0
    first_ns: int = 0
    last_ns: int = 0
    ended_ns: int | None = None
    outcome: Outcome | EastWestError | None = None

    @property
    def ttft_s(self) -> float:
        return seconds(self.first_ns) - seconds(self.request.accepted_ns)

    @property
    def tpot_s(self) -> float:
        """0 for answers of one token."""
        if self.tokens < 2:
            return 0.0
        return (seconds(self.last_ns) - seconds(self.first_ns)) / (self.tokens - 1)


def _store_of(shape: Shape) -> SimulatedStore | None:
    if not shape.store_bytes_per_s:
        return None
    size = shape.config.kv.block_tokens * shape.kv.bytes_per_token
    return SimulatedStore(shape.store_bytes_per_s, shape.store_latency_s, size)


class Cluster:
    """Made and run on a virtual loop. step_time: of a replica, by its role."""

    def __init__(
        self,
        shape: Shape,
        step_time: Callable[[Role], StepTime],
        clock: Clock,
        rng: random.Random,
        policy: PlacementPolicy | None = None,
        record: Callable[[str], None] | None = None,
        write: Write | None = None,
    ) -> None:
        """record: told each thing that happens, a line each, for logs to compare. write: takes the
        entries of the decision log, of a cluster with one router."""
        assert write is None or shape.routers == 1
        self.shape = shape
        self.rng = rng
        self.clock = clock
        self._step_time = step_time
        self._record = record
        self.fabric = Fabric(rng, shape.link_bytes_per_s, shape.message_s)
        self.model = ModelInfo(
            name="simulated", fingerprint="s" * 32, architecture="simulated", dtype="bfloat16",
            context_tokens=shape.context_tokens, vocab_size=VOCAB, eos_ids=(2,), kv=shape.kv,
        )  # fmt: skip
        self.store = _store_of(shape)
        self._policy = policy
        self._write = write
        self.routers = [self._new_router(f"router-{i}") for i in range(shape.routers)]
        self.replicas: dict[str, SimulatedReplica] = {}
        self.leaves = 0
        self._followers: dict[str, asyncio.Task[None]] = {}
        self.former: list[SimulatedReplica] = []
        self.seen: dict[str, Seen] = {}
        self.exactly_once = ExactlyOnce(self._expected)
        self._ended = asyncio.Event()
        self._running = 0
        self._epochs = 0
        self._incarnations = 0
        self._time = running_loop()
        self._next_report: Call | None = None

    @property
    def router(self) -> SimulatedRouter:
        """The first one."""
        return self.routers[0]

    @property
    def events(self) -> int:
        """What all routers that live have been told by workers."""
        return sum(router.events for router in self.routers)

    def start(self) -> None:
        """Bring all replicas up."""
        for role, count in self.shape.replicas:
            for index in range(count):
                self.spawn(f"{role.value}-{index}", role)
        self._next_report = self._time.call_soon(self._report)

    def spawn(self, worker_id: str, role: Role) -> None:
        """A new incarnation of a worker; the former one must be gone."""
        self._epochs += 1
        replica = SimulatedReplica(
            worker_id,
            self._epochs,
            role,
            model=self.model,
            num_blocks=self.shape.num_blocks,
            pool=self.shape.pool,
            config=self.shape.config,
            step_time=self._step_time(role),
            fabric=self.fabric,
            clock=self.clock,
            emit=self._hear,
            store=self.store,
        )
        self.replicas[worker_id] = replica
        replica.start()
        following = asyncio.get_running_loop().create_task(self._follow(replica))
        self._followers[worker_id] = following
        for router in self.routers:
            router.connect(replica)
        self._log(f"{worker_id} is up, epoch {self._epochs}")

    async def kill(self, worker_id: str) -> None:
        """The worker's process is gone, and its stream broken."""
        replica = self.replicas.pop(worker_id)
        self._followers.pop(worker_id).cancel()
        self._log(f"{worker_id} is killed")
        replica.alive = False
        for router in self.routers:
            router.disconnect(worker_id, "it was killed")
        await replica.kill()
        self.former.append(replica)

    def drain(self, worker_id: str, timeout_s: float) -> None:
        """An operator wants the worker away. Another comes in its place when it has left."""
        self._log(f"{worker_id} is to drain within {timeout_s:.3f} s")
        scheduler = self.router.scheduler
        with contextlib.suppress(NotFound, Unavailable):  # it may be down
            self.router.tell(lambda now: scheduler.drain(worker_id, timeout_s, now))

    def undrain(self, worker_id: str) -> None:
        """The operator has changed their mind."""
        self._log(f"{worker_id} is to stay")
        with contextlib.suppress(NotFound, Unavailable):  # it may be down, or have drained
            self.router.tell(lambda _: self.router.scheduler.undrain(worker_id))

    async def _follow(self, replica: SimulatedReplica) -> None:
        """Until it has left, holding nothing for anybody; then starts another."""
        await replica.leaving.left.wait()
        worker_id, audit = replica.info.worker_id, replica.audit()
        assert not audit.leaked_blocks, f"{worker_id} leaks: {audit}"
        assert replica.prefill.idle, f"{worker_id} leaves with prompts"
        assert replica.decode.idle, f"{worker_id} leaves with sequences"
        self._log(f"{worker_id} leaves")
        del self.replicas[worker_id]
        self.leaves += 1
        replica.alive = False
        for router in self.routers:
            router.disconnect(worker_id, "it has left")
        await replica.kill()
        self.former.append(replica)
        await asyncio.sleep(self.rng.uniform(0.1, RESTART_S))
        self.spawn(worker_id, replica.info.role)

    def kill_router(self, index: int) -> None:
        """A router's process is gone: its clients see that their connections break."""
        router = self.routers[index]
        router.kill()
        self._log(f"{router.router_id} is killed")
        for request_id, seen in self.seen.items():
            if seen.router is router and seen.ended_ns is None:
                self._end(End(request_id, Unavailable("the router is gone")), self._time.now_ns)

    def revive_router(self, index: int) -> None:
        """A new incarnation takes its place, and connects to all replicas."""
        self._incarnations += 1
        router = self.routers[index] = self._new_router(f"router-{index}.{self._incarnations}")
        for replica in self.replicas.values():
            router.connect(replica)
        self._log(f"{router.router_id} is up")

    def submit(self, request: Request, index: int = 0) -> EastWestError | None:
        """A client asks a router. What it is refused with, if it is."""
        router, mark = self.routers[index], mark_of(request.prompt)
        self.seen[request.request_id] = seen = Seen(request, router, mark)
        self.exactly_once.accepted(request.request_id)
        self._running += 1
        try:
            if not router.alive:
                raise Unavailable("nobody listens there")
            router.submit(request)
        except EastWestError as error:
            self._running -= 1
            seen.outcome, seen.ended_ns = error, self.clock.now_ns()
            self.exactly_once.failed(request.request_id)
            self._log(f"{request.request_id} is refused: {error.code.value}")
            return error
        return None

    def cancel(self, request_id: str, error: EastWestError) -> None:
        """A client goes away."""
        router = self.seen[request_id].router
        router.tell(lambda now: router.scheduler.cancel(request_id, error, now))

    async def quiet(self) -> None:
        """Until no client waits."""
        while self._running:
            self._ended.clear()
            await self._ended.wait()

    async def close(self) -> None:
        """End everything."""
        if self._next_report is not None:
            self._next_report.cancel()
        for following in self._followers.values():
            following.cancel()
        for failed in await asyncio.gather(*self._followers.values(), return_exceptions=True):
            if isinstance(failed, Exception):
                raise failed
        for replica in self.replicas.values():
            await replica.close()

    def check_quiet(self) -> None:
        """Assert that, with no request left, nothing is held and nothing has leaked."""
        self.exactly_once.check_all_ended()
        for router in self.routers:
            router.scheduler.check_integrity()
        for replica in self.replicas.values():
            audit = replica.audit()
            assert not audit.leaked_blocks, f"{replica.info.worker_id} leaks: {audit}"
            assert not audit.findings, f"{replica.info.worker_id}: {audit.findings}"
            assert not replica.decode.transfers.transfers_open, "transfers are left open"

    def finished(self) -> Iterable[Seen]:
        """Requests that ended well."""
        return (seen for seen in self.seen.values() if isinstance(seen.outcome, Outcome))

    def _hear(self, replica: SimulatedReplica, router_id: str, event: Event) -> None:
        for router in self.routers:
            if router.router_id == router_id:
                router.hear(replica, event)

    def _new_router(self, router_id: str) -> SimulatedRouter:
        return SimulatedRouter(
            router_id,
            self.shape.config.router,
            self.clock,
            self._act,
            self._delay,
            self._policy,
            self.shape.costs,
            self._write,
        )

    def _act(self, action: Action) -> None:
        now = self._time.now_ns
        if isinstance(action, Deliver):
            request_id, tokens = action.request_id, action.tokens
            self.exactly_once.delivered(request_id, map(_ID, tokens))
            seen = self.seen[request_id]
            if not seen.tokens:
                seen.first_ns = now
            seen.tokens += len(tokens)
            seen.last_ns = now
        elif isinstance(action, End):
            self._end(action, now)

    def _end(self, action: End, now_ns: int) -> None:
        seen = self.seen[action.request_id]
        seen.ended_ns = now_ns
        self._running -= 1
        self._ended.set()
        if isinstance(action.result, EastWestError):
            seen.outcome = action.result
            self.exactly_once.failed(action.request_id)
            self._log(f"{action.request_id} fails: {action.result.code.value}")
        else:
            output = [t.token for t in action.result.tokens]
            seen.outcome = replace(action.result, tokens=())
            self.exactly_once.completed(action.request_id, output)
            self._log(f"{action.request_id} ends after {len(output)}")

    def _expected(self, request_id: str, position: int) -> int:
        return token_at(self.seen[request_id].mark, position)

    def _delay(self) -> float:
        return self.shape.message_s * (0.5 + self.rng.random())

    def _report(self) -> None:
        for replica in self.replicas.values():
            for router in self.routers:
                router.hear(replica, replica.load())
        # Behind the timers of that moment, so that the routers' pulse comes first.
        self._next_report = self._time.call_later(LOAD_S, self._time.call_soon, self._report)

    def _log(self, what: str) -> None:
        if self._record is not None:
            self._record(f"{self.clock.now_ns()} {what}")
