"""Where a store is: what a URL and a file with a password say, and connections to that.

    redis://[user:password@]host[:port][/database]         one server; rediss:// for TLS
    unix:///path/of/socket                                  the same, on this host
    redis+cluster://[user:password@]host[:port][,host…]     any nodes of a Cluster
    redis+sentinel://[user:password@]host[:port][,host…]/service[/database]   who Sentinels say

Both of the last begin with ``rediss`` for TLS. Options of redis-py may follow, such as
``?ssl_ca_certs=/path``. Nothing here connects, and no message ever shows a URL, since it may hold
a password.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import ConnectionPool, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, RedisError

from eastwest.errors import ConfigError
from kv_store.cluster import ClusterPipes, Node
from kv_store.pipe import AnyPipes, MakeConnection, Pipes

_SERVER_PORT, _SENTINEL_PORT = 6379, 26379


class Kind(enum.Enum):
    """Who is asked for the server that has a key."""

    SERVER = ""
    CLUSTER = "+cluster"
    SENTINEL = "+sentinel"


@dataclass(frozen=True, slots=True, repr=False)
class StoreAddress:
    """See the module; build with `parse`. hosts: none for a socket's path. options: what redis-py
    makes of the rest."""

    kind: Kind
    tls: bool
    hosts: tuple[Node, ...]
    service: str
    options: dict[str, Any]

    @classmethod
    def parse(cls, url: str, password_file: Path | None = None) -> StoreAddress:
        """Raises `ConfigError` naming the part that is wrong. password_file: is read for each
        connection, so that a password may change."""
        kind, tls, parts = _split(url)
        hosts = tuple(_hosts(parts, _SENTINEL_PORT if kind is Kind.SENTINEL else _SERVER_PORT))
        if parts.scheme == "unix" and not parts.path:
            raise _bad("no path of a socket")
        if parts.scheme != "unix" and not hosts:
            raise _bad("no host")
        service, database = "", parts.path
        if kind is Kind.SENTINEL:
            service, _, database = parts.path.strip("/").partition("/")
            if not service:
                raise _bad("no service that Sentinels know")
        if kind is Kind.CLUSTER and database.strip("/"):
            raise _bad("a database, of which a Cluster has one")
        if parts.scheme != "unix" and database.strip("/") and not database.strip("/").isdecimal():
            raise _bad("a database that is not a number")
        options = _options(parts, database, hosts)
        if password_file is not None:
            options.pop("password", None)
            user = options.pop("username", None)
            options["credential_provider"] = _FileCredentials(user, password_file)
        return cls(kind, tls, hosts, service, options)

    def pipes(self, size: int) -> AnyPipes:
        """At most `size` to each server."""
        if self.kind is Kind.CLUSTER:
            return ClusterPipes(self.hosts, self._connections_to, size)
        return Pipes(self._pool().make_connection, size)

    def client(self, timeout_s: float) -> Redis | RedisCluster:
        """redis-py's, for those who are in no hurry."""
        limits = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
        if self.kind is Kind.CLUSTER:
            nodes = [ClusterNode(host, port) for host, port in self.hosts]
            return RedisCluster(startup_nodes=nodes, ssl=self.tls, **self.options | limits)
        return Redis.from_pool(self._pool(**limits))

    def _pool(self, **limits: float) -> ConnectionPool:
        # Deadlines are the guard's, where no others are given.
        options = {"socket_timeout": None, "socket_connect_timeout": None, **self.options, **limits}
        if self.kind is Kind.SENTINEL:
            safe = {name: value for name, value in options.items() if name.startswith("ssl_")}
            # One that does not answer is passed over at once: there are others.
            asking = {**limits, **safe, "ssl": self.tls, "retry": Retry(NoBackoff(), 0)}
            return SentinelConnectionPool(  # type: ignore[no-untyped-call]
                self.service, _Sentinels(self.hosts, asking), ssl=self.tls, **options
            )
        if self.hosts:
            options["host"], options["port"] = self.hosts[0]
        if self.tls:
            options["connection_class"] = SSLConnection
        return ConnectionPool(**options)

    def _connections_to(self, node: Node) -> MakeConnection:
        host, port = node
        one = StoreAddress(Kind.SERVER, self.tls, ((host, port),), "", self.options)
        return one._pool().make_connection


class _Sentinels:
    """What a pool asks for the master. Unlike redis-py's, it keeps no connections."""

    def __init__(self, hosts: Sequence[Node], options: dict[str, Any]) -> None:
        self._hosts = hosts
        self._options = options

    async def discover_master(self, service: str) -> Node:
        """Raises `RedisError` where no Sentinel answers that knows the service."""
        for host, port in self._hosts:
            try:
                async with Redis(host=host, port=port, **self._options) as client:
                    found = await client.sentinel_get_master_addr_by_name(service)
            except (OSError, RedisError):
                continue
            if isinstance(found, tuple):
                return str(found[0], "utf-8") if isinstance(found[0], bytes) else found[0], found[1]
        raise MasterNotFoundError(f"no Sentinel answers that knows {service!r}")


class _FileCredentials(CredentialProvider):
    """A password that stands in a file."""

    def __init__(self, user: str | None, path: Path) -> None:
        self._user = user
        self._path = path

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        try:
            password = self._path.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise AuthenticationError(f"store.password_file cannot be read: {error}") from None
        return (self._user, password) if self._user else (password,)


def _split(url: str) -> tuple[Kind, bool, SplitResult]:
    """The rest has the scheme of one server."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _bad("a port or host that cannot be read") from None
    scheme = parts.scheme
    for kind in (Kind.CLUSTER, Kind.SENTINEL, Kind.SERVER):
        plain = scheme.removesuffix(kind.value)
        allowed = ("redis", "rediss") if kind.value else ("redis", "rediss", "unix")
        if scheme.endswith(kind.value) and plain in allowed:
            return kind, plain == "rediss", parts._replace(scheme=plain)
    raise _bad("another scheme, or none")


def _hosts(parts: SplitResult, port: int) -> list[Node]:
    hosts = []
    for text in parts.netloc.rpartition("@")[2].split(",") if parts.scheme != "unix" else ():
        try:
            one = urlsplit(f"//{text}")
            named = one.port
        except ValueError:
            raise _bad("a port or host that cannot be read") from None
        if named == 0:
            raise _bad("port 0")
        if one.hostname:
            hosts.append((one.hostname, named or port))
    return hosts


def _options(parts: SplitResult, database: str, hosts: tuple[Node, ...]) -> dict[str, Any]:
    user, at, _ = parts.netloc.rpartition("@")
    netloc = f"{user}{at}{'host' if hosts else ''}"
    path = parts.path if parts.scheme == "unix" else f"/{database.strip('/')}"
    try:
        options: dict[str, Any] = dict(parse_url(parts._replace(netloc=netloc, path=path).geturl()))
        options["protocol"] = 2  # what `kv_store.resp` speaks
        ConnectionPool(**options).make_connection()  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, RedisError):
        raise _bad("an option that the client does not know") from None
    options.pop("host", None)
    if hosts:
        options.pop("connection_class", None)
    return options


def _bad(what: str) -> ConfigError:
    return ConfigError(
        f"store.url has {what}; allowed: redis://[user:password@]host[:port][/database], "
        "redis+cluster://[user:password@]host[:port][,host…], redis+sentinel://[user:password@]host"
        "[:port][,host…]/service[/database], the same with rediss, or unix:///path/of/socket"
    )
