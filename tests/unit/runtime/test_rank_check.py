"""What a rank does not do, whoever asks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from eastwest.errors import InvalidArgument
from eastwest.ports import StepRow
from eastwest.testing.engine import SimulatedEngine
from runtime.rank_check import check_blocks, check_payloads, check_step

ENGINE = SimulatedEngine(16, 8)
ROW = StepRow((1, 2, 3), 6, (20, 21), None)
PAYLOAD = bytes(8 * ENGINE.kv.spec.bytes_per_token)


def test_what_can_be_run_is_taken() -> None:
    check_step([ROW, replace(ROW, blocks=(0, 15))], ENGINE.model, ENGINE.kv, 2)
    check_step([], ENGINE.model, ENGINE.kv, 1)
    check_blocks((0, 15), ENGINE.kv)
    check_payloads([PAYLOAD] * 2, (3, 4), ENGINE.kv)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": ()},
        {"tokens": (512,)},
        {"start": -1},
        {"start": 14},
        {"start": 2**31 - 4},
        {"blocks": ()},
        {"blocks": (15, 16)},
        {"blocks": (31, 32)},
    ],
)
def test_a_row_that_no_engine_can_run_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=r"allowed|outside"):
        check_step([replace(ROW, **changes)], ENGINE.model, ENGINE.kv, 2)


def test_blocks_that_are_not_there_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="block 16 is named; allowed: 0 to 15"):
        check_blocks((3, 16), ENGINE.kv)


@pytest.mark.parametrize("payloads", [[], [PAYLOAD], [PAYLOAD, PAYLOAD[:-1]], [PAYLOAD] * 3])
def test_payloads_that_do_not_fill_their_blocks_are_refused(payloads: list[bytes]) -> None:
    with pytest.raises(InvalidArgument, match="for 2 blocks; allowed: one of"):
        check_payloads(payloads, (3, 4), ENGINE.kv)
