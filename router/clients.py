"""How many calls each client has open: so many at once, and no more.

A client is an address without its port, whichever front end it comes by: what opens connections
anew gets no more of them. Clients behind one proxy are one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from eastwest.errors import Overloaded, Phase

RETRY_AFTER_S = 1.0


class Clients:
    """Counts open calls. streams_max: of one client."""

    def __init__(self, streams_max: int) -> None:
        self._streams_max = streams_max
        self._open: Counter[str] = Counter()

    @contextmanager
    def stream(self, client: str) -> Iterator[None]:
        """Around one call; raises `Overloaded` where the client has as many as it may."""
        if self._open[client] >= self._streams_max:
            raise Overloaded(
                f"{client} has {self._open[client]} calls open; allowed: at most "
                f"limits.client_streams, {self._streams_max}",
                phase=Phase.ADMISSION,
                retry_after_s=RETRY_AFTER_S,
            )
        self._open[client] += 1
        try:
            yield
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]


def client_of(peer: str) -> str:
    """The client of a gRPC call, whose peer is like ``ipv4:127.0.0.1:5555``."""
    family, _, address = peer.partition(":")
    return family if family == "unix" else unquote(address).rpartition(":")[0].strip("[]")
