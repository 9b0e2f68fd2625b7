"""A deployment whose router serves HTTP, and what a test needs to speak it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from eastwest.config import Config
from eastwest.testing.worker_server import NextToken
from kv_store.sessions import SessionStore
from tests.integration.deployment import Deployment, a_config, a_deployment, babbles

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]
WAIT_S = 60.0


def http_config(**sections: dict[str, Any]) -> Config:
    """As `a_config`, with HTTP on a free port."""
    return a_config(**{**sections, "router": {"http_port": 0, **sections.get("router", {})}})


@asynccontextmanager
async def over_http(
    next_token: NextToken = babbles,
    *,
    config: Config | None = None,
    store: SessionStore | None = None,
) -> AsyncIterator[tuple[Deployment, httpx2.AsyncClient]]:
    """A deployment, and a client of its HTTP front."""
    async with (
        a_deployment(next_token, config=config or http_config(), store=store) as d,
        httpx2.AsyncClient(base_url=base_url(d), timeout=WAIT_S) as client,
    ):
        yield d, client


def base_url(d: Deployment) -> str:
    assert d.router.http_address is not None
    return f"http://{d.router.http_address}"


async def events(response: httpx2.Response) -> AsyncIterator[tuple[str, Any]]:
    """Kind and object of each event as it comes; kind is "done" for the end of a good stream."""
    kind = "message"
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        match name:
            case "":
                kind = "message"
            case "event":
                kind = value
            case "data" if value == "[DONE]":
                yield "done", None
            case "data":
                yield kind, json.loads(value)
            case _:
                raise AssertionError(line)
