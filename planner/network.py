"""Time of collectives on a device's networks: a latency that is measured, then bytes.

Inside one scale-up domain all ranks reach each other at its bandwidth. A group that is larger
spans domains: it reduces inside each first, then between them over the scale-out network, and pays
both latencies.
"""

from __future__ import annotations

import math

from planner.hardware import Device
from planner.stacks import Stack


class Network:
    """Collectives among ranks that are placed side by side, domain by domain."""

    def __init__(self, device: Device, stack: Stack) -> None:
        self._domain = device.scale_up.domain
        self._up = device.scale_up.bytes_per_s * device.efficiency.link
        self._out = device.scale_out.bytes_per_s * device.efficiency.link
        self._device = device
        self._stack = stack

    def all_reduce(self, size: float, ranks: int) -> float:
        """Of `size` bytes on each rank: ``2 (n-1)/n`` of them over each link."""
        return self._reduce(size, ranks, 2.0)

    def all_gather(self, size: float, ranks: int) -> float:
        """So that each rank has all `size` bytes: ``(n-1)/n`` of them over each link."""
        return self._reduce(size, ranks, 1.0)

    def all_to_all(self, size: float, copies: float, ranks: int) -> float:
        """Where each rank sends `size` bytes of tokens, each token to `copies` other ranks at
        random: once to each rank inside its domain, and once to each other domain that has any of
        them, where it is passed on."""
        if ranks <= 1:
            return 0.0
        domains = math.ceil(ranks / self._domain)
        if domains == 1:
            return self._latency(ranks) + size * copies / self._up
        elsewhere = (domains - 1) * (1 - math.pow(1 - 1 / domains, copies))
        return self._latency(ranks) + max(size * copies / self._up, size * elsewhere / self._out)

    def send(self, size: float, span: int) -> float:
        """From one rank to the next, of `span` ranks in a row."""
        if span <= self._domain:
            return self._device.scale_up.latency_s + self._stack.collective_s + size / self._up
        return self._device.scale_out.latency_s + self._stack.collective_s + size / self._out

    def _reduce(self, size: float, ranks: int, rounds: float) -> float:
        if ranks <= 1:
            return 0.0
        inside = min(ranks, self._domain)
        seconds = self._latency(ranks) + rounds * (inside - 1) / inside * size / self._up
        domains = math.ceil(ranks / self._domain)
        if domains > 1:
            seconds += rounds * (domains - 1) / domains * size / inside / self._out
        return seconds

    def _latency(self, ranks: int) -> float:
        up = self._device.scale_up
        inside = min(ranks, self._domain)
        seconds = self._stack.collective_s
        if inside > 1:
            seconds += up.latency_s + up.latency_per_doubling_s * (math.log2(inside) - 1)
        if ranks > self._domain:
            domains = math.ceil(ranks / self._domain)
            seconds += self._device.scale_out.latency_s * math.ceil(math.log2(domains))
        return seconds
