"""A TCP proxy that is as bad as real networks are: it cuts, delays, holds back and damages.

client ──▶ FaultyProxy.address ──▶ target, which may change with each incarnation behind it
"""

from __future__ import annotations

import asyncio
import contextlib
import random

_PIECE_BYTES = 1 << 16


class FaultyProxy:
    """One listening port. Made and used on one event loop; `close` ends all of it.

    delay_s: added to each piece that is passed on, both ways. corrupt: the probability that a bit
    of a piece is flipped. refuse: new connections are dropped. cuts, corrupted: connections that
    were cut and pieces that were damaged so far.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._target = ("", 0)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self.delay_s = 0.0
        self.corrupt = 0.0
        self.refuse = False
        self.cuts = 0
        self.corrupted = 0

    async def start(self) -> str:
        """Listen; the ``host:port`` to give to clients."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    def lead_to(self, address: str) -> None:
        """New connections go to ``host:port``."""
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))

    def hold(self) -> None:
        """Pass nothing on, with all connections open, until `heal`."""
        self._passing.clear()

    def cut(self) -> None:
        """Break all connections that are open."""
        for writer in self._open:
            writer.transport.abort()
        self.cuts += len(self._open)

    def heal(self) -> None:
        """No faults from here on; what was cut stays so."""
        self.delay_s, self.corrupt, self.refuse = 0.0, 0.0, False
        self._passing.set()

    async def close(self) -> None:
        """Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        await asyncio.sleep(0)  # connections that have just come begin, to be ended here
        self.cut()
        self._passing.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        ends = [writer]
        try:
            if not self.refuse:
                far_reader, far_writer = await asyncio.open_connection(*self._target)
                ends.append(far_writer)
                self._open.update(ends)
                async with asyncio.TaskGroup() as ways:
                    ways.create_task(self._pass_on(reader, far_writer))
                    ways.create_task(self._pass_on(far_reader, writer))
        except* OSError:
            pass  # either end is gone, which the other one sees
        finally:
            for end in ends:
                self._open.discard(end)
                end.transport.abort()
            for end in ends:
                with contextlib.suppress(OSError):
                    await end.wait_closed()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_PIECE_BYTES):
            await self._passing.wait()
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if self.corrupt and self._rng.random() < self.corrupt:
                piece = self._damaged(piece)
            writer.write(piece)
            await writer.drain()
        raise ConnectionResetError("one end has closed")

    def _damaged(self, piece: bytes) -> bytes:
        data = bytearray(piece)
        # The highest bits are left alone: the path of a call that is not UTF-8 ends the loop of a
        # whole server of gRPC's Python library (grpcio 1.85).
        data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(7)
        self.corrupted += 1
        return bytes(data)
