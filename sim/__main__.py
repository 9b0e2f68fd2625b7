"""``python -m sim chaos``: storms by seed."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from rich.console import Console

from eastwest.clock import SystemClock, seconds
from sim.chaos import Result, run_seed, summary


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    chaos = commands.add_parser("chaos", help="faults at random times; everything is SIMULATED")
    chaos.add_argument("--seeds", type=int, default=200, help="how many, from --seed on")
    chaos.add_argument("--seed", type=int, help="the first one; alone: only this one")
    cores = os.cpu_count() or 1
    chaos.add_argument("--jobs", type=int, default=cores, help="processes; by default, one a core")
    arguments = parser.parse_args()
    first = arguments.seed or 0
    count = 1 if arguments.seed is not None and "--seeds" not in sys.argv else arguments.seeds
    return _chaos(range(first, first + count), max(1, min(arguments.jobs, count)))


def _chaos(seeds: range, jobs: int) -> int:
    """Each storm is of one thread; several run beside each other."""
    console, clock = Console(highlight=False), SystemClock()
    results: list[Result] = []
    begun_ns = clock.now_ns()
    with ProcessPoolExecutor(
        jobs, initializer=logging.disable, initargs=(logging.CRITICAL,)
    ) as pool:
        try:
            results.extend(pool.map(run_seed, seeds, chunksize=4))
        except (AssertionError, TimeoutError) as error:
            pool.shutdown(cancel_futures=True)
            console.print(f"seed {seeds[len(results)]} FAILS: {error}", markup=False)
            for note in getattr(error, "__notes__", []):
                console.print(note, markup=False)
            return 1
    total, spent = summary(results), seconds(clock.now_ns() - begun_ns)
    console.print(
        f"{len(results)} seeds, SIMULATED: {total.requests:,} requests, {total.completed:,} "
        f"completed, {total.failed:,} failed with one typed error each; {total.virtual_s:,.0f} "
        f"virtual seconds in {spent:.1f} s, {total.events / spent:,.0f} events/s "
        f"with --jobs {jobs}; digest "
        f"{total.digest}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
