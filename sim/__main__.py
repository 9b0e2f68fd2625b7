"""``python -m sim chaos``: storms by seed; ``decisions``: a decision log asked again."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import get_args

from rich.console import Console

from eastwest.clock import SystemClock, seconds
from eastwest.config import Policy
from eastwest.errors import ConfigError
from sim.chaos import Result, run_seed, summary
from sim.decisions import Replay
from sim.decisions_report import show


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    chaos = commands.add_parser("chaos", help="faults at random times; everything is SIMULATED")
    chaos.add_argument("--seeds", type=int, default=200, help="how many, from --seed on")
    chaos.add_argument("--seed", type=int, help="the first one; alone: only this one")
    cores = os.cpu_count() or 1
    chaos.add_argument("--jobs", type=int, default=cores, help="processes; by default, one a core")
    decisions = commands.add_parser(
        "decisions", help="put the questions of a router's decision log again"
    )
    decisions.add_argument("file", type=Path, help="what router.decision_log names")
    decisions.add_argument("--policy", choices=get_args(Policy), help="by default as recorded")
    decisions.add_argument("--late", type=float, help="weight of what is late, of policy cost")
    decisions.add_argument("--conditional", action=argparse.BooleanOptionalAction)
    decisions.add_argument("--show", type=int, default=5, help="how many that differ, in words")
    arguments = parser.parse_args()
    if arguments.command == "decisions":
        return _decisions(arguments)
    first = arguments.seed or 0
    count = 1 if arguments.seed is not None and "--seeds" not in sys.argv else arguments.seeds
    return _chaos(range(first, first + count), max(1, min(arguments.jobs, count)))


def _decisions(arguments: argparse.Namespace) -> int:
    """0 where what must be the same is; 1 where it is not, 2 where nothing could be asked."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        late = arguments.late
        if late is not None and not 0 <= late < math.inf:
            raise ConfigError(f"--late is {late}; allowed: 0 and above")
        replay = Replay.of(arguments.file, arguments.policy, arguments.conditional, late)
        return 0 if show(replay, arguments.show, console) else 1
    except ConfigError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(error.message, markup=False)
        return 2


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
