"""Values to protobuf and back: the only package that knows both.

Each pair is ``x_to_wire`` and ``x_from_wire``; both directions are total on valid values, and
what a peer sends malformed raises `InvalidArgument`.
"""

from eastwest.wire.explanation import (
    explanation_from_wire,
    explanation_to_json,
    explanation_to_wire,
)
from eastwest.wire.messages import (
    command_from_wire,
    command_to_wire,
    event_from_wire,
    event_to_wire,
)
from eastwest.wire.steps import is_plain, merged_steps
from eastwest.wire.values import (
    chunk_to_wire,
    finish_from_wire,
    finish_to_wire,
    logprobs_from_wire,
    logprobs_to_wire,
    sampling_from_wire,
    sampling_to_wire,
    timing_to_wire,
    token_from_wire,
    token_to_wire,
    usage_to_wire,
)
from eastwest.wire.workers import (
    endpoints_from_wire,
    endpoints_to_wire,
    kv_spec_from_wire,
    kv_spec_to_wire,
    layout_from_wire,
    layout_to_wire,
    model_from_wire,
    model_to_wire,
    ticket_from_wire,
    ticket_to_wire,
    transport_from_wire,
    welcome_from_wire,
    welcome_to_wire,
)

__all__ = [
    "chunk_to_wire",
    "command_from_wire",
    "command_to_wire",
    "endpoints_from_wire",
    "endpoints_to_wire",
    "event_from_wire",
    "event_to_wire",
    "explanation_from_wire",
    "explanation_to_json",
    "explanation_to_wire",
    "finish_from_wire",
    "finish_to_wire",
    "is_plain",
    "kv_spec_from_wire",
    "kv_spec_to_wire",
    "layout_from_wire",
    "layout_to_wire",
    "logprobs_from_wire",
    "logprobs_to_wire",
    "merged_steps",
    "model_from_wire",
    "model_to_wire",
    "sampling_from_wire",
    "sampling_to_wire",
    "ticket_from_wire",
    "ticket_to_wire",
    "timing_to_wire",
    "token_from_wire",
    "token_to_wire",
    "transport_from_wire",
    "usage_to_wire",
    "welcome_from_wire",
    "welcome_to_wire",
]
