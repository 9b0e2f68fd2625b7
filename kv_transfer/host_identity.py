"""Which processes can map each other's shared pools: equal identities, and only they, can.

A pool is opened through ``/proc/PID/fd``, so both sides need the same running kernel, the same
process ids and the same user. Linux on 64 bits only: elsewhere nothing is shared.
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

_PROC = Path("/proc")


def host_identity() -> str:
    """Of this process; "" where it can share no memory, or that cannot be told."""
    try:
        boot_id = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        processes = (_PROC / "self/ns/pid").readlink().name
        users = (_PROC / "self/ns/user").readlink().name
        # Another namespace's /proc numbers processes differently.
        same_proc = int((_PROC / "self").readlink().name) == os.getpid()
    except (OSError, ValueError):
        return ""
    if not same_proc or not _has_system_calls():
        return ""
    return f"{boot_id} {processes} {users} user:{os.getuid()}"


def _has_system_calls() -> bool:
    needed = (hasattr(os, "memfd_create"), hasattr(os, "pidfd_open"), hasattr(fcntl, "F_OFD_SETLK"))
    return all(needed) and sys.maxsize > 2**32
