"""Peers of a worker that say what cannot be, or what was meant for somebody else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from eastwest.errors import EastWestError, ErrorCode, InvalidArgument
from eastwest.messages import Abort, Failed, Prefill, Prefilled, Reserve, Reserved, Stepped, Ticket
from eastwest.rpc import error_from_rpc
from eastwest.testing.engine import expected_output
from eastwest.types import FinishReason
from eastwest.v1 import kv_transfer_pb2, kv_transfer_pb2_grpc, worker_pb2
from tests.integration.test_serving import a_prompt
from tests.integration.test_worker_control import RawRouter, a_raw_router, a_reserve
from tests.rig import Rig, a_rig

AUDIT, CONTROL = "/eastwest.v1.Worker/Audit", "/eastwest.v1.Worker/Control"
COMMIT = "/eastwest.v1.KvTransfer/Commit"
HEALTH = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
NO_MESSAGE = b"\xff\xff\xff"


async def error_of(call: Any) -> EastWestError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read() if hasattr(call, "read") else await call
    return error_from_rpc(caught.value)


async def test_bytes_that_are_no_message_are_an_invalid_argument(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir) as rig:
        worker = rig.replicas["decode-0"].info().address
        for address, unary, stream in (
            (worker, (AUDIT, COMMIT), (CONTROL,)),
            (rig.address, HEALTH[:1], (HEALTH[1], REFLECTION)),
        ):
            async with grpc.aio.insecure_channel(address) as channel:
                for method in unary:
                    error = await error_of(channel.unary_unary(method)(NO_MESSAGE))  # type: ignore[arg-type]
                    assert isinstance(error, InvalidArgument), method
                for method in stream:
                    call: Any = channel.stream_stream(method)()
                    await call.write(NO_MESSAGE)
                    assert isinstance(await error_of(call), InvalidArgument), method


@asynccontextmanager
async def a_reservation(
    rig: Rig, worker_id: str = "decode-0", **changes: Any
) -> AsyncIterator[tuple[RawRouter, Reserve, Ticket]]:
    async with a_raw_router(rig, worker_id) as router:
        await router.hello()
        reserve = replace(a_reserve(), **changes)
        await router.send([reserve])
        yield router, reserve, (await router.until(Reserved)).ticket


def a_prefill(reserve: Reserve, ticket: Ticket, **changes: Any) -> Prefill:
    prefill = Prefill(
        reserve.request_id, reserve.salt, reserve.prompt, reserve.sampling, reserve.max_tokens,
        ticket, reserve.timeout_s, reserve.output,
    )  # fmt: skip
    return replace(prefill, **changes)


@pytest.mark.parametrize(
    ("max_tokens", "token", "finished"), [(4, 512, False), (4, 7, True), (1, 7, False)]
)
async def test_a_commit_that_cannot_begin_the_sequence_is_refused(
    tiny_model_dir: Path, max_tokens: int, token: int, finished: bool
) -> None:
    async with a_rig(tiny_model_dir) as rig:
        async with (
            a_reservation(rig, max_tokens=max_tokens) as (_, _, ticket),
            grpc.aio.insecure_channel(ticket.address) as channel,
        ):
            stub = kv_transfer_pb2_grpc.KvTransferStub(channel)  # type: ignore[no-untyped-call]
            request = kv_transfer_pb2.CommitRequest(
                transfer_id=ticket.transfer_id,
                epoch=ticket.epoch,
                first_token=worker_pb2.SampledToken(token=token),
                finished=finished,
            )
            assert isinstance(await error_of(stub.Commit(request)), InvalidArgument)
        completion = await rig.client.generate(a_prompt(20), temperature=0.0, max_tokens=4)
        assert list(completion.token_ids) == expected_output(a_prompt(20), 4)


@pytest.mark.parametrize(
    "changes",
    [{"prompt": tuple(a_prompt(900))}, {"prompt": tuple(a_prompt(20, seed=5))}, {"max_tokens": 3}],
)
async def test_a_replica_prefills_what_was_reserved_in_it_and_nothing_else(
    tiny_model_dir: Path, changes: dict[str, Any]
) -> None:
    async with a_rig(tiny_model_dir, prefill=0, decode=0, aggregated=1) as rig:
        source = rig.replicas["aggregated-0"].info().source()
        async with a_reservation(rig, "aggregated-0", source=source) as (router, reserve, ticket):
            await router.send([a_prefill(reserve, ticket, **changes)])
            failed = await router.until(Failed)
            assert failed.code is ErrorCode.INVALID_ARGUMENT
        await rig.settle()


@pytest.mark.parametrize("first_block", [-1, 2])
async def test_what_a_replica_has_computed_it_knows_better_than_a_ticket(
    tiny_model_dir: Path, first_block: int
) -> None:
    async with a_rig(tiny_model_dir, prefill=0, decode=0, aggregated=1) as rig:
        source = rig.replicas["aggregated-0"].info().source()
        async with a_reservation(rig, "aggregated-0", source=source) as (router, reserve, ticket):
            ticket = replace(ticket, first_block=first_block)
            await router.send([a_prefill(reserve, ticket)])
            prefilled = await router.until(Prefilled)
            assert prefilled.token.token == expected_output(reserve.prompt, 1)[0]


async def test_one_transfer_is_filled_by_one_request(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir) as rig:
        source = rig.replicas["prefill-0"].info().source()
        rig.engine("prefill-0").gate.clear()
        async with (
            a_reservation(rig, source=source) as (_, reserve, ticket),
            a_raw_router(rig, "prefill-0") as prefiller,
        ):
            await prefiller.hello()
            first = a_prefill(reserve, ticket)
            await prefiller.send([first, replace(first, request_id="y")])
            failed = await prefiller.until(Failed)
            assert (failed.request_id, failed.code) == ("y", ErrorCode.INVALID_ARGUMENT)
            rig.engine("prefill-0").gate.set()


async def test_an_id_whose_session_rests_is_not_taken_again(tiny_model_dir: Path) -> None:
    async with a_rig(tiny_model_dir, prefill=0, decode=0, aggregated=1) as rig:
        source = rig.replicas["aggregated-0"].info().source()
        changes = {"source": source, "session_id": "s", "max_tokens": 2}
        async with a_reservation(rig, "aggregated-0", **changes) as (router, reserve, ticket):
            await router.send([a_prefill(reserve, ticket)])
            stepped = await router.until(Stepped)
            assert stepped.outputs[0].finish is FinishReason.LENGTH
            await router.send([reserve])
            assert (await router.until(Failed)).code is ErrorCode.INVALID_ARGUMENT
            await router.send([replace(reserve, request_id="y")])
            await router.until(Reserved)


async def test_an_id_whose_blocks_are_still_written_to_is_not_taken_again(
    tiny_model_dir: Path,
) -> None:
    async with a_rig(tiny_model_dir) as rig:
        source = rig.replicas["prefill-0"].info().source()
        engine = rig.engine("prefill-0")
        engine.gate.clear()
        async with (
            a_reservation(rig, source=source) as (_, reserve, ticket),
            a_raw_router(rig, "prefill-0") as prefiller,
        ):
            await prefiller.hello()
            prefill = a_prefill(reserve, ticket)
            await prefiller.send([prefill])
            await rig.until(engine.held.is_set)
            await prefiller.send([Abort(prefill.request_id)])
            await rig.until(lambda: not rig.replicas["prefill-0"].load().waiting)
            await prefiller.send([prefill])
            assert (await prefiller.until(Failed)).code is ErrorCode.INVALID_ARGUMENT
            engine.gate.set()
