"""The worker's control stream against routers that are late, old, rude or gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from eastwest import wire
from eastwest.errors import (
    EastWestError,
    ErrorCode,
    Incompatible,
    InternalError,
    InvalidArgument,
    Phase,
    StaleEpoch,
    Unavailable,
)
from eastwest.messages import (
    PROTOCOL_VERSION,
    Command,
    Failed,
    KvSource,
    Prefill,
    Reserve,
    Reserved,
    WorkerInfo,
)
from eastwest.rpc import error_from_rpc
from eastwest.testing.builders import a_worker
from eastwest.testing.engine import expected_output, simulated_model
from eastwest.types import Role, SamplingParams
from eastwest.v1 import worker_pb2, worker_pb2_grpc
from tests.integration.test_serving import a_prompt
from tests.rig import WAIT_S, Rig, a_config, a_rig


class RawRouter:
    """Speaks the control stream by hand."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.info: WorkerInfo | None = None

    async def hello(self, version: int = PROTOCOL_VERSION, router_id: str = "raw") -> WorkerInfo:
        hello = worker_pb2.Hello(router_id=router_id, protocol_version=version)
        await self.call.write(worker_pb2.RouterMessage(hello=hello))
        message = await self.read()
        self.info = wire.welcome_from_wire(message.welcome)
        return self.info

    async def send(self, commands: Iterable[Command], epoch: int | None = None) -> None:
        assert self.info is not None
        batch = worker_pb2.Commands(
            epoch=self.info.epoch if epoch is None else epoch,
            commands=[wire.command_to_wire(c) for c in commands],
        )
        await self.call.write(worker_pb2.RouterMessage(commands=batch))

    async def read(self) -> worker_pb2.WorkerMessage:
        try:
            async with asyncio.timeout(WAIT_S):
                message = await self.call.read()
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        assert isinstance(message, worker_pb2.WorkerMessage)
        return message

    async def until(self, kind: type) -> Any:
        """The next event of a kind."""
        while True:
            for event in (await self.read()).events.events:
                value = wire.event_from_wire(event)
                if isinstance(value, kind):
                    return value


@asynccontextmanager
async def a_raw_router(rig: Rig, worker_id: str = "decode-0") -> AsyncIterator[RawRouter]:
    address = rig.replicas[worker_id].info().address
    async with grpc.aio.insecure_channel(address) as channel:
        stub = worker_pb2_grpc.WorkerStub(channel)  # type: ignore[no-untyped-call]
        yield RawRouter(stub.Control())


def a_reserve(request_id: str = "x", tokens: int = 20, max_tokens: int = 4) -> Reserve:
    sampling, source = SamplingParams(temperature=0.0), a_source()
    return Reserve(request_id, "", "", tuple(a_prompt(tokens)), sampling, max_tokens, source, 60.0)


def a_source() -> KvSource:
    """A prefill worker that could fill a reservation of the rig."""
    return replace(a_worker("p9", Role.PREFILL, model=simulated_model()), block_tokens=8).source()


async def test_a_reservation_whose_router_leaves_is_freed(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir) as rig:
        async with a_raw_router(rig) as router:
            await router.hello()
            await router.send([a_reserve()])
            reserved = await router.until(Reserved)
            assert reserved.ticket.num_blocks == 3
            assert rig.replicas["decode-0"].transfers_open == 1
        await rig.settle()


async def test_a_reservation_that_nobody_renews_frees_itself(tiny_model_dir: Path) -> None:
    config = a_config(kv={"lease_s": 0.3})
    async with a_rig(tiny_model_dir, config=config) as rig, a_raw_router(rig) as router:
        await router.hello()
        await router.send([a_reserve()])
        await router.until(Reserved)
        failed = await router.until(Failed)
        assert (failed.code, failed.phase) == (ErrorCode.LEASE_EXPIRED, Phase.TRANSFER)
        await rig.settle()


async def test_a_reservation_that_can_never_fit_is_refused(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir) as rig, a_raw_router(rig) as router:
        await router.hello()
        await router.send([a_reserve(tokens=2000)])
        failed = await router.until(Failed)
        assert failed.code is ErrorCode.INVALID_ARGUMENT
        assert "one sequence can have 128 here" in failed.message


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": ()},
        {"prompt": (1, 512)},
        {"max_tokens": 0},
        {"output": (1, 512)},
        {"output": tuple(range(1, 9)), "max_tokens": 8},
        {"max_tokens": 4090},
        {"timeout_s": 0.0},
        {"timeout_s": float("nan")},
        {"timeout_s": float("inf")},
        {"timeout_s": 1e300},
        {"sampling": SamplingParams(temperature=0.5)},
        {"sampling": SamplingParams(temperature=float("nan"), seed=1)},
        {"sampling": SamplingParams(temperature=0.0, stop_token_ids=(10**6,))},
    ],
)
async def test_work_that_no_engine_could_run_is_refused(
    tiny_model_dir: Path, changes: dict[str, Any]
) -> None:
    async with a_rig(tiny_model_dir) as rig:
        async with a_raw_router(rig) as router:
            await router.hello()
            reserve = replace(a_reserve(), **changes)
            await router.send([reserve])
            assert (await router.until(Failed)).code is ErrorCode.INVALID_ARGUMENT
            await router.send([a_reserve("good")])
            ticket = (await router.until(Reserved)).ticket
        async with a_raw_router(rig, "prefill-0") as router:
            await router.hello()
            prefill = Prefill("x", "", reserve.prompt, reserve.sampling, reserve.max_tokens,
                              ticket, reserve.timeout_s, reserve.output)  # fmt: skip
            await router.send([prefill])
            assert (await router.until(Failed)).code is ErrorCode.INVALID_ARGUMENT


async def test_a_second_reservation_of_one_request_is_refused(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir) as rig, a_raw_router(rig) as router:
        await router.hello()
        await router.send([a_reserve(), a_reserve()])
        failed = await router.until(Failed)
        assert failed.code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (worker_pb2.RouterMessage(), InvalidArgument),
        (worker_pb2.RouterMessage(commands={"epoch": 1}), InvalidArgument),
        (worker_pb2.RouterMessage(hello={"router_id": "x", "protocol_version": 99}), Incompatible),
        (worker_pb2.RouterMessage(hello={"protocol_version": PROTOCOL_VERSION}), InvalidArgument),
    ],
)
async def test_a_wrong_greeting_is_refused(
    tiny_model_dir: Path, message: worker_pb2.RouterMessage, error: type[EastWestError]
) -> None:
    async with a_rig(tiny_model_dir) as rig, a_raw_router(rig) as router:
        await router.call.write(message)
        with pytest.raises(error):
            await router.read()


async def test_commands_for_another_incarnation_end_the_stream(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir) as rig, a_raw_router(rig) as router:
        info = await router.hello()
        await router.send([a_reserve()], epoch=info.epoch - 1)
        with pytest.raises(StaleEpoch):
            await router.until(Reserved)
        await rig.settle()


async def test_an_empty_command_ends_the_stream(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir) as rig, a_raw_router(rig) as router:
        info = await router.hello()
        commands = worker_pb2.Commands(epoch=info.epoch, commands=[worker_pb2.Command()])
        await router.call.write(worker_pb2.RouterMessage(commands=commands))
        with pytest.raises(InvalidArgument):
            await router.until(Reserved)


async def test_a_router_that_connects_anew_takes_its_place_over(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir) as rig, a_raw_router(rig) as old, a_raw_router(rig) as new:
        await old.hello()
        await old.send([a_reserve()])
        await old.until(Reserved)
        await new.hello()
        with pytest.raises(Unavailable):
            await old.until(Failed)
        await new.send([a_reserve()])
        await new.until(Reserved)
        await new.call.done_writing()
        await rig.settle()


async def test_a_step_that_fails_ends_its_requests_and_no_others(tiny_model_dir: Path) -> None:
    config = a_config(router={"attempts_max": 1})
    async with a_rig(tiny_model_dir, config=config) as rig:
        rig.engine("prefill-0").fail_next = RuntimeError("out of memory")
        with pytest.raises(InternalError, match="out of memory"):
            await rig.client.generate(a_prompt(20), temperature=0.0, max_tokens=4)
        completion = await rig.client.generate(a_prompt(20), temperature=0.0, max_tokens=4)
        assert list(completion.token_ids) == expected_output(a_prompt(20), 4)
        rig.engine("decode-0").fail_next = RuntimeError("out of memory")
        with pytest.raises(InternalError, match="out of memory"):
            await rig.client.generate(a_prompt(20), temperature=0.0, max_tokens=4)
