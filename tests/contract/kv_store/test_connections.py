"""Every kind of URL against a real server: TCP, TLS with a checked certificate, databases."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from eastwest.clock import SystemClock
from eastwest.config import StoreConfig
from eastwest.errors import StoreUnavailable
from kv_store.codec import BlockForm
from kv_store.connect import open_block_store
from kv_store.embedded import EmbeddedValkey
from kv_store.survey import surveying
from tests.contract.kv_store.builders import (
    BLOCK_TOKENS,
    SPEC,
    THREE_PARTS,
    a_block_store,
    a_chain,
    names_of,
    payloads_of,
)

MIDDLING = BlockForm(
    digest=bytes(16),
    block_tokens=BLOCK_TOKENS,
    block_bytes=3 << 19,
    part_bytes=(1 << 19,) * 3,
    manifest_bytes=THREE_PARTS.manifest_bytes,
)


async def assert_it_serves(url: str) -> None:
    store = a_block_store(url, MIDDLING)
    chain = a_chain(12, MIDDLING)
    assert await store.write(chain) == 12 * MIDDLING.block_bytes
    assert await store.match(names_of(chain)) == 12
    assert await store.read(names_of(chain)) == payloads_of(chain)
    await store.close()


async def test_unix_sockets(server: EmbeddedValkey, admin: Redis) -> None:
    await assert_it_serves(server.url)


async def test_tcp(own_server: EmbeddedValkey) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with Redis.from_url(own_server.url) as admin:
        await admin.config_set("port", port)
    await assert_it_serves(f"redis://127.0.0.1:{port}")


async def test_databases_are_apart(server: EmbeddedValkey, admin: Redis) -> None:
    first, second = a_block_store(server.url), a_block_store(f"{server.url}?db=1")
    await first.write(a_chain(1))
    assert await second.match(names_of(a_chain(1))) == 0
    await first.close()
    await second.close()


async def test_a_protocol_in_the_url_changes_nothing(server: EmbeddedValkey, admin: Redis) -> None:
    await assert_it_serves(f"{server.url}?protocol=3")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``cert.pem``, for localhost, and its ``key.pem``."""
    directory = tmp_path_factory.mktemp("tls")
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")]
    kind = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([openssl, "req", *kind, *files, *subject], check=True, capture_output=True)
    return directory


@pytest.fixture
async def tls_port(server: EmbeddedValkey, admin: Redis, certificate: Path) -> AsyncIterator[int]:
    """A TLS front of the server."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    path = server.url.removeprefix("unix://")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 18):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind, to_server = await asyncio.open_unix_connection(path)
            await asyncio.gather(pump(reader, to_server), pump(behind, writer))
        except OSError:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as front:
        yield front.sockets[0].getsockname()[1]


async def test_tls(tls_port: int, certificate: Path) -> None:
    await assert_it_serves(f"rediss://localhost:{tls_port}?ssl_ca_certs={certificate / 'cert.pem'}")


async def test_an_unknown_certificate_is_refused(tls_port: int) -> None:
    store = a_block_store(f"rediss://localhost:{tls_port}")
    with pytest.raises(StoreUnavailable, match="certificate verify failed"):
        await store.match(names_of(a_chain(1)))
    await store.close()


async def test_a_password_may_stand_in_a_file_and_change(
    own_server: EmbeddedValkey, tmp_path: Path
) -> None:
    path = tmp_path / "password"
    config = StoreConfig(password_file=path, timeout_s=30.0, retry_after_s=0.01)
    store = open_block_store(config, own_server.url, SPEC, BLOCK_TOKENS, "model", SystemClock())
    names = names_of(a_chain(1))
    with pytest.raises(StoreUnavailable, match="password_file cannot be read"):
        await store.match(names)
    async with Redis.from_url(own_server.url) as admin:
        for password in ("hunter2", "hunter3"):
            path.write_text(password + "\n")
            await admin.config_set("requirepass", password)
            await store.close()
            store = open_block_store(
                config, own_server.url, SPEC, BLOCK_TOKENS, "model", SystemClock()
            )
            assert await store.match(names) == 0
    await store.close()


async def test_a_user_with_few_rights_is_enough(own_server: EmbeddedValkey) -> None:
    async with Redis.from_url(own_server.url) as admin:
        await admin.acl_setuser(
            "eastwest", enabled=True, passwords=["+pw"], keys=["test:*"],
            categories=["+@all", "-@dangerous", "-@admin"], commands=["+info"],
        )  # fmt: skip
    url = own_server.url.replace("unix://", "unix://eastwest:pw@")
    await assert_it_serves(url)
    async with surveying(url, "test", 30.0, 0.0) as survey:
        assert (await survey.usage()).payload > 0
        assert (await survey.sweep()).keys == 0
