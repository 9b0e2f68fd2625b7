"""What a link puts into a message, and whom it believes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eastwest.errors import Incompatible
from eastwest.layout import ParallelLayout
from eastwest.messages import Abort, Command, Reserve, WorkerInfo
from eastwest.testing.builders import a_worker
from eastwest.types import Role, SamplingParams
from eastwest.wire import command_from_wire
from router.links import BATCH_BYTES, batches, check_welcome


def a_reserve(request_id: str, tokens: int) -> Reserve:
    prompt, source = (49_000,) * tokens, a_worker("p0", Role.PREFILL).source()
    return Reserve(request_id, "", "", prompt, SamplingParams(seed=1), 5, source, 10.0)


def test_everything_queued_goes_into_one_message_in_order() -> None:
    commands: list[Command] = [Abort(f"r{i}") for i in range(500)]
    [batch] = batches(commands)
    assert [command_from_wire(wire) for wire in batch] == commands


def test_messages_stay_small_though_prompts_are_large() -> None:
    commands: list[Command] = [a_reserve(f"r{i}", 100_000) for i in range(20)]
    parts = batches(commands)
    assert [command_from_wire(wire) for part in parts for wire in part] == commands
    assert all(sum(wire.ByteSize() for wire in part) <= BATCH_BYTES for part in parts)
    assert len(parts) < len(commands)


def test_a_command_larger_than_a_message_should_be_goes_alone() -> None:
    commands: list[Command] = [Abort("a"), a_reserve("b", 1_000_000), Abort("c")]
    assert [len(part) for part in batches(commands)] == [1, 1, 1]


def test_a_worker_that_tells_the_truth_is_welcome_again_and_again() -> None:
    for role in Role:
        check_welcome(a_worker("d0", role, epoch=3), "d0", 0)
        check_welcome(a_worker("d0", role, epoch=3), "d0", 3)
    check_welcome(replace(a_worker("d0", num_blocks=12), layout=ParallelLayout(dp=3)), "d0", 0)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (a_worker("d1"), "says it is worker 'd1', not 'd0'"),
        (a_worker("d0", epoch=4), "its epoch is 4; allowed: from 5"),
        (a_worker("d0", epoch=9, num_blocks=0), "num_blocks 0"),
        (a_worker("d0", epoch=9, block_tokens=0), "block_tokens 0"),
        (replace(a_worker("d0", epoch=9), layout=ParallelLayout(dp=3)), "not the same for each"),
        (
            replace(a_worker("d0", epoch=9), model=replace(a_worker().model, fingerprint="")),
            "no fingerprint",
        ),
        (
            replace(a_worker("d0", epoch=9), model=replace(a_worker().model, eos_ids=(60_000,))),
            "outside its vocabulary",
        ),
    ],
)
def test_a_worker_that_cannot_be_what_it_says_is_refused(info: WorkerInfo, message: str) -> None:
    with pytest.raises(Incompatible, match=message):
        check_welcome(info, "d0", 5)
