"""``eastwest store`` against a real server."""

from __future__ import annotations

import asyncio
import json

import pytest
from redis import Redis

from eastwest.blocks import cache_salt
from kv_store.embedded import EmbeddedValkey
from tests.commands import eastwest
from tests.contract.kv_store.builders import KEYS_PER_BLOCK, THREE_PARTS, a_block_store, a_chain


@pytest.fixture
def filled(server: EmbeddedValkey) -> str:
    """The URL of a server with eight blocks; of one the first part is gone, of another damaged."""

    async def fill() -> None:
        store = a_block_store(server.url, namespace="eastwest")
        await store.write(a_chain(5))
        await store.write(a_chain(3, seed=1, salt=cache_salt("acme")))
        await store.close()

    with Redis.from_url(server.url) as admin:
        admin.flushall()
        asyncio.run(fill())
        first, second, *_ = sorted(admin.scan_iter(match="*:0"))
        admin.delete(first)
        admin.setrange(second, 0, b"\xff\xff")
    return server.url


def test_operators_look_verify_and_sweep(
    filled: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ("-s", f"store.url={filled}")
    code, out, _ = eastwest(monkeypatch, capsys, "store", "status", *here)
    assert code == 0
    assert THREE_PARTS.digest.hex() in out
    assert "not whole: 1 blocks" in out
    quota = ("-s", "store.tenant_quotas={acme: 9000}", "-s", "store.budget_bytes=100000")
    code, out, _ = eastwest(monkeypatch, capsys, "store", "status", *here, *quota)
    assert code == 0
    tenants = [line.split() for line in out.splitlines() if "KiB" in line or "limit" in line]
    assert ["acme", "3", "2.2", "KiB", "8.8", "KiB"] in tenants
    assert ["all", "8", "5.8", "KiB", "97.7", "KiB"] in tenants
    code, out, err = eastwest(monkeypatch, capsys, "store", "verify", *here)
    assert code == 1
    assert "7 blocks of " in out
    assert "part 0 is not what was written" in out
    assert "1 blocks are damaged" in err
    assert eastwest(monkeypatch, capsys, "store", "verify", "--remove", *here)[0] == 0
    code, out, _ = eastwest(monkeypatch, capsys, "store", "sweep", *here)
    assert (code, out.split()[0]) == (0, str(KEYS_PER_BLOCK - 1))
    code, out, _ = eastwest(monkeypatch, capsys, "store", "status", "--json", *here)
    told = json.loads(out)
    assert told["forms"][THREE_PARTS.digest.hex()]["blocks"] == 6
    assert told["incomplete"] == 0
    assert sum(use["blocks"] for use in told["owners"].values()) == 6
    form = ("--form", THREE_PARTS.digest.hex())
    assert eastwest(monkeypatch, capsys, "store", "sweep", *form, *here)[0] == 0
    code, _, err = eastwest(monkeypatch, capsys, "store", "sweep", *form, *here)
    assert code == 1
    assert "no block has the form" in err


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("store.ttl_s=60", "store.url is not set"),
        ("store.url=http://x", "store.url has another scheme"),
        ("store.url=unix:///nowhere/s", "the store does not answer"),
    ],
)
def test_what_cannot_be_reached_is_one_line(
    setting: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = eastwest(monkeypatch, capsys, "store", "status", "-s", setting)
    assert code == 1
    assert said in err
    assert len(err.strip().splitlines()) == 1
