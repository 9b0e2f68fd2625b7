"""When each request must next be looked at: one time for each id, earliest first."""

from __future__ import annotations

import heapq

_SLACK = 64


class Timers:
    """Moved and cancelled entries stay in the heap until they surface or outnumber the live."""

    def __init__(self) -> None:
        self._when: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._when)

    def __contains__(self, name: str) -> bool:
        return name in self._when

    def set(self, name: str, when_ns: int) -> None:
        """Look at `name` then, and not at the time set before."""
        if self._when.get(name) == when_ns:
            return
        self._when[name] = when_ns
        heapq.heappush(self._heap, (when_ns, name))
        if len(self._heap) > 2 * len(self._when) + _SLACK:
            self._heap = [(when, name) for name, when in self._when.items()]
            heapq.heapify(self._heap)

    def cancel(self, name: str) -> None:
        self._when.pop(name, None)

    def next_ns(self) -> int | None:
        """The earliest time set."""
        while self._heap:
            when, name = self._heap[0]
            if self._when.get(name) == when:
                return when
            heapq.heappop(self._heap)
        return None

    def due(self, now_ns: int) -> list[str]:
        """Take out those whose time has come, earliest first."""
        names = []
        while (when := self.next_ns()) is not None and when <= now_ns:
            _, name = heapq.heappop(self._heap)
            del self._when[name]
            names.append(name)
        return names
