"""A live router's decision log, asked again; workers are simulated."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sim.decisions import Compared, Measured, Replay
from tests.integration.deployment import a_config, a_deployment, says


async def test_what_a_router_wrote_is_answered_the_same_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    config = a_config(router={"decision_log": str(path)})
    async with a_deployment(says("confidential"), config=config) as d:
        calls = [d.client.generate(f"secret {i}", request_id=f"mine-{i}") for i in range(5)]
        completions = await asyncio.gather(*(call.result() for call in calls))
    replay = Replay.of(path)
    items = list(replay)
    compared = [item for item in items if isinstance(item, Compared)]
    measured = {item.ended.request: item for item in items if isinstance(item, Measured)}
    assert replay.as_recorded
    assert sum(item.recorded.choice is not None for item in compared) == 5
    assert all(item.same for item in compared)
    # Stopping, the router wrote all that it had.
    assert sorted(measured) == [1, 2, 3, 4, 5]
    assert all(item.ended.state == "completed" for item in measured.values())
    assert [item.ended.output_tokens for item in measured.values()] == [
        completion.usage.completion_tokens for completion in completions
    ]
    text = path.read_text(encoding="utf-8")
    assert not any(word in text for word in ("secret", "confidential", "mine-"))


async def test_a_router_whose_log_cannot_be_written_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = a_config(router={"decision_log": str(tmp_path / "nowhere" / "log")})
    async with a_deployment(says("hello"), config=config) as d:
        assert (await d.client.generate("hi").result()).text == "hello"
    assert caplog.text.count("is off from here on") == 1
