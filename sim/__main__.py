"""``python -m sim chaos``: storms by seed."""

from __future__ import annotations

import argparse
import logging
import sys

from rich.console import Console

from eastwest.clock import SystemClock, seconds
from sim.chaos import run_seed, summary


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    chaos = commands.add_parser("chaos", help="faults at random times; everything is SIMULATED")
    chaos.add_argument("--seeds", type=int, default=200, help="how many, from --seed on")
    chaos.add_argument("--seed", type=int, help="the first one; alone: only this one")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    first = arguments.seed or 0
    count = 1 if arguments.seed is not None and "--seeds" not in sys.argv else arguments.seeds
    return _chaos(range(first, first + count))


def _chaos(seeds: range) -> int:
    console, clock, results = Console(highlight=False), SystemClock(), []
    begun_ns = clock.now_ns()
    for seed in seeds:
        try:
            results.append(run_seed(seed))
        except (AssertionError, TimeoutError) as error:
            console.print(f"seed {seed} FAILS: {error}", markup=False)
            for note in getattr(error, "__notes__", []):
                console.print(note, markup=False)
            return 1
    total, spent = summary(results), seconds(clock.now_ns() - begun_ns)
    console.print(
        f"{len(results)} seeds, SIMULATED: {total.requests:,} requests, {total.completed:,} "
        f"completed, {total.failed:,} failed with one typed error each; {total.virtual_s:,.0f} "
        f"virtual seconds in {spent:.1f} s, {total.events / spent:,.0f} events/s; digest "
        f"{total.digest}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
