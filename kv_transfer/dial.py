"""Connects to a rank that takes frames."""

from __future__ import annotations

import asyncio
import socket

from eastwest.errors import Phase, Unavailable
from eastwest.rpc import keep_alive


async def connect(address: str) -> socket.socket:
    """A connection to ``host:port``. Raises `Unavailable`."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        family, kind, protocol, _, target = found[0]
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            keep_alive(connection)
            await loop.sock_connect(connection, target)
        except BaseException:
            connection.close()
            raise
    except (OSError, ValueError) as error:
        message = f"{address} cannot be reached: {error}"
        raise Unavailable(message, phase=Phase.TRANSFER) from error
    return connection
