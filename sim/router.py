"""A router in virtual time: the real scheduler, its timer, and streams to SIMULATED replicas.

Each stream keeps the order of its messages and delays each; one that is cut loses what is on its
way. A replica that hangs is one whose streams stand still.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from eastwest.clock import Clock, ns
from eastwest.config import RouterConfig
from eastwest.messages import Command, Event
from eastwest.ports import ServingCosts
from router.decision_log import Write
from router.placement import PlacementPolicy
from router.requests import Action, Request, Send
from router.scheduler import Scheduler
from sim.replica import SimulatedReplica
from sim.virtual_loop import Call, running_loop


@dataclass(slots=True, eq=False)
class Stream:
    """Both ways between one router and one incarnation. stalled_until_s: nothing arrives before.
    up_s, down_s: when the last message of each way arrives."""

    replica: SimulatedReplica
    open: bool = True
    stalled_until_s: float = 0.0
    up_s: float = 0.0
    down_s: float = 0.0


class SimulatedRouter:
    """One incarnation of a router. `act` performs what is for clients: deliveries and endings.

    alive: until `kill`; a dead one hears nothing and says nothing.
    """

    def __init__(
        self,
        router_id: str,
        config: RouterConfig,
        clock: Clock,
        act: Callable[[Action], None],
        delay: Callable[[], float],
        policy: PlacementPolicy | None = None,
        costs: ServingCosts | None = None,
        write: Write | None = None,
    ) -> None:
        """write: takes the entries of a decision log."""
        self.router_id = router_id
        self.scheduler = Scheduler(config, policy, costs, write)
        self.events = 0
        self.alive = True
        self._asleep_until_s = 0.0
        self._clock = clock
        self._act = act
        self._delay = delay
        self._streams: dict[str, Stream] = {}
        self._loop = running_loop()
        self._wake_ns: int | None = None
        self._timer: Call | None = None

    def connect(self, replica: SimulatedReplica) -> None:
        """The replica is there, in this incarnation. A stream that it still has is broken."""
        if not self.alive:
            return
        worker_id = replica.info.worker_id
        if (former := self._streams.get(worker_id)) is not None:
            former.open = False
            if former.replica.alive:
                former.replica.router_gone(self.router_id)
        self._streams[worker_id] = Stream(replica)
        info = replace(replica.info, draining_s=replica.leaving.left_s)
        self.tell(lambda now: self.scheduler.worker_up(info, now))
        replica.tell_whole(self.router_id)

    def disconnect(self, worker_id: str, reason: str) -> None:
        """The stream is broken; whoever lives on the other side hears of it too."""
        stream = self._streams.pop(worker_id, None)
        if stream is None:
            return
        stream.open = False
        if stream.replica.alive:
            stream.replica.router_gone(self.router_id)
        epoch = stream.replica.info.epoch
        self.tell(lambda now: self.scheduler.worker_down(worker_id, epoch, reason, now))

    def stall(self, worker_id: str, seconds: float) -> None:
        """The worker hangs: what it says, and what it is told, stands still for so long."""
        if (stream := self._streams.get(worker_id)) is not None:
            stream.stalled_until_s = self._loop.now_s + seconds

    def kill(self) -> None:
        """The process is gone: its streams break, which the workers see."""
        self.alive = False
        for stream in self._streams.values():
            stream.open = False
            if stream.replica.alive:
                stream.replica.router_gone(self.router_id)
        self._streams.clear()
        self._set_timer(None)

    def freeze(self, seconds: float) -> None:
        """The process stands still for so long, with all its streams open."""
        self._asleep_until_s = self._loop.now_s + seconds
        for worker_id in self._streams:
            self.stall(worker_id, seconds)
        self._set_timer(self._wake_ns)

    def hear(self, replica: SimulatedReplica, event: Event) -> None:
        """A replica has put an event on its stream."""
        stream = self._streams.get(replica.info.worker_id)
        if stream is None or stream.replica is not replica:
            return
        stream.up_s = when = self._arrival_s(stream, stream.up_s)
        self._loop.call_at(when, self._arrive, stream, event)

    def _arrival_s(self, stream: Stream, last_s: float) -> float:
        """When a message of this moment arrives, behind the last one of its way."""
        when = self._loop.now_s + self._delay()
        if when < last_s:
            when = last_s
        return when if when > stream.stalled_until_s else stream.stalled_until_s

    def _arrive(self, stream: Stream, event: Event) -> None:
        if stream.open:
            self.events += 1
            info = stream.replica.info
            now = self._loop.now_ns
            self._perform(self.scheduler.event(info.worker_id, info.epoch, event, now))

    def submit(self, request: Request) -> None:
        """Raises what the scheduler refuses with."""
        self.tell(lambda now: self.scheduler.submit(request, now))

    def tell(self, decide: Callable[[int], list[Action]]) -> None:
        """One input; its actions are performed at once and in order."""
        if self.alive:
            self._perform(decide(self._loop.now_ns))

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._send(action.worker_id, action.epoch, action.command)
            else:
                self._act(action)
        wake_ns = self.scheduler.next_wakeup_ns()
        if wake_ns != self._wake_ns:
            self._set_timer(wake_ns)

    def _send(self, worker_id: str, epoch: int, command: Command) -> None:
        stream = self._streams.get(worker_id)
        if stream is None or stream.replica.info.epoch != epoch:
            return
        stream.down_s = when = self._arrival_s(stream, stream.down_s)
        self._loop.call_at(when, self._obey, stream, command)

    def _obey(self, stream: Stream, command: Command) -> None:
        if stream.open and stream.replica.alive:
            stream.replica.handle(self.router_id, command)

    def _set_timer(self, wake_ns: int | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wake_ns = wake_ns
        self._timer = None
        if wake_ns is not None:
            when = max(wake_ns / ns(1), self._asleep_until_s)
            self._timer = self._loop.call_at(when, self._wake)

    def _wake(self) -> None:
        self._timer = self._wake_ns = None
        self.tell(self.scheduler.tick)
