"""The scheduler's hands: performs its actions, and owns worker links, client streams and the timer.

Everything here runs on one event loop and takes no decision. Inputs go to the scheduler with the
time; the actions that come back are performed at once and in order.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Iterable, Sequence

from eastwest.clock import Clock, seconds
from eastwest.config import RouterConfig
from eastwest.errors import EastWestError, Incompatible, InvalidArgument, Phase, Unavailable
from eastwest.explanation import Explanation
from eastwest.messages import Command, Drained, Event, Load, ModelInfo, WorkerInfo
from eastwest.ports import ServingCosts
from eastwest.types import Liveness
from router.decision_log import Write
from router.drains import DrainView
from router.explaining import explain
from router.fleet import Worker
from router.links import WorkerLink
from router.metrics import RouterMetrics
from router.placement import can_serve
from router.requests import Action, Deliver, End, Request, Send
from router.scheduler import Scheduler
from router.streams import ClientStream
from router.views import Loads

# Commands that a request gives rise to on one worker, at most: reserve, prefill, abort.
_COMMANDS_A_REQUEST = 3


class Shell:
    """One router's scheduler in touch with the world. Implements `router.links.LinkOwner`.

    vocab_min: size of the tokenizer's vocabulary; a model with less cannot take its tokens. costs:
    what work takes on the workers, where that is known. write: takes the entries of a decision log.
    ready and unready: set while a request could, or could not, be served.
    """

    def __init__(
        self,
        config: RouterConfig,
        *,
        router_id: str,
        vocab_min: int,
        clock: Clock,
        rng: random.Random,
        costs: ServingCosts | None = None,
        write: Write | None = None,
    ) -> None:
        self._config = config
        self._router_id = router_id
        self._vocab_min = vocab_min
        self._clock = clock
        self._rng = rng
        self._scheduler = Scheduler(config, costs=costs, write=write)
        self.metrics = RouterMetrics(self._scheduler.loads)
        self._links: dict[str, WorkerLink] = {}
        self._streams: dict[str, ClientStream] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns: int | None = None
        self._model: ModelInfo | None = None
        self._closing = False
        self.ready = asyncio.Event()
        self.unready = asyncio.Event()
        self.unready.set()
        self._stirred = asyncio.Event()

    # Workers.

    def add_worker(self, worker_id: str, address: str) -> None:
        """Keep a stream to the worker at `address` from here on."""
        if worker_id in self._links:
            raise InvalidArgument(f"worker {worker_id!r} is known already; allowed: a new id")
        link = WorkerLink(
            worker_id,
            address,
            self,
            router_id=self._router_id,
            rng=self._rng,
            queue_max=_COMMANDS_A_REQUEST * (self._config.active_max + 1),
        )
        self._links[worker_id] = link
        link.start()

    async def remove_worker(self, worker_id: str) -> None:
        """End the stream to a worker; what it served for this router is lost. Idempotent."""
        link = self._links.get(worker_id)
        if link is not None:
            await link.close()
            self._links.pop(worker_id, None)

    @property
    def links(self) -> Iterable[WorkerLink]:
        """All workers that were added, up or not."""
        return self._links.values()

    def model(self) -> ModelInfo:
        """The model that is served, known since the first worker connected."""
        if self._model is None:
            raise Unavailable("no worker has connected to this router yet", phase=Phase.ADMISSION)
        return self._model

    # Requests.

    def submit(self, request: Request, stream: ClientStream) -> None:
        """Begin a request, or raise what `Scheduler.submit` raises."""
        if self._closing:
            raise Unavailable("the router is shutting down", phase=Phase.ADMISSION)
        try:
            actions = self._scheduler.submit(request, self._clock.now_ns())
        except EastWestError as error:
            self.metrics.refused(error)
            raise
        self._streams[request.request_id] = stream
        self._perform(actions)

    def cancel(self, request_id: str, error: EastWestError) -> None:
        """End a request with `error`. Idempotent."""
        self._perform(self._scheduler.cancel(request_id, error, self._clock.now_ns()))

    def loads(self) -> Loads:
        return self._scheduler.loads()

    def explain(self, salt: str, client_id: str) -> Explanation:
        """Why a tenant's request went where it went; see `router.explaining`."""
        return explain(self._scheduler.decisions, salt, client_id, self._clock.now_ns())

    def kv_of(self, tokens: Sequence[int], salt: str) -> tuple[int, dict[str, int]]:
        """See `KvView.whereabouts`."""
        return self._scheduler.kv.whereabouts(tokens, salt)

    def tell_all(self, command: Command) -> None:
        """Send something that is of no request to every worker that is up."""
        for view in self._scheduler.loads().workers:
            if view.liveness is Liveness.UP and (link := self._links.get(view.info.worker_id)):
                link.send(view.info.epoch, command)

    # Workers that leave.

    def drain(self, worker_id: str, timeout_s: float) -> None:
        """See `Scheduler.drain`."""
        self._perform(self._scheduler.drain(worker_id, timeout_s, self._clock.now_ns()))
        self._judge_readiness()

    def cancel_drain(self, worker_id: str) -> bool:
        """See `Scheduler.undrain`; False where the worker does not drain."""
        actions = self._scheduler.undrain(worker_id)
        self._perform(actions)
        return bool(actions)

    def drain_view(self, worker_id: str) -> DrainView | None:
        return self._scheduler.drains.view(worker_id, self._clock.now_ns())

    async def worker_stirs(self) -> None:
        """Until some worker has come, reported, drained or gone."""
        await self._stirred.wait()

    # What links report.

    def worker_up(self, info: WorkerInfo) -> None:
        if info.model.vocab_size < self._vocab_min:
            raise Incompatible(
                f"its model knows {info.model.vocab_size} tokens; allowed: at least the "
                f"{self._vocab_min} of this router's tokenizer"
            )
        if self._model is None:
            self._model = info.model
        elif info.model.fingerprint != self._model.fingerprint:
            raise Incompatible(
                f"it serves {info.model.name!r} ({info.model.fingerprint}); allowed: "
                f"{self._model.name!r} ({self._model.fingerprint})"
            )
        self._perform(self._scheduler.worker_up(info, self._clock.now_ns()))
        self._judge_readiness()

    def worker_down(self, worker_id: str, epoch: int, reason: str) -> None:
        now_ns = self._clock.now_ns()
        self._perform(self._scheduler.worker_down(worker_id, epoch, reason, now_ns))
        self._judge_readiness()

    def worker_events(self, worker_id: str, epoch: int, events: Sequence[Event]) -> None:
        now_ns = self._clock.now_ns()
        for event in events:
            self._perform(self._scheduler.event(worker_id, epoch, event, now_ns))
            if isinstance(event, Load | Drained):
                self._judge_readiness()

    # The end.

    def end_all(self, error: EastWestError) -> None:
        """End all requests with `error`, and take no more."""
        self._closing = True
        for request_id in list(self._streams):
            self.cancel(request_id, error)

    async def close(self) -> None:
        """Close all links. Call `end_all` before. Idempotent."""
        for worker_id in list(self._links):
            await self.remove_worker(worker_id)
        if self._timer is not None:
            self._timer.cancel()

    # Inside.

    def _perform(self, actions: Iterable[Action]) -> None:
        todo = deque(actions)
        while todo:
            match todo.popleft():
                case Send(worker_id, epoch, command):
                    if (link := self._links.get(worker_id)) is not None:
                        link.send(epoch, command)
                case Deliver(request_id, tokens):
                    keep = self._streams[request_id].deliver(tokens)
                    if keep is not None:
                        now_ns = self._clock.now_ns()
                        todo.extend(self._scheduler.stop(request_id, now_ns, keep))
                case End(request_id, result):
                    self._streams.pop(request_id).end(result)
                    self.metrics.ended(result)
        self._set_timer()

    def _set_timer(self) -> None:
        when_ns = self._scheduler.next_wakeup_ns()
        if when_ns == self._timer_ns:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_ns = None, when_ns
        if when_ns is not None:
            delay_s = max(0.0, seconds(when_ns - self._clock.now_ns()))
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer_ns = None
        self._perform(self._scheduler.tick(self._clock.now_ns()))
        self._judge_readiness()

    def _judge_readiness(self) -> None:
        views = self._scheduler.loads().workers
        up = [Worker(v.info, heard_ns=0) for v in views if v.liveness is Liveness.UP]
        now, was = (self.ready, self.unready) if can_serve(up) else (self.unready, self.ready)
        was.clear()
        now.set()
        self._stirred.set()
        self._stirred = asyncio.Event()
