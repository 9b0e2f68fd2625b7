"""Decision logs of simulated runs: the policy that was recorded answers the same again."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eastwest.clock import SystemClock, ns
from eastwest.config import Config, PoolConfig, RouterConfig
from eastwest.errors import ConfigError
from eastwest.layout import KVSpec
from eastwest.types import Role, SamplingParams, Slo
from planner.traces import TraceRow
from router.decision_log import Entry
from router.decision_log_file import decision_log_of
from router.requests import Request
from sim.cluster import Cluster, Shape
from sim.decisions import Compared, Measured, Replay
from sim.engine import StepTime
from sim.replay import by_cost, cluster_shape, replay
from sim.virtual_loop import VirtualClock, VirtualLoop
from tests.sim.test_replay import a_cost

ROOT = Path(__file__).resolve().parents[2]
FLEET = ((Role.PREFILL, 2), (Role.DECODE, 3), (Role.AGGREGATED, 1))
REQUESTS = 300


def step_time(role: Role) -> StepTime:
    """Aggregated workers are slower."""
    base_s = 2e-2 if role is Role.AGGREGATED else 5e-3
    return lambda rows: base_s + 2e-5 * sum(len(row.tokens) for row in rows)


def recorded(path: Path, **router: Any) -> Path:
    """A run with more requests than there is room for, in which workers die and come back."""
    config = RouterConfig.model_validate(
        {"heartbeat_s": 1.0, "worker_timeout_s": 3.0, "decision_log": path, **router}
    )
    log = decision_log_of(config, SystemClock())
    assert log is not None

    def write(entry: Entry) -> None:
        log.write(entry)
        log.flush()

    async def run() -> None:
        rng = random.Random(5)
        shape = Shape(
            FLEET, num_blocks=64, pool=PoolConfig(step_tokens=128, running_max=8),
            kv=KVSpec(2, 2, 8, 8, "bfloat16"), config=Config(router=config),
        )  # fmt: skip
        clock = VirtualClock(loop)
        cluster = Cluster(shape, step_time, clock, rng, write=write)
        cluster.start()
        await asyncio.gather(clients(cluster, rng), deaths(cluster))
        await cluster.quiet()
        await cluster.close()

    loop = VirtualLoop()
    loop.run(run())
    log.close()
    return path


async def clients(cluster: Cluster, rng: random.Random) -> None:
    """One after the other; some prompts begin alike, and some targets cannot be met."""
    for number in range(REQUESTS):
        await asyncio.sleep(rng.expovariate(40))
        now, tokens = cluster.clock.now_ns(), rng.choice((5, 60, 200, 500))
        request = Request(
            f"r{number}", "", "", (rng.choice((1, 2, 100 + number)), *range(1, tokens)),
            SamplingParams(temperature=0.0, seed=0, ignore_eos=True), rng.choice((1, 10, 80)),
            now, now + ns(600), slo=rng.choice((Slo(0.08, 0.03), Slo(0.03, 0.02))),
        )  # fmt: skip
        cluster.submit(request)


async def deaths(cluster: Cluster) -> None:
    for name in ("decode-1", "prefill-0", "aggregated-0"):
        await asyncio.sleep(1.5)
        role = cluster.replicas[name].info.role
        await cluster.kill(name)
        await asyncio.sleep(0.5)
        cluster.spawn(name, role)


def compared(replay: Replay) -> list[Compared]:
    return [item for item in replay if isinstance(item, Compared)]


@pytest.fixture(scope="module")
def by_cost_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("logs") / "log")


@pytest.mark.parametrize(
    "policy", ["cost", "least_loaded", "prefix", "round_robin", "power_of_two"]
)
def test_every_policy_answers_the_same_again(policy: str, tmp_path: Path) -> None:
    replay = Replay.of(recorded(tmp_path / "log", policy=policy))
    seen = compared(replay)
    assert replay.as_recorded
    assert [item.line for item in seen if not item.same] == []
    assert sum(item.recorded.choice is not None for item in seen) >= REQUESTS
    # A run in which nobody waited, nothing was lost or no prefix was known would prove little.
    assert sum(item.recorded.choice is None for item in seen) > 10
    assert any(item.asked.output_tokens for item in seen)
    assert any(sight.known != (0, 0) for item in seen for sight in item.asked.seen)
    assert {s.subject.info.epoch for item in seen for s in item.asked.seen} >= {1, 7, 8, 9}


def test_another_policy_and_other_weights_answer_otherwise(by_cost_log: Path) -> None:
    for changed in ({"policy": "least_loaded"}, {"late": 0.0}, {"conditional": False}):
        replay = Replay.of(by_cost_log, **changed)
        seen = compared(replay)
        others = [item for item in seen if not item.same]
        assert not replay.as_recorded
        assert 0 < len(others) < len(seen)
        moved = [i for i in others if i.recorded.predicted and i.again.predicted]
        assert moved
        if "policy" in changed:
            # By the weights that it goes by, the cost policy takes what is predicted to be best.
            scores = [(i.recorded.predicted, i.again.predicted) for i in moved]
            assert sum(a.score <= b.score for a, b in scores if a and b) > 0.9 * len(scores)


def test_what_was_predicted_stands_beside_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = decision_log_of(RouterConfig(decision_log=path), SystemClock())
    assert log is not None
    cost, rows = a_cost(), [TraceRow(2000, 20, i * 0.5) for i in range(40)]
    shape = cluster_shape(cost, ((Role.PREFILL, 1), (Role.DECODE, 1)))
    seen = replay(rows, shape, by_cost(cost), write=log.write)
    log.close()
    measured = [item for item in Replay.of(path) if isinstance(item, Measured)]
    ttft_s = sorted(m.ended.ttft_s for m in measured if m.ended.ttft_s)
    assert ttft_s == pytest.approx(sorted(seen.ttft_s))
    for item in measured:
        # The planner's own model, kept in the log, says what the simulated engine takes.
        assert item.predicted.ttft_s == pytest.approx(item.ended.ttft_s, rel=0.2)
        assert item.predicted.tpot_s == pytest.approx(item.ended.tpot_s, rel=0.2)


def changed(path: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> int:
    """A copy in which the first placement is another; the number of its line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        values = json.loads(line)
        if values["kind"] == "asked" and values["placed"]:
            change(values)
            lines[number - 1] = json.dumps(values)
            target.write_text("\n".join(lines) + "\n", encoding="utf-8")
            return number
    raise AssertionError("nothing was placed")


def test_an_answer_that_is_not_the_same_is_named_by_its_line(
    by_cost_log: Path, tmp_path: Path
) -> None:
    target = tmp_path / "log"
    number = changed(by_cost_log, target, lambda v: v["placed"].__setitem__(2, 1000))
    assert [item.line for item in compared(Replay.of(target)) if not item.same] == [number]
    code, output = command(target)
    assert code == 1
    assert f"line {number}, request 1 (" in output


def test_what_no_policy_can_be_asked_is_told_with_its_line(
    by_cost_log: Path, tmp_path: Path
) -> None:
    text = by_cost_log.read_text(encoding="utf-8")
    assert '"costs":{}' in text
    unknown, broken = tmp_path / "unknown", tmp_path / "broken"
    unknown.write_text(text.replace('"costs":{}', '"costs":null'), encoding="utf-8")
    broken.write_text(text.replace('"costs":{}', '"costs":{"model":1}'), encoding="utf-8")
    for path, message in ((unknown, "does not say what work takes"), (broken, "no cost model")):
        with pytest.raises(ConfigError, match=rf"{path} line \d+: .*{message}"):
            list(Replay.of(path))
    # Where nothing is predicted, nothing need be known of it.
    seen = compared(Replay.of(unknown, policy="least_loaded"))
    assert all(item.recorded.predicted is None for item in seen)


def command(*arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "sim", "decisions", *map(str, arguments)],
        env={**os.environ, "COLUMNS": "100"}, cwd=ROOT, check=False, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_command_says_how_many_differ_and_what_is_predicted(by_cost_log: Path) -> None:
    code, output = command(by_cost_log)
    count = len(compared(Replay.of(by_cost_log)))
    assert code == 0
    assert f"{count:,} of {count:,} placements the same" in output
    assert "TTFT" in output

    code, output = command(by_cost_log, "--policy", "least_loaded", "--show", "2")
    assert code == 0
    assert "asked again of least_loaded" in output
    assert output.count("; again: ") == 2
    for part in ("TPOT", "own, in shares of targets", "others", "score", "measured"):
        assert part in output


def test_the_command_says_what_is_wrong_with_a_file_or_a_weight(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("hello\n", encoding="utf-8")
    for arguments, message in (
        ((tmp_path / "log",), "line 1: this is no decision log"),
        ((tmp_path / "log", "--late", "-1"), "--late is -1.0; allowed: 0 and above"),
        ((tmp_path / "nothing",), "cannot read"),
    ):
        code, output = command(*arguments)
        assert (code, output.count("\n")) == (2, 1)
        assert message in output


def test_where_the_log_has_no_beginning_that_is_said(tmp_path: Path) -> None:
    path = recorded(tmp_path / "log", policy="round_robin")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0].replace(b'"part":0', b'"part":3'), *lines[1:-1], b'{"cut']))
    _, output = command(path)
    assert "begins in the middle of a process; this policy's answers depend on" in output
    assert "the last line is cut off, and left out" in output


@pytest.mark.parametrize("seed", range(3))
def test_whatever_a_file_holds_it_is_asked_or_one_error_names_its_line(
    seed: int, by_cost_log: Path, tmp_path: Path
) -> None:
    rng, path = random.Random(seed), tmp_path / "log"
    whole = b"".join(by_cost_log.read_bytes().splitlines(keepends=True)[:40])
    messages = []
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(damaged))] = rng.choice(b'0919-"{}[],x\n')
        path.write_bytes(damaged)
        try:
            list(Replay.of(path))
        except ConfigError as error:
            messages.append(error.message)
    assert 10 < len(messages) < 100
    assert all(f"{path} line " in message for message in messages)
