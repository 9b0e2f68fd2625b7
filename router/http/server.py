"""Listens for HTTP on a socket of its own, on the router's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from eastwest.errors import ConfigError

# Idle connections are kept longer than clients keep them, so that none is closed as it is reused.
_IDLE_S = 75
# How long calls of clients that do not read may hold up the end.
_GRACE_S = 1
_BACKLOG = 1024


class HttpServer:
    """One listening socket. `start` once, then `stop`.

    header_bytes: of one request, at most. Raises `ConfigError` where host and port cannot be bound.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, *, header_bytes: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"router.http_port is {port} on {host}, which cannot be bound; allowed: a free "
                f"port of an address of this machine, or 0 for any free one"
            ) from error
        self._socket.setblocking(False)
        bound = self._socket.getsockname()[1]
        self.address = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
        config = uvicorn.Config(
            app,
            http="h11",  # it bounds the size of headers
            h11_max_incomplete_event_size=header_bytes,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # what clients do wrong is told to them; calls log their defects
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=_GRACE_S,
            backlog=_BACKLOG,
        )
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take connections."""
        serve = self._server.serve(sockets=[self._socket])
        self._serving = asyncio.create_task(serve, name="http server")
        up = asyncio.create_task(self._server.up.wait())
        await asyncio.wait((self._serving, up), return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if self._serving.done():
            self._serving.result()

    async def stop(self) -> None:
        """Take no more connections, and close those that are open. Idempotent."""
        serving, self._serving = self._serving, None
        if serving is not None:
            self._server.should_exit = True
            await serving
        self._socket.close()


class _Server(uvicorn.Server):
    """Leaves signals to the command. up: set once it takes connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()
