"""A deployment whose store holds anything but what was written.

1. Whatever becomes of a session's record, manifests and blocks while it rests, its next turn is
   answered as if nothing had been stored, or as if all had: KV is computed again, a record that is
   lost begins anew.
2. No client hears of it, nothing is logged as an error, and the auditors find no leak.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from eastwest.testing.engine import expected_output
from kv_store.embedded import EmbeddedValkey
from tests.contract.kv_store.builders import all_keys
from tests.integration.test_serving import a_prompt
from tests.integration.test_sessions import a_stored_rig, spilled
from tests.property.grpc_fuzz import Site, a_site, profiles
from tests.rig import Rig

TURN = {"temperature": 0.0, "max_tokens": 4}


@dataclass(frozen=True, slots=True)
class Damage:
    """To one of the keys: a bit of its value flipped, or something else in its place."""

    key: int
    how: str
    at: int
    data: bytes


DAMAGES = st.builds(
    Damage,
    st.integers(0, 50),
    st.sampled_from(["flip", "flip", "bytes", "cut", "longer", "delete", "list", "hash", "swap"]),
    st.integers(0, 1 << 16),
    st.binary(max_size=40),
)


async def text_of(admin: Redis, key: bytes) -> bytes:
    """The value; nothing where it is gone, or of another type."""
    if await admin.type(key) != b"string":
        return b""
    value = await admin.get(key)
    assert isinstance(value, bytes)
    return value


async def damage(admin: Redis, keys: list[bytes], harm: Damage) -> None:
    key = keys[harm.key % len(keys)]
    value = bytearray(await text_of(admin, key))
    at = harm.at % max(1, len(value))
    match harm.how:
        case "flip" if value:
            value[at] ^= 1 << harm.at % 8
            await admin.set(key, bytes(value), keepttl=True)
        case "bytes":
            await admin.set(key, harm.data)
        case "cut":
            await admin.set(key, bytes(value[:at]))
        case "longer":
            await admin.set(key, bytes(value) + harm.data)
        case "list":
            await admin.delete(key)
            await admin.rpush(key, harm.data)
        case "hash":
            await admin.delete(key)
            await admin.hset(key, mapping={"a": harm.data})
        case "swap":
            await admin.set(key, await text_of(admin, keys[harm.at % len(keys)]))
        case _:
            await admin.delete(key)


async def converse(site: Site, admin: Redis, number: int, harms: list[Damage]) -> None:
    """A turn, a rest, harm, and another turn."""
    rig, session = site.rig, f"s{number}"
    prompt, more = a_prompt(40, seed=3 * number), a_prompt(9, seed=3 * number + 1)
    before = spilled(rig)
    first = await rig.client.generate(prompt, session=session, **TURN)  # type: ignore[arg-type]
    await rig.until(lambda: spilled(rig) > before)
    keys = await all_keys(admin)
    # Others come: nothing of the session is left on a device, or at hand in the router.
    for n in range(3):
        filler = a_prompt(100, seed=1000 + 7 * number + n)
        await rig.client.generate(filler, session=f"other{number}.{n}", **TURN)  # type: ignore[arg-type]
    for harm in harms:
        await damage(admin, keys, harm)
    second = await rig.client.generate(more, session=session, **TURN)  # type: ignore[arg-type]
    resumed = expected_output([*prompt, *first.token_ids, *more], 4)
    assert list(second.token_ids) in (resumed, expected_output(more, 4))
    assert harms or second.usage.loaded_tokens
    await admin.flushall()


@profiles(50)
def test_answers_stay_right_whatever_is_stored(tiny_model_dir: Path, profile: settings) -> None:
    valkey, numbers = EmbeddedValkey(64 << 20), count(1)
    small = {"kv_tokens": 128}

    @asynccontextmanager
    async def a_rig_of_its_own() -> AsyncIterator[Rig]:
        sections = {"prefill": small, "decode": small, "router": {"sessions_max": 1}}
        async with a_stored_rig(tiny_model_dir, valkey, idle_s=0.01, **sections) as rig:  # type: ignore[arg-type]
            yield rig

    with a_site(a_rig_of_its_own) as site:

        @given(st.lists(DAMAGES, max_size=3))
        @profile
        def harm(harms: list[Damage]) -> None:
            async def batch() -> None:
                async with Redis.from_url(valkey.url) as admin:
                    await converse(site, admin, next(numbers), harms)
                await site.check()

            site.run(batch())

        harm()
