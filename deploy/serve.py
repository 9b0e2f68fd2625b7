"""`eastwest serve`: a deployment that runs until it is asked to end."""

from __future__ import annotations

import asyncio

from rich.console import Console

from deploy.launch import Deployment
from deploy.report import workers_table
from eastwest.client import AsyncClient
from eastwest.config import Config


async def serve(config: Config, ray_address: str | None, console: Console) -> None:
    """Serve until cancelled; everything that was begun is ended before this returns."""

    def progress(text: str) -> None:
        console.print(f"… {text}", markup=False)

    async with Deployment(config, ray_address=ray_address, progress=progress) as deployment:
        async with AsyncClient(deployment.address) as client:
            loads = await client.loads()
        console.print(workers_table(loads.workers))
        console.print(
            f"serving at {deployment.address}; try: "
            f"eastwest chat --address {deployment.address} 'Hello'",
            markup=False,
        )
        if deployment.http_address is not None:
            console.print(
                f"OpenAI-compatible HTTP at http://{deployment.http_address}/v1", markup=False
            )
        if config.store.enabled and config.store.url is None:
            console.print(
                f"sessions are in {deployment.config.store.url}, for 'eastwest router --join'",
                markup=False,
            )
        await asyncio.Event().wait()
