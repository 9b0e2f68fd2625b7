"""Latency of one replica that a fixed number of clients keep busy, each asking as soon as it is
answered: how serving engines are usually measured.

An aggregated engine mixes prompts into its decode steps. While one request decodes, each of the
others passes through its prompt once, and the step that carries that prompt is longer by it:

    TPOT = D + (c - 1) f S / (OSL - 1)        D: decode step, S: what a prompt adds to a step
    TTFT = request + D/2 + D + S + queue + burst

f is the share of a client's time that is spent decoding. The queue is that of an M/D/1 server that
is busy with prompts for a share rho of the time. Measured runs begin with all clients at once, and
finished clients come back together: `burst` prompts a client wait for each other.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.cost import CostModel, Row

# Prompts before a new one, in a mean over a measured run, for each client: a tenth of the requests
# of a usual run (ten a client) begin in its first burst and wait for half of it, and bursts echo.
BURST = 0.08
_ROUNDS = 30


@dataclass(frozen=True, slots=True)
class Latency:
    """Means, in seconds. prompts_busy: share of time that the engine works on prompts."""

    ttft_s: float
    tpot_s: float
    prompts_busy: float


def closed_loop(
    cost: CostModel,
    isl: float,
    osl: float,
    clients: int,
    chunk_tokens: int = 8192,
    burst: float = BURST,
) -> Latency:
    """TTFT and TPOT of an aggregated replica under `clients` clients."""
    decoding, busy = 1.0, 0.0
    ttft = tpot = 0.0
    for _ in range(_ROUNDS):
        running = max(1.0, clients * decoding)
        decode_row = Row(1, isl + osl / 2, running)
        step = cost.step([decode_row]).seconds
        added = sum(
            cost.step([decode_row, chunk]).seconds - step for chunk in chunks(isl, chunk_tokens)
        )
        tpot = step + (clients - 1) * decoding * added / max(osl - 1, 1)
        rate = clients / (ttft + (osl - 1) * tpot) if ttft else 0.0
        busy = min(0.95, rate * added)
        queue = busy / (2 * (1 - busy)) * added
        ttft_next = (
            cost.stack.request_s + 1.5 * step + added + queue + burst * (clients - 1) * added
        )
        if abs(ttft_next - ttft) <= 1e-4 * ttft_next:
            ttft = ttft_next
            break
        ttft = ttft_next if not ttft else (ttft + ttft_next) / 2
        decoding = (osl - 1) * tpot / (ttft + (osl - 1) * tpot)
    return Latency(ttft, tpot, busy)


def chunks(isl: float, chunk_tokens: int) -> list[Row]:
    """A prompt as the steps that compute it."""
    rows, past = [], 0.0
    while past < isl:
        new = min(chunk_tokens, isl - past)
        rows.append(Row(new, past, 1, samples=past + new >= isl))
        past += new
    return rows
