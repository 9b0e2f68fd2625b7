"""What `bench.router` measures: our router and its peers, each with two prefill and two decode
workers that take no time, as processes on this machine.

``EASTWEST_BENCH_PEERS`` names a directory with a virtual environment for each peer: ``dynamo``,
``vllm-router`` and ``smg``. One that is not there, or does not come up, is absent.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.kv_peers import PEERS_VARIABLE
from eastwest.config import Config
from engine.catalog import resolve_model

_READY_S = 90.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_HTTP_WORKER = Path(__file__).parent / "peers" / "http_worker.py"
WORKERS = (("prefill-0", "prefill"), ("prefill-1", "prefill"), ("decode-0", "decode"),
           ("decode-1", "decode"))  # fmt: skip


class Absent(Exception):
    """Cannot be measured here; says why."""


class Stack:
    """Processes, running from `start` to `close`.

    http, grpc: where its routers listen. routers: their processes. worker: one that a client can
    talk to without a router, where there is such a thing.
    """

    name = ""

    def __init__(self) -> None:
        self.http: list[str] = []
        self.grpc: list[str] = []
        self.worker: str | None = None
        self.routers: list[subprocess.Popen[str]] = []
        self._all: list[subprocess.Popen[str]] = []
        self._directory = tempfile.TemporaryDirectory()

    def start(self) -> None:
        """Returns when it serves; raises `Absent`."""
        raise NotImplementedError

    def close(self) -> None:
        """End all processes. Idempotent."""
        for process in reversed(self._all):
            if process.stdout is None:
                process.terminate()
            elif process.stdin is not None:
                process.stdin.close()  # which ours end with
        for process in self._all:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._all.clear()
        self._directory.cleanup()

    def router_cpu_s(self) -> float:
        """CPU time that its routers have taken."""
        return sum(_cpu_s(process.pid) for process in self.routers)

    def worker_cpu_s(self) -> float:
        """CPU time that all of its other processes have taken."""
        return sum(_cpu_s(process.pid) for process in self._all if process not in self.routers)

    def spawn(
        self, command: Sequence[object], variables: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """A process of this stack."""
        log = Path(self._directory.name) / f"{len(self._all)}.log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if command[0] == sys.executable else errors,
                stderr=errors,
                text=True,
                env={**os.environ, **(variables or {})},
            )
        self._all.append(process)
        return process


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _told(process: subprocess.Popen[str]) -> list[str]:
    """What a process of ours says that it serves at."""
    assert process.stdout is not None
    words = process.stdout.readline().split()
    if not words or words[0] != "ready":
        raise Absent("a process did not start")
    return words[1:]


class Ours(Stack):
    """So many routers over the same workers, which take `step_ms` for a step. whole: these are
    replicas as deployed, which move KV, and no stand-ins."""

    name = "eastwest"

    def __init__(self, routers: int = 1, step_ms: float = 0.0, *, whole: bool = False) -> None:
        super().__init__()
        self._count = routers
        self._step = ["--step-ms", step_ms]
        self._whole = whole

    def start(self) -> None:
        host = [sys.executable, "-m", "bench.router_host"]
        if self._whole:
            begun = [(name, self.spawn([*host, "worker", name, role, *self._step]))
                     for name, role in WORKERS]  # fmt: skip
            workers = [f"{name}={_told(process)[0]}" for name, process in begun]
        else:
            workers = _told(self.spawn([*host, "stand-ins", *self._step]))
        model = model_dir()
        self.routers = [self.spawn([*host, "router", model, *workers]) for _ in range(self._count)]
        for router in self.routers:
            grpc, http = _told(router)
            self.grpc.append(grpc)
            self.http.append(http)


class Peer(Stack):
    """A stack of others, from the virtual environment of that name."""

    def bin(self, command: str) -> Path:
        """A command of its environment. Raises `Absent`."""
        root = os.environ.get(PEERS_VARIABLE)
        path = Path(root or "") / self.name / "bin" / command
        if root is None or not path.exists():
            raise Absent(f"{self.name} is not installed where {PEERS_VARIABLE} says")
        return path

    def serve(self, port: int) -> None:
        """Until a request is answered at `port`; raises `Absent` where none is."""
        self.http = [f"127.0.0.1:{port}"]
        body = b'{"model": "simulated", "prompt": "1 2 3", "max_tokens": 2, "ignore_eos": true}'
        headers = {"content-type": "application/json"}
        url = f"http://{self.http[0]}/v1/completions"
        until = time.perf_counter() + _READY_S
        while time.perf_counter() < until:
            if any(process.poll() is not None for process in self._all):
                break
            try:
                asked = urllib.request.Request(url, body, headers)
                with urllib.request.urlopen(asked, timeout=10):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise Absent(f"{self.name} does not come up")


class Dynamo(Peer):
    """Its frontend with the KV router, and its own simulated workers, all over TCP and ZeroMQ."""

    name = "dynamo"

    def start(self) -> None:
        python = self.bin("python")
        port, *bootstrap = free_ports(3)
        variables = {
            "DYN_FILE_KV": f"{self._directory.name}/kv",
            "DYN_LOG": "warn",
            "HF_HUB_OFFLINE": "1",
        }
        planes = ["--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq"]
        mocker = [
            python, "-m", "dynamo.mocker", *planes, "--model-path", model_dir(), "--model-name",
            "simulated", "--num-workers", 2, "--speedup-ratio", 1000, "--block-size", 64,
            "--num-gpu-blocks-override", 20000, "--disaggregation-mode",
        ]  # fmt: skip
        ports = ",".join(map(str, bootstrap))
        self.spawn([*mocker, "prefill", "--bootstrap-ports", ports], variables)
        self.spawn([*mocker, "decode"], variables)
        frontend = [python, "-m", "dynamo.frontend", *planes, "--router-mode", "kv", "--http-host",
                    "127.0.0.1", "--http-port", port]  # fmt: skip
        self.routers = [self.spawn(frontend, variables)]
        self.serve(port)


class _OverHttp(Peer):
    """A router between workers that speak HTTP, which are our stand-ins."""

    def workers(self) -> list[str]:
        begun = [(role, self.spawn([sys.executable, _HTTP_WORKER, role])) for _, role in WORKERS]
        told = [(role, _told(process)[0]) for role, process in begun]
        self.worker = told[-1][1]
        return [part for role, where in told for part in (f"--{role}", f"http://{where}")]

    def serve_with(self, command: list[object]) -> None:
        port, metrics = free_ports(2)
        where = ["--host", "127.0.0.1", "--port", port, "--prometheus-port", metrics]
        self.routers = [self.spawn([*command, *where], {"HF_HUB_OFFLINE": "1"})]
        self.serve(port)


class VllmRouter(_OverHttp):
    """In its P/D mode for vLLM."""

    name = "vllm-router"

    def start(self) -> None:
        command = self.bin("vllm-router")
        mode = ["--vllm-pd-disaggregation", "--kv-connector", "nixl", "--log-level", "error"]
        self.serve_with([command, *mode, *self.workers()])


class Smg(_OverHttp):
    """In its P/D mode."""

    name = "smg"

    def start(self) -> None:
        command = self.bin("smg")
        mode = ["launch", "--pd-disaggregation", "--log-level", "error"]
        self.serve_with([command, *mode, *self.workers()])


def model_dir() -> Path:
    """The default model, whose tokenizer all routers that have one use."""
    return resolve_model(Config().model)


def free_ports(count: int) -> list[int]:
    """Ports that nobody has at the moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
