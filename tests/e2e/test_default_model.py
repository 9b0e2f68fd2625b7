"""The default model on Ray: real weights, real gRPC, a real Valkey; transformers is the oracle."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM

from deploy.launch import Deployment
from eastwest.client import AsyncClient
from eastwest.config import Config
from eastwest.testing.audits import assert_clean
from eastwest.types import Role
from router.text import load_tokenizer
from tests.models import default_model_dir

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

WAIT_S = 240.0
TEXT = (
    "The history of computing is longer than the history of electronic machines. "
    "People counted with pebbles, then with beads on wires, then with gears. "
) * 8


@pytest.fixture(scope="module")
def oracle() -> Any:
    model = AutoModelForCausalLM.from_pretrained(default_model_dir(), dtype=torch.float32)
    return model.eval()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment() -> AsyncIterator[Deployment]:
    config = Config.model_validate(
        {
            "model": {"dtype": "float32"},
            "router": {"port": 0, "conditional": False},
            "prefill": {"kv_tokens": 2048, "step_tokens": 64},
            "decode": {"kv_tokens": 2048},
            "store": {"idle_s": 0.2},
        }
    )
    async with Deployment(config) as deployment:
        yield deployment


@pytest_asyncio.fixture(loop_scope="module")
async def client(deployment: Deployment) -> AsyncIterator[AsyncClient]:
    """A client; after each test, every worker's auditor must find nothing."""
    async with AsyncClient(deployment.address, timeout_s=WAIT_S) as client:
        await _until_up(client)
        yield client
        there = [w.address for w in (await client.server_info()).workers]
        await assert_clean(there, WAIT_S)


async def _until_up(client: AsyncClient) -> None:
    await client.wait_ready(WAIT_S)


def greedy(model: Any, prompt: Sequence[int], count: int, *, ends: bool = True) -> list[int]:
    """What transformers generates; ends with the end token like ours, if it `ends` at all."""
    output = model.generate(
        torch.tensor([list(prompt)]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        **({} if ends else {"eos_token_id": None, "pad_token_id": 0}),
    )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


def prompt_of(length: int) -> list[int]:
    tokens = load_tokenizer(default_model_dir()).encode(TEXT)
    assert len(tokens) >= length
    return tokens[:length]


@pytest.mark.parametrize("length", [1, 15, 16, 17, 64, 65, 150])
async def test_greedy_output_is_that_of_transformers(
    client: AsyncClient, oracle: Any, length: int
) -> None:
    prompt = prompt_of(length)
    completion = await client.generate(prompt, temperature=0.0, max_tokens=12)
    assert list(completion.token_ids) == greedy(oracle, prompt, 12)
    assert (completion.prefill_worker, completion.decode_worker) == ("prefill-0", "decode-0")


async def test_requests_at_once_do_not_disturb_each_other(client: AsyncClient, oracle: Any) -> None:
    prompts = [prompt_of(20 + 13 * i)[i:] for i in range(6)]
    completions = await asyncio.gather(
        *(client.generate(p, temperature=0.0, max_tokens=10).result() for p in prompts)
    )
    for prompt, completion in zip(prompts, completions, strict=True):
        assert list(completion.token_ids) == greedy(oracle, prompt, 10)


async def test_a_killed_prefill_worker_is_replaced_and_the_request_retried(
    deployment: Deployment, client: AsyncClient, oracle: Any
) -> None:
    prompt = prompt_of(170)[3:]
    placed = deployment.supervisor.workers()["prefill-0"]
    waiting = asyncio.ensure_future(client.generate(prompt, temperature=0.0, max_tokens=6).result())
    while (await client.loads()).active == 0:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0.002)
    os.kill(placed.pid, signal.SIGKILL)
    completion = await waiting
    assert list(completion.token_ids) == greedy(oracle, prompt, 6)


async def test_a_stream_outlives_its_killed_decode_worker(
    deployment: Deployment, client: AsyncClient, oracle: Any
) -> None:
    prompt = prompt_of(30)
    generation = client.generate(prompt, temperature=0.0, max_tokens=60, ignore_eos=True)
    chunks = aiter(generation)
    tokens = [token for _ in range(3) for token in (await anext(chunks)).token_ids]
    os.kill(deployment.supervisor.workers()["decode-0"].pid, signal.SIGKILL)
    tokens += [token async for chunk in chunks for token in chunk.token_ids]
    assert tokens == greedy(oracle, prompt, 60, ends=False)
    completion = await generation
    assert list(completion.token_ids) == tokens
    assert completion.usage.migrations == 1


async def test_a_session_resumes_from_the_store_on_new_workers(
    deployment: Deployment, client: AsyncClient, oracle: Any
) -> None:
    prompt, more = prompt_of(100)[7:], prompt_of(30)[11:]
    first = await client.generate(
        prompt, session="s", temperature=0.0, max_tokens=20, ignore_eos=True
    )
    async with asyncio.timeout(WAIT_S):
        while sum(w.sessions_spilled for w in (await client.loads()).workers) == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    for worker in list(deployment.supervisor.workers()):
        await deployment.stop_worker(worker)
    for role in (Role.PREFILL, Role.DECODE):
        await deployment.start_worker(role)
    await deployment.wait_ready()
    second = await client.generate(
        more, session="s", must_exist=True, temperature=0.0, max_tokens=10
    )
    whole = [*prompt, *first.token_ids, *more]
    assert list(second.token_ids) == greedy(oracle, whole, 10)
    assert second.usage.loaded_tokens == (len(prompt) + 20 - 1) // 16 * 16
