"""Workers that are drained: no request fails or is spoilt, no block leaks, and they leave."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest

from eastwest.client import AsyncClient
from eastwest.clock import SystemClock
from eastwest.config import Config
from eastwest.errors import InvalidArgument, NotFound, Unavailable
from eastwest.operator_client import DrainReport, OperatorClient
from eastwest.testing.engine import expected_output
from eastwest.types import Liveness, Role, SamplingParams
from eastwest.v1.cluster_pb2 import DrainRequest
from kv_store.embedded import EmbeddedValkey
from router.server import Router
from tests.integration.test_migration import hold, tokens_of, until_held
from tests.integration.test_serving import a_prompt
from tests.integration.test_sessions import a_stored_rig
from tests.rig import WAIT_S, Rig, a_config, a_rig

COUNT = 40
GREEDY = SamplingParams(temperature=0.0, max_tokens=COUNT)
SAMPLED = SamplingParams(temperature=0.8, seed=11, max_tokens=COUNT)
# A drain may not cost any request an attempt: each has one.
ONE_ATTEMPT: dict[str, object] = {"attempts_max": 1}


def one_attempt() -> Config:
    return a_config(router=ONE_ATTEMPT)


async def drained(rig: Rig, worker_id: str, timeout_s: float = 60.0) -> DrainReport:
    """Drain a worker, and see it leave with nothing in its hands."""
    async with OperatorClient(rig.address) as operator:
        reports = [r async for r in operator.drain(worker_id, timeout_s=timeout_s)]
    assert [r.state for r in reports] == ["draining"] * (len(reports) - 1) + ["drained"]
    await gone(rig, worker_id)
    return reports[-1]


async def gone(rig: Rig, worker_id: str) -> None:
    """The worker has left: what its supervisor does then."""
    replica = rig.replicas[worker_id]
    async with asyncio.timeout(WAIT_S):
        await replica.left.wait()
    audit = replica.audit()
    assert not audit.findings
    assert not [owner for owner in audit.owners if not owner.startswith("session")]
    await rig.kill(worker_id)
    await rig.router.remove_worker(worker_id)


async def liveness(client: AsyncClient) -> dict[str, Liveness]:
    return {w.worker_id: w.liveness for w in (await client.server_info()).workers}


async def until_liveness(client: AsyncClient, worker_id: str, wanted: Liveness) -> None:
    async with asyncio.timeout(WAIT_S):
        while (await liveness(client))[worker_id] is not wanted:  # noqa: ASYNC110 - polled state
            await asyncio.sleep(0.005)


class Load:
    """Clients that ask one request after the other, and compare each answer."""

    def __init__(self, rig: Rig, clients: int) -> None:
        self._rig = rig
        self._over = False
        self.served: list[tuple[str, str]] = []
        self.tasks = [asyncio.ensure_future(self._ask(i)) for i in range(clients)]

    async def _ask(self, client: int) -> None:
        rng = random.Random(client)
        while not self._over:
            sampling = rng.choice((GREEDY, SAMPLED))
            prompt = a_prompt(rng.randrange(1, 90), seed=rng.randrange(1000))
            completion = await self._rig.client.generate(prompt, sampling=sampling)
            assert list(completion.token_ids) == expected_output(prompt, COUNT, sampling)
            self.served.append((completion.prefill_worker, completion.decode_worker))

    async def serves(self, more: int) -> None:
        """Until so many more were served; fails as soon as one has failed."""
        target = len(self.served) + more
        while len(self.served) < target:
            done, _ = await asyncio.wait(self.tasks, timeout=0.01)
            for task in done:
                task.result()

    async def end(self) -> None:
        self._over = True
        await asyncio.gather(*self.tasks)


@pytest.mark.parametrize("timeout_s", [0.0, 60.0])
async def test_no_request_fails_while_one_of_two_pairs_is_drained(
    tiny_model_dir: Path, timeout_s: float
) -> None:
    async with a_rig(tiny_model_dir, prefill=2, decode=2, config=one_attempt()) as rig:
        load = Load(rig, clients=6)
        await load.serves(20)
        for worker_id in ("decode-0", "prefill-1"):
            report = await drained(rig, worker_id, timeout_s)
            assert report.running == 0
            assert report.others_serve
        before = len(load.served)
        await load.serves(20)
        await load.end()
        assert set(load.served[before + 6 :]) == {("prefill-0", "decode-1")}
        assert {"prefill-1", "decode-0"} <= {worker for pair in load.served for worker in pair}
        assert set(await liveness(rig.client)) == {"prefill-0", "decode-1"}


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
async def test_what_still_runs_at_the_deadline_goes_on_elsewhere(
    tiny_model_dir: Path, sampling: SamplingParams
) -> None:
    async with a_rig(tiny_model_dir, decode=2, config=one_attempt()) as rig:
        hold(rig, "decode-0", 12)
        prompt = a_prompt(45)
        generation = rig.client.generate(prompt, sampling=sampling)
        tokens = asyncio.ensure_future(tokens_of(generation))
        await until_held(rig, "decode-0")
        leaving = asyncio.ensure_future(drained(rig, "decode-0", timeout_s=0.05))
        assert await tokens == expected_output(prompt, COUNT, sampling)
        completion = await generation
        assert (completion.decode_worker, completion.usage.migrations) == ("decode-1", 1)
        # Its blocks are free when the step that may write to them is over.
        rig.engine("decode-0").gate.set()
        report = await leaving
        assert (report.finished, report.moved) == (0, 1)


async def test_what_ends_in_time_stays_where_it_is(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir, decode=2, config=one_attempt()) as rig:
        hold(rig, "decode-0", 12)
        prompt = a_prompt(45)
        running = asyncio.ensure_future(rig.client.generate(prompt, sampling=GREEDY).result())
        await until_held(rig, "decode-0")
        leaving = asyncio.ensure_future(drained(rig, "decode-0"))
        await until_liveness(rig.client, "decode-0", Liveness.DRAINING)
        other = await rig.client.generate(prompt, sampling=GREEDY)
        assert other.decode_worker == "decode-1"
        rig.engine("decode-0").gate.set()
        completion = await running
        assert list(completion.token_ids) == expected_output(prompt, COUNT)
        assert (completion.decode_worker, completion.usage.migrations) == ("decode-0", 0)
        report = await leaving
        assert (report.finished, report.moved) == (1, 0)


async def test_kv_on_its_way_arrives_however_soon_its_sender_is_to_leave(
    tiny_model_dir: Path,
) -> None:
    entered, gate = asyncio.Event(), asyncio.Event()

    async def slow(frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for frame in frames:
            entered.set()
            await gate.wait()
            yield frame

    async with a_rig(tiny_model_dir, prefill=2, tap=slow, config=one_attempt()) as rig:
        prompt = a_prompt(20)
        generation = rig.client.generate(prompt, sampling=GREEDY)
        chunks = aiter(generation)
        tokens = [*(await anext(chunks)).token_ids]
        await entered.wait()
        leaving = asyncio.ensure_future(drained(rig, "prefill-0", timeout_s=0.0))
        await until_liveness(rig.client, "prefill-0", Liveness.DRAINING)
        gate.set()
        tokens += await tokens_of(generation)
        assert tokens == expected_output(prompt, COUNT)
        assert (await generation).usage.migrations == 0
        report = await leaving
        assert (report.finished, report.moved) == (1, 0)


async def test_an_aggregated_worker_leaves_as_well(tiny_model_dir: Path) -> None:
    config = one_attempt()
    async with a_rig(tiny_model_dir, prefill=0, decode=0, aggregated=2, config=config) as rig:
        load = Load(rig, clients=4)
        await load.serves(10)
        await drained(rig, "aggregated-0", timeout_s=0.0)
        await load.serves(10)
        await load.end()


async def test_sessions_go_to_the_store_and_on_from_there(
    tiny_model_dir: Path, valkey: EmbeddedValkey
) -> None:
    async with a_stored_rig(tiny_model_dir, valkey, idle_s=3600.0, router=ONE_ATTEMPT) as rig:
        prompts = [a_prompt(60, seed=i) for i in range(3)]
        firsts = [
            await rig.client.generate(p, session=f"s{i}", temperature=0.0, max_tokens=12)
            for i, p in enumerate(prompts)
        ]
        report = await drained(rig, "decode-0")
        assert (report.sessions_stored, report.sessions_dropped) == (3, 0)
        await rig.start("decode-1", Role.DECODE)
        await rig.start("prefill-1", Role.PREFILL)
        await rig.until_up("prefill-1")
        await rig.stop("prefill-0")
        for i, (prompt, first) in enumerate(zip(prompts, firsts, strict=True)):
            more = a_prompt(9, seed=10 + i)
            second = await rig.client.generate(
                more, session=f"s{i}", must_exist=True, temperature=0.0, max_tokens=8
            )
            whole = [*prompt, *first.token_ids, *more]
            assert list(second.token_ids) == expected_output(whole, 8)
            assert second.usage.loaded_tokens == 64


async def test_a_store_that_is_down_keeps_nobody_from_leaving(
    tiny_model_dir: Path, valkey: EmbeddedValkey
) -> None:
    async with a_stored_rig(tiny_model_dir, valkey, idle_s=3600.0) as rig:
        await rig.client.generate(a_prompt(60), session="s", temperature=0.0, max_tokens=12)
        valkey.kill()
        report = await drained(rig, "decode-0")
        assert (report.sessions_stored, report.sessions_dropped) == (0, 1)


@pytest.fixture
def valkey() -> EmbeddedValkey:
    return EmbeddedValkey(64 << 20)


async def test_requests_wait_where_the_last_of_a_role_leaves(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir, config=one_attempt()) as rig:
        report = await drained(rig, "prefill-0")
        assert not report.others_serve
        prompt = a_prompt(20)
        waiting = asyncio.ensure_future(rig.client.generate(prompt, sampling=GREEDY).result())
        async with asyncio.timeout(WAIT_S):
            while not (await rig.client.loads()).waiting:  # noqa: ASYNC110 - polled state
                await asyncio.sleep(0.005)
        await rig.start("prefill-1", Role.PREFILL)
        assert list((await waiting).token_ids) == expected_output(prompt, COUNT)


async def test_a_drain_that_is_cancelled_changes_nothing(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir, config=one_attempt()) as rig:
        hold(rig, "decode-0", 12)
        prompt = a_prompt(45)
        running = asyncio.ensure_future(rig.client.generate(prompt, sampling=GREEDY).result())
        await until_held(rig, "decode-0")
        async with OperatorClient(rig.address) as operator:
            assert not await operator.cancel_drain("decode-0")
            states = []
            async for report in operator.drain("decode-0"):
                states.append(report.state)
                if len(states) == 1:
                    assert await operator.cancel_drain("decode-0")
        assert states[-1] == "cancelled"
        assert (await liveness(rig.client))["decode-0"] is Liveness.UP
        rig.engine("decode-0").gate.set()
        assert list((await running).token_ids) == expected_output(prompt, COUNT)
        assert (await running).usage.migrations == 0
        await rig.client.generate(prompt, sampling=GREEDY)
        assert (await drained(rig, "decode-0")).finished == 0


async def test_a_second_operator_joins_in(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir, decode=2, config=one_attempt()) as rig:
        hold(rig, "decode-0", 12)
        prompt = a_prompt(45)
        running = asyncio.ensure_future(rig.client.generate(prompt, sampling=GREEDY).result())
        await until_held(rig, "decode-0")
        first = asyncio.ensure_future(drained(rig, "decode-0", timeout_s=600.0))
        await until_liveness(rig.client, "decode-0", Liveness.DRAINING)
        async with OperatorClient(rig.address) as operator:
            reports = operator.drain("decode-0", timeout_s=0.0)
            assert (await anext(reports)).state == "draining"
            # The sooner deadline counts, for both.
            assert (await running).usage.migrations == 1
            rig.engine("decode-0").gate.set()
            assert [r.state async for r in reports][-1] == "drained"
            assert (await first).moved == 1
            with pytest.raises(NotFound, match="'decode-7' is not known to this router; allowed:"):
                await anext(operator.drain("decode-7"))
            with pytest.raises(Unavailable, match="decode-0 is down"):
                await anext(operator.drain("decode-0"))
            with pytest.raises(Unavailable, match="decode-0 is down"):
                await operator.cancel_drain("decode-0")
            for wrong in (-1.0, 1e9, float("nan")):
                with pytest.raises(InvalidArgument, match=r"timeout_s is .*; allowed: 0 to 86400"):
                    await anext(operator.drain("decode-1", timeout_s=wrong))


@pytest.mark.parametrize("method", ["Drain", "CancelDrain"])
async def test_a_malformed_request_is_an_invalid_argument(
    tiny_model_dir: Path, method: str
) -> None:
    unknown = DrainRequest(worker_id="decode-0").SerializeToString() + b"\xfa\x7f\x00"
    async with a_rig(tiny_model_dir) as rig, grpc.aio.insecure_channel(rig.address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        call = channel.unary_unary(f"/eastwest.v1.Cluster/{method}")
        for data in (b"\xff", unknown):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(data)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await liveness(rig.client))["decode-0"] is Liveness.UP


async def test_an_operator_hears_that_the_worker_was_lost(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir, decode=2) as rig:
        hold(rig, "decode-0", 12)
        prompt = a_prompt(45)
        running = asyncio.ensure_future(rig.client.generate(prompt, sampling=GREEDY).result())
        await until_held(rig, "decode-0")
        async with OperatorClient(rig.address) as operator:
            reports = operator.drain("decode-0")
            await anext(reports)
            dying = asyncio.ensure_future(rig.kill("decode-0"))
            with pytest.raises(Unavailable, match="decode-0 was lost while it drained, with 1 req"):
                [r async for r in reports]
        assert list((await running).token_ids) == expected_output(prompt, COUNT)
        rig.engine("decode-0").gate.set()
        await dying


@asynccontextmanager
async def another_router(rig: Rig, model_dir: Path, seed: int) -> AsyncIterator[AsyncClient]:
    """On the same workers. seed: makes its name."""
    router = Router(rig.config, model_dir, None, SystemClock(), random.Random(seed))
    address = await router.start()
    try:
        for worker_id, replica in rig.replicas.items():
            router.add_worker(worker_id, replica.info().address)
        async with AsyncClient(address, timeout_s=WAIT_S) as client:
            await client.wait_ready(WAIT_S)
            yield client
    finally:
        await router.stop()


async def test_every_router_honours_it(tiny_model_dir: Path) -> None:
    async with (
        a_rig(tiny_model_dir, decode=2, config=one_attempt()) as rig,
        another_router(rig, tiny_model_dir, seed=8) as other,
    ):
        await until_liveness(other, "decode-0", Liveness.UP)
        await until_liveness(other, "decode-1", Liveness.UP)
        hold(rig, "decode-0", 12)
        prompt = a_prompt(45)
        running = asyncio.ensure_future(other.generate(prompt, sampling=GREEDY).result())
        await until_held(rig, "decode-0")
        leaving = asyncio.ensure_future(drained(rig, "decode-0", timeout_s=0.3))
        await until_liveness(other, "decode-0", Liveness.DRAINING)
        async with another_router(rig, tiny_model_dir, seed=9) as late:
            await until_liveness(late, "decode-1", Liveness.UP)
            for client in (other, late):
                completion = await client.generate(prompt, sampling=GREEDY)
                assert completion.decode_worker == "decode-1"
            # The request is the other router's, which moves it by itself.
            completion = await running
            assert list(completion.token_ids) == expected_output(prompt, COUNT)
            assert (completion.decode_worker, completion.usage.migrations) == ("decode-1", 1)
            rig.engine("decode-0").gate.set()
            assert (await leaving).moved == 0


async def test_a_worker_that_ends_by_itself_is_drained_by_all(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir, decode=2, config=one_attempt()) as rig:
        load = Load(rig, clients=4)
        await load.serves(8)
        rig.replicas["decode-0"].drain(timeout_s=0.0)
        await gone(rig, "decode-0")
        await load.serves(8)
        await load.end()
