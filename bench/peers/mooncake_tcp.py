"""Mooncake's transfer engine over TCP: one-sided writes, unchecked."""

from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt
from mooncake.engine import TransferEngine
from pair import TOTAL_BYTES, Move, Pieces, run, some_bytes

Bytes = npt.NDArray[np.uint8]

# Pieces at once; some thousands make it reset its connection.
BATCH = 128


def _engine(memory: Bytes) -> TransferEngine:
    engine = TransferEngine()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
    assert engine.register_memory(memory.ctypes.data, memory.nbytes) == 0
    return engine


def target(connection: Connection) -> None:
    memory = np.zeros(TOTAL_BYTES, np.uint8)
    engine = _engine(memory)
    connection.send((f"127.0.0.1:{engine.get_rpc_port()}", memory.ctypes.data))
    connection.recv()


def initiator(connection: Connection) -> Move:
    memory = some_bytes(1)
    engine = _engine(memory)
    session, base = connection.recv()

    def move(source: Pieces, destination: Pieces) -> None:
        for start in range(0, len(source), BATCH):
            own, theirs = source[start : start + BATCH], destination[start : start + BATCH]
            done = engine.batch_transfer_sync_write(
                session,
                [memory.ctypes.data + offset for offset, _ in own],
                [base + offset for offset, _ in theirs],
                [length for _, length in own],
            )
            assert done == 0, done

    return move


if __name__ == "__main__":
    run(target, initiator)
