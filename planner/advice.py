"""One sentence of advice, with its reason: what to do, by how much, and why."""

from __future__ import annotations

from collections.abc import Mapping

from planner.quantity import seconds_text
from planner.split import Mode, Split, Targets
from planner.workload import Workload

_VERBS = {
    Mode.AGGREGATED: "Do not disaggregate",
    Mode.DISAGGREGATED: "Disaggregate",
    Mode.CONDITIONAL: "Disaggregate conditionally",
}


def advise(
    workload: Workload,
    targets: Targets,
    best: Split,
    by_mode: Mapping[Mode, Split | None],
    level: float,
) -> str:
    """The sentence for `best` against the other ways of serving; splits that differ by less than
    `level` are called level."""
    aggregated = by_mode[Mode.AGGREGATED]
    others = [s for s in by_mode.values() if s is not None and s.mode is not best.mode]
    within = (
        f"{_rate(best)} requests/s within TTFT {seconds_text(targets.ttft_s)} and TPOT "
        f"{seconds_text(targets.tpot_s)} for {targets.percentile:.0%}"
    )
    head = f"{_VERBS[best.mode]}: {describe(best)} serve {within} of requests"
    if not others:
        return f"{head}; no other way of serving meets both targets."
    rival = max(others, key=lambda s: s.rate)
    if best.mode is not Mode.AGGREGATED and aggregated is not None:
        rival = aggregated
    against = f"{rival.mode} serving ({describe(rival)}: {_rate(rival)})"
    if best.rate < rival.rate * (1 + level):
        return f"{head}, level with {against}: the simpler of two that are level."
    times = best.rate / rival.rate
    return f"{head}, {times:.2f} times as many as {against}, {_reason(workload, best, rival)}."


def describe(split: Split) -> str:
    """Pools in words: ``5 prefill replicas of pp=8 and 1 decode replica of ep=32,dp=32``."""
    parts = []
    for pool in split.pools:
        replicas = "replica" if pool.replicas == 1 else "replicas"
        parts.append(f"{pool.replicas} {pool.role} {replicas} of {pool.layout}")
    words = " and ".join(parts)
    if split.mode is Mode.CONDITIONAL:
        words += f" (prompts of up to {split.local_tokens:,.0f} fresh tokens stay on decode)"
    return words


def _rate(split: Split) -> str:
    """Requests per second in three digits, never as a power of ten."""
    return f"{split.rate:,.0f}" if split.rate >= 100 else f"{split.rate:.3g}"


def _reason(workload: Workload, best: Split, rival: Split) -> str:
    ratio = workload.fresh / workload.osl
    shape = f"{ratio:.2g} prompt tokens are computed for each one of an answer"
    if best.mode is Mode.AGGREGATED:
        idle = [p.role for p in rival.pools if p.load < 0.9]
        spare = f", and the {idle[0]} pool of the split would stand partly idle" if idle else ""
        return (
            f"because {shape} and its steps have room for prompts, which take "
            f"{best.prompt_share:.0%} of them{spare}"
        )
    if rival.mode is Mode.AGGREGATED:
        return (
            f"because {shape}, which would take {rival.prompt_share:.0%} of each aggregated step "
            f"away from the answers and hold its batch at {rival.pools[0].batch:,.0f}"
        )
    return f"because {shape}"
