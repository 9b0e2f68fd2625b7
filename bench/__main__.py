"""The benchmarks' command line: ``python -m bench list | NAME | all [--quick] [--json FILE]``."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import deploy.quiet  # noqa: F401 - before anything that imports gRPC

NAMES = (
    "budgets", "engine", "kv_transfer", "kv_store", "serving", "overlap", "planner", "policies",
    "prefix_index", "resume", "router", "sim", "operate",
)  # fmt: skip
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", choices=[*NAMES, "all", "list"])
    parser.add_argument("--quick", action="store_true", help="a rough figure within a minute")
    parser.add_argument("--json", type=Path, help="where to write the results")
    arguments = parser.parse_args()
    if arguments.name == "list":
        print("\n".join(NAMES))
        return 0
    chosen = NAMES if arguments.name == "all" else (arguments.name,)
    for name in chosen:
        report = _run(name, quick=arguments.quick)
        _show(report)
        path = arguments.json or RESULTS / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def _run(name: str, *, quick: bool) -> dict[str, Any]:
    module = importlib.import_module(f"bench.{name}")
    return {
        "name": name,
        "commit": _commit(),
        "machine": _machine(),
        "config": {"quick": quick},
        "results": module.run(quick),
    }


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    cores = 0
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        cpu, cores = (names[0] if names else cpu), len(names)
    return {"cpu": cpu, "cores": cores, "python": platform.python_version()}


def _show(report: dict[str, Any]) -> None:
    table = Table(title=f"{report['name']} at {report['commit']}, {report['machine']['cpu']}")
    for column in ("metric", "value", "unit", "against", "its value", "ratio", "goal", "met"):
        table.add_column(column)
    for row in report["results"]:
        table.add_row(
            row["metric"],
            _number(row["value"]),
            row["unit"],
            row["against"] or "",
            _number(row["against_value"]),
            _number(row["ratio"]),
            str(row["goal"] or ""),
            {True: "yes", False: "no", None: ""}[row["met"]],
        )
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def _number(value: float | None) -> str:
    return "absent" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(main())
