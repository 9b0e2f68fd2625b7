"""What a prompt takes at the least, on the best of the workers that may compute it.

Only what was measured counts. A worker that computes prompts and has not shown of late how fast it
is may be any fast, so nothing is foreseen while there is one; a decode worker, which computes a
prompt now and then, counts once it has. What others have waiting there is not counted: this is
what an idle fleet would take.
"""

from __future__ import annotations

from eastwest.types import Role
from router.fleet import Fleet, Worker
from router.kv_view import KvView
from router.pace import Pace
from router.requests import Request


class Foresight:
    """Asked once for each request that comes: mostly of one worker, whose answer is enough."""

    def __init__(self, pace: Pace, fleet: Fleet, kv: KvView) -> None:
        self._pace = pace
        self._fleet = fleet
        self._kv = kv
        self._quick: Worker | None = None

    def prompt_s(self, request: Request, within_s: float, now_ns: int) -> float:
        """The least time; 0 where some worker may be done within `within_s`. Leaves hashes of the
        prompt with `KvView` where they matter."""
        if (quick := self._quick) is not None and _open(quick):
            takes_s = self._takes_s(quick, request, 0, now_ns)
            if takes_s is not None and takes_s <= within_s:
                return 0.0
        known: list[Worker] = []
        for worker in filter(_open, self._fleet):
            takes_s = self._takes_s(worker, request, 0, now_ns)
            if takes_s is not None:
                if takes_s <= within_s:
                    self._quick = worker
                    return 0.0
                known.append(worker)
            elif worker.info.role is not Role.DECODE:
                return 0.0
        workers = list(filter(_open, self._fleet))
        prefixes = self._kv.known(request, 0, now_ns, workers)
        least_s = 0.0
        for worker in known:
            takes_s = self._takes_s(worker, request, prefixes.reusable_tokens(worker), now_ns)
            assert takes_s is not None
            if takes_s <= within_s:
                return 0.0
            least_s = min(least_s or takes_s, takes_s)
        return least_s

    def _takes_s(self, worker: Worker, request: Request, there: int, now_ns: int) -> float | None:
        """Of the prompt, with the KV of so many of its tokens there; None where it is not known."""
        tokens = len(request.prompt)
        there = min(there, tokens - 1)
        return self._pace.least_prompt_s(worker.info, tokens - there, there, now_ns)


def _open(worker: Worker) -> bool:
    return worker.up and not worker.draining
