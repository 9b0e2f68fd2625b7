"""A router in virtual time: the real scheduler, its timer, and streams to SIMULATED replicas.

Each stream keeps the order of its messages and delays each; one that is cut loses what is on its
way. A replica that hangs is one whose streams stand still.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from eastwest.clock import Clock, ns
from eastwest.config import RouterConfig
from eastwest.messages import Command, Event
from router.placement import PlacementPolicy
from router.requests import Action, Request, Send
from router.scheduler import Scheduler
from sim.replica import SimulatedReplica


@dataclass(eq=False)
class Stream:
    """Both ways between one router and one incarnation. stalled_until_s: nothing arrives before."""

    replica: SimulatedReplica
    delay: Callable[[], float]
    open: bool = True
    stalled_until_s: float = 0.0
    _last_s: dict[str, float] = field(default_factory=dict)

    def pass_on(self, way: str, deliver: Callable[[], None]) -> None:
        """Deliver later, in order."""
        loop = asyncio.get_running_loop()
        when = max(loop.time() + self.delay(), self._last_s.get(way, 0.0), self.stalled_until_s)
        self._last_s[way] = when
        loop.call_at(when, self._deliver, deliver)

    def _deliver(self, deliver: Callable[[], None]) -> None:
        if self.open:
            deliver()


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
    ) -> None:
        self.router_id = router_id
        self.scheduler = Scheduler(config, policy)
        self.events = 0
        self.alive = True
        self._asleep_until_s = 0.0
        self._clock = clock
        self._act = act
        self._delay = delay
        self._streams: dict[str, Stream] = {}
        self._timer: asyncio.TimerHandle | None = None

    def connect(self, replica: SimulatedReplica) -> None:
        """The replica is there, in this incarnation. A stream that it still has is broken."""
        if not self.alive:
            return
        worker_id = replica.info.worker_id
        if (former := self._streams.get(worker_id)) is not None:
            former.open = False
            if former.replica.alive:
                former.replica.router_gone(self.router_id)
        self._streams[worker_id] = Stream(replica, self._delay)
        self.tell(lambda now: self.scheduler.worker_up(replica.info, now))

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
            stream.stalled_until_s = asyncio.get_running_loop().time() + seconds

    def kill(self) -> None:
        """The process is gone: its streams break, which the workers see."""
        self.alive = False
        for stream in self._streams.values():
            stream.open = False
            if stream.replica.alive:
                stream.replica.router_gone(self.router_id)
        self._streams.clear()
        self._set_timer()

    def freeze(self, seconds: float) -> None:
        """The process stands still for so long, with all its streams open."""
        self._asleep_until_s = asyncio.get_running_loop().time() + seconds
        for worker_id in self._streams:
            self.stall(worker_id, seconds)

    def hear(self, replica: SimulatedReplica, event: Event) -> None:
        """A replica has put an event on its stream."""
        stream = self._streams.get(replica.info.worker_id)
        if stream is None or stream.replica is not replica:
            return
        info = replica.info

        def arrive() -> None:
            self.events += 1
            self.tell(lambda now: self.scheduler.event(info.worker_id, info.epoch, event, now))

        stream.pass_on("up", arrive)

    def submit(self, request: Request) -> None:
        """Raises what the scheduler refuses with."""
        self.tell(lambda now: self.scheduler.submit(request, now))

    def tell(self, decide: Callable[[int], list[Action]]) -> None:
        """One input; its actions are performed at once and in order."""
        if not self.alive:
            return
        for action in decide(self._clock.now_ns()):
            if isinstance(action, Send):
                self._send(action.worker_id, action.epoch, action.command)
            else:
                self._act(action)
        self._set_timer()

    def _send(self, worker_id: str, epoch: int, command: Command) -> None:
        stream = self._streams.get(worker_id)
        if stream is None or stream.replica.info.epoch != epoch:
            return
        replica = stream.replica
        stream.pass_on("down", lambda: self._obey(replica, command))

    def _obey(self, replica: SimulatedReplica, command: Command) -> None:
        if replica.alive:
            replica.handle(self.router_id, command)

    def _set_timer(self) -> None:
        wake_ns = self.scheduler.next_wakeup_ns() if self.alive else None
        when = None if wake_ns is None else max(wake_ns / ns(1), self._asleep_until_s)
        if self._timer is not None:
            if when is not None and self._timer.when() == when and not self._timer.cancelled():
                return
            self._timer.cancel()
            self._timer = None
        if when is not None:
            self._timer = asyncio.get_running_loop().call_at(when, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.tell(self.scheduler.tick)
