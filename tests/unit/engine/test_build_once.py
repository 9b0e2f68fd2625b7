"""A directory that is built once, whole or not at all."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from eastwest.errors import ModelError
from engine.build_once import build_once


def test_the_target_appears_whole_and_alone(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"

    def build(directory: Path) -> None:
        (directory / "file").write_text("content")
        assert not target.exists()

    assert build_once(target, build) == target
    assert (target / "file").read_text() == "content"
    assert [p.name for p in target.parent.iterdir()] == ["target"]


def test_callers_at_the_same_time_build_once_and_all_see_it_whole(tmp_path: Path) -> None:
    target = tmp_path / "target"
    building, waiting = threading.Event(), threading.Semaphore(0)
    builds, seen = [], []

    def build(directory: Path) -> None:
        builds.append(directory)
        building.set()
        for _ in range(3):
            assert waiting.acquire(timeout=30)
        (directory / "file").write_text("content")

    def call() -> None:
        seen.append((build_once(target, build, waiting.release) / "file").read_text())

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert building.is_set()
    assert len(builds) == 1
    assert seen == ["content"] * 4
    assert [p.name for p in tmp_path.iterdir()] == ["target"]


def test_a_failed_build_leaves_nothing_and_the_next_starts_afresh(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def fail(directory: Path) -> None:
        (directory / "half").write_text("made")
        raise ModelError("cut off")

    with pytest.raises(ModelError, match="cut off"):
        build_once(target, fail)
    assert not target.exists()
    assert not list(tmp_path.rglob("half"))
    build_once(target, lambda directory: (directory / "file").touch())
    assert [p.name for p in target.iterdir()] == ["file"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    program = """
import sys
from pathlib import Path
from engine.build_once import build_once

def build(directory):
    (directory / "half").write_text("made")
    print("building", flush=True)
    sys.stdin.read()

build_once(Path(sys.argv[1]), build)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"building\n"
        assert not target.exists()
        process.kill()
    assert list(tmp_path.rglob("half"))
    build_once(target, lambda directory: (directory / "file").touch())
    assert [p.name for p in target.iterdir()] == ["file"]
    assert [p.name for p in tmp_path.iterdir()] == ["target"]


def test_a_cache_that_cannot_be_written_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="cannot fill the model cache"):
        build_once(tmp_path / "file" / "target", lambda directory: None)
