"""Decode steps on the wire, where nearly all tokens travel.

A sequence that has nothing to tell but its tokens takes no message of its own: such sequences go
as columns, in front of those that have more to tell.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import islice

from eastwest import messages as m
from eastwest.errors import InvalidArgument
from eastwest.types import SampledToken
from eastwest.v1 import worker_pb2 as worker
from eastwest.wire.values import (
    NUMBER_MAX,
    check_numbers,
    finish_from_wire,
    finish_to_wire,
    token_from_wire,
    token_to_wire,
)

# Tokens that differ in their number alone are one value each: as many as a vocabulary has.
_plain = lru_cache(maxsize=1 << 18)(SampledToken)


def is_plain(output: m.SequenceOutput) -> bool:
    """Whether it tells nothing but tokens."""
    if output.finish is not None or output.first_step is not None:
        return False
    return all(token.logprob is None and not token.top for token in output.tokens)


def merged_steps(earlier: m.Stepped, later: m.Stepped) -> m.Stepped:
    """Two steps of a worker as one."""
    outputs = {output.request_id: output for output in earlier.outputs}
    for output in later.outputs:
        before = outputs.get(output.request_id)
        if before is not None:
            tokens = before.tokens + output.tokens
            output = m.SequenceOutput(
                output.request_id, tokens, output.finish, before.first_step or output.first_step
            )
        outputs[output.request_id] = output
    return m.Stepped(tuple(outputs.values()))


def stepped_to_wire(event: m.Stepped) -> worker.Stepped:
    ids: list[str] = []
    tokens: list[int] = []
    counts: list[int] = []
    rest: list[worker.SequenceOutput] = []
    for output in event.outputs:
        if is_plain(output):
            ids.append(output.request_id)
            counts.append(len(output.tokens))
            tokens.extend([t.token for t in output.tokens])
        else:
            rest.append(_output_to_wire(output))
    if counts.count(1) == len(counts):
        counts.clear()
    return worker.Stepped(outputs=rest, plain_ids=ids, plain_tokens=tokens, plain_counts=counts)


def stepped_from_wire(wire: worker.Stepped) -> m.Stepped:
    ids, tokens, counts = wire.plain_ids, list(wire.plain_tokens), list(wire.plain_counts)
    if (
        (len(counts) != len(ids) or sum(counts) != len(tokens))
        if counts
        else (len(tokens) != len(ids))
    ):
        raise InvalidArgument(
            f"{len(ids)} sequences have {len(counts)} counts and {len(tokens)} tokens; allowed: a "
            f"count for each, that add up, or as many tokens as sequences"
        )
    output = m.SequenceOutput
    if counts:
        rest = iter(tokens)
        outputs = [
            output(name, tuple(map(_plain, islice(rest, count))))
            for name, count in zip(ids, counts, strict=True)
        ]
    else:
        outputs = [output(name, (_plain(token),)) for name, token in zip(ids, tokens, strict=True)]
    if wire.outputs:
        outputs.extend(map(_output_from_wire, wire.outputs))
    return m.Stepped(tuple(outputs))


def _output_to_wire(output: m.SequenceOutput) -> worker.SequenceOutput:
    wire = worker.SequenceOutput(
        request_id=output.request_id,
        tokens=[token_to_wire(t) for t in output.tokens],
        finish=finish_to_wire(output.finish),
    )
    if (first := output.first_step) is not None:
        wire.first_step.import_ns = first.import_ns
        wire.first_step.decode_queue_ns = first.decode_queue_ns
        wire.first_step.first_step_ns = first.first_step_ns
        wire.first_step.transfer_ns = first.transfer_ns
        wire.first_step.transfer_bytes = first.transfer_bytes
    return wire


def _output_from_wire(wire: worker.SequenceOutput) -> m.SequenceOutput:
    first = None
    if wire.HasField("first_step"):
        step = wire.first_step
        check_numbers(
            "a first step",
            NUMBER_MAX,
            step.import_ns,
            step.decode_queue_ns,
            step.first_step_ns,
            step.transfer_ns,
            step.transfer_bytes,
        )
        first = m.FirstStep(
            step.import_ns,
            step.decode_queue_ns,
            step.first_step_ns,
            step.transfer_ns,
            step.transfer_bytes,
        )
    return m.SequenceOutput(
        wire.request_id,
        tuple(token_from_wire(t) for t in wire.tokens),
        finish_from_wire(wire.finish),
        first,
    )
