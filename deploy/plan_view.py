"""A plan on a terminal: one sentence, the ways of serving side by side, and what changes them."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.advice import describe
from planner.planning import Change, Plan
from planner.quantity import seconds_text
from planner.split import Pool, Split


def plan_view(plan: Plan) -> RenderableType:
    """Everything that a person decides by; figures are predictions, and say so."""
    q = plan.question
    w = q.workload
    about = (
        f"{q.model.name} ({q.precision.experts}, KV in {q.precision.kv}) on {q.devices} x "
        f"{q.device.name}, engine as {q.stack.name}\n"
        f"prompts of {w.isl:,.0f} tokens ({w.fresh:,.0f} to compute), answers of {w.osl:,.0f}; "
        f"TTFT {seconds_text(q.targets.ttft_s)} and TPOT {seconds_text(q.targets.tpot_s)} for "
        f"{q.targets.percentile:.0%} of requests"
    )
    parts: list[RenderableType] = [about, "", Text(plan.advice, style="bold"), "", _modes(plan)]
    parts += ["", _frontier(plan), "", _changes(plan), "", _needs(plan), _spares(plan), ""]
    return Group(*parts, _trust(plan))


def _modes(plan: Plan) -> Table:
    """One column for each way of serving, the best one bold."""
    table = Table(title="ways of serving (predicted)", title_justify="left", box=None)
    table.add_column("")
    for mode, split in plan.by_mode.items():
        best = split is plan.best
        table.add_column(mode.value, style="bold" if best else None, overflow="fold")
    percent = f"p{plan.question.targets.percentile * 100:g}"
    rows: list[tuple[str, Callable[[Split], str]]] = [
        ("pools", lambda s: _lines(s.pools, _shape)),
        ("devices", lambda s: str(s.devices)),
        ("requests/s", lambda s: f"{s.rate:,.0f}" if s.rate >= 100 else f"{s.rate:.3g}"),
        ("tokens/s/GPU", lambda s: f"{s.tokens_per_s_per_device:,.0f}"),
        ("tokens/s/user", lambda s: f"{s.tokens_per_s_per_user:.0f}"),
        (f"TTFT {percent}", lambda s: seconds_text(s.ttft_s)),
        (f"TPOT {percent}", lambda s: seconds_text(s.tpot_s)),
        ("decode batch", lambda s: f"{s.pools[-1].batch:,.0f}"),
        ("prompt chunk", lambda s: f"{_chunk(s):,}"),
        ("load of pools", lambda s: " + ".join(f"{pool.load:.0%}" for pool in s.pools)),
        ("bound by", lambda s: s.bound),
    ]
    if plan.question.price_per_hour > 0:
        rows.append(("$/M tokens", lambda s: f"{plan.dollars_per_million_tokens(s):.2f}"))
    for i, (name, value) in enumerate(rows):
        missing = "misses the targets" if i == 0 else "-"
        splits = plan.by_mode.values()
        table.add_row(name, *(missing if s is None else value(s) for s in splits))
    return table


def _frontier(plan: Plan) -> Table:
    """Tokens/s/GPU that each way reaches at a speed for the user."""
    table = Table(
        title="tokens/s/GPU, at tokens/s/user of at least", title_justify="left",
        box=None,
    )  # fmt: skip
    table.add_column("")
    speeds = (10, 20, 30, 50, 75, 100, 150, 200, 300)
    reached = {
        mode: [_at_least(splits, speed) for speed in speeds]
        for mode, splits in plan.frontiers.items()
    }
    shown = [i for i in range(len(speeds)) if any(row[i] for row in reached.values())]
    for i in shown:
        table.add_column(str(speeds[i]), justify="right")
    for mode, row in reached.items():
        table.add_row(mode.value, *(f"{row[i]:,.0f}" if row[i] else "-" for i in shown))
    return table


def _at_least(splits: list[Split], speed: float) -> float:
    within = [s.tokens_per_s_per_device for s in splits if s.tokens_per_s_per_user >= speed]
    return max(within, default=0.0)


def _changes(plan: Plan) -> Table:
    table = Table(title="what if", title_justify="left", box=None)
    for column in ("", "best", "req/s", "this plan's split"):
        table.add_column(column, justify="right" if column == "req/s" else "left")
    for change in plan.changes:
        table.add_row(*_change_row(plan, change))
    return table


def _change_row(plan: Plan, change: Change) -> tuple[str, str, str, str]:
    if change.best is None:
        return change.what, "no split meets both targets", "", "misses them"
    same = _pools(change.best) == _pools(plan.best) and change.best.mode is plan.best.mode
    best = "the same" if same else f"{change.best.mode.value}: {describe(change.best)}"
    kept = change.kept / change.best.rate
    words = f"serves {kept:.0%} of it" if change.kept else "misses the targets"
    return change.what, best, f"{change.best.rate:.3g}", words


def _needs(plan: Plan) -> str:
    needs = plan.needs
    lines = []
    if needs.link_used:
        enough = "enough" if needs.link_used <= needs.link_has else "NOT ENOUGH"
        lines.append(
            f"links: {needs.link_used / 1e9:.2f} GB/s of KV for each device of the smaller pool, "
            f"of {needs.link_has / 1e9:.0f} GB/s ({needs.link_kind}): {enough}"
        )
    lines.append(
        f"store: loading KV beats computing it above {needs.store_worth / 1e9:.2f} GB/s a replica "
        f"({needs.kv_bytes_per_token / 1024:.0f} KiB a token)"
    )
    return "\n".join(lines)


def _spares(plan: Plan) -> str:
    spare = f"{plan.spares} of {plan.question.devices} devices stand by" if plan.spares else (
        "no device stands by"
    )  # fmt: skip
    return f"spares: {spare}; all that is used is up {plan.up:.2%} of the time (hosts: 99 %)"


def _trust(plan: Plan) -> str:
    measured = plan.question.device.measured
    basis = "measured on this device" if measured else "assumed from a relative, NOT measured"
    return f"kernel efficiencies: {basis}; engine terms: {plan.question.stack.source or 'given'}"


def _pools(split: Split) -> list[tuple[str, str, int]]:
    return [(pool.role, str(pool.layout), pool.replicas) for pool in split.pools]


def _lines(pools: tuple[Pool, ...], part: Callable[[Pool], str]) -> str:
    return "\n".join(part(pool) for pool in pools)


def _shape(pool: Pool) -> str:
    return f"{pool.replicas} {pool.role} x {pool.layout}"


def _chunk(split: Split) -> int:
    """Of the pool that computes most prompts."""
    return split.pools[0].chunk_tokens
