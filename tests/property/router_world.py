"""A router's scheduler among simulated workers, links and clients, in virtual time.

Everything random comes from one seed. `run` lets requests come and faults strike, then heals the
world and gives it time; the checkers watch throughout.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from eastwest.clock import ns
from eastwest.config import RouterConfig
from eastwest.errors import (
    Cancelled,
    EastWestError,
    ErrorCode,
    InvalidArgument,
    NotFound,
    Overloaded,
    Unavailable,
)
from eastwest.messages import (
    Event,
    Failed,
    Prefill,
    Reserve,
    Stepped,
    Ticket,
    WorkerInfo,
)
from eastwest.testing.builders import a_worker
from eastwest.testing.checkers import ExactlyOnce, Reservations, check_timing
from eastwest.testing.simulated import Agenda, Faults, SimulatedWorker, simulated_output
from eastwest.types import Liveness, Role, SampledToken, SamplingParams
from router.requests import Action, Deliver, End, Outcome, Request, Send
from router.scheduler import Scheduler
from tests.unit.router.builders import a_request

LINK_NS_MAX = 20_000_000
STORM_S = 12
CALM_S = 60


@dataclass(frozen=True, slots=True)
class Swarm:
    """The shape of a world and what goes wrong in it. Rates are per second of virtual time."""

    roles: tuple[Role, ...]
    num_blocks: int = 64
    requests: int = 30
    output_max: int = 20
    faults: Faults = field(default_factory=Faults)
    crash_rate: float = 0.0
    hang_rate: float = 0.0
    cut_rate: float = 0.0
    drain_rate: float = 0.0
    cancel: float = 0.0
    stop: float = 0.0
    hurry: float = 0.0
    config: RouterConfig = field(
        default_factory=lambda: RouterConfig(
            queue_max=12, active_max=8, heartbeat_s=1.0, worker_timeout_s=3.0
        )
    )


@dataclass(slots=True, eq=False)
class Connection:
    """A stream: ordered each way, with a delay of its own for each message."""

    worker: SimulatedWorker
    open: bool = True
    up_ns: int = 0
    down_ns: int = 0


@dataclass(slots=True)
class Client:
    """What one client sees and wants. oracle: its output where nothing goes wrong."""

    request: Request
    stop_at: int | None
    oracle: list[int]
    wants_all: bool = True
    token_times_ns: list[int] = field(default_factory=list)


class World:
    """`Surroundings` of the workers, shell of the scheduler, and the clients."""

    def __init__(self, seed: int, swarm: Swarm) -> None:
        self.rng = random.Random(seed)
        self.swarm = swarm
        self.faults = swarm.faults
        self.agenda = Agenda()
        self.scheduler = Scheduler(swarm.config)
        self.exactly_once = ExactlyOnce(lambda name, at: self.clients[name].oracle[at])
        self.reservations = Reservations()
        self.connections: dict[str, Connection] = {}
        self.clients: dict[str, Client] = {}
        self.results: list[Outcome | EastWestError] = []
        self.storm = True
        self.leaves = 0
        self._tick_ns: int | None = None

    def run(self) -> None:
        """A storm, then calm. Raises where a promise is broken."""
        for index, role in enumerate(self.swarm.roles):
            info = a_worker(f"w{index}", role, num_blocks=self.swarm.num_blocks)
            self.agenda.at(self._soon(ns(1)), partial(self._start, info))
        for _ in range(self.swarm.requests):
            self.agenda.at(self._soon(ns(STORM_S)), self._submit)
        self.agenda.at(0, self._strike)
        self.agenda.run_until(ns(STORM_S))
        self._heal()
        for _ in range(CALM_S):
            self.agenda.run_until(self.agenda.now_ns + ns(1))
            if self._whole() and not any(map(self.scheduler.is_running, self.clients)):
                self.agenda.run_until(self.agenda.now_ns + ns(2))
                # One that was told to drain in the storm may leave only now.
                if self._whole():
                    break
        self._check_quiet()

    # Inputs to the scheduler, and its actions.

    def tell(self, decide: Callable[[], list[Action]]) -> list[Action]:
        """One input, its actions performed, every invariant checked."""
        down = self._down()
        actions = decide()
        down &= self._down()
        self.scheduler.check_integrity()
        for action in actions:
            assert not (isinstance(action, Send) and action.worker_id in down), action
            if isinstance(action, Send) and isinstance(action.command, Reserve | Prefill):
                assert action.worker_id not in self._having(Liveness.DRAINING), action
            self._perform(action)
        self._watch_time()
        self._stop_complete_texts()
        return actions

    def _down(self) -> set[str]:
        return self._having(Liveness.DOWN)

    def _having(self, liveness: Liveness) -> set[str]:
        views = self.scheduler.loads().workers
        return {v.info.worker_id for v in views if v.liveness is liveness}

    def _perform(self, action: Action) -> None:
        now = self.agenda.now_ns
        match action:
            case Send():
                self.reservations.sent(action.worker_id, action.epoch, action.command)
                connection = self.connections[action.worker_id]
                if connection.worker.info.epoch == action.epoch and connection.open:
                    connection.down_ns = max(connection.down_ns, self._soon(LINK_NS_MAX))
                    worker, command = connection.worker, action.command
                    self.agenda.at(
                        connection.down_ns,
                        lambda: worker.receive(command) if connection.open else None,
                    )
            case Deliver():
                tokens = [t.token for t in action.tokens]
                self.exactly_once.delivered(action.request_id, tokens)
                times = self.clients[action.request_id].token_times_ns
                times.extend([now] * len(tokens))
            case End():
                self._ended(self.clients[action.request_id], action.result)

    def _ended(self, client: Client, result: Outcome | EastWestError) -> None:
        self.results.append(result)
        request = client.request
        assert not self.scheduler.is_running(request.request_id)
        if isinstance(result, EastWestError):
            assert result.phase is not None
            self.exactly_once.failed(request.request_id)
            return
        self.exactly_once.completed(request.request_id, [t.token for t in result.tokens])
        usage = result.usage
        assert usage.completion_tokens == len(result.tokens)
        assert usage.computed_tokens == len(request.prompt)
        assert len(result.tokens) == len(client.oracle) or not client.wants_all
        assert bool(usage.recomputed_tokens) <= bool(usage.migrations)
        assert usage.migrations < self.swarm.config.attempts_max or self.swarm.drain_rate
        times = client.token_times_ns
        delivered = times[0] + self.rng.randrange(1000)
        timing = result.marks.timing(delivered)
        second = times[1] - times[0] if len(times) > 1 else None
        check_timing(timing, ttft_ns=delivered - request.accepted_ns, second_ns=second)
        assert timing.e2e_ns == times[-1] - request.accepted_ns

    def _watch_time(self) -> None:
        wakeup = self.scheduler.next_wakeup_ns()
        if wakeup is not None and (self._tick_ns is None or wakeup < self._tick_ns):
            self._tick_ns = wakeup
            self.agenda.at(wakeup, lambda: self._tick(wakeup))

    def _tick(self, when_ns: int) -> None:
        if when_ns == self._tick_ns:
            self._tick_ns = None
            self.tell(lambda: self.scheduler.tick(self.agenda.now_ns))

    # Clients.

    def _submit(self) -> None:
        rng, now = self.rng, self.agenda.now_ns
        request = a_request(
            f"r{rng.randrange(self.swarm.requests)}",
            tokens=rng.randrange(1, 300),
            max_tokens=(max_tokens := rng.randrange(1, self.swarm.output_max)),
            output_tokens=rng.randrange(1, max_tokens + 3),
            accepted_ns=now - rng.randrange(1000),
            timeout_s=rng.uniform(0.01, 2.0) if self._strikes(self.swarm.hurry) else 600.0,
            sampling=SamplingParams(rng.choice((0.0, 0.8)), seed=rng.getrandbits(63)),
        )
        running = self.scheduler.is_running(request.request_id)
        loads = self.scheduler.loads()

        def submit() -> list[Action]:
            actions = self.scheduler.submit(request, now)
            stops = self._strikes(self.swarm.stop)
            oracle = simulated_output(request.prompt, request.max_tokens, request.sampling)
            self.clients[request.request_id] = Client(
                request, rng.randrange(1, 9) if stops else None, oracle, wants_all=not stops
            )
            self.exactly_once.accepted(request.request_id)
            return actions

        try:
            self.tell(submit)
        except InvalidArgument:
            assert running
        except Overloaded:
            assert loads.waiting >= self.swarm.config.queue_max
        except Unavailable:
            assert not loads.workers
        else:
            if self._strikes(self.swarm.cancel):
                self.agenda.after(rng.randrange(ns(1)), lambda: self._cancel(request))

    def _cancel(self, request: Request) -> None:
        client = self.clients[request.request_id]
        if client.request is request:
            error, now = Cancelled("the client went away"), self.agenda.now_ns
            self.tell(lambda: self.scheduler.cancel(request.request_id, error, now))
            assert not self.scheduler.is_running(request.request_id)

    def _stop_complete_texts(self) -> None:
        for request_id, client in self.clients.items():
            keep = client.stop_at
            enough = keep is not None and len(client.token_times_ns) >= keep
            if keep is not None and enough and self.scheduler.is_running(request_id):
                client.stop_at = None
                self.tell(partial(self.scheduler.stop, request_id, self.agenda.now_ns, keep))

    # Workers and their streams.

    def _start(self, info: WorkerInfo) -> None:
        worker = SimulatedWorker(info, self.agenda, self, self.rng, self.faults)
        self._connect(worker)
        worker.start()

    def _connect(self, worker: SimulatedWorker) -> None:
        info, former = worker.info, self.connections.get(worker.info.worker_id)
        if former is not None:
            former.open = False
            self.reservations.worker_down(info.worker_id, former.worker.info.epoch)
        self.connections[info.worker_id] = Connection(worker)
        self.reservations.worker_up(info.worker_id, info.epoch)
        info = replace(info, draining_s=worker.draining_s)
        self.tell(lambda: self.scheduler.worker_up(info, self.agenda.now_ns))

    def _disconnect(self, connection: Connection) -> None:
        """The router sees the stream break, unless it has seen another since."""
        if connection.open:
            connection.open = False
            info = connection.worker.info
            self.reservations.worker_down(info.worker_id, info.epoch)
            now = self.agenda.now_ns
            down = self.scheduler.worker_down
            self.tell(lambda: down(info.worker_id, info.epoch, "stream broken", now))

    def emit(self, worker: SimulatedWorker, event: Event) -> None:
        connection = self.connections[worker.info.worker_id]
        if connection.worker is worker:
            connection.up_ns = max(connection.up_ns, self._soon(LINK_NS_MAX))
            self.agenda.at(connection.up_ns, lambda: self._arrive(connection, event))

    def _arrive(self, connection: Connection, event: Event) -> None:
        info, now = connection.worker.info, self.agenda.now_ns
        current = self.connections[info.worker_id]
        if current.worker.info.epoch != info.epoch:
            # A shell that is late may still pass on what a former incarnation said.
            assert not self.scheduler.event(info.worker_id, info.epoch, event, now)
        elif connection.open:
            for work_id in _over(event):
                self.reservations.over(info.worker_id, info.epoch, work_id)
            self.tell(lambda: self.scheduler.event(info.worker_id, info.epoch, event, now))

    def commit(self, ticket: Ticket, token: SampledToken, finished: bool) -> bool:
        connection = self.connections[ticket.worker_id]
        worker, work_id = connection.worker, ticket.transfer_id
        if worker.info.epoch != ticket.epoch or not worker.committed(work_id, token, finished):
            return False
        for info in (c.worker.info for c in self.connections.values()):
            if finished or info.worker_id != ticket.worker_id:
                self.reservations.over(info.worker_id, info.epoch, work_id)
        return True

    def left(self, worker: SimulatedWorker) -> None:
        """It may hold nothing; another incarnation comes in its place."""
        assert not worker.reserved
        assert not worker.prefilling
        self.leaves += 1
        connection = self.connections[worker.info.worker_id]
        assert connection.worker is worker
        self.agenda.at(self._soon(ns(0.5)), lambda: self._disconnect(connection))
        self.agenda.at(self._soon(ns(3)), lambda: self._restart(connection))

    # Faults.

    def _strike(self) -> None:
        """Every tenth of a second of the storm, perhaps something to some worker."""
        if not self.storm:
            return
        for connection in list(self.connections.values()):
            if self._strikes(self.swarm.crash_rate / 10):
                self._crash(connection)
            elif self._strikes(self.swarm.hang_rate / 10):
                self._hang(connection.worker)
            elif self._strikes(self.swarm.cut_rate / 10) and connection.worker.alive:
                self._cut(connection)
            elif self._strikes(self.swarm.drain_rate / 10):
                self._drain(connection.worker.info.worker_id)
        self.agenda.after(ns(0.1), self._strike)

    def _crash(self, connection: Connection) -> None:
        if not connection.worker.alive:
            return
        connection.worker.alive = False
        if self.rng.random() < 0.7:
            self.agenda.at(self._soon(ns(1)), lambda: self._disconnect(connection))
        self.agenda.at(self._soon(ns(6)), lambda: self._restart(connection))

    def _drain(self, worker_id: str) -> None:
        """An operator wants a worker away, and may change their mind."""
        timeout_s, now = self.rng.choice((0.0, 0.1, 1.0, 30.0)), self.agenda.now_ns
        # It may be down, or have drained meanwhile.
        with contextlib.suppress(NotFound, Unavailable):
            self.tell(lambda: self.scheduler.drain(worker_id, timeout_s, now))
        if self._strikes(0.3):
            self.agenda.at(self._soon(ns(2)), lambda: self._undrain(worker_id))

    def _undrain(self, worker_id: str) -> None:
        with contextlib.suppress(NotFound, Unavailable):
            self.tell(lambda: self.scheduler.undrain(worker_id))

    def _hang(self, worker: SimulatedWorker) -> None:
        if worker.hung_until_ns <= self.agenda.now_ns:
            worker.hung_until_ns = self._soon(ns(8))

    def _restart(self, connection: Connection) -> None:
        info = connection.worker.info
        if self.connections[info.worker_id] is connection and not connection.worker.alive:
            self._start(replace(info, epoch=info.epoch + 1))

    def _cut(self, connection: Connection) -> None:
        """The stream breaks; the worker lives, and the router dials it again."""
        connection.worker.router_gone()
        self._disconnect(connection)
        self.agenda.at(self._soon(ns(2)), lambda: self._dial(connection))

    def _dial(self, connection: Connection) -> None:
        worker = connection.worker
        if self.connections[worker.info.worker_id] is connection and worker.alive:
            self._connect(worker)

    def _heal(self) -> None:
        self.storm = False
        self.faults = Faults()
        for connection in self.connections.values():
            connection.worker.faults = self.faults

    def _whole(self) -> bool:
        """Whether every worker is alive, awake and connected."""
        return all(
            c.open and c.worker.alive and c.worker.hung_until_ns <= self.agenda.now_ns
            for c in self.connections.values()
        )

    def _check_quiet(self) -> None:
        assert self._whole()
        self.exactly_once.check_all_ended()
        self.reservations.check_none_forgotten()
        loads = self.scheduler.loads()
        assert (loads.waiting, loads.active) == (0, 0)
        assert loads.counters.completed + sum(loads.counters.failed.values()) == len(self.results)
        for connection in self.connections.values():
            worker = connection.worker
            assert not worker.reserved, f"{worker.info.worker_id} still holds {worker.reserved}"
            assert not worker.prefilling

    def _soon(self, delay_max_ns: int) -> int:
        return self.agenda.now_ns + self.rng.randrange(1, delay_max_ns)

    def _strikes(self, probability: float) -> bool:
        return self.rng.random() < probability


def _over(event: Event) -> list[str]:
    """Works that the worker holds no more, by what it says."""
    match event:
        case Failed():
            return [event.request_id]
        case Stepped():
            return [o.request_id for o in event.outputs if o.finish is not None]
        case _:
            return []


RETRIABLE = (
    ErrorCode.UNAVAILABLE,
    ErrorCode.STALE_EPOCH,
    ErrorCode.LEASE_EXPIRED,
    ErrorCode.TRANSFER_FAILED,
)
