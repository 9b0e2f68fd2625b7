"""Why a request went where it went, asked over gRPC and on the command line; workers are
simulated."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from eastwest import AsyncClient, Client
from eastwest.errors import NotFound, Overloaded
from eastwest.messages import Prefill
from tests.integration.deployment import a_config, a_deployment, says


async def explain_command(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.cli", "explain", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"COLUMNS": "100"},
    )
    output, _ = await process.communicate()
    return f"{process.returncode}\n{output.decode()}"


async def test_a_request_is_explained_while_it_runs_and_after_it_ended() -> None:
    async with a_deployment(says("hello")) as d:
        d.prefill.prefilling.hold()
        generation = d.client.generate("hi", request_id="r1", slo_ttft_s=0.75)
        running = asyncio.create_task(generation.result())
        await d.prefill.received(Prefill)
        during = await d.client.explain("r1")
        d.prefill.prefilling.open()
        completion = await running
        after = await d.client.explain("r1")
        with Client(d.address) as client:
            same = await asyncio.to_thread(client.explain, "r1")

    assert (during.state, during.ended_s, during.comparisons) == ("prefilling", None, ())
    assert (during.slo_ttft_s, during.slo_tpot_s) == (0.75, a_config().slo.tpot_s)
    [decision] = during.decisions
    assert (decision.prefill, decision.decode) == ("p0", "d0")
    assert decision.given_tokens == during.prompt_tokens == 2
    [prediction] = decision.predictions
    assert prediction.chosen
    assert prediction.score == prediction.own + prediction.others
    assert "p0 with d0 was the only pair" in decision.reason

    assert after.state == "completed"
    assert after.output_tokens == completion.usage.completion_tokens
    assert after.decisions == during.decisions == same.decisions
    measured = {c.part: c.measured_s for c in after.comparisons}
    assert measured["reservation"] == completion.timing.ttft.reservation_ns / 1e9
    assert all(
        c.predicted_s is not None for c in after.comparisons if c.part in ("prefill", "TTFT")
    )


async def test_a_refused_request_says_that_it_was_placed_nowhere_and_why() -> None:
    config = a_config(router={"queue_max": 1, "active_max": 1})
    async with a_deployment(says("hello"), config=config) as d:
        d.prefill.prefilling.hold()
        first = asyncio.create_task(d.client.generate("hi", request_id="first").result())
        await d.prefill.received(Prefill)
        second = asyncio.create_task(d.client.generate("hi", request_id="second").result())
        async with asyncio.timeout(60):
            # Loads are asked for, not announced.
            while (await d.client.loads()).waiting != 1:
                pass
        with pytest.raises(Overloaded) as caught:
            await d.client.generate("hi", request_id="third")
        waits, refused = await d.client.explain("second"), await d.client.explain("third")
        shown = await explain_command("third", "--address", d.address)
        d.prefill.prefilling.open()
        await asyncio.gather(first, second)

    assert (waits.state, waits.decisions, waits.ended_s) == ("queued", (), None)
    assert (refused.state, refused.decisions) == ("refused", ())
    assert refused.message == caught.value.message
    assert shown.startswith("0\nthird: refused after")
    assert "it was placed nowhere" in shown


async def test_a_moved_request_shows_each_placement_and_what_was_lost() -> None:
    async with a_deployment(says("hello")) as d:
        d.decode.stepping.hold()
        generation = d.client.generate("hi", request_id="r1")
        await anext(generation)
        await d.router.remove_worker("d0")
        lost = await d.client.explain("r1")
        d.decode.stepping.open()
        d.router.add_worker("d0", d.decode.address)
        await d.router.wait_ready()
        assert (await generation).usage.migrations == 1
        moved = await d.client.explain("r1")
        shown = await explain_command("r1", "--address", d.address)
        as_json = await explain_command("r1", "--address", d.address, "--json")

    assert lost.state == "queued"
    assert "d0" in lost.decisions[0].loss
    assert (moved.state, moved.migrations, len(moved.decisions)) == ("completed", 1, 2)
    first, second = moved.decisions
    assert first == lost.decisions[0]
    assert first.lost_s is not None
    assert first.at_s <= first.lost_s <= second.at_s
    assert second.given_tokens == first.given_tokens + 1
    assert second.lost_s is None

    assert shown.startswith("0\nr1: completed after")
    assert "moved 1x" in shown
    assert "lost at " in shown
    assert first.reason[:30] in shown
    for part in ("queue of the prefill worker", "prefill", "TTFT", "residual", "score"):
        assert part in shown
    assert max(len(line) for line in shown.splitlines()) <= 100
    parsed = json.loads(as_json.removeprefix("0\n"))
    assert [d["reason"] for d in parsed["decisions"]] == [first.reason, second.reason]


async def test_unknown_requests_and_those_of_other_tenants_are_alike_not_found() -> None:
    async with a_deployment(says("hello")) as d, AsyncClient(d.address, tenant="acme") as acme:
        await acme.generate("hi", request_id="secret")
        assert (await acme.explain("secret")).state == "completed"
        with pytest.raises(NotFound) as foreign:
            await d.client.explain("secret")
        with pytest.raises(NotFound) as unknown:
            await d.client.explain("never")
        shown = await explain_command("secret", "--address", d.address)
        own = await explain_command("secret", "--address", d.address, "--tenant", "acme")
    assert foreign.value.message.replace("secret", "never") == unknown.value.message
    assert shown.splitlines()[0] != "0"
    assert "is not known here" in shown
    assert own.startswith("0\nsecret: completed")
