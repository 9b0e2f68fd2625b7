"""KV on its way to rest, after its request has ended.

An output whose last token comes from a prefill worker ends with `Prefilled`, while that worker
still pushes the KV that the session will be continued from. Nothing tells the router of its
arrival. If the prefill worker fails or dies first, the decode worker's reservation is nobody's,
and the router's heartbeats would keep it alive: so it is aborted.
"""

from __future__ import annotations

from collections import OrderedDict

from router.fleet import Worker
from router.lifecycle import Lifecycle
from router.requests import Action


class Settling:
    """Remembers the last `limit` such endings, by work id."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lives: OrderedDict[str, tuple[Worker, Worker]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._lives)

    def add(self, life: Lifecycle) -> None:
        assert life.attempt is not None
        self._lives[life.work_id] = (life.attempt.prefill, life.attempt.decode)
        if len(self._lives) > self._limit:
            self._lives.popitem(last=False)

    def failed(self, work_id: str, worker: Worker, out: list[Action]) -> None:
        """A worker has given up work of an ended request."""
        prefill, decode = self._lives.pop(work_id, (None, None))
        if worker is prefill and decode is not None:
            decode.abort(work_id, out)

    def bereave(self, worker: Worker, out: list[Action]) -> None:
        """A worker is gone. Aborting what has come to rest meanwhile does no harm."""
        for work_id, (prefill, decode) in list(self._lives.items()):
            if worker is prefill or worker is decode:
                del self._lives[work_id]
                decode.abort(work_id, out)
