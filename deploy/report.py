"""What the command line prints: timings, usage, workers. Values in, renderables out."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eastwest.answers import Completion, KvHits, ServerLoads, WorkerStatus

_MS = 1e6


def timing_table(completion: Completion) -> RenderableType:
    """The parts of TTFT and of the gap to the second token, each list with its exact sum."""
    timing = completion.timing
    ttft = timing.ttft
    first = _parts_table(
        "time to first token",
        [
            ("admission", ttft.admission_ns),
            ("queue", ttft.queue_ns),
            ("reservation", ttft.reservation_ns),
            ("prefill", ttft.prefill_ns),
            ("delivery", ttft.delivery_ns),
        ],
        ttft.total_ns,
    )
    if timing.second is None:
        return first
    second = timing.second
    gap = _parts_table(
        "first to second token",
        [
            ("exposed transfer", second.exposed_transfer_ns),
            ("import", second.import_ns),
            ("decode queue", second.decode_queue_ns),
            ("first step", second.first_step_ns),
            *([("migration", second.migration_ns)] if second.migration_ns else []),
        ],
        second.total_ns,
    )
    side_by_side = Table.grid(padding=(0, 4))
    side_by_side.add_row(first, gap)
    return side_by_side


def _parts_table(title: str, parts: Sequence[tuple[str, int]], total_ns: int) -> Table:
    table = Table(title=title, box=None, title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, part_ns in parts:
        table.add_row(name, f"{part_ns / _MS:.3f} ms")
    exact = "exactly the sum" if sum(p for _, p in parts) == total_ns else "NOT the sum"
    table.add_row(Text("total", style="bold"), f"{total_ns / _MS:.3f} ms")
    table.add_row("", Text(exact, style="dim"))
    return table


def usage_lines(completion: Completion) -> RenderableType:
    """Tokens, and where their KV came from and went."""
    usage = completion.usage
    timing = completion.timing
    decoded_s = (timing.e2e_ns - timing.ttft.total_ns) / 1e9
    rate = (usage.completion_tokens - 1) / decoded_s if decoded_s > 0 else 0.0
    moved = f"{completion.transfer_bytes / 2**20:.1f} MiB in {completion.transfer_ns / _MS:.1f} ms"
    times = f"{usage.migrations} time{'s' if usage.migrations > 1 else ''}"
    went = f"moved to other workers {times}: {usage.recomputed_tokens} tokens recomputed there"
    return Group(
        f"tokens: {usage.prompt_tokens} in, {usage.completion_tokens} out "
        f"({rate:.1f} tokens/s), finished by {completion.finish_reason}",
        f"prompt KV: {usage.computed_tokens} tokens computed by {completion.prefill_worker}, "
        f"{usage.cached_tokens} on {completion.decode_worker} already, "
        f"{usage.loaded_tokens} loaded from the store",
        f"moved {completion.prefill_worker} to {completion.decode_worker}: {moved}",
        *([went] if usage.migrations else []),
    )


def workers_table(workers: Sequence[WorkerStatus]) -> Table:
    """One line a worker; narrow enough for 80 columns. KV is counted in tokens; rest and spilt
    are sessions that rest on the device, and that went to the store so far."""
    layouts = {w.layout for w in workers} - {"tp=1"}
    table = Table(box=None, padding=(0, 1))
    for column in ("worker", "state", "address", *(["layout"] if layouts else [])):
        table.add_column(column, no_wrap=True)
    for column in ("KV free", "cached", "run", "wait", "rest", "spilt", "leaked", "store"):
        table.add_column(column, justify="right", no_wrap=True)
    for w in workers:
        table.add_row(
            w.worker_id,
            w.liveness,
            w.address,
            *([w.layout] if layouts else []),
            f"{w.free_blocks * w.block_tokens:,}",
            f"{w.cached_blocks * w.block_tokens:,}",
            str(w.running),
            str(w.waiting),
            str(w.sessions_inactive),
            str(w.sessions_spilled),
            str(w.leaked_blocks),
            "up" if w.store_available else "down",
        )
    return table


def links_lines(workers: Sequence[WorkerStatus]) -> str:
    """How KV reaches each worker, a line for each pair; and how evenly experts are loaded."""
    lines = [
        f"KV {link.source} to {w.worker_id} by {link.transport.value.replace('_', ' ')}: "
        f"{link.transfers:,} transfers, {link.bytes / 2**20:,.1f} MiB"
        for w in workers
        for link in w.links
    ]
    for w in workers:
        if total := sum(w.expert_tokens):
            shares = ", ".join(f"{count / total:.0%}" for count in w.expert_tokens)
            lines.append(f"experts of {w.worker_id}: {total:,} pairs, by rank {shares}")
    return "\n".join(lines)


def loads_lines(loads: ServerLoads) -> str:
    """The router's own load."""
    return (
        f"requests: {loads.active} active, {loads.waiting} waiting, "
        f"{loads.completed} completed, {loads.failed} failed, {loads.migrations} moved\n"
        f"prompt KV found: {_hits(loads.kv_index.prefill)} by prefill, "
        f"{_hits(loads.kv_index.decode)} by decode workers; "
        f"{loads.kv_index.blocks:,} blocks in the index"
    )


def _hits(hits: KvHits) -> str:
    predicted = hits.predicted_tokens / max(1, hits.prompt_tokens)
    return f"{hits.rate:.0%} (predicted {predicted:.0%})"
