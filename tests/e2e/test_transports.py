"""The default model on Ray, KV moving by one transport after the other: the tokens are the same."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
import pytest_asyncio

from deploy.launch import Deployment
from deploy.report import links_lines
from eastwest.client import AsyncClient
from eastwest.config import Config
from eastwest.errors import ConfigError
from eastwest.messages import KvLink, Transport
from kv_transfer.nixl_agent import nixl_problem
from router.text import load_tokenizer
from tests.models import default_model_dir

NIXL_PROBLEM = nixl_problem()
pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]
with_nixl = pytest.mark.skipif(bool(NIXL_PROBLEM), reason=NIXL_PROBLEM)

WAIT_S = 240.0
LENGTHS = (1, 16, 17, 65, 150)
TEXT = "Pebbles were counted first, then beads on wires, then the teeth of gears. " * 16
# What UCX may use; over shared memory it needs TCP to notice that a peer has failed.
UCX = {"tcp": "tcp,self", "shared memory": "posix,sysv,cma,self,tcp"}


def a_config(*transports: str, prefill: Mapping[str, object] | None = None) -> Config:
    return Config.model_validate(
        {
            "model": {"dtype": "float32"},
            "router": {"port": 0, "conditional": False},
            "kv": {"transports": transports},
            "prefill": {"kv_tokens": 2048, "step_tokens": 64, **(prefill or {})},
            "decode": {"kv_tokens": 2048},
            "store": {"enabled": False},
        }
    )


async def generated(config: Config, transport: Transport) -> list[tuple[int, ...]]:
    """Greedy tokens of prompts of several lengths, at once, after all KV came by `transport`."""
    tokens = load_tokenizer(default_model_dir()).encode(TEXT)
    prompts = [tokens[i : i + length] for i, length in enumerate(LENGTHS)]
    async with (
        Deployment(config) as deployment,
        AsyncClient(deployment.address, timeout_s=WAIT_S) as client,
    ):
        await client.wait_ready(WAIT_S)
        completions = await asyncio.gather(
            *(client.generate(p, temperature=0.0, max_tokens=12).result() for p in prompts)
        )
        async with asyncio.timeout(WAIT_S):
            # What workers last reported may be older than the answers.
            while sum(x.transfers for x in (await links(client))) < len(prompts):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        workers = (await client.loads()).workers
        assert {link.transport for worker in workers for link in worker.links} == {transport}
        way = transport.value.replace("_", " ")
        assert f"KV prefill-0 to decode-0 by {way}: {len(prompts)}" in links_lines(workers)
        assert sum(worker.leaked_blocks for worker in workers) == 0
    return [completion.token_ids for completion in completions]


async def links(client: AsyncClient) -> list[KvLink]:
    return [link for worker in (await client.loads()).workers for link in worker.links]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def by_grpc() -> list[tuple[int, ...]]:
    return await generated(a_config("grpc"), Transport.GRPC)


@pytest.mark.skipif(not NIXL_PROBLEM, reason="nixl works here")
async def test_a_transport_that_no_host_has_is_refused_at_start() -> None:
    with pytest.raises(ConfigError, match=r"kv\.transports names nixl, .* nixl is not installed"):
        async with Deployment(a_config("nixl", "grpc")):
            pass


@with_nixl
@pytest.mark.parametrize("ucx", UCX.values(), ids=UCX.keys())
async def test_tokens_that_come_by_nixl_are_those_that_come_by_grpc(
    ucx: str, monkeypatch: pytest.MonkeyPatch, by_grpc: list[tuple[int, ...]]
) -> None:
    monkeypatch.setenv("UCX_TLS", ucx)
    config = a_config("nixl")
    assert await generated(config, Transport.NIXL) == by_grpc


@with_nixl
async def test_ranks_of_one_layout_feed_another_by_nixl(
    monkeypatch: pytest.MonkeyPatch, by_grpc: list[tuple[int, ...]]
) -> None:
    monkeypatch.setenv("UCX_TLS", UCX["tcp"])
    config = a_config("nixl", prefill={"layout": {"tp": 3}})
    assert await generated(config, Transport.NIXL) == by_grpc
