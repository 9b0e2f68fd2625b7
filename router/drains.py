"""Workers that leave: which of this router's requests they still serve, and where those go.

    begin ──▶ DRAINING ──Drained──▶ DRAINED
                 ├──Undrain, heard──▶ CANCELLED
                 └──its stream breaks, or it is silent──▶ LOST

Draining is the worker's own state (`runtime.leaving`), so that every router honours it: whoever
asks for it sends `Drain`, and all hear of it in `Welcome` and `Load`. Nothing new is placed there.
What is only reserved goes elsewhere at once, what runs may end, and what still runs at the first
pulse behind the deadline is moved. A move is no loss: it costs no attempt, and the worker is not
shunned for it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from eastwest.clock import ns, seconds
from eastwest.errors import Unavailable
from eastwest.messages import Dismiss, Drain, Drained, Undrain
from router.fleet import Worker
from router.lifecycle import Lifecycle, State
from router.requests import Action


class DrainState(enum.StrEnum):
    DRAINING = "draining"
    DRAINED = "drained"
    CANCELLED = "cancelled"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class DrainView:
    """How a drain stands. Of this router's requests: running are served by the worker still,
    finished have ended there, moved are served by others. Sessions are the worker's, of all
    routers."""

    worker_id: str
    state: DrainState
    running: int
    finished: int
    moved: int
    sessions_resting: int
    sessions_stored: int
    sessions_dropped: int
    elapsed_s: float


@dataclass(slots=True, eq=False)
class _Drain:
    """heard: the worker has said so itself. served: requests it had when it began."""

    worker: Worker
    began_ns: int
    move_ns: int
    served: int
    heard: bool = False
    cancelling: bool = False
    moved: int = 0
    running: int = 0
    emptied: bool = False
    state: DrainState = DrainState.DRAINING
    stored: int = 0
    dropped: int = 0
    ended_ns: int = 0


class Drains:
    """The latest drain of each worker. lives: all requests of the scheduler. follow: brings its
    tables in line with one that was moved."""

    def __init__(
        self, lives: Mapping[str, Lifecycle], follow: Callable[[Lifecycle, int], object]
    ) -> None:
        self._lives = lives
        self._follow = follow
        self._drains: dict[str, _Drain] = {}

    def ask(self, worker: Worker, timeout_s: float, now_ns: int, out: list[Action]) -> None:
        """Have the worker leave, or leave sooner. One that has drained is leaving already."""
        if self._drained(worker):
            return
        move_ns = now_ns + ns(timeout_s)
        drain = self._of(worker) or self._begin(worker, move_ns, now_ns, out)
        drain.move_ns = min(drain.move_ns, move_ns)
        # Where somebody has just wanted it to stay, its word that it does is of before.
        drain.heard, drain.cancelling = drain.heard and not drain.cancelling, False
        out.append(worker.send(Drain(timeout_s)))

    def cancel(self, worker: Worker, out: list[Action]) -> bool:
        """Ask the worker to stay; False where it does not drain. It serves again when it says so.
        `Unavailable` where it has drained."""
        if self._drained(worker):
            raise Unavailable(f"{worker} has drained, and leaves; allowed: while it still drains")
        drain = self._of(worker)
        if drain is None:
            return False
        drain.cancelling = True
        out.append(worker.send(Undrain()))
        return True

    def hear(
        self, worker: Worker, draining_s: float | None, now_ns: int, out: list[Action]
    ) -> None:
        """The worker has said whether it drains, and how long work may go on."""
        drain = self._of(worker)
        if self._drained(worker):
            return
        if draining_s is not None:
            move_ns = now_ns + ns(draining_s)
            drain = drain or self._begin(worker, move_ns, now_ns, out)
            drain.heard, drain.move_ns = True, min(drain.move_ns, move_ns)
        elif drain is None:
            worker.draining = False
        elif drain.heard or drain.cancelling:
            self._end(drain, DrainState.CANCELLED, now_ns)
            worker.draining = False
        # Else it has said so before it could know that it was asked.

    def drained(self, worker: Worker, event: Drained, now_ns: int, out: list[Action]) -> None:
        """Nothing is there any more; the worker is let go."""
        if self._drained(worker):
            return
        drain = self._of(worker) or self._begin(worker, now_ns, now_ns, out)
        self._move(drain, now_ns, out)
        drain.stored, drain.dropped = event.sessions_stored, event.sessions_dropped
        self._end(drain, DrainState.DRAINED, now_ns)
        out.append(worker.send(Dismiss()))

    def given_back(self, worker: Worker) -> None:
        """It has ended a request that others go on with."""
        if (drain := self._of(worker)) is not None:
            drain.moved += 1

    def lost(self, worker: Worker, now_ns: int) -> None:
        """Its stream is broken, or it is silent. Called before its requests are moved."""
        if (drain := self._of(worker)) is not None:
            self._end(drain, DrainState.LOST, now_ns)

    def tick(self, now_ns: int, out: list[Action]) -> None:
        """Move what should have left by now. Called at each pulse."""
        for drain in self._drains.values():
            if drain.state is DrainState.DRAINING and not drain.emptied and now_ns >= drain.move_ns:
                self._move(drain, now_ns, out)

    def view(self, worker_id: str, now_ns: int) -> DrainView | None:
        """The latest drain of a worker; None where it never drained."""
        drain = self._drains.get(worker_id)
        if drain is None:
            return None
        open_, load = drain.state is DrainState.DRAINING, drain.worker.load
        running = self._served(drain.worker) if open_ else drain.running
        return DrainView(
            worker_id,
            drain.state,
            running,
            drain.served - drain.moved - running,
            drain.moved,
            load.sessions_inactive if load is not None and open_ else 0,
            drain.stored,
            drain.dropped,
            seconds((now_ns if open_ else drain.ended_ns) - drain.began_ns),
        )

    def check_integrity(self) -> None:
        """Assert that nothing is placed, or left to run, where it should not be."""
        for drain in self._drains.values():
            if drain.state in (DrainState.DRAINING, DrainState.DRAINED):
                assert drain.worker.draining
            if drain.state is DrainState.DRAINING:
                assert self._served(drain.worker) <= drain.served - drain.moved
            if drain.state is DrainState.DRAINED:
                assert all(
                    life.state is State.DECODING
                    for life in self._lives.values()
                    if life.needs(drain.worker)
                )

    def _of(self, worker: Worker) -> _Drain | None:
        """The drain under way of this connection."""
        drain = self._drains.get(worker.worker_id)
        if drain is None or drain.worker is not worker or drain.state is not DrainState.DRAINING:
            return None
        return drain

    def _drained(self, worker: Worker) -> bool:
        drain = self._drains.get(worker.worker_id)
        return drain is not None and drain.worker is worker and drain.state is DrainState.DRAINED

    def _begin(self, worker: Worker, move_ns: int, now_ns: int, out: list[Action]) -> _Drain:
        worker.draining = True
        drain = _Drain(worker, now_ns, move_ns, self._served(worker))
        self._drains[worker.worker_id] = drain
        for life in reversed(list(self._lives.values())):
            if life.state is State.RESERVING:
                self._leave(drain, life, now_ns, out)
        return drain

    def _move(self, drain: _Drain, now_ns: int, out: list[Action]) -> None:
        """All that the worker serves goes elsewhere."""
        drain.emptied = True
        # Latest first: each goes to the head of the queue, where the earliest belongs.
        for life in reversed(list(self._lives.values())):
            self._leave(drain, life, now_ns, out)

    def _leave(self, drain: _Drain, life: Lifecycle, now_ns: int, out: list[Action]) -> None:
        if life.leave(drain.worker, "is to be free of it", out):
            drain.moved += 1
            self._follow(life, now_ns)

    def _end(self, drain: _Drain, state: DrainState, now_ns: int) -> None:
        # What has drained serves nothing, though KV that it sent may not have shown itself yet.
        drain.running = 0 if state is DrainState.DRAINED else self._served(drain.worker)
        drain.state, drain.ended_ns = state, now_ns

    def _served(self, worker: Worker) -> int:
        return sum(life.needs(worker) for life in self._lives.values())
