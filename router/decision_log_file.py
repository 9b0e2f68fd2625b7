"""The decision log on disk: written behind the scheduler's back, bounded, and never in its way.

Entries wait in memory until `flush` writes them, from another thread. A file that has its share of
the bound is renamed (``.1``, in the place of the one before) and another begun; so is what a former
process left. Where writing fails the log is off from there on, which is said once. Entries that
come faster than they can be written are left out, and counted in the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from eastwest.clock import Clock
from eastwest.config import RouterConfig
from eastwest.errors import ConfigError
from router.cost_policy import DEFAULT_WEIGHTS
from router.decision_lines import Decoder, Encoder, Gap, Header
from router.decision_log import Entry

log = logging.getLogger(__name__)

# Between two flushes, and entries that may wait for one.
_FLUSH_S = 0.25
WAITING_MAX = 2048
# A longer line is none of ours.
_LINE_BYTES_MAX = 1 << 24


class DecisionLogFile:
    """See the module. max_bytes: of both files together. `write` may be called from one thread and
    `flush` from another."""

    def __init__(self, path: Path, max_bytes: int, header: Header, clock: Clock) -> None:
        self._path = path
        self._share = max_bytes // 2
        self._header = header
        self._clock = clock
        self._entries: deque[Entry] = deque()
        self._left_out = self._told_left_out = 0
        self._file: BinaryIO | None = None
        self._encoder = Encoder()
        self._size = 0
        self._stopping = asyncio.Event()
        self.off = False

    def write(self, entry: Entry) -> None:
        """Take an entry, which `flush` writes."""
        if self.off:
            return
        if len(self._entries) >= WAITING_MAX:
            self._left_out += 1
        else:
            self._entries.append(entry)

    def flush(self) -> None:
        """Write what waits. An error turns the log off."""
        if self.off:
            return
        try:
            if self._file is None:
                self._begin()
            for _ in range(len(self._entries)):
                self._put(self._entries.popleft())
            if gap := self._left_out - self._told_left_out:
                self._told_left_out += gap
                self._put(Gap(gap))
            assert self._file is not None
            self._file.flush()
        except OSError as error:
            log.warning("the decision log %s is off from here on: %s", self._path, error)
            self._end()

    def close(self) -> None:
        """Write what waits, and take no more. Idempotent."""
        self.flush()
        self._end()

    async def run(self) -> None:
        """Flush now and then until `stop`, then close. Without this, call `flush` and `close`."""
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_S):
                    await self._stopping.wait()
            await asyncio.to_thread(self.flush)
        await asyncio.to_thread(self.close)

    def stop(self) -> None:
        """Let `run` end."""
        self._stopping.set()

    def _put(self, entry: Entry | Gap) -> None:
        lines = self._encoder.lines(entry).encode()
        if self._size + len(lines) > self._share:
            self._header = replace(self._header, part=self._header.part + 1)
            self._begin()
            lines = self._encoder.lines(entry).encode()
        self._append(lines)

    def _append(self, lines: bytes) -> None:
        assert self._file is not None
        self._size += len(lines)
        self._file.write(lines)

    def _begin(self) -> None:
        """Another file, in the place of the one that is there."""
        if self._file is not None:
            self._file.close()
            self._file = None
        file = _locked(self._path)
        if file.tell():
            try:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            finally:
                file.close()
            file = _locked(self._path)
        self._file, self._encoder, self._size = file, Encoder(), 0
        header = replace(self._header, wall_s=self._clock.wall_s())
        self._append(self._encoder.lines(header).encode())

    def _end(self) -> None:
        self.off = True
        self._entries.clear()
        if self._file is not None:
            # What could not be written before will not be now.
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


def _locked(path: Path) -> BinaryIO:
    """The file, at its end. Of two routers with one path, none must take the other's file away."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise OSError("another process writes it") from error
    except OSError:
        file.close()
        raise
    return file


def decision_log_of(config: RouterConfig, clock: Clock) -> DecisionLogFile | None:
    """What `config` asks for; None where that is none."""
    if config.decision_log is None:
        return None
    header = Header(config.policy, config.conditional, DEFAULT_WEIGHTS.late)
    path = config.decision_log.expanduser()
    return DecisionLogFile(path, config.decision_log_mb << 20, header, clock)


class LogReader:
    """A decision log that was written. Raises `ConfigError` naming file and line. cut_off: whether
    the last line is not whole, known at the end; it is left out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.cut_off = False
        with self._opened() as file:
            line = file.readline(_LINE_BYTES_MAX)
        try:
            self.header = Decoder().header(line)
        except ValueError as error:
            raise self._wrong(1, error) from error

    def __iter__(self) -> Iterator[tuple[int, Entry | Gap]]:
        """Entries, with the numbers of their lines."""
        decoder = Decoder()
        with self._opened() as file:
            file.readline(_LINE_BYTES_MAX)
            number = 1
            while line := file.readline(_LINE_BYTES_MAX):
                number += 1
                try:
                    entry = decoder.entry(line)
                except ValueError as error:
                    if line.endswith(b"\n") or len(line) == _LINE_BYTES_MAX:
                        raise self._wrong(number, error) from error
                    self.cut_off = True
                    return
                if entry is not None:
                    yield number, entry

    def _opened(self) -> BinaryIO:
        try:
            return self._path.open("rb")
        except OSError as error:
            raise ConfigError(f"cannot read {self._path}: {error.strerror or error}") from error

    def _wrong(self, number: int, error: ValueError) -> ConfigError:
        return ConfigError(f"{self._path} line {number}: {error}")
