"""Rules about the code itself: sizes, generated code, settings, packaging."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import BaseModel

from eastwest.config import Config

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "eastwest", "engine", "kv_transfer", "kv_store", "runtime", "prefill_pool", "decode_pool",
    "router", "planner", "deploy", "bench", "sim",
)  # fmt: skip
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
SETTINGS_MAX = 68
# Modules that decide: told what happened and the time, they do no I/O and read no clock.
DECIDING = (
    "router/scheduler.py", "router/lifecycle.py", "router/attempt.py", "router/placement.py",
    "router/admission.py", "router/fair_queue.py",
    "router/fleet.py", "router/requests.py", "router/edge.py", "router/http/fields.py",
    "router/http/bodies.py", "router/http/answers.py", "router/http/failures.py",
    "prefill_pool/scheduler.py",
    "decode_pool/scheduler.py", "decode_pool/residency.py", "kv_transfer/plan.py",
    "kv_transfer/coverage.py", "kv_transfer/ledger.py", "kv_transfer/auditor.py",
    "kv_transfer/receiver.py", "kv_transfer/readiness.py", "kv_transfer/negotiate.py",
    "kv_transfer/explain.py", "kv_transfer/convert.py", "kv_store/circuit.py", "kv_store/codec.py",
    "engine/blocks.py", "engine/block_journal.py", "router/prefix_index.py", "router/kv_view.py",
    "router/policies.py", "router/drains.py", "router/decision_log.py", "router/decision_lines.py",
    "planner/fit.py",
    "planner/advice.py", "planner/closed_loop.py", "planner/cost.py", "planner/layouts.py",
    "planner/links.py", "planner/memory.py", "planner/model_shape.py", "planner/network.py",
    "planner/pairing.py", "planner/planning.py", "planner/precision.py", "planner/queueing.py",
    "planner/replicas.py", "planner/search.py", "planner/spares.py", "planner/split.py",
    "planner/steps.py", "planner/work.py", "planner/workload.py",
    "eastwest/blocks.py", "eastwest/layout.py", "eastwest/stopping.py", "eastwest/timing.py",
)  # fmt: skip
NOT_FOR_DECIDING = {"asyncio", "grpc", "redis", "ray", "time", "threading", "socket"}


def sources() -> Iterator[Path]:
    for room in (*ROOMS, "tests"):
        for path in sorted((ROOT / room).rglob("*.py")):
            if "v1" not in path.relative_to(ROOT).parts:
                yield path


@pytest.mark.parametrize("path", list(sources()), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_can_be_read_in_one_sitting(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if "tests" not in path.relative_to(ROOT).parts:
        assert len(text.splitlines()) <= FILE_LINES_MAX
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("room", ROOMS)
def test_every_file_says_what_it_is_responsible_for(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        if "v1" not in path.parts:
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


@pytest.mark.parametrize("name", DECIDING)
def test_deciding_modules_do_no_io(name: str) -> None:
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.split(".")[0])
    assert not imported & NOT_FOR_DECIDING


def test_generated_code_is_that_of_the_proto_files(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is part of the lint extra")
    command = [sys.executable, "-m", "eastwest.generate_proto", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
    fresh = {p.name: p.read_bytes() for p in (tmp_path / "eastwest" / "v1").iterdir()}
    assert fresh
    for name, content in fresh.items():
        assert (ROOT / "eastwest" / "v1" / name).read_bytes() == content, name


@pytest.mark.parametrize("path", sorted((ROOT / "proto").rglob("*.proto")), ids=lambda p: p.name)
def test_every_field_on_the_wire_is_documented(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    field = re.compile(r"\s+(optional |repeated )?[\w.]+ \w+ = \d+;")
    for above, line in pairwise(lines):
        assert not field.match(line) or above.strip().startswith("//"), line.strip()


def test_the_configuration_stays_small() -> None:
    def leaves(section: type[BaseModel]) -> int:
        count = 0
        for field in section.model_fields.values():
            kind = field.annotation
            nested = isinstance(kind, type) and issubclass(kind, BaseModel)
            count += leaves(kind) if nested else 1  # type: ignore[arg-type]
        return count

    # The three pools share one section.
    pools = 2 * leaves(type(Config().decode))
    assert leaves(Config) - pools <= SETTINGS_MAX


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_belongs_to_this_distribution(room: str) -> None:
    assert set(metadata.packages_distributions().get(room, [])) <= {"eastwest"}
    assert (ROOT / room / "__init__.py").exists()


def test_the_public_face_and_the_router_need_no_heavy_library() -> None:
    code = (
        "import sys, eastwest, eastwest.client, router.server\n"
        "heavy = {'torch', 'ray', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
