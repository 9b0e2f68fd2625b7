"""Workers that come, go, lie and hang, as seen by a router and its clients."""

from __future__ import annotations

import asyncio
import random
import socket
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from eastwest import AsyncClient, Client
from eastwest.clock import SystemClock
from eastwest.errors import ConfigError, ErrorCode, InvalidArgument, ModelError, Phase, Unavailable
from eastwest.layout import ParallelLayout
from eastwest.messages import Abort, Prefill, Reserve
from eastwest.types import Liveness, Role
from router.server import Router
from tests.byte_tokenizer import write_tokenizer
from tests.integration.deployment import Deployment, a_config, a_deployment, says, served_model


def a_router(directory: Path, port: int = 0) -> Router:
    write_tokenizer(directory)
    config = a_config(router={"port": port})
    return Router(config, directory, None, SystemClock(), random.Random(1))


async def until_worker(d: Deployment, worker_id: str, liveness: Liveness) -> None:
    """Wait until the router sees the worker so."""
    async with asyncio.timeout(60):
        while True:
            workers = {w.worker_id: w for w in (await d.client.server_info()).workers}
            if workers[worker_id].liveness is liveness:
                return


async def test_nobody_listening_is_unavailable_for_both_clients() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        async with AsyncClient(address) as client:
            with pytest.raises(Unavailable):
                await client.generate("hi")
        with Client(address) as blocking, pytest.raises(Unavailable):
            blocking.generate("hi").result()


async def test_without_any_worker_requests_are_unavailable_and_health_says_so(
    tmp_path: Path,
) -> None:
    router = a_router(tmp_path)
    address = await router.start()
    async with AsyncClient(address) as client:
        with pytest.raises(Unavailable, match="no worker") as caught:
            await client.generate("hi")
        assert caught.value.phase is Phase.ADMISSION
        with pytest.raises(Unavailable, match="no worker"):
            await client.model_info()
        with pytest.raises(Unavailable, match="not ready within"):
            await client.wait_ready(0.05)
        assert await _health(address) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await client.server_info()).workers == ()
    await router.stop()


async def test_health_follows_the_workers() -> None:
    async with a_deployment() as d:
        await d.client.wait_ready(60.0)
        assert await _health(d.address) == health_pb2.HealthCheckResponse.SERVING
        async with grpc.aio.insecure_channel(d.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watch = aiter(stub.Watch(health_pb2.HealthCheckRequest()))
            assert (await anext(watch)).status == health_pb2.HealthCheckResponse.SERVING
            await d.decode.stop()
            assert (await anext(watch)).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_prefill_worker_alone_is_not_ready_but_an_aggregated_one_is(
    tmp_path: Path,
) -> None:
    async with a_deployment(says("hello")) as d:
        router = a_router(tmp_path)
        address = await router.start()
        router.add_worker("p0", d.prefill.address)
        aggregated = await d.workers.start("a0", Role.AGGREGATED)
        router.add_worker("a0", aggregated.address)
        await router.wait_ready()
        async with AsyncClient(address) as client:
            completion = await client.generate("hi")
        assert (completion.prefill_worker, completion.decode_worker) == ("a0", "a0")
        await router.stop()


async def test_reflection_lists_the_services() -> None:
    async with a_deployment() as d, grpc.aio.insecure_channel(d.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        response = await anext(aiter(call))
        names = {s.name for s in response.list_services_response.service}
    assert {"eastwest.v1.Inference", "grpc.health.v1.Health"} <= names


async def test_server_info_names_workers_before_they_are_up() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        async with a_deployment() as d:
            d.router.add_worker("d9", address)
            info = await d.client.server_info()
            model = await d.client.model_info()
    *up, connecting = info.workers
    assert [(w.worker_id, w.role, w.liveness, w.epoch) for w in up] == [
        ("p0", Role.PREFILL, Liveness.UP, 1),
        ("d0", Role.DECODE, Liveness.UP, 1),
    ]
    assert (connecting.role, connecting.epoch, connecting.address) == (None, 0, address)
    assert connecting.liveness is Liveness.CONNECTING
    assert (model.name, model.context_tokens) == ("tiny", 4096)
    assert model.kv_bytes_per_token == served_model().kv.bytes_per_token
    assert model.has_chat_template


@pytest.mark.parametrize("victim", ["p0", "d0"])
async def test_a_worker_whose_stream_breaks_before_the_first_token_is_tried_again(
    victim: str,
) -> None:
    async with a_deployment(says("hello")) as d:
        d.prefill.prefilling.hold()
        running = asyncio.create_task(d.client.generate("hi").result())
        await d.prefill.received(Prefill)
        d.workers.workers[victim].break_streams()
        await d.prefill.received(Prefill, 2)
        d.prefill.prefilling.open()
        assert (await running).text == "hello"


async def test_a_decode_worker_that_dies_while_decoding_uses_an_attempt_up() -> None:
    async with a_deployment(config=a_config(router={"attempts_max": 1})) as d:
        d.decode.stepping.hold()
        generation = d.client.generate("hi")
        await anext(generation)
        d.decode.stepping.allow(1)
        await anext(generation)
        await d.decode.stop()
        with pytest.raises(Unavailable, match=r"d0.*attempts made: 1") as caught:
            await generation
        assert caught.value.phase is Phase.DECODE
        assert caught.value.status.retriable


async def test_a_worker_that_hangs_in_mid_stream_is_told_to_drop_it_when_it_wakes() -> None:
    router = {"heartbeat_s": 0.05, "worker_timeout_s": 1.0, "attempts_max": 20}
    async with a_deployment(config=a_config(router=router)) as d:
        undisturbed = await d.client.generate("hi", max_tokens=30)
        other = await d.workers.start("d1", Role.DECODE)
        d.router.add_worker("d1", other.address)
        await until_worker(d, "d1", Liveness.UP)
        d.decode.stepping.hold()
        d.decode.stepping.allow(5)
        generation = d.client.generate("hi", max_tokens=30)
        await anext(generation)
        d.decode.silent = True
        completion = await generation
        assert completion.token_ids == undisturbed.token_ids
        assert completion.decode_worker == "d1"
        assert completion.usage.migrations > 0
        assert d.decode.holding
        # It wakes with the steps that it owes.
        d.decode.silent = False
        d.decode.stepping.open()
        [reserve, *_] = await d.decode.received(Reserve, 2)
        [abort, *_] = await d.decode.received(Abort)
        assert abort.request_id != reserve.request_id
        await d.decode.freed()
        assert (await d.client.generate("hi", max_tokens=30)).token_ids == undisturbed.token_ids


async def test_a_failure_that_a_worker_reports_reaches_the_client_typed() -> None:
    async with a_deployment() as d:
        d.prefill.prefilling.hold()
        running = asyncio.create_task(d.client.generate("hi").result())
        [prefill] = await d.prefill.received(Prefill)
        d.prefill.fail(prefill.request_id, ErrorCode.INVALID_ARGUMENT, "no good", Phase.PREFILL)
        with pytest.raises(InvalidArgument, match="no good") as caught:
            await running
        assert caught.value.phase is Phase.PREFILL
        await d.decode.received(Abort)


async def test_a_worker_that_restarts_on_its_address_serves_again_under_a_new_epoch() -> None:
    async with a_deployment(says("hello")) as d:
        port = int(d.decode.address.rpartition(":")[2])
        await d.decode.stop()
        await until_worker(d, "d0", Liveness.DOWN)
        anew = await d.workers.start("d0", Role.DECODE, epoch=2, port=port)
        assert (await d.client.generate("hi")).text == "hello"
        [decode] = [w for w in (await d.client.server_info()).workers if w.worker_id == "d0"]
        assert (decode.epoch, decode.liveness) == (2, Liveness.UP)
        await anew.received(Reserve)


async def test_a_worker_of_a_former_epoch_stays_out() -> None:
    async with a_deployment() as d:
        port = int(d.decode.address.rpartition(":")[2])
        d.decode.info = replace(d.decode.info, epoch=5)
        d.decode.break_streams()
        await until_epoch(d, 5)
        await d.decode.stop()
        stale = await d.workers.start("d0", Role.DECODE, epoch=4, port=port)
        await stale.greeted(2)
        assert (await d.client.server_info()).workers[1].liveness is Liveness.DOWN


async def until_epoch(d: Deployment, epoch: int) -> None:
    async with asyncio.timeout(60):
        while (await d.client.server_info()).workers[1].epoch != epoch:
            pass


@pytest.mark.parametrize(
    "lie",
    [
        {"worker_id": "d8"},
        {"protocol_version": 99},
        {"epoch": 0},
        {"num_blocks": 0},
        {"layout": ParallelLayout(dp=7)},
        {"model": replace(served_model(), fingerprint="another")},
        {"model": replace(served_model(), vocab_size=100)},
    ],
    ids=lambda lie: next(iter(lie)),
)
async def test_a_worker_that_cannot_serve_here_is_never_up(lie: dict[str, object]) -> None:
    async with a_deployment() as d:
        other = await d.workers.start("d9", Role.DECODE)
        other.info = replace(other.info, **lie)  # type: ignore[arg-type]
        d.router.add_worker("d9", other.address)
        await other.greeted(2)
        [seen] = [w for w in (await d.client.server_info()).workers if w.worker_id == "d9"]
        assert seen.liveness is Liveness.CONNECTING


async def test_a_removed_worker_is_forgotten_and_what_it_served_is_moved() -> None:
    async with a_deployment() as d:
        d.decode.stepping.hold()
        generation = d.client.generate("hi")
        await anext(generation)
        await d.router.remove_worker("d0")
        assert [w.worker_id for w in (await d.client.server_info()).workers] == ["p0"]
        await d.router.remove_worker("d0")
        d.decode.stepping.open()
        d.router.add_worker("d0", d.decode.address)
        with pytest.raises(InvalidArgument, match="known already"):
            d.router.add_worker("d0", d.decode.address)
        await d.router.wait_ready()
        assert (await generation).usage.migrations == 1


async def test_a_silent_worker_is_down_until_it_speaks() -> None:
    config = a_config(router={"heartbeat_s": 0.02, "worker_timeout_s": 0.1})
    async with a_deployment(says("hello"), config=config) as d:
        d.decode.silent = True
        await until_worker(d, "d0", Liveness.DOWN)
        assert await _health(d.address) == health_pb2.HealthCheckResponse.NOT_SERVING
        d.decode.silent = False
        d.decode.report()
        assert (await d.client.generate("hi")).text == "hello"


async def test_heartbeats_reach_idle_workers() -> None:
    async with a_deployment() as d:
        await d.prefill.heard_heartbeats(3)


async def test_stopping_ends_running_requests_with_a_retriable_error() -> None:
    async with a_deployment() as d:
        d.decode.stepping.hold()
        generation = d.client.generate("hi")
        await anext(generation)
        await d.router.stop()
        with pytest.raises(Unavailable, match="shutting down") as caught:
            await generation
        assert caught.value.retry_after_s is not None
        with pytest.raises(Unavailable):
            await d.client.generate("hi")


async def test_stopping_leaves_no_task_behind(tmp_path: Path) -> None:
    async with a_deployment() as d:
        await d.client.generate("hi", max_tokens=2)
        await d.router.stop()
        names = {task.get_name() for task in asyncio.all_tasks()}
    assert not [name for name in names if name.startswith(("link", "router"))]


async def test_a_port_in_use_is_a_configuration_error_that_names_it(tmp_path: Path) -> None:
    first = a_router(tmp_path)
    port = int((await first.start()).rpartition(":")[2])
    second = a_router(tmp_path, port)
    with pytest.raises(ConfigError, match=f"router.port is {port} on 127.0.0.1"):
        await second.start()
    await second.stop()
    await first.stop()


def test_a_directory_without_a_tokenizer_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Router(a_config(), tmp_path, None, SystemClock(), random.Random(1))


async def _health(address: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        response = await stub.Check(health_pb2.HealthCheckRequest())
        status: int = response.status
        return status
