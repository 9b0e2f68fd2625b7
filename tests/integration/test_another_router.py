"""One more router over workers that another one has: which ones, and when they change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from deploy.another_router import Follower, route, worker_addresses
from eastwest.answers import ServerInfo, WorkerStatus
from eastwest.config import Config
from eastwest.errors import ConfigError, InvalidArgument
from tests.integration.deployment import a_deployment


class Recorded:
    """What a router would have. `steps`: what it was told, in order."""

    def __init__(self) -> None:
        self.workers: dict[str, str] = {}
        self.steps: list[str] = []

    def add_worker(self, worker_id: str, address: str) -> None:
        if worker_id in self.workers:
            raise InvalidArgument(f"{worker_id} is there already")
        self.workers[worker_id] = address
        self.steps.append(f"+{worker_id}")

    async def remove_worker(self, worker_id: str) -> None:
        del self.workers[worker_id]
        self.steps.append(f"-{worker_id}")


def said(one: WorkerStatus, **addresses: str) -> ServerInfo:
    """What a router answers that has workers at these addresses."""
    workers = tuple(replace(one, worker_id=w, address=a) for w, a in addresses.items())
    return ServerInfo("", "router", 1, 0.0, workers)


async def test_a_follower_keeps_up_with_workers_that_come_go_and_move() -> None:
    async with a_deployment() as d:
        one, _ = (await d.client.server_info()).workers
    own = Recorded()
    troubles: list[str] = []
    follower = Follower(own, "another:1", 0.1, troubles.append)
    await follower.heed(said(one, p="h:1", d="h:2"))
    await follower.heed(said(one, p="h:1", d="h:2"))
    assert own.steps == ["+p", "+d"]
    await follower.heed(said(one, p="h:9", e="h:3"))
    assert own.workers == {"p": "h:9", "e": "h:3"}
    # A router that has just begun knows nobody: that says nothing of the workers.
    await follower.heed(said(one))
    await follower.heed(said(one))
    assert own.workers == {"p": "h:9", "e": "h:3"}
    assert troubles == ["another:1 knows of no worker"]


@pytest.mark.parametrize(
    ("settings", "workers", "named"),
    [
        ({"store": {"enabled": False}}, {}, "no workers"),
        ({}, {"p": "h:1"}, "store.url is not set"),
    ],
)
async def test_what_cannot_serve_says_why(
    tiny_model_dir: Path, settings: dict[str, object], workers: dict[str, str], named: str
) -> None:
    config = Config.model_validate({"model": {"source": str(tiny_model_dir)}, **settings})
    with pytest.raises(ConfigError, match=named):
        await route(config, None, workers, Console(quiet=True))


def test_workers_are_named_with_their_addresses() -> None:
    assert worker_addresses(["p=h:1", "d=[::1]:2"]) == {"p": "h:1", "d": "[::1]:2"}
    for wrong in ("h:1", "=h:1", "p=h"):
        with pytest.raises(ConfigError, match="name=host:port"):
            worker_addresses([wrong])
