"""A router between a real client and simulated workers, on the loopback interface.

Workers are simulated; the tokenizer is that of `tests.byte_tokenizer`.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eastwest import AsyncClient
from eastwest.clock import SystemClock
from eastwest.config import Config
from eastwest.messages import ModelInfo
from eastwest.testing.builders import a_model
from eastwest.testing.worker_server import NextToken, WorkerServer, WorkerServers
from eastwest.types import Role
from kv_store.sessions import SessionStore
from router.server import Router
from tests.byte_tokenizer import CHAT_TEMPLATE, END, ids_of, write_tokenizer


def says(text: str) -> NextToken:
    """An engine that says this, whatever the prompt, and ends."""
    ids = (*ids_of(text), END)
    return lambda prompt, index: ids[min(index, len(ids) - 1)]


def babbles(prompt: Sequence[int], index: int) -> int:
    """An engine that goes on for ever, with letters that depend on prompt and position."""
    return ids_of("abcdefghijklmnopqrstuvwxyz")[(sum(prompt) + index) % 26]


def served_model() -> ModelInfo:
    return replace(a_model(), name="tiny", vocab_size=300, context_tokens=4096, eos_ids=(END,))


def a_config(**sections: dict[str, Any]) -> Config:
    """Defaults on a free port, with quick heartbeats; each keyword replaces fields of a section."""
    router = {
        "port": 0,
        "heartbeat_s": 0.05,
        "worker_timeout_s": 30.0,
        "conditional": False,
    }
    tree = {**sections, "router": {**router, **sections.get("router", {})}}
    return Config.model_validate(tree)


@dataclass(slots=True)
class Deployment:
    """What a test talks to."""

    router: Router
    address: str
    client: AsyncClient
    workers: WorkerServers
    prefill: WorkerServer
    decode: WorkerServer


@asynccontextmanager
async def a_deployment(
    next_token: NextToken = babbles,
    *,
    config: Config | None = None,
    store: SessionStore | None = None,
    chat_template: str | None = CHAT_TEMPLATE,
    prepare: Callable[[Deployment], None] | None = None,
) -> AsyncIterator[Deployment]:
    """One prefill and one decode worker behind a router that is ready.

    At the end no simulated worker may hold anything. prepare: what to do before the router
    connects to its workers.
    """
    workers = WorkerServers(served_model(), next_token)
    prefill = await workers.start("p0", Role.PREFILL)
    decode = await workers.start("d0", Role.DECODE)
    with tempfile.TemporaryDirectory() as directory:
        write_tokenizer(Path(directory), chat_template)
        router = Router(
            config or a_config(), Path(directory), store, SystemClock(), random.Random(7)
        )
    address = await router.start()
    async with AsyncClient(address, timeout_s=60.0) as client:
        deployment = Deployment(router, address, client, workers, prefill, decode)
        if prepare is not None:
            prepare(deployment)
        router.add_worker("p0", prefill.address)
        router.add_worker("d0", decode.address)
        try:
            await router.wait_ready()
            yield deployment
            for worker in workers.workers.values():
                await worker.freed()
        finally:
            await router.stop()
            await workers.stop()
