"""Collectives: bytes over links and latencies, inside a domain and across."""

from __future__ import annotations

from itertools import pairwise

import pytest

from planner.hardware import Device, device_from
from planner.network import Network
from planner.stacks import Stack

STACK = Stack(name="bare", layer_s=0.0)
MIB = float(1 << 20)


def a_device(domain: int = 8, out_bytes_per_s: float = 5e10, link: float = 1.0) -> Device:
    return device_from(
        f"""
        name: mine
        vendor: me
        flops_per_s: {{bf16: 1.0e+15}}
        memory: {{bytes: 8.0e+10, bytes_per_s: 3.0e+12}}
        scale_up: {{domain: {domain}, bytes_per_s: 4.0e+11, latency_s: 2.0e-6,
                    latency_per_doubling_s: 5.0e-7}}
        scale_out: {{bytes_per_s: {out_bytes_per_s}, latency_s: 1.0e-5}}
        efficiency: {{link: {link}}}
        """,
        "mine",
    )


NETWORK = Network(a_device(), STACK)


def test_nothing_is_sent_by_a_rank_alone() -> None:
    assert NETWORK.all_reduce(MIB, 1) == NETWORK.all_gather(MIB, 1) == 0
    assert NETWORK.all_to_all(MIB, 3, 1) == 0


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_inside_a_domain_an_all_reduce_is_a_latency_and_two_rounds(ranks: int) -> None:
    doublings = {2: 0, 4: 1, 8: 2}[ranks]
    bytes_moved = 2 * (ranks - 1) / ranks * MIB
    expected = 2e-6 + doublings * 5e-7 + bytes_moved / 4e11
    assert NETWORK.all_reduce(MIB, ranks) == pytest.approx(expected)
    gathered = NETWORK.all_gather(MIB, ranks) - NETWORK.all_gather(0, ranks)
    reduced = NETWORK.all_reduce(MIB, ranks) - NETWORK.all_reduce(0, ranks)
    assert reduced == pytest.approx(2 * gathered)


def test_across_domains_the_scale_out_network_is_paid_too() -> None:
    inside, across = NETWORK.all_reduce(MIB, 8), NETWORK.all_reduce(MIB, 16)
    between = 1e-5 + 2 * (1 / 2) * MIB / 8 / 5e10
    assert across == pytest.approx(inside + between)
    slower = Network(a_device(out_bytes_per_s=5e9), STACK)
    assert slower.all_reduce(MIB, 16) > across
    assert slower.all_reduce(MIB, 8) == inside


def test_a_token_goes_once_to_each_other_domain() -> None:
    inside = NETWORK.all_to_all(MIB, 4.0, 8)
    assert inside == pytest.approx(2e-6 + 2 * 5e-7 + 4 * MIB / 4e11)
    elsewhere = 3 * (1 - (3 / 4) ** 4)  # of 4 domains, with 4 copies
    across = NETWORK.all_to_all(MIB, 4.0, 32)
    assert across == pytest.approx(2e-6 + 2 * 5e-7 + 2 * 1e-5 + elsewhere * MIB / 5e10)


def test_a_stage_sends_over_the_network_that_spans_it() -> None:
    assert NETWORK.send(MIB, 8) == pytest.approx(2e-6 + MIB / 4e11)
    assert NETWORK.send(MIB, 9) == pytest.approx(1e-5 + MIB / 5e10)


def test_shares_and_engine_terms_count() -> None:
    half = Network(a_device(link=0.5), Stack(name="slow", layer_s=0.0, collective_s=1e-6))
    assert half.all_reduce(MIB, 8) == pytest.approx(
        NETWORK.all_reduce(MIB, 8) + 1e-6 + 2 * 7 / 8 * MIB / 4e11
    )


@pytest.mark.parametrize("domain", [1, 4, 8, 72])
def test_more_bytes_and_more_ranks_are_never_cheaper(domain: int) -> None:
    network = Network(a_device(domain), STACK)
    ranks = (1, 2, 3, 4, 6, 8, 9, 12, 16, 32, 64, 72, 96, 144)
    sizes = (0.0, 1.0, 1e3, 1e6, 1e9)
    for collective in (
        network.all_reduce, network.all_gather,
        lambda size, n: network.all_to_all(size, 4.0, n), network.send,
    ):  # fmt: skip
        for size in sizes:
            for few, many in pairwise(ranks):
                assert collective(size, few) <= collective(size, many) + 1e-15, (size, few, many)
        for n in ranks:
            for small, large in pairwise(sizes):
                assert collective(small, n) <= collective(large, n)
