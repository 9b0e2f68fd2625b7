"""NIXL over UCX, whose ways are chosen by ``UCX_TLS``: one-sided writes, unchecked."""

from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt
from nixl._api import nixl_agent, nixl_agent_config
from pair import TOTAL_BYTES, Move, Pieces, run, some_bytes

Bytes = npt.NDArray[np.uint8]


def _agent(name: str, memory: Bytes) -> nixl_agent:
    agent = nixl_agent(name, nixl_agent_config(backends=["UCX"]))
    agent.register_memory([(memory.ctypes.data, memory.nbytes, 0, "")], "DRAM")
    return agent


def target(connection: Connection) -> None:
    memory = np.zeros(TOTAL_BYTES, np.uint8)
    agent = _agent("target", memory)
    connection.send((agent.get_agent_metadata(), memory.ctypes.data))
    connection.recv()


def initiator(connection: Connection) -> Move:
    memory = some_bytes(1)
    agent = _agent("initiator", memory)
    metadata, base = connection.recv()
    name = agent.add_remote_agent(metadata)

    def places(start: int, pieces: Pieces) -> Any:
        rows = np.array([(start + offset, length, 0) for offset, length in pieces], np.uint64)
        return agent.get_xfer_descs(rows, "DRAM")

    def move(source: Pieces, destination: Pieces) -> None:
        handle = agent.initialize_xfer(
            "WRITE", places(memory.ctypes.data, source), places(base, destination), name
        )
        state = agent.transfer(handle)
        while state == "PROC":
            state = agent.check_xfer_state(handle)
        assert state == "DONE", state
        agent.release_xfer_handle(handle)

    return move


if __name__ == "__main__":
    run(target, initiator)
