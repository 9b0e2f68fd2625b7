"""Computes the KV of documents ahead of time, so that prompts that begin with them start warm.

Each document is a session of its own, named by its contents: it rests like any other, and goes to
the store when it has been idle. A document that was ingested before is found by its KV and costs
nothing but the time to look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from eastwest.client import AsyncClient
from eastwest.errors import ConfigError, EastWestError, StoreUnavailable, error_from
from eastwest.sessions_client import SessionsClient

# Documents that are computed at once: enough to keep a prefill worker busy.
_AT_ONCE = 4
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Document:
    """One file. session: under which it is kept."""

    path: Path
    text: str

    @property
    def session(self) -> str:
        return f"corpus/{blake3(self.text.encode()).hexdigest(length=16)}"


@dataclass(frozen=True, slots=True)
class Ingested:
    """tokens: of the prompt. computed: those of them whose KV was not there already."""

    document: Document
    tokens: int
    computed: int


def read_documents(paths: Sequence[Path]) -> list[Document]:
    """The files, each text once. Raises `ConfigError` for one that is no text."""
    documents: dict[str, Document] = {}
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}") from error
        if not text:
            raise ConfigError(f"{path} is empty; allowed: files with text")
        documents.setdefault(text, Document(path, text))
    return list(documents.values())


async def ingest(
    address: str,
    tenant: str,
    documents: Sequence[Document],
    told: Callable[[Ingested], None],
    *,
    chat: bool,
) -> list[Ingested]:
    """Compute them; `told` of each as it is done. chat: as the system message of a conversation,
    not as the beginning of a prompt. Raises what the router answers, naming the file."""
    turn = asyncio.Semaphore(_AT_ONCE)
    async with (
        AsyncClient(address, tenant=tenant) as client,
        SessionsClient(address, tenant=tenant) as sessions,
    ):

        async def one(document: Document) -> Ingested:
            async with turn:
                try:
                    # Otherwise it would be appended to itself.
                    await sessions.delete(document.session, keep_kv=True)
                    done = await _ask(client, document, chat=chat)
                except EastWestError as error:
                    raise error_from(error.code, f"{document.path}: {error.message}") from error
            ingested = Ingested(document, done[0], done[1])
            told(ingested)
            return ingested

        tasks = [asyncio.create_task(one(document)) for document in documents]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(client: AsyncClient, document: Document, *, chat: bool) -> tuple[int, int]:
    if chat:
        messages = [{"role": "system", "content": document.text}]
        generation = client.chat(messages, session=document.session, max_tokens=1)
    else:
        generation = client.generate(document.text, session=document.session, max_tokens=1)
    usage = (await generation).usage
    return usage.prompt_tokens, usage.computed_tokens


async def until_stored(
    address: str, tenant: str, ingested: Sequence[Ingested], told: Callable[[int], None]
) -> None:
    """Wait until the store has the full blocks of all. told: how many are not there yet. Raises
    `StoreUnavailable` where no worker reaches a store."""
    left = list(ingested)
    async with AsyncClient(address) as client, SessionsClient(address, tenant=tenant) as sessions:
        while left:
            workers = (await client.loads()).workers
            if not any(worker.store_available for worker in workers):
                raise StoreUnavailable("no worker reaches a store")
            block = max(worker.block_tokens for worker in workers)
            waiting = []
            for one in left:
                detail = await sessions.get(one.document.session)
                if detail.stored_tokens < one.tokens // block * block:
                    waiting.append(one)
            if len(waiting) < len(left):
                told(len(waiting))
            left = waiting
            if left:
                await asyncio.sleep(_LOOK_S)
