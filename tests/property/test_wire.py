"""The wire. Invariants:

1. from_wire(to_wire(x)) == x for every command, event and description of a worker.
2. Bytes survive: the same through serialisation.
3. A newer peer's unknown fields are ignored on the control stream.
4. An unknown enum value is `InvalidArgument`, not a crash.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eastwest import wire
from eastwest.blocks import HASH_BYTES
from eastwest.errors import ErrorCode, InvalidArgument, Phase
from eastwest.kv_events import KvEvents, TierBlocks
from eastwest.layout import DTYPE_BYTES, KVSpec, ParallelLayout
from eastwest.messages import (
    Abort,
    Command,
    Dismiss,
    Drain,
    Drained,
    Erase,
    Event,
    Failed,
    FirstStep,
    Heartbeat,
    KvLink,
    KvSource,
    Load,
    ModelInfo,
    Prefill,
    Prefilled,
    RankEndpoint,
    Reserve,
    Reserved,
    ResyncKv,
    SequenceOutput,
    StepBudget,
    Stepped,
    Ticket,
    Transport,
    Undrain,
    WorkerInfo,
)
from eastwest.types import FinishReason, Role, SampledToken, SamplingParams, Tier, TopLogprob
from eastwest.v1 import worker_pb2

TEXT = st.text(max_size=12)
COUNT = st.integers(0, 2**31 - 1)
SIZE = st.integers(1, 2**31 - 1)
NS = st.integers(0, 2**60)
TOKENS = st.integers(0, 2**24)
IDS = st.lists(st.integers(0, 2**32 - 1), max_size=6).map(tuple)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)

SAMPLING = st.builds(
    SamplingParams,
    temperature=FLOAT,
    top_p=FLOAT,
    top_k=COUNT,
    min_p=FLOAT,
    seed=st.none() | st.integers(0, 2**63 - 1),
    repetition_penalty=FLOAT,
    presence_penalty=FLOAT,
    frequency_penalty=FLOAT,
    stop=st.lists(TEXT, max_size=3).map(tuple),
    stop_token_ids=IDS,
    max_tokens=st.none() | COUNT,
    min_tokens=COUNT,
    ignore_eos=st.booleans(),
    logprobs=st.none() | st.integers(0, 20),
)
TOKEN = st.builds(
    SampledToken,
    token=st.integers(0, 2**32 - 1),
    logprob=st.none() | FLOAT,
    top=st.lists(st.builds(TopLogprob, st.integers(0, 2**32 - 1), FLOAT), max_size=3).map(tuple),
)
DIM = st.integers(1, 127)
KV = st.builds(KVSpec, DIM, DIM, DIM, DIM | st.just(0), st.sampled_from(sorted(DTYPE_BYTES)))
RANKS = st.integers(1, 25)
LAYOUT = st.builds(ParallelLayout, RANKS, RANKS, st.integers(1, 2**14), RANKS)
ENDPOINTS = st.lists(st.builds(RankEndpoint, COUNT, TEXT, TEXT), max_size=3).map(tuple)
TRANSPORT = st.sampled_from(Transport)
TRANSPORTS = st.lists(TRANSPORT, max_size=3).map(tuple)
TICKET = st.builds(
    Ticket, TEXT, TEXT, NS, TEXT, ENDPOINTS, LAYOUT, KV, TEXT, COUNT, COUNT, COUNT, COUNT, FLOAT,
    TRANSPORT, IDS,
)  # fmt: skip
SOURCE = st.builds(KvSource, TEXT, NS, TEXT, LAYOUT, KV, SIZE, TEXT, TRANSPORTS, COUNT)
COMMANDS = st.one_of(
    st.builds(Reserve, TEXT, TEXT, TEXT, IDS, SAMPLING, COUNT, SOURCE, FLOAT, IDS, st.booleans()),
    st.builds(Prefill, TEXT, TEXT, IDS, SAMPLING, COUNT, TICKET, FLOAT, IDS, TOKENS),
    st.builds(Abort, TEXT),
    st.just(Heartbeat()),
    st.just(ResyncKv()),
    st.builds(Drain, FLOAT),
    st.just(Undrain()),
    st.just(Dismiss()),
    st.builds(StepBudget, st.integers(1, 2**20)),
    st.builds(Erase, TEXT, TEXT, IDS, TOKENS),
)
FINISH = st.none() | st.sampled_from(FinishReason)
OUTPUT = st.builds(
    SequenceOutput,
    TEXT,
    st.lists(TOKEN, max_size=3).map(tuple),
    FINISH,
    st.none() | st.builds(FirstStep, NS, NS, NS, NS, NS),
)
# Plain ones first, which is the order on the wire.
STEPPED = st.lists(OUTPUT, max_size=5, unique_by=lambda output: output.request_id).map(
    lambda outputs: Stepped(tuple(sorted(outputs, key=lambda output: not wire.is_plain(output))))
)
TIER = st.sampled_from(Tier)
HASHES = st.lists(st.binary(min_size=HASH_BYTES, max_size=HASH_BYTES), max_size=3).map(tuple)
BLOCKS = st.lists(st.builds(TierBlocks, TIER, HASHES), max_size=3).map(tuple)
EVENTS = st.one_of(
    st.builds(Reserved, TEXT, TICKET, TOKENS, TOKENS, NS),
    st.builds(Prefilled, TEXT, TOKEN, FINISH, NS, NS, TOKENS, TOKENS, NS),
    STEPPED,
    st.builds(Failed, TEXT, st.sampled_from(ErrorCode), TEXT, st.sampled_from(Phase)),
    st.builds(
        Load,
        *[COUNT] * 11,
        st.booleans(),
        links=st.lists(st.builds(KvLink, TEXT, TRANSPORT, NS, NS), max_size=3).map(tuple),
        expert_tokens=st.lists(NS, max_size=3).map(tuple),
        kv_sequence=NS,
        draining_s=st.none() | FLOAT,
    ),
    st.builds(KvEvents, NS, st.lists(TIER, max_size=3).map(tuple), BLOCKS, BLOCKS, st.booleans()),
    st.builds(Drained, COUNT, COUNT),
)
MODEL = st.builds(ModelInfo, TEXT, TEXT, TEXT, TEXT, SIZE, SIZE, IDS, KV)
INFO = st.builds(
    WorkerInfo, TEXT, NS, st.sampled_from(Role), TEXT, MODEL, LAYOUT, SIZE, SIZE, SIZE, SIZE, TEXT,
    TRANSPORTS, COUNT, st.none() | FLOAT,
)  # fmt: skip


@given(COMMANDS)
def test_1_2_commands_come_back(command: Command) -> None:
    data = wire.command_to_wire(command).SerializeToString()
    assert wire.command_from_wire(worker_pb2.Command.FromString(data)) == command


@given(EVENTS)
def test_1_2_events_come_back(event: Event) -> None:
    data = wire.event_to_wire(event).SerializeToString()
    assert wire.event_from_wire(worker_pb2.Event.FromString(data)) == event


@given(STEPPED, STEPPED)
def test_steps_that_go_together_tell_what_they_told_apart(first: Stepped, second: Stepped) -> None:
    told: dict[str, list[SampledToken]] = {}
    for step in (first, second):
        for output in step.outputs:
            told.setdefault(output.request_id, []).extend(output.tokens)
    merged = wire.merged_steps(first, second)
    assert {output.request_id: list(output.tokens) for output in merged.outputs} == told
    assert len(merged.outputs) == len(told)
    for output in merged.outputs:
        parts = [o for s in (first, second) for o in s.outputs if o.request_id == output.request_id]
        assert output.finish == parts[-1].finish
        assert output.first_step == (parts[0].first_step or parts[-1].first_step)


@pytest.mark.parametrize(
    ("tokens", "counts"), [([1], []), ([1, 2, 3], []), ([1, 2], [2]), ([1, 2], [1, 2])]
)
def test_columns_that_do_not_match_are_refused(tokens: list[int], counts: list[int]) -> None:
    steps = worker_pb2.Stepped(plain_ids=["a", "b"], plain_tokens=tokens, plain_counts=counts)
    with pytest.raises(InvalidArgument, match="2 sequences"):
        wire.event_from_wire(worker_pb2.Event(stepped=steps))


@given(INFO)
def test_1_2_workers_come_back(info: WorkerInfo) -> None:
    data = wire.welcome_to_wire(info).SerializeToString()
    assert wire.welcome_from_wire(worker_pb2.Welcome.FromString(data)) == info


@given(COMMANDS, st.binary(max_size=8))
def test_3_unknown_fields_are_ignored(command: Command, payload: bytes) -> None:
    unknown = bytes([0xFA, 0x7F, len(payload)]) + payload  # field 2047, length-delimited
    data = wire.command_to_wire(command).SerializeToString() + unknown
    assert wire.command_from_wire(worker_pb2.Command.FromString(data)) == command


def test_4_unknown_values_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="role is 'king'; allowed: aggregated"):
        wire.welcome_from_wire(
            worker_pb2.Welcome(
                role="king",
                model={
                    "kv": {"num_layers": 1, "num_kv_heads": 1, "key_dim": 1, "dtype": "float32"}
                },
                layout={"tp": 1, "pp": 1, "ep": 1, "dp": 1},
            )
        )
    with pytest.raises(InvalidArgument, match="error code"):
        wire.event_from_wire(worker_pb2.Event(failed={"code": "x", "phase": "queue"}))
    with pytest.raises(InvalidArgument, match="empty"):
        wire.command_from_wire(worker_pb2.Command())
    with pytest.raises(InvalidArgument, match="tier is 'attic'; allowed: device"):
        wire.event_from_wire(worker_pb2.Event(kv={"cleared": ["attic"]}))


def test_hashes_that_are_cut_short_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="take 17 bytes; allowed: a multiple of 24"):
        wire.event_from_wire(
            worker_pb2.Event(kv={"stored": [{"tier": "device", "hashes": bytes(17)}]})
        )


@pytest.mark.parametrize(
    "event",
    [
        worker_pb2.Event(load={"free_blocks": -1}),
        worker_pb2.Event(load={"waiting_tokens": 2**62}),
        worker_pb2.Event(prefilled={"queue_ns": 2**63 - 1}),
        worker_pb2.Event(prefilled={"computed_tokens": 2**31 - 1}),
        worker_pb2.Event(stepped={"outputs": [{"first_step": {"import_ns": -1}}]}),
    ],
)
def test_numbers_that_nobody_can_have_counted_are_refused(event: worker_pb2.Event) -> None:
    with pytest.raises(InvalidArgument, match="allowed: from 0 up to"):
        wire.event_from_wire(event)


@pytest.mark.parametrize(
    "layout", [{"tp": 2**14 + 1}, {"tp": 2**10, "pp": 2**10}, {"dp": 2**20}, {"ep": 2**20}]
)
def test_layouts_of_more_ranks_than_there_can_be_are_refused(layout: dict[str, int]) -> None:
    sizes = {"tp": 1, "pp": 1, "ep": 1, "dp": 1, **layout}
    with pytest.raises(InvalidArgument, match="allowed: up to 16384"):
        wire.layout_from_wire(worker_pb2.Layout(**sizes))


def test_kv_that_no_memory_holds_is_refused() -> None:
    huge = dict.fromkeys(("num_layers", "num_kv_heads", "key_dim", "value_dim"), 2**31 - 1)
    with pytest.raises(InvalidArgument, match="allowed: up to 1073741824"):
        wire.kv_spec_from_wire(worker_pb2.KvSpec(dtype="float32", **huge))
