"""The figures of a plan, for a pair small enough to be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eastwest.errors import ConfigError, Incompatible
from eastwest.layout import KVSpec, ParallelLayout, Shard
from kv_transfer.explain import Link, RankTraffic, Side, explain
from kv_transfer.plan import Slice

KV = KVSpec(num_layers=3, num_kv_heads=2, key_dim=4, value_dim=4, dtype="float32")
INT8 = replace(KV, dtype="int8")
HEAD_BYTES = 2 * (4 + 4)  # of one layer and head of one token: key and value row, each with a scale


def test_who_sends_what_to_whom() -> None:
    src = Side(ParallelLayout(tp=2, dp=3), KV, 16)
    told = explain(src, Side(ParallelLayout(pp=2), INT8, 64))
    first, last = range(2), range(2, 3)
    head = (range(1), range(1, 2))
    assert told.links == (
        Link(0, 0, (Slice(0, 0, first, head[0]),), 2 * HEAD_BYTES),
        Link(0, 1, (Slice(0, 1, last, head[0]),), HEAD_BYTES),
        Link(1, 0, (Slice(1, 0, first, head[1]),), 2 * HEAD_BYTES),
        Link(1, 1, (Slice(1, 1, last, head[1]),), HEAD_BYTES),
    )
    assert told.senders == (
        RankTraffic(0, Shard(range(3), head[0]), 2, 3 * HEAD_BYTES),
        RankTraffic(1, Shard(range(3), head[1]), 2, 3 * HEAD_BYTES),
    )
    assert told.receivers == (
        RankTraffic(0, Shard(first, range(2)), 2, 4 * HEAD_BYTES),
        RankTraffic(1, Shard(last, range(2)), 2, 2 * HEAD_BYTES),
    )
    assert told.bytes_per_token == told.minimum_bytes_per_token == 6 * HEAD_BYTES
    assert told.block_bytes == 64 * 6 * HEAD_BYTES
    assert told.converts


def test_replicas_of_one_head_share_what_they_hold() -> None:
    latent = replace(KV, num_kv_heads=1, value_dim=0)
    told = explain(Side(ParallelLayout(tp=3), latent, 16), Side(ParallelLayout(), latent, 16))
    assert [rank.bytes_per_token for rank in told.senders] == [16, 16, 16]
    assert told.receivers[0].fan == 3
    assert not told.converts


def test_replicated_destinations_get_each_byte_each() -> None:
    told = explain(Side(ParallelLayout(), KV, 16), Side(ParallelLayout(tp=4), KV, 16))
    assert told.bytes_per_token == 2 * KV.bytes_per_token
    assert told.senders[0].fan == 4


def test_what_does_not_fit_is_refused() -> None:
    one = Side(ParallelLayout(), KV, 16)
    with pytest.raises(ConfigError, match="neither divides"):
        explain(Side(ParallelLayout(tp=3), KV, 16), one)
    with pytest.raises(Incompatible, match="differ in their dtype only"):
        explain(one, Side(ParallelLayout(), replace(KV, key_dim=8), 16))
