"""Sweeps the store now and then, for as long as a deployment lasts.

Of all deployments that share a namespace, one sweeps it in each interval.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from eastwest.config import StoreConfig
from eastwest.errors import StoreUnavailable
from kv_store.survey import surveying

log = logging.getLogger(__name__)

# Of one question, which may be of hundreds of blocks.
_ANSWER_S = 60.0


@asynccontextmanager
async def sweeping(config: StoreConfig, url: str) -> AsyncIterator[None]:
    """Beside the body."""
    task = asyncio.create_task(sweep_regularly(config, url))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def sweep_regularly(config: StoreConfig, url: str) -> None:
    """Ends by being cancelled. A server that does not answer is asked again an interval later."""
    while True:
        await asyncio.sleep(config.sweep_s)
        try:
            async with surveying(
                url, config.namespace, _ANSWER_S, config.timeout_s, config.password_file
            ) as survey:
                if await survey.claim(config.sweep_s):
                    swept = await survey.sweep()
                    log.info(
                        "store swept: %d keys of %d bytes removed, %d entries of accounts settled",
                        swept.keys, swept.bytes, swept.settled,
                    )  # fmt: skip
        except StoreUnavailable as error:
            log.warning("the store is swept later: %s", error.message)
