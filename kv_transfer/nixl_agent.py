"""NIXL as far as it is needed here, where it is installed: host memory over UCX.

NIXL ships for several CUDA versions under several names, without types. This file is the only one
that knows; it turns the library's errors into typed ones.

With version 1.5.1 a process that made an agent crashes in the library when the interpreter ends,
after all else is done; its exit status says nothing then.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from eastwest.errors import Phase, TransferFailed

_NAMES = ("nixl._api", "nixl_cu12._api", "nixl_cu13._api")
_HOST_MEMORY = "DRAM"
# How long an agent's thread sleeps, at most, before it looks what came over TCP.
PROGRESS_US = 100
# ``[address, length, device]`` rows.
Places = npt.NDArray[np.uint64]


def nixl_problem() -> str:
    """Why this process cannot move host memory by NIXL; "" where it can."""
    try:
        Agent().close()
    except TransferFailed as error:
        return error.message
    return ""


def places(base: int, pieces: Sequence[tuple[int, int]]) -> Places:
    """Of ``(offset, length)`` pieces of the memory at address `base`."""
    rows = np.zeros((len(pieces), 3), np.uint64)
    rows[:, :2] = np.array(pieces, np.uint64).reshape(-1, 2)
    rows[:, 0] += np.uint64(base)
    return rows


class Agent:
    """One NIXL agent. Every method raises `TransferFailed` for what NIXL refuses."""

    def __init__(self) -> None:
        self._api = _library()
        if self._api is None:
            raise TransferFailed("nixl is not installed", phase=Phase.TRANSFER)
        bindings = importlib.import_module(self._api.nixlBind.__name__)
        self._errors = tuple(
            kind
            for kind in vars(bindings).values()
            if isinstance(kind, type) and issubclass(kind, Exception)
        )
        self.name = f"eastwest-{os.urandom(8).hex()}"
        self._registered: dict[int, tuple[Any, npt.NDArray[np.uint8]]] = {}  # by address
        with self._typed("making an agent"):
            try:
                self._agent = _made(self._api, self.name)
            except AttributeError as error:
                raise TransferFailed(
                    f"this version of nixl is another one than is known here: {error}",
                    phase=Phase.TRANSFER,
                ) from error

    def register(self, memory: npt.NDArray[np.uint8]) -> int:
        """Make `memory` a source and target of transfers, and keep it; its address."""
        address = memory.ctypes.data
        with self._typed("registering memory"):
            row = [(address, memory.nbytes, 0, "")]
            self._registered[address] = self._agent.register_memory(row, _HOST_MEMORY), memory
        return address

    def unregister(self, address: int) -> None:
        """Undo `register`; nothing moves there any more."""
        with self._typed("releasing memory"):
            self._agent.deregister_memory(self._registered.pop(address)[0])

    def metadata(self) -> bytes:
        """What another agent needs to reach all that is registered."""
        with self._typed("describing memory"):
            described: bytes = self._agent.get_agent_metadata()
        return described

    def add(self, metadata: bytes) -> str:
        """Get to know another agent; its name."""
        with self._typed("reaching the receiver"):
            name: bytes = self._agent.add_remote_agent(metadata)
        return name.decode()

    def remove(self, name: str) -> None:
        with self._typed("forgetting the receiver"):
            self._agent.remove_remote_agent(name)

    def begin(self, operation: str, own: Places, theirs: Places, name: str) -> Any:
        """Start to WRITE or READ; a handle for `done` and `release`."""
        with self._typed(operation):
            handle = self._agent.initialize_xfer(
                operation,
                self._agent.get_xfer_descs(own, _HOST_MEMORY),
                self._agent.get_xfer_descs(theirs, _HOST_MEMORY),
                name,
            )
            self._agent.transfer(handle)
        return handle

    def done(self, handle: Any) -> bool:
        with self._typed("moving KV"):
            state = self._agent.check_xfer_state(handle)
        if state == "ERR":
            raise TransferFailed("NIXL could not move KV", phase=Phase.TRANSFER)
        return bool(state == "DONE")

    def release(self, handle: Any) -> None:
        with self._typed("ending a transfer"):
            self._agent.release_xfer_handle(handle)

    def tell(self, name: str, note: bytes) -> None:
        """Send a note to another agent, after what has been written to it."""
        with self._typed("telling the receiver"):
            self._agent.send_notif(name, note)

    def notes(self) -> Iterator[tuple[str, bytes]]:
        """``(agent, note)`` of what others have told since the last call."""
        with self._typed("listening to senders"):
            told: dict[str, list[bytes]] = self._agent.get_new_notifs()
        for name, notes in told.items():
            for note in notes:
                yield name, note

    def close(self) -> None:
        """Idempotent, never raises. What cannot be released now goes with the process."""
        for address in list(self._registered):
            with contextlib.suppress(TransferFailed):
                self.unregister(address)

    @contextlib.contextmanager
    def _typed(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise TransferFailed(f"NIXL: {what}: {error}", phase=Phase.TRANSFER) from error


def _made(api: Any, name: str) -> Any:
    """An agent whose thread sleeps while nothing moves. As the library makes them, it spins: that
    takes a core of every process, idle ones too."""
    agent = api.nixl_agent(name, api.nixl_agent_config(backends=[], enable_prog_thread=False))
    config = api.nixlBind.nixlAgentConfig()
    config.useProgThread, config.useListenThread = True, False
    config.syncMode = api.nixl_thread_sync_t.NIXL_THREAD_SYNC_NONE.value
    config.pthrDelay = PROGRESS_US
    agent.agent = api.nixlBind.nixlAgent(name, config)
    agent.create_backend("UCX")
    return agent


def _library() -> Any:
    for name in _NAMES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None
