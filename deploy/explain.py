"""What `eastwest explain` prints: values in, renderables out, within 100 columns."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from eastwest.explanation import Comparison, Decision, Explanation

WIDTH = 100


def explanation_view(explanation: Explanation) -> RenderableType:
    """The whole of it: the request, each placement, and predicted against measured."""
    return Group(*_parts(explanation))


def _parts(e: Explanation) -> Iterator[RenderableType]:
    yield Text(_headline(e), style="bold")
    for number, decision in enumerate(e.decisions):
        if number == 1 and e.decisions_left_out:
            yield Text(f"… {e.decisions_left_out} placements between are not kept", style="dim")
        yield Text()
        yield from _decision(decision)
    if e.comparisons:
        yield Text()
        yield _comparisons(e.comparisons)


def _headline(e: Explanation) -> str:
    ended = f"{e.state} after {_s(e.ended_s)}" if e.ended_s is not None else f"{e.state}"
    moved = f", moved {e.migrations}x" if e.migrations else ""
    lines = [
        f"{e.request_id}: {ended}{moved}; {e.prompt_tokens:,} tokens in, {e.output_tokens:,} of at "
        f"most {e.max_tokens:,} out",
        f"accepted {_s(e.age_s)} ago; policy {e.policy}; aims at TTFT {_s(e.slo_ttft_s)}, TPOT "
        f"{_s(e.slo_tpot_s)}",
    ]
    if e.message:
        lines.append(e.message)
    if not e.decisions:
        lines.append("it was placed nowhere" + ("" if e.ended_s is not None else " so far"))
    return "\n".join(lines)


def _decision(d: Decision) -> Iterator[RenderableType]:
    known = d.prefill_known_tokens, d.decode_known_tokens
    lent = f", lent by {d.lender}" if d.lender else ""
    pair = d.prefill if d.prefill == d.decode else f"{d.prefill} and {d.decode}"
    yield Text(
        f"at {_s(d.at_s)}, {d.waiting} waiting: {d.given_tokens:,} tokens to {pair} "
        f"(KV known of {known[0]:,} and {known[1]:,}{lent}), {d.blocks:,} blocks reserved"
    )
    yield Padding(Text(d.reason, style="italic"), (0, 0, 0, 2))
    if d.predictions:
        yield _predictions(d)
    yield _workers(d)
    if d.lost_s is not None:
        yield Text(f"lost at {_s(d.lost_s)}: {d.loss}", style="bold")


def _predictions(d: Decision) -> RenderableType:
    table = _table("prefill", "decode")
    for column in ("KV there", "queue", "prefill", "transfer", "step", "own", "others", "score"):
        table.add_column(column, justify="right", no_wrap=True)
    for p in d.predictions:
        table.add_row(
            "→" if p.chosen else "",
            p.prefill,
            "same" if p.decode == p.prefill else p.decode,
            f"{p.known_tokens:,}",
            _s(p.queue_s),
            _s(p.prefill_s),
            _s(p.transfer_s),
            _s(p.step_s),
            f"{p.own:.2f}",
            f"{p.others:.2f}",
            f"{p.score:.2f}",
        )
    if d.left_out:
        table.caption = f"and {d.left_out} more"
    return table


def _workers(d: Decision) -> RenderableType:
    table = _table("worker")
    for column in ("prompt tokens waiting", "sequences", "context", "room, blocks", "KV there"):
        table.add_column(column, justify="right", no_wrap=True)
    for w in d.workers:
        table.add_row(
            "→" if w.worker_id in (d.prefill, d.decode) else "",
            w.worker_id,
            f"{w.waiting_tokens:,}",
            f"{w.sequences:,}",
            f"{w.context_tokens:,}",
            f"{w.room_blocks:,}",
            f"{w.known_tokens:,}",
        )
    if d.workers_up > len(d.workers):
        table.caption = f"{len(d.workers)} of {d.workers_up} workers"
    return table


def _comparisons(comparisons: tuple[Comparison, ...]) -> RenderableType:
    table = _table("part")
    for column in ("predicted", "measured", "residual"):
        table.add_column(column, justify="right", no_wrap=True)
    for c in comparisons:
        residual = c.residual_s
        table.add_row(
            "",
            c.part,
            "" if c.predicted_s is None else _s(c.predicted_s),
            "" if c.measured_s is None else _s(c.measured_s),
            "" if residual is None else f"{'+' if residual >= 0 else '-'}{_s(abs(residual))}",
        )
    return table


def _table(*names: str) -> Table:
    """With a column for the mark of what was chosen. Names give way where there is no room."""
    table = Table(box=None, padding=(0, 1), caption_justify="left")
    table.add_column("", width=1)
    for name in names:
        table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=None)
    return table


def _s(value: float) -> str:
    """A duration in the unit that suits it."""
    if value < 0.1:
        return f"{value * 1e3:.1f} ms"
    if value < 10:
        return f"{value * 1e3:,.0f} ms"
    return f"{value:,.1f} s"
