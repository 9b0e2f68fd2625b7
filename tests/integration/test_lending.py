"""KV that another worker has in memory is read from there: the tokens are those that one engine
alone would give, whatever the lender does meanwhile, and no block is lost on either side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

import runtime.block_service
import runtime.stored_prefix
from eastwest.blocks import HASH_BYTES, BlockHash, block_hashes, cache_salt, hash_seed
from eastwest.errors import ErrorCode, StoreUnavailable
from eastwest.messages import KvSource, WorkerInfo
from eastwest.rpc import error_from_rpc
from eastwest.testing.engine import SPEC, expected_output
from eastwest.types import Role
from eastwest.v1 import kv_blocks_pb2 as wire
from eastwest.wire.workers import kv_spec_to_wire
from kv_transfer import frame_codec
from kv_transfer.lent_blocks import LentBlocks
from runtime.block_service import READERS_MAX, BlockService
from tests.integration.test_serving import a_prompt
from tests.integration.test_two_ends import Even
from tests.rig import Rig, a_config, a_rig

BLOCK = 8
PROMPT, HELD = 200, 208  # with its 12 tokens of output, but for the last
GIVEN = PROMPT + 12 + 9


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.stored_prefix, "BATCH_BYTES", 3 * BLOCK * SPEC.bytes_per_token)


@dataclass
class Lending:
    """A session that rests on decode-0 and nowhere else; prefill-1 is to compute its next turn."""

    rig: Rig
    whole: list[int]

    async def answer(self) -> tuple[int, int]:
        """The next turn is answered as it must be. Tokens loaded, and computed."""
        done = await self.rig.client.generate(
            self.whole[-9:], session="s", must_exist=True, temperature=0.0, max_tokens=6
        )
        assert list(done.token_ids) == expected_output(self.whole, 6)
        assert done.usage.loaded_tokens + done.usage.computed_tokens == GIVEN
        await self.rig.settle()
        self.rig.assert_clean()
        return done.usage.loaded_tokens, done.usage.computed_tokens

    @property
    def lender(self) -> WorkerInfo:
        return self.rig.replicas["decode-0"].info()

    @property
    def hashes(self) -> list[BlockHash]:
        """Of what the lender holds."""
        seed = hash_seed(self.lender.model.fingerprint, cache_salt(""))
        return block_hashes(self.whole, BLOCK, seed)[: HELD // BLOCK]


@asynccontextmanager
async def lending(
    model_dir: Path, costs: Even | None = None, timeout_s: float = 30.0
) -> AsyncIterator[Lending]:
    config = a_config(
        store={"idle_s": 3600.0, "timeout_s": timeout_s}, router={"conditional": False}
    )
    async with a_rig(model_dir, prefill=1, decode=1, config=config, costs=costs or Even()) as rig:
        prompt = a_prompt(PROMPT)
        first = await rig.client.generate(prompt, session="s", temperature=0.0, max_tokens=12)
        await rig.start("prefill-1", Role.PREFILL)
        await rig.until_up("prefill-1")
        await rig.router.remove_worker("prefill-0")
        yield Lending(rig, [*prompt, *first.token_ids, *a_prompt(9, seed=3)])


async def test_a_prefill_worker_reads_what_the_decode_worker_has(tiny_model_dir: Path) -> None:
    async with lending(tiny_model_dir) as session:
        assert await session.answer() == (HELD, GIVEN - HELD)


async def test_it_computes_the_front_meanwhile_where_that_pays(tiny_model_dir: Path) -> None:
    async with lending(tiny_model_dir, Even(move=1.0)) as session:
        loaded, _ = await session.answer()
        assert 0 < loaded < HELD


async def test_it_computes_all_where_reading_is_slow(tiny_model_dir: Path) -> None:
    async with lending(tiny_model_dir, Even(move=1e3)) as session:
        assert await session.answer() == (0, GIVEN)


Frames = Callable[[BlockService, Sequence[int]], AsyncIterator[bytes]]


def a_lender_that(monkeypatch: pytest.MonkeyPatch, does: Callable[[int, bytes], bytes]) -> None:
    """Whose frames, by their number, go through `does`; raises what that raises."""
    send: Frames = BlockService._frames

    async def frames(service: BlockService, blocks: Sequence[int]) -> AsyncIterator[bytes]:
        number = 0
        async for frame in send(service, blocks):
            yield does(number, frame)
            number += 1

    monkeypatch.setattr(BlockService, "_frames", frames)


def _flipped(number: int, frame: bytes) -> bytes:
    return frame[:-1] + bytes([frame[-1] ^ 1]) if number == 1 else frame


def _repeated(number: int, frame: bytes) -> bytes:
    """Every frame is of the first block."""
    decoded = frame_codec.decode(frame)
    region = replace(decoded.header.region, blocks=range(1))
    return frame_codec.encode(replace(decoded.header, region=region), decoded.payload)


def _short(number: int, frame: bytes) -> bytes:
    decoded = frame_codec.decode(frame)
    return frame_codec.encode(decoded.header, decoded.payload[:-4])


def _nothing(number: int, frame: bytes) -> bytes:
    return b""


def _breaks(number: int, frame: bytes) -> bytes:
    raise StoreUnavailable("it is gone")


@pytest.mark.parametrize("does", [_flipped, _repeated, _short, _nothing, _breaks])
async def test_what_is_not_right_is_computed(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, does: Callable[[int, bytes], bytes]
) -> None:
    a_lender_that(monkeypatch, does)
    async with lending(tiny_model_dir) as session:
        assert await session.answer() == (0, GIVEN)


async def test_a_lender_that_hangs_is_waited_for_so_long_only(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(service: BlockService, request: Any, context: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(BlockService, "_read", hang)
    async with lending(tiny_model_dir, timeout_s=0.2) as session:
        assert await session.answer() == (0, GIVEN)


async def test_a_lender_that_is_gone_costs_computing(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lending(tiny_model_dir) as session:
        lent = LentBlocks.blocks_of

        def elsewhere(self: LentBlocks, lender: KvSource) -> Any:
            return lent(self, replace(lender, address="127.0.0.1:1"))

        monkeypatch.setattr(LentBlocks, "blocks_of", elsewhere)
        assert await session.answer() == (0, GIVEN)


async def test_what_is_given_up_while_it_is_read_leaves_nothing(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = asyncio.Event(), asyncio.Event()
    send: Frames = BlockService._frames

    async def frames(service: BlockService, blocks: Sequence[int]) -> AsyncIterator[bytes]:
        reading.set()
        await go_on.wait()
        async for frame in send(service, blocks):
            yield frame

    monkeypatch.setattr(BlockService, "_frames", frames)
    async with lending(tiny_model_dir) as session:
        rig = session.rig
        answering = asyncio.ensure_future(
            rig.client.generate(session.whole[-9:], session="s", max_tokens=6).result()
        )
        await reading.wait()
        answering.cancel()
        await asyncio.wait([answering])
        await rig.settle()
        rig.assert_clean()
        go_on.set()
        assert await session.answer() == (HELD, GIVEN - HELD)


def a_reader(session: Lending, **changes: Any) -> LentBlocks:
    model = replace(session.lender.model, **changes)
    return LentBlocks(model, BLOCK, message_bytes=1 << 20, timeout_s=30.0)


@pytest.mark.parametrize("frame_bytes", [1, 3 * 4 * BLOCK, 16 << 20])
async def test_blocks_come_whole_and_as_far_as_they_are_there(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, frame_bytes: int
) -> None:
    async with lending(tiny_model_dir) as session:
        service = session.rig.replicas["decode-0"]._blocks
        monkeypatch.setattr(service, "_frame_bytes", frame_bytes)
        reader = a_reader(session)
        lender = reader.blocks_of(session.lender.source())
        hashes = session.hashes
        absent = BlockHash(bytes(HASH_BYTES))
        assert await lender.match(hashes) == len(hashes)
        assert await lender.match([*hashes[:3], absent, *hashes[3:]]) == 3
        assert await lender.match([absent]) == 0
        assert await lender.match([]) == 0
        read = await lender.read([*hashes[2:7], absent, *hashes[7:]])
        assert len(read) == 5
        with service._loan(hashes[2:7]) as blocks:
            assert [bytes(block) for block in await service._kv.read(blocks)] == read
        assert await lender.read([absent]) == []
        await session.rig.settle()
        session.rig.assert_clean()
        await reader.close()


async def test_only_the_right_incarnation_lends_and_only_in_its_own_form(
    tiny_model_dir: Path,
) -> None:
    async with lending(tiny_model_dir) as session:
        source = session.lender.source()
        for reader, asked, named in (
            (a_reader(session), replace(source, epoch=source.epoch + 1), "epoch"),
            (a_reader(session, fingerprint="other"), source, "other"),
            (a_reader(session, kv=replace(SPEC, dtype="bfloat16")), source, "bfloat16"),
        ):
            lender = reader.blocks_of(asked)
            for question in (lender.match, lender.read):
                with pytest.raises(StoreUnavailable, match=named) as caught:
                    await question(session.hashes)
                assert "decode-0 lends no KV" in caught.value.message
            await reader.close()


def raw(channel: grpc.aio.Channel, method: str) -> Any:
    """A method of the service, of bytes."""
    return channel.unary_stream(f"/{runtime.block_service.SERVICE}/{method}")


async def test_bad_questions_have_typed_answers(tiny_model_dir: Path) -> None:
    async with lending(tiny_model_dir) as session:
        info = session.lender
        good = wire.BlockChain(
            epoch=info.epoch,
            fingerprint=info.model.fingerprint,
            kv=kv_spec_to_wire(info.model.kv),
            block_tokens=BLOCK,
        )

        async def ask(method: str, message: bytes) -> ErrorCode:
            call = raw(channel, method)(message)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in call:
                    pass
            return error_from_rpc(caught.value).code

        async with grpc.aio.insecure_channel(info.address) as channel:
            for method in ("Match", "Read"):
                odd = wire.BlockChain(hashes=bytes(15))
                odd.MergeFrom(good)
                assert await ask(method, odd.SerializeToString()) is ErrorCode.INVALID_ARGUMENT
                many = wire.BlockChain(hashes=bytes(HASH_BYTES * (info.num_blocks + 1)))
                many.MergeFrom(good)
                assert await ask(method, many.SerializeToString()) is ErrorCode.INVALID_ARGUMENT
                assert await ask(method, b"\xff") is ErrorCode.INVALID_ARGUMENT
                assert await ask(method, b"") is ErrorCode.STALE_EPOCH
                other = wire.BlockChain(epoch=info.epoch)
                assert await ask(method, other.SerializeToString()) is ErrorCode.INVALID_ARGUMENT


async def test_readers_are_few_and_those_that_read_nothing_are_given_up(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def frames(service: BlockService, blocks: Sequence[int]) -> AsyncIterator[bytes]:
        reading.release()
        await go_on.wait()
        # More than any connection takes unread.
        for _ in range(64):
            yield bytes(1 << 20)

    monkeypatch.setattr(BlockService, "_frames", frames)
    async with lending(tiny_model_dir) as session:
        service = session.rig.replicas["decode-0"]._blocks
        monkeypatch.setattr(service, "_idle_s", 0.1)
        reader = a_reader(session)
        lender = reader.blocks_of(session.lender.source())
        first = [asyncio.ensure_future(lender.read(session.hashes)) for _ in range(READERS_MAX)]
        for _ in first:
            await reading.acquire()
        with pytest.raises(StoreUnavailable, match="the most"):
            await lender.read(session.hashes)
        for task in first:
            task.cancel()
        await asyncio.wait(first)
        await reader.close()
        chain = wire.BlockChain(
            epoch=session.lender.epoch,
            fingerprint=session.lender.model.fingerprint,
            kv=kv_spec_to_wire(SPEC),
            block_tokens=BLOCK,
            hashes=b"".join(session.hashes),
        )
        async with grpc.aio.insecure_channel(session.lender.address) as channel:
            call = raw(channel, "Read")(chain.SerializeToString())
            go_on.set()
            await session.rig.until(lambda: not service.owners())
            call.cancel()
        await session.rig.settle()
        session.rig.assert_clean()
