"""A relay to a server's unix socket whose answers come at a given rate, whoever asks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

_PIECE = 64 << 10


class SlowLink:
    """As an async context manager. bytes_per_s: may be changed at any time; infinite at first."""

    def __init__(self, socket: str) -> None:
        self.bytes_per_s = float("inf")
        self._target = socket
        self._free_at_s = 0.0
        self._directory = TemporaryDirectory(prefix="eastwest-link-")
        self._path = Path(self._directory.name) / "socket"
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"unix://{self._path}"

    async def __aenter__(self) -> SlowLink:
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)
        self._directory.cleanup()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_unix_connection(self._target)
        for pipe in (self._pipe(reader, ours, slow=False), self._pipe(theirs, writer, slow=True)):
            task = asyncio.create_task(pipe)
            self._pipes.add(task)
            task.add_done_callback(self._pipes.discard)

    async def _pipe(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, slow: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            while piece := await source.read(_PIECE):
                if slow:
                    start_s = max(loop.time(), self._free_at_s)
                    self._free_at_s = start_s + len(piece) / self.bytes_per_s
                    await asyncio.sleep(self._free_at_s - loop.time())
                sink.write(piece)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()
