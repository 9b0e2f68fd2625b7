"""A request's output on its way to the client.

1. All chunks together are the completion: tokens, text and log-probabilities, each once.
2. Each write carries all that has gathered; a client that keeps up gets each token as it comes.
3. The text ends before a stop string or an ending token, and the tokens with it.
4. An error does not wait for a client that does not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest.answers import Chunk
from eastwest.clock import SystemClock
from eastwest.errors import Cancelled, DeadlineExceeded, Phase, Unavailable
from eastwest.types import FinishReason, SampledToken, Usage
from eastwest.v1 import inference_pb2 as inference
from eastwest.wire import logprobs_from_wire
from router.requests import Marks, Outcome
from router.streams import ClientStream
from router.text import Detokenizer, Tokenizer, load_tokenizer
from tests.byte_tokenizer import END, ids_of, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return load_tokenizer(directory)


def a_stream(
    tokenizer: Tokenizer, *stop: str, chunks: bool = True, ending: frozenset[int] = frozenset({END})
) -> ClientStream:
    return ClientStream(
        Detokenizer(tokenizer, stop),
        ending=ending,
        stops=bool(stop),
        chunks=chunks,
        max_tokens=10_000,
        clock=SystemClock(),
    )


def sampled(*ids: int) -> tuple[SampledToken, ...]:
    return tuple(SampledToken(i, -0.1 * i) for i in ids)


def an_outcome(ids: Sequence[int], finish: FinishReason = FinishReason.LENGTH) -> Outcome:
    marks = Marks(accepted_ns=0, admitted_ns=1, dispatched_ns=2, reserved_ns=3, first_token_ns=4)
    return Outcome(finish, sampled(*ids), Usage(3, len(ids)), marks, "p", "d")


class Reader:
    """The client's end. While held, a write does not return."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.free = asyncio.Event()
        self.free.set()
        self.writing = asyncio.Event()

    async def write(self, chunk: Chunk | inference.GenerateComplete) -> None:
        assert isinstance(chunk, Chunk)
        self.chunks.append(chunk)
        self.writing.set()
        await self.free.wait()

    @property
    def text(self) -> str:
        return "".join(c.text for c in self.chunks)

    @property
    def tokens(self) -> list[int]:
        return [t for c in self.chunks for t in c.token_ids]


async def finished(stream: ClientStream, reader: Reader) -> inference.GenerateComplete:
    return stream.complete("r", await stream.run(reader.write))


PIECES = st.lists(
    st.lists(st.sampled_from([*ids_of("ab€ .\n"), 1]), min_size=1, max_size=4), max_size=12
)


@settings(deadline=None)
@given(pieces=PIECES, lag=st.lists(st.booleans(), min_size=12, max_size=12), stop=st.booleans())
def test_all_chunks_together_are_the_completion_however_the_client_lags(
    tokenizer: Tokenizer, pieces: list[list[int]], lag: list[bool], stop: bool
) -> None:
    async def scenario() -> None:
        stream = a_stream(tokenizer, *(["b."] if stop else []))
        reader = Reader()
        done = asyncio.create_task(finished(stream, reader))
        kept: list[int] = []
        keep = None
        for piece, lags in zip(pieces, lag, strict=False):
            (reader.free.clear if lags else reader.free.set)()
            kept += piece
            keep = stream.deliver(sampled(*piece))
            if keep is not None:
                break
            for _ in range(3):
                await asyncio.sleep(0)
        if not kept:
            kept = [*ids_of("a")]
            stream.deliver(sampled(*kept))
        reader.free.set()
        kept = kept[:keep]
        stream.end(an_outcome(kept, FinishReason.STOP if keep else FinishReason.LENGTH))
        complete = await done
        assert reader.text == complete.text
        assert reader.tokens == list(complete.output_ids) == kept
        told = [token for chunk in reader.chunks for token in chunk.logprobs]
        assert told == list(logprobs_from_wire(complete.logprobs))
        expected = tokenizer.decode(kept)
        assert complete.text == (expected.split("b.")[0] if stop else expected)
        assert (complete.matched_stop_str == "b.") == (stop and "b." in expected)

    asyncio.run(scenario())


async def test_a_client_that_keeps_up_gets_each_token_and_one_that_lags_gets_them_together(
    tokenizer: Tokenizer,
) -> None:
    stream, reader = a_stream(tokenizer), Reader()
    done = asyncio.create_task(finished(stream, reader))
    for character in "ab":
        reader.writing.clear()
        stream.deliver(sampled(*ids_of(character)))
        await reader.writing.wait()
    reader.free.clear()
    reader.writing.clear()
    stream.deliver(sampled(*ids_of("c")))
    await reader.writing.wait()
    for character in "def":
        stream.deliver(sampled(*ids_of(character)))
    reader.free.set()
    stream.end(an_outcome(ids_of("abcdef")))
    await done
    assert [c.text for c in reader.chunks] == ["a", "b", "c", "def"]


async def test_without_chunks_nothing_is_written_and_delivery_takes_no_time(
    tokenizer: Tokenizer,
) -> None:
    stream, reader = a_stream(tokenizer, chunks=False), Reader()
    stream.deliver(sampled(*ids_of("ab")))
    stream.end(an_outcome(ids_of("ab")))
    complete = await finished(stream, reader)
    assert reader.chunks == []
    assert complete.text == "ab"
    assert complete.timing.ttft_ns > 0


async def test_an_ending_token_is_in_the_tokens_and_not_in_the_text(tokenizer: Tokenizer) -> None:
    [dot] = ids_of(".")
    stream, reader = a_stream(tokenizer, "b.", ending=frozenset({dot})), Reader()
    assert stream.deliver(sampled(*ids_of("ab."))) is None
    stream.end(an_outcome(ids_of("ab."), FinishReason.STOP))
    complete = await finished(stream, reader)
    assert (complete.text, list(complete.output_ids)) == ("ab", list(ids_of("ab.")))
    assert complete.matched_token_id == dot


async def test_a_stop_string_in_the_last_tokens_wins_over_the_length(tokenizer: Tokenizer) -> None:
    stream, reader = a_stream(tokenizer, "c"), Reader()
    assert stream.deliver(sampled(*ids_of("abcd"))) == 3
    assert stream.deliver(sampled(*ids_of("e"))) is None
    stream.end(an_outcome(ids_of("abcde")))
    complete = await finished(stream, reader)
    assert (complete.text, complete.matched_stop_str) == ("ab", "c")
    assert complete.finish_reason == inference.FINISH_REASON_STOP
    assert list(complete.output_ids) == reader.tokens == list(ids_of("abc"))
    assert complete.usage.completion_tokens == 3


async def test_an_error_reaches_the_call_while_the_client_does_not_read(
    tokenizer: Tokenizer,
) -> None:
    stream, reader = a_stream(tokenizer), Reader()

    async def call() -> None:
        async with stream.patience(3600.0):
            await stream.run(reader.write)

    reader.free.clear()
    running = asyncio.create_task(call())
    stream.deliver(sampled(*ids_of("a")))
    await reader.writing.wait()
    stream.end(Unavailable("gone"))
    with pytest.raises(Unavailable, match="gone"):
        await running


async def test_an_error_reaches_a_call_that_waits_for_tokens(tokenizer: Tokenizer) -> None:
    stream = a_stream(tokenizer)
    running = asyncio.create_task(stream.run(Reader().write))
    await asyncio.sleep(0)
    stream.end(Cancelled("enough"))
    with pytest.raises(Cancelled, match="enough"):
        await running


async def test_a_client_that_never_reads_meets_the_deadline_in_delivery(
    tokenizer: Tokenizer,
) -> None:
    stream, reader = a_stream(tokenizer), Reader()
    reader.free.clear()
    stream.deliver(sampled(*ids_of("a")))
    stream.end(an_outcome(ids_of("a")))
    with pytest.raises(DeadlineExceeded) as caught:
        async with stream.patience(0.0):
            await stream.run(reader.write)
    assert caught.value.phase is Phase.DELIVERY
