"""Documents that are ingested: prompts that begin with them start warm, whatever worker serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.ingest import Document, Ingested, ingest, read_documents, until_stored
from eastwest.client import AsyncClient
from eastwest.errors import ConfigError, InvalidArgument, StoreUnavailable
from eastwest.types import Role
from kv_store.memory_store import MemoryBlockStore
from tests.rig import WAIT_S, Rig, a_config, a_rig

LONG = "All that a clerk has to know of ledgers, and then some more. " * 3
OTHER = "Nothing of the kind. " * 6


async def ingested(rig: Rig, *texts: str, tenant: str = "acme") -> list[Ingested]:
    told: list[Ingested] = []
    documents = [Document(Path(f"{i}.txt"), text) for i, text in enumerate(texts)]
    done = await ingest(rig.address, tenant, documents, told.append, chat=False)
    assert {one.document for one in told} == set(documents)
    return done


async def computed(rig: Rig, prompt: str, tenant: str) -> tuple[int, int]:
    """Prompt tokens of a request, and how many of them had to be computed."""
    async with AsyncClient(rig.address, tenant=tenant, timeout_s=WAIT_S) as client:
        usage = (await client.generate(prompt, max_tokens=2)).usage
    return usage.prompt_tokens, usage.computed_tokens


async def test_prompts_that_begin_with_a_document_start_warm(tiny_model_dir: Path) -> None:
    config = a_config(store={"idle_s": 0.01})
    async with a_rig(tiny_model_dir, config=config, store=MemoryBlockStore(1 << 24)) as rig:
        done = await ingested(rig, LONG, OTHER)
        assert all(one.computed == one.tokens > 16 for one in done)
        left: list[int] = []
        await until_stored(rig.address, "acme", done, left.append)
        assert left[-1] == 0
        again = await ingested(rig, LONG, OTHER)
        assert [one.tokens for one in again] == [one.tokens for one in done]
        assert all(one.computed < one.tokens / 2 for one in again)
        # On workers that have nothing in memory, by tenant.
        for role in (Role.PREFILL, Role.DECODE):
            await rig.start(f"{role.value}-1", role)
            await rig.until_up(f"{role.value}-1")
            await rig.router.remove_worker(f"{role.value}-0")
        tokens, fresh = await computed(rig, LONG + "What is a ledger?", "acme")
        assert fresh < tokens / 2
        tokens, fresh = await computed(rig, LONG + "What is a ledger?", "other")
        assert fresh == tokens


async def test_a_document_that_is_too_long_is_named(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir) as rig:
        with pytest.raises(InvalidArgument, match=r"1\.txt: "):
            await ingested(rig, OTHER, "x" * 100_000)


async def test_nobody_waits_for_a_store_that_is_not_there(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir) as rig:
        done = await ingested(rig, OTHER)
        with pytest.raises(StoreUnavailable, match="no worker reaches a store"):
            await until_stored(rig.address, "acme", done, lambda left: None)


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    good, same, empty, binary = (tmp_path / name for name in ("a", "b", "c", "d"))
    for path in (good, same):
        path.write_text("hello")
    empty.write_text("")
    binary.write_bytes(b"\xff\xfe")
    assert [d.path for d in read_documents([good, same])] == [good]
    for path, said in ((empty, "empty"), (binary, "UTF-8"), (tmp_path / "e", "No such file")):
        with pytest.raises(ConfigError, match=said) as caught:
            read_documents([good, path])
        assert str(path) in caught.value.message
