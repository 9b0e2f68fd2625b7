"""Spare hosts: how many must stand by so that enough are up.

Hosts fail by themselves, each up a share `host_availability` of the time; a host takes its devices
with it. At least `needed` of n are up with probability P(Binomial(n, a) >= needed).
"""

from __future__ import annotations

import math

from eastwest.errors import ConfigError

HOST_AVAILABILITY = 0.99
_HOSTS_MAX = 100_000


def available(hosts: int, needed: int, host_availability: float = HOST_AVAILABILITY) -> float:
    """Probability that at least `needed` of `hosts` hosts are up."""
    up, down = math.log(host_availability), math.log1p(-host_availability)

    def exactly(n: int) -> float:
        ways = math.lgamma(hosts + 1) - math.lgamma(n + 1) - math.lgamma(hosts - n + 1)
        return math.exp(ways + n * up + (hosts - n) * down)

    return min(math.fsum(exactly(n) for n in range(needed, hosts + 1)), 1.0)


def most_used(hosts: int, target: float, host_availability: float = HOST_AVAILABILITY) -> int:
    """How many of `hosts` may be used so that as many are up with probability `target`; the
    others are spares. Raises `ConfigError` where not even one may."""
    if not 0 < target < 1 or not 0 < host_availability < 1:
        raise ConfigError(
            f"availability {target:g} of hosts that are each up {host_availability:g} of the time; "
            f"allowed: both above 0 and below 1, such as 0.999 and 0.99"
        )
    if not 1 <= hosts <= _HOSTS_MAX:
        raise ConfigError(f"{hosts} hosts; allowed: 1 to {_HOSTS_MAX}")
    for used in range(hosts, 0, -1):
        if available(hosts, used, host_availability) >= target:
            return used
    raise ConfigError(
        f"availability {target:g} cannot be had with {hosts} hosts that are each up "
        f"{host_availability:g} of the time; the best for one host's worth is "
        f"{available(hosts, 1, host_availability):.6g}"
    )
