"""A Ray cluster: a private local one that leaves nothing behind, or one that runs already."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
import warnings
from pathlib import Path

import psutil
import ray

from eastwest.errors import ConfigError

log = logging.getLogger(__name__)

NAMESPACE = "eastwest"
# Starts of a local cluster that are tried.
STARTS_MAX = 3

# Ray reads these when it is imported or started; workers inherit them.
_ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Anyone on this machine could otherwise use a local cluster. Set once a process, since Ray
# remembers it; without it Ray writes a token of its own into the home directory.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TOKEN = "RAY_AUTH_TOKEN"

# No tensor and no token goes through the object store, so Ray's least is enough.
_OBJECT_STORE_BYTES = 80 << 20


class Cluster:
    """Connects this process to Ray; `close` ends what was begun here."""

    def __init__(self, address: str | None, cpus: int) -> None:
        """address: of a running cluster, or None for a local one with `cpus` logical CPUs.

        Raises `ConfigError` where the cluster cannot be reached.
        """
        os.environ.update(_ENVIRONMENT)
        if address is None and _TOKEN not in os.environ:
            os.environ[_TOKEN] = secrets.token_hex(32)
        self._directory: Path | None = None
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        try:
            if address is not None:
                ray.init(address=address, namespace=NAMESPACE, log_to_driver=False)
                return
            self._start(cpus)
        except (ConnectionError, RuntimeError, OSError, ValueError) as error:
            self.close()
            where = address or "a local cluster"
            raise ConfigError(f"cannot start or reach Ray ({where}): {error}") from error
        finally:
            # Ray takes these over; how this process ends is for its owner to say.
            if threading.current_thread() is threading.main_thread():
                for number, handler in handlers.items():
                    signal.signal(number, handler)

    def _start(self, cpus: int) -> None:
        """A local cluster. One of Ray's processes now and then dies as it starts, or is too slow
        on a busy machine: then everything is begun again, a few times."""
        for attempt in range(1, STARTS_MAX + 1):
            # Short: paths of Unix sockets below it have little more than 100 bytes.
            self._directory = Path(tempfile.mkdtemp(prefix="eastwest-ray-"))
            try:
                ray.init(
                    num_cpus=cpus,
                    namespace=NAMESPACE,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    _temp_dir=str(self._directory),
                )
                return
            except Exception as error:  # noqa: BLE001 - Ray raises nothing narrower
                log.warning("Ray did not start (%d of %d): %s", attempt, STARTS_MAX, error)
                reason = str(error)
            _end_processes_of(self._directory)
            self.close()
        raise RuntimeError(reason)

    def close(self) -> None:
        """Disconnect; a local cluster ends and its files go. Idempotent."""
        ray.shutdown()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
            _forget_processes()


def _end_processes_of(directory: Path) -> None:
    """End what a start that failed has left running."""
    left = [
        process
        for process in psutil.Process().children(recursive=True)
        if str(directory) in " ".join(_command_of(process))
    ]
    for process in left:
        process.kill()
    psutil.wait_procs(left)


def _forget_processes() -> None:
    """Let go of Ray's handles of processes that it has not waited for, which would complain of it
    whenever they are found."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def _command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []  # it has ended
