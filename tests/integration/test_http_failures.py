"""HTTP clients that leave, in any phase, with whole replicas: nothing is left behind.

Rigs end by asking all auditors for zero leaked blocks.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from eastwest.errors import Phase
from eastwest.testing.engine import expected_output
from tests.integration.http_front import COMPLETIONS, WAIT_S
from tests.integration.test_failures import PHASES, held_in, served
from tests.integration.test_serving import a_prompt
from tests.rig import Rig, a_config, a_rig


def a_client(rig: Rig) -> httpx2.AsyncClient:
    address = rig.router.http_address
    assert address is not None
    return httpx2.AsyncClient(base_url=f"http://{address}", timeout=WAIT_S)


def a_body(tokens: int, output: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": a_prompt(tokens), "temperature": 0.0, "max_tokens": output, **fields}


async def test_http_and_grpc_give_the_same_tokens(tiny_model_dir: Path) -> None:
    config = a_config(router={"http_port": 0})
    async with a_rig(tiny_model_dir, config=config) as rig, a_client(rig) as client:
        answer = await client.post(COMPLETIONS, json=a_body(50, 12, logprobs=0))
        again = await client.post(COMPLETIONS, json=a_body(50, 12))
        grpc = await rig.client.generate(a_prompt(50), temperature=0.0, max_tokens=12)
    told = answer.json()
    assert told["choices"][0]["text"] == grpc.text
    assert list(grpc.token_ids) == expected_output(a_prompt(50), 12)
    assert told["usage"]["completion_tokens"] == 12
    assert again.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 48


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("phase", PHASES)
async def test_a_client_that_leaves_frees_everything(
    phase: Phase, stream: bool, tiny_model_dir: Path
) -> None:
    async with held_in(phase, tiny_model_dir, http=True) as held, a_client(held.rig) as client:
        body = a_body(50, 200, stream=stream)
        call = asyncio.ensure_future(client.post(COMPLETIONS, json=body))
        await held.arrived()
        call.cancel()
        await asyncio.wait([call])
        held.release()
        await served(held.rig)
        await held.rig.settle()
        held.rig.assert_clean()


async def test_a_storm_of_clients_that_leave_at_once_leaks_nothing(tiny_model_dir: Path) -> None:
    config = a_config(router={"http_port": 0})
    async with a_rig(tiny_model_dir, prefill=2, decode=2, config=config) as rig:

        async def leaves(number: int) -> None:
            body = a_body(20 + number, 100, stream=True)
            async with (
                a_client(rig) as client,
                client.stream("POST", COMPLETIONS, json=body) as response,
            ):
                lines = response.aiter_lines()
                for _ in range(1 + 2 * (number % 9)):
                    await anext(lines)

        await asyncio.gather(*(leaves(i) for i in range(40)))
        await served(rig)
        await rig.settle()
        rig.assert_clean()
