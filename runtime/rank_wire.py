"""What goes over the link between a leader and a rank, as values and as protobuf."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from eastwest.errors import EastWestError, ErrorCode, InvalidArgument, error_from
from eastwest.ports import SampleInput, StepRow
from eastwest.types import SamplingParams
from eastwest.v1 import rank_pb2 as wire
from eastwest.wire import transport_from_wire
from kv_transfer.plan import Region
from kv_transfer.ranks import Arrived, Missing, Opening, PushStats

# What a rank other than the leader is told of sampling: that it happens.
SAMPLES = SampleInput(SamplingParams(temperature=0.0), (), ())


def step_to_wire(rows: Sequence[StepRow]) -> wire.RankStep:
    return wire.RankStep(
        rows=[
            wire.RankRow(
                tokens=row.tokens,
                start=row.start,
                blocks=row.blocks,
                samples=row.sample is not None,
                transfer_id=row.transfer,
            )
            for row in rows
        ]
    )


def step_from_wire(step: wire.RankStep) -> list[StepRow]:
    """Rows whose `sample` is `SAMPLES` or None."""
    return [
        StepRow(
            tuple(row.tokens),
            row.start,
            tuple(row.blocks),
            SAMPLES if row.samples else None,
            row.transfer_id,
        )
        for row in step.rows
    ]


def opening_to_wire(opening: Opening) -> wire.OpenTransfer:
    return wire.OpenTransfer(
        transfer_id=opening.transfer_id,
        blocks=opening.blocks,
        first_block=opening.first_block,
        num_blocks=opening.num_blocks,
        num_tokens=opening.num_tokens,
        transport=opening.transport.value,
    )


def opening_from_wire(opening: wire.OpenTransfer) -> Opening:
    return Opening(
        opening.transfer_id,
        tuple(opening.blocks),
        opening.first_block,
        opening.num_blocks,
        opening.num_tokens,
        transport_from_wire(opening.transport),
    )


def missing_to_wire(missing: Iterable[Missing]) -> list[wire.RankRegion]:
    return [
        wire.RankRegion(
            rank=hole.dst_rank,
            layer_start=hole.region.layers.start,
            layer_count=len(hole.region.layers),
            block_start=hole.region.blocks.start,
            block_count=len(hole.region.blocks),
            head_start=hole.region.heads.start,
            head_count=len(hole.region.heads),
        )
        for hole in missing
    ]


def missing_from_wire(regions: Iterable[wire.RankRegion]) -> list[Missing]:
    return [
        Missing(
            hole.rank,
            Region(
                range(hole.layer_start, hole.layer_start + hole.layer_count),
                range(hole.block_start, hole.block_start + hole.block_count),
                range(hole.head_start, hole.head_start + hole.head_count),
            ),
        )
        for hole in regions
    ]


def arrived_to_wire(transfer_id: str, arrived: Arrived) -> wire.TransferArrived:
    return wire.TransferArrived(
        transfer_id=transfer_id,
        bytes=arrived.bytes,
        frames=arrived.frames,
        transfer_ns=arrived.transfer_ns,
        since_last_ns=arrived.since_last_ns,
    )


def arrived_from_wire(arrived: wire.TransferArrived) -> Arrived:
    return Arrived(arrived.bytes, arrived.frames, arrived.transfer_ns, arrived.since_last_ns)


def totals_to_wire(stats: PushStats) -> wire.PushTotals:
    return wire.PushTotals(
        bytes=stats.bytes, frames=stats.frames, resent_frames=stats.resent_frames
    )


def totals_from_wire(totals: wire.PushTotals) -> PushStats:
    return PushStats(totals.bytes, totals.frames, totals.resent_frames)


def reason_from_wire(reason: str) -> ErrorCode | None:
    """ "" for none; `InvalidArgument` where it is unknown."""
    if reason and reason not in set(ErrorCode):
        raise InvalidArgument(f"reason is {reason!r}; allowed: {', '.join(ErrorCode)}")
    return ErrorCode(reason) if reason else None


def failed_reply(call: int, error: EastWestError) -> wire.Reply:
    return wire.Reply(call=call, error=error.code.value, message=error.message)


def check_reply(reply: wire.Reply) -> None:
    """Raise the error that a reply carries."""
    code = reason_from_wire(reply.error)
    if code is not None:
        raise error_from(code, reply.message)
