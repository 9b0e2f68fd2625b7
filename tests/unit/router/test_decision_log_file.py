"""The decision log on disk: bounded, harmless where it cannot be written, and read with care."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eastwest.clock import SystemClock
from eastwest.errors import ConfigError
from eastwest.testing.builders import a_worker
from eastwest.types import Role, Slo
from router.decision_lines import Gap, Header
from router.decision_log import Asked, Choice, Ended, Entry, Sight, Subject
from router.decision_log_file import WAITING_MAX, DecisionLogFile, LogReader
from router.pace import Factors

HEADER = Header("cost", conditional=True, late=10.0)
SUBJECTS = [Subject(a_worker("p0", Role.PREFILL), {}), Subject(a_worker("d0"), {})]


def an_entry(number: int = 1) -> Asked:
    """A question in which everything has changed since the one before."""
    pace = Factors(1.5, 0.5, 2.0, 1.1, 3.0)
    seen = [Sight(s, (number,) * 10, (number,) * 3, (16, 32), pace) for s in SUBJECTS]
    slo = Slo(1.0, 0.1)
    return Asked(number, number, 0, 300, 0, 10, slo, 1, 128.0, tuple(seen), Choice(0, 1, 20))


def a_log(path: Path, max_bytes: int = 1 << 20) -> DecisionLogFile:
    return DecisionLogFile(path, max_bytes, HEADER, SystemClock())


def written(path: Path, entries: list[Entry]) -> list[bytes]:
    """The lines of a log of these."""
    log = a_log(path)
    for entry in entries:
        log.write(entry)
    log.close()
    return path.read_bytes().splitlines(keepends=True)


def numbers(path: Path) -> list[int]:
    """Of the requests in a log."""
    return [entry.request for _, entry in LogReader(path) if isinstance(entry, Asked)]


def test_both_files_together_stay_within_the_bound_and_each_can_be_read(tmp_path: Path) -> None:
    path, former = tmp_path / "log", tmp_path / "log.1"
    bound = 16_384
    log = a_log(path, bound)
    for number in range(1, 301):
        log.write(an_entry(number))
        log.flush()
        assert path.stat().st_size + (former.stat().st_size if former.exists() else 0) <= bound
    log.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "log.1"]
    kept = numbers(former) + numbers(path)
    assert kept == list(range(kept[0], 301))
    assert LogReader(path).header.part == LogReader(former).header.part + 1 > 1


def test_what_a_former_process_left_is_kept_beside(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        written(tmp_path / "log", [an_entry(number)])
    assert numbers(tmp_path / "log.1") == [2]
    assert numbers(tmp_path / "log") == [3]
    assert LogReader(tmp_path / "log").header.part == 0


@pytest.mark.parametrize("reason", ["full", "gone", "later"])
def test_where_it_cannot_be_written_it_is_off_with_one_warning(
    reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "there" / "log"
    if reason == "full":
        path = tmp_path / "log"
        path.symlink_to("/dev/full")
    log = a_log(path, max_bytes=8192)
    if reason == "later":
        path.parent.mkdir()
        log.write(an_entry())
        log.flush()
        path.unlink()
        path.parent.rmdir()
    with caplog.at_level(logging.WARNING):
        for number in range(1, 101):
            log.write(an_entry(number))
            log.flush()
        log.close()
    (record,) = caplog.records
    assert f"the decision log {path} is off from here on" in record.message
    assert log.off


def test_of_two_that_have_one_path_the_second_is_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = a_log(tmp_path / "log"), a_log(tmp_path / "log")
    first.write(an_entry(1))
    first.flush()
    second.write(an_entry(2))
    second.flush()
    first.write(an_entry(3))
    first.close()
    assert (first.off, second.off) == (True, True)
    assert "another process writes it" in caplog.text
    assert numbers(tmp_path / "log") == [1, 3]


def test_what_comes_faster_than_it_is_written_is_left_out_and_counted(tmp_path: Path) -> None:
    log = a_log(tmp_path / "log", 1 << 30)
    for number in range(WAITING_MAX + 5):
        log.write(an_entry(number))
    log.flush()
    log.write(an_entry(7))
    log.close()
    entries = [entry for _, entry in LogReader(tmp_path / "log")]
    gaps = [entry for entry in entries if isinstance(entry, Gap)]
    assert gaps == [Gap(5)]
    assert len(entries) == WAITING_MAX + 2


def test_a_last_line_that_is_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = written(path, [an_entry(1), an_entry(2)])
    for left in (1, len(lines[-1]) // 2, len(lines[-1]) - 2):
        path.write_bytes(b"".join(lines[:-1]) + lines[-1][:left])
        reader = LogReader(path)
        assert [number for number, _ in reader] == [4]
        assert reader.cut_off
    path.write_bytes(b"".join(lines)[:-1])  # whole, but for its end
    reader = LogReader(path)
    assert [number for number, _ in reader] == [4, 5]
    assert not reader.cut_off


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (1, lambda v: v.update(version=1), "version is 1; allowed: 3"),
        (1, lambda v: v.update(format="mine"), "this is no decision log"),
        (1, lambda v: v.update(policy="best"), "policy"),
        (2, lambda v: v.update(number=3), "worker 3 is told; allowed: 0"),
        (2, lambda v: v["info"].update(step_tokens=0), "allowed: above 0"),
        (2, lambda v: v["info"].update(role="cook"), "role"),
        (2, lambda v: v["info"]["model"]["kv"].update(dtype="bits"), "has KV of 'bits'; allowed"),
        (4, lambda v: v.update(among=[0, 7]), "worker 7 is not known"),
        (4, lambda v: v["seen"].pop("1"), "worker 1 is chosen among, and nothing is told of it"),
        (4, lambda v: v.update(placed=[0, 5, 1]), "it is placed on worker 5"),
        (4, lambda v: v.update(prompt=-1), "prompt"),
        (4, lambda v: v.update(slo={"ttft_s": 1.0}), "slo has ttft_s; allowed: ttft_s, tpot_s"),
        (
            4,
            lambda v: v["seen"].update({"0": [[1], None, [1, 1, 1, 1, 1]]}),
            "worker 0 is seen with 1",
        ),
        (5, lambda v: v.update(kind="other"), "kind"),
        (5, lambda v: v.update(kind="header", policy="cost", conditional=True, late=1), "second"),
    ],
)
def test_a_line_that_makes_no_sense_is_named_with_its_file(
    tmp_path: Path, line: int, change: Change, message: str
) -> None:
    path = tmp_path / "log"
    lines = written(path, [an_entry(), Ended(1, 2, "completed", 3, 0, 0.1, 0.1)])
    values = json.loads(lines[line - 1])
    if message == "second":
        values = {}
    change(values)
    lines[line - 1] = json.dumps(values).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(ConfigError) as caught:
        list(LogReader(path))
    assert str(path) in caught.value.message
    assert f"line {line}: " in caught.value.message
    assert message in caught.value.message


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x00\xff\n", b"[]\n", b'{"format":1}\n'])
def test_what_is_no_log_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="line 1: this is no decision log"):
        LogReader(path)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfigError, match="cannot read"):
            LogReader(path)


def test_garbage_within_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = written(path, [an_entry(1), replace(an_entry(2), placed=None)])
    path.write_bytes(b"".join([*lines[:3], b"{]\n", *lines[3:]]))
    with pytest.raises(ConfigError, match="log line 4: "):
        list(LogReader(path))
