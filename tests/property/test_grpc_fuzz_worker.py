"""The services of a worker against routers and senders that say anything; see `grpc_fuzz`."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.grpc_fuzz import a_site, profiles
from tests.property.hostile_router import HostileRouter, Plan, plans
from tests.rig import a_config, a_rig


@profiles(250)
def test_workers_survive_any_router(tiny_model_dir: Path, profile: settings) -> None:
    config = a_config(router={"heartbeat_s": 0.05})
    with a_site(lambda: a_rig(tiny_model_dir, aggregated=1, config=config)) as site:
        workers = [replica.info() for replica in site.rig.replicas.values()]

        @given(st.lists(plans(workers), min_size=1, max_size=2))
        @profile
        def intrude(plans: list[Plan]) -> None:
            async def batch() -> None:
                await asyncio.gather(*(HostileRouter(site, plan).act() for plan in plans))
                await site.check()

            site.run(batch())

        intrude()
