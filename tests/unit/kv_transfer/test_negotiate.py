"""What two workers must have in common, and the refusal that names what is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eastwest.errors import Incompatible
from eastwest.layout import KVSpec, ParallelLayout
from eastwest.messages import PROTOCOL_VERSION, KvSource, Transport
from kv_transfer.negotiate import check_source, choose_transport

SHARED, NIXL, GRPC = Transport.SHARED_MEMORY, Transport.NIXL, Transport.GRPC
KV = KVSpec(num_layers=6, num_kv_heads=4, key_dim=8, value_dim=8, dtype="float32")
OWN = KvSource("d0", 7, "abc", ParallelLayout(pp=2), KV, 16, "host1", (SHARED, NIXL, GRPC))
SOURCE = replace(OWN, worker_id="p0", epoch=2, layout=ParallelLayout(tp=4), block_tokens=64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e4m3", "int8"])
def test_what_can_be_matched_is_accepted(dtype: str) -> None:
    check_source(replace(SOURCE, kv=replace(KV, dtype=dtype)), OWN)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (
            replace(SOURCE, protocol_version=1),
            f"protocol version is 1 at p0 and {PROTOCOL_VERSION} at d0; allowed: equal ones",
        ),
        (
            replace(SOURCE, fingerprint="xyz"),
            "model fingerprint is xyz at p0 and abc at d0; allowed: equal ones",
        ),
        (replace(SOURCE, kv=replace(KV, num_layers=5)), "num_layers=5.* at p0 and .* at d0"),
        (replace(SOURCE, kv=replace(KV, value_dim=0)), "differ in their dtype only"),
        (replace(SOURCE, kv=replace(KV, dtype="int4")), "KV dtype is int4 at p0; allowed: float32"),
        (replace(SOURCE, block_tokens=0), "a block has 0 tokens at p0; allowed: 1 and up"),
        (
            replace(SOURCE, layout=ParallelLayout(tp=3)),
            "layouts tp=3 at p0 and pp=2 at d0 cannot be matched: tp=3 neither divides",
        ),
        (replace(SOURCE, layout=ParallelLayout(pp=7)), "pp=7 exceeds the model's 6 layers"),
    ],
)
def test_what_cannot_be_matched_is_refused_with_both_sides(source: KvSource, named: str) -> None:
    with pytest.raises(Incompatible, match=named):
        check_source(source, OWN)


@pytest.mark.parametrize(
    ("source", "allowed", "chosen"),
    [
        (SOURCE, (SHARED, NIXL, GRPC), SHARED),
        (SOURCE, (GRPC, SHARED), GRPC),
        (replace(SOURCE, transports=(NIXL, GRPC)), (SHARED, NIXL, GRPC), NIXL),
        (replace(SOURCE, host="host2"), (SHARED, NIXL, GRPC), NIXL),
        (replace(SOURCE, host=""), (SHARED, GRPC), GRPC),
        (replace(SOURCE, transports=(GRPC,)), (SHARED, NIXL, GRPC), GRPC),
    ],
)
def test_the_first_allowed_transport_that_both_have_is_chosen(
    source: KvSource, allowed: tuple[Transport, ...], chosen: Transport
) -> None:
    assert choose_transport(source, OWN, allowed) is chosen


def test_memory_is_not_shared_by_hosts_without_a_name() -> None:
    nameless = replace(OWN, host="")
    assert choose_transport(replace(SOURCE, host=""), nameless, (SHARED, GRPC)) is GRPC


def test_no_common_transport_is_refused_with_what_each_side_has() -> None:
    source = replace(SOURCE, host="host2", transports=(SHARED,))
    named = (
        "p0 on host 'host2' sends KV by shared_memory, d0 on host 'host1' takes it by "
        "shared_memory, nixl, grpc; allowed: one of shared_memory, grpc that both have"
    )
    with pytest.raises(Incompatible, match=named):
        choose_transport(source, OWN, (SHARED, GRPC))
