"""Promises that hold in every test, however the requests fare. Each checker watches, and asserts.

ExactlyOnce   a request ends once; its tokens come once, in order, and none after its end
Reservations  no command goes to a dead incarnation; what a worker was given to hold is
              finished, failed or aborted there
check_timing  the parts of a timing are not negative and sum to what was measured apart
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from eastwest.messages import Abort, Command, Heartbeat, Prefill, Reserve
from eastwest.timing import Timing


@dataclass(slots=True)
class Fate:
    """What became of one request. tokens: delivered so far; forgotten at its end."""

    tokens: list[int] = field(default_factory=list)
    ended: bool = False


class ExactlyOnce:
    """`expected` gives the token that a request must have at an output position."""

    def __init__(self, expected: Callable[[str, int], int]) -> None:
        self._expected = expected
        self.fates: dict[str, Fate] = {}

    def accepted(self, request_id: str) -> None:
        """A new request, or a new one under the id of an ended one."""
        fate = self.fates.get(request_id)
        assert fate is None or fate.ended, f"{request_id} was accepted while it ran"
        self.fates[request_id] = Fate()

    def delivered(self, request_id: str, tokens: Iterable[int]) -> None:
        fate = self.fates.get(request_id)
        if fate is None or fate.ended:
            fate = self._running(request_id, "tokens")
        delivered = fate.tokens
        for token in tokens:
            position = len(delivered)
            assert token == self._expected(request_id, position), (
                f"token {position} of {request_id} is {token}: lost, repeated or out of order"
            )
            delivered.append(token)

    def completed(self, request_id: str, output: Sequence[int]) -> None:
        """The request ended well, with this output; it may be cut by a stop string."""
        fate = self._running(request_id, "an end")
        assert list(output) == fate.tokens[: len(output)], f"{request_id} ends with other tokens"
        self._end(fate)

    def failed(self, request_id: str) -> None:
        self._end(self._running(request_id, "an end"))

    def check_all_ended(self) -> None:
        waiting = [request_id for request_id, fate in self.fates.items() if not fate.ended]
        assert not waiting, f"requests never ended: {waiting}"

    def _end(self, fate: Fate) -> None:
        fate.ended = True
        fate.tokens.clear()

    def _running(self, request_id: str, what: str) -> Fate:
        fate = self.fates.get(request_id)
        assert fate is not None, f"{what} for {request_id}, which nobody sent"
        assert not fate.ended, f"{what} for {request_id} after its end"
        return fate


class Reservations:
    """Told of every incarnation, command and ending, as the router sees them."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], set[str]] = {}

    def worker_up(self, worker_id: str, epoch: int) -> None:
        self._held[worker_id, epoch] = set()

    def worker_down(self, worker_id: str, epoch: int) -> None:
        """Whatever it held is gone with it."""
        self._held.pop((worker_id, epoch), None)

    def sent(self, worker_id: str, epoch: int, command: Command) -> None:
        held = self._held.get((worker_id, epoch))
        assert held is not None, f"{command} for {worker_id}, epoch {epoch}, which is gone"
        match command:
            case Reserve():
                assert command.request_id not in held, f"{command.request_id} is reserved twice"
                held.add(command.request_id)
            case Prefill():
                held.add(command.request_id)
            case Abort():
                held.discard(command.request_id)
            case Heartbeat():
                pass

    def over(self, worker_id: str, epoch: int, work_id: str) -> None:
        """The worker finished or failed the work: it holds nothing of it."""
        self._held.get((worker_id, epoch), set()).discard(work_id)

    def check_none_forgotten(self) -> None:
        forgotten = {worker: held for worker, held in self._held.items() if held}
        assert not forgotten, f"reserved and never released: {forgotten}"


def check_timing(timing: Timing, *, ttft_ns: int, second_ns: int | None) -> None:
    """`ttft_ns` and `second_ns` are the totals as the caller measured them."""
    first = timing.ttft
    parts = [
        first.admission_ns,
        first.queue_ns,
        first.reservation_ns,
        first.prefill_ns,
        first.delivery_ns,
    ]
    assert min(parts) >= 0, f"a part of the TTFT is negative: {first}"
    assert sum(parts) == ttft_ns, f"the parts of the TTFT sum to {sum(parts)}, not {ttft_ns}"
    assert (timing.second is None) == (second_ns is None)
    if timing.second is not None:
        second = timing.second
        parts = [
            second.exposed_transfer_ns,
            second.import_ns,
            second.decode_queue_ns,
            second.first_step_ns,
            second.migration_ns,
        ]
        assert min(parts) >= 0, f"a part of the second token's gap is negative: {second}"
        assert sum(parts) == second_ns, f"the parts sum to {sum(parts)}, not {second_ns}"
