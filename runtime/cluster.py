"""A Ray cluster: a private local one that leaves nothing behind, or one that runs already."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
from pathlib import Path

import ray

from eastwest.errors import ConfigError

NAMESPACE = "eastwest"

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
            # Short: paths of Unix sockets below it have little more than 100 bytes.
            self._directory = Path(tempfile.mkdtemp(prefix="eastwest-ray-"))
            ray.init(
                num_cpus=cpus,
                namespace=NAMESPACE,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=_OBJECT_STORE_BYTES,
                _temp_dir=str(self._directory),
            )
        except (ConnectionError, RuntimeError, OSError, ValueError) as error:
            self.close()
            where = address or "a local cluster"
            raise ConfigError(f"cannot start or reach Ray ({where}): {error}") from error
        finally:
            # Ray takes these over; how this process ends is for its owner to say.
            if threading.current_thread() is threading.main_thread():
                for number, handler in handlers.items():
                    signal.signal(number, handler)

    def close(self) -> None:
        """Disconnect; a local cluster ends and its files go. Idempotent."""
        ray.shutdown()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
