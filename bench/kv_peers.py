"""Runs the scripts of `bench.peers` that can be run here.

The environment variable ``EASTWEST_BENCH_PEERS`` names a directory with a virtual environment for
each peer, ``mooncake`` and ``nixl``. One that is not there, or does not answer, is absent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

PEERS_VARIABLE = "EASTWEST_BENCH_PEERS"
KINDS = ("contiguous", "scattered")
# What is set where the environment says nothing else, for peers and for ourselves. NIXL over
# shared memory still needs TCP to notice that a peer has failed.
SETTINGS = {
    "MC_LOG_LEVEL": "ERROR",
    "NIXL_LOG_LEVEL": "ERROR",
    "UCX_TLS": "posix,sysv,cma,self,tcp",
}


class Peer:
    """One script, running until `close`. absent: it cannot be measured."""

    def __init__(self, environment: str, script: str, cores: tuple[int, int]) -> None:
        directory = Path(os.environ.get(PEERS_VARIABLE, "")) / environment
        python = directory / "bin" / "python"
        path = Path(__file__).parent / "peers" / script
        self.absent = PEERS_VARIABLE not in os.environ or not python.exists()
        if self.absent:
            return
        variables: Mapping[str, str] = {**SETTINGS, **os.environ}
        self._process = subprocess.Popen(
            [str(python), str(path), *map(str, cores)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=variables,
            text=True,
            start_new_session=True,
        )

    def seconds(self, kind: str) -> float | None:
        """Of one move of 256 MiB of `kind`; None where it is absent."""
        if self.absent:
            return None
        # Between two moves it stands still: some spin while they wait.
        os.killpg(self._process.pid, signal.SIGCONT)
        answer = self._ask(kind)
        if answer is None:
            self.absent = True
        else:
            os.killpg(self._process.pid, signal.SIGSTOP)
        return answer

    def close(self) -> None:
        """Idempotent."""
        if hasattr(self, "_process"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()

    def _ask(self, kind: str) -> float | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(kind, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("seconds "):
                return float(line.removeprefix("seconds "))
        return None
