"""Freed memory is kept: the next large buffer costs no page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Prints how many pages 50 rounds of two 1 MiB buffers make the system hand out, before and after.
PROGRAM = """
import resource
from eastwest.heap import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def rounds():
    before = faults()
    for _ in range(50):
        one = bytearray(b"x") * (1 << 20)
        other = bytearray(b"x") * (1 << 20)
        del one, other
    return faults() - before

rounds()
without = rounds()
set_up = keep_freed_memory()
rounds()
print(set_up, without, rounds())
"""


def test_large_buffers_are_reused_without_page_faults() -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    set_up, without, kept = done.stdout.split()
    if set_up == "False":
        pytest.skip("the C library has no mallopt")
    assert int(kept) < 512
    assert int(kept) <= int(without)
