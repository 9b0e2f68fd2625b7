"""Listens for HTTP on a socket of its own, on the router's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

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
            http=partial(_Protocol, header_bytes),  # type: ignore[arg-type]
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


class _Protocol(HttpToolsProtocol):
    """One connection. What is written to it in one turn of the event loop leaves as one piece, and
    at once.

    header_bytes: the parser keeps what it has of a header for as long as it is not complete, in
    front of a body or behind it; a client that sends more of one than this is cut off.
    """

    def __init__(self, header_bytes: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_bytes = header_bytes
        self._kept_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        connection = transport.get_extra_info("socket")
        # Not done by asyncio for sockets that do not name their protocol, such as accepted ones.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(_Gathered(transport))

    def data_received(self, data: bytes) -> None:
        self._kept_bytes += len(data)
        super().data_received(data)
        if self._kept_bytes > self._header_bytes and not self.transport.is_closing():
            self._refuse_head()

    def on_headers_complete(self) -> None:
        self._kept_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._kept_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._kept_bytes = 0
        super().on_message_complete()

    def _refuse_head(self) -> None:
        """Say why, where no call is open that says something itself."""
        if self.cycle is None or self.cycle.response_complete:
            why = f"the headers have more than {self._header_bytes} bytes".encode()
            self.transport.write(
                b"%scontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%s" % (STATUS_LINE[431], len(why), why)
            )
        self.transport.close()


class _Gathered(asyncio.Transport):
    """A transport that sends what a turn of the event loop writes as one piece, at its end."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._pieces: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(bytes(data))

    def _flush(self) -> None:
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            self._transport.write(b"".join(pieces))

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._transport.set_protocol(protocol)


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
