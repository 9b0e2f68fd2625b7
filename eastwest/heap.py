"""Tells the C allocator to keep what is freed, for processes that move large buffers all the time.

By default glibc returns a freed megabyte to the system at once, and each new one costs hundreds
of page faults: more than copying it. Frames and tensors of a worker are such buffers.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MMAP_BYTES = 32 << 20  # the most that glibc accepts
_KEEP_BYTES = 128 << 20


def keep_freed_memory() -> bool:
    """Set this for the whole process; false where the C library has no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES))
