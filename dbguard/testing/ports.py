"""Ports that two clusters on one machine do not both take.

The kernel lends the ports of its ephemeral range to outgoing connections, so a port there can be taken although
nobody listens on it: ports are chosen below that range, by chance. A node that is down must keep its port for its
return, so each port is *claimed* for the cluster's whole life by binding the UDP port of the same number, which
PostgreSQL does not use. The claim ends with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

from dbguard.testing.processes import ClusterError

__all__ = ["claim_ports"]

HOST = "127.0.0.1"
_FLOOR = 20_000  # above the ports that development servers like to use
_LEAST = 1_000  # fewer ports than this are too few to choose from
_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def claim_ports(count: int) -> list[socket.socket]:
    """Claim *count* ports of the loopback interface; each is ``s.getsockname()[1]``, and free again once *s* is closed.

    Another program may still take a claimed port before the server binds it: then choose again.
    Raises ClusterError if there are not that many.
    """
    pool = list(_choice())
    random.SystemRandom().shuffle(pool)  # not the seeded generator: two test runs with one seed must not collide
    claims: list[socket.socket] = []
    for port in pool:
        if (claim := _claim(port)) is not None:
            claims.append(claim)
        if len(claims) == count:
            return claims
    for claim in claims:
        claim.close()
    raise ClusterError(f"there are no {count} free ports on {HOST} from {min(pool)} to {max(pool)}")


def _choice() -> range:
    low, high = 49_152, 65_535  # what the registry of port numbers calls dynamic, where the system does not say
    with contextlib.suppress(OSError, ValueError):
        low, high = map(int, _RANGE_FILE.read_text().split())
    if low - _FLOOR >= _LEAST:
        return range(_FLOOR, low)
    if 65_536 - (high + 1) >= _LEAST:
        return range(high + 1, 65_536)
    return range(_FLOOR, 32_768)  # everything is lent out: whoever starts on a port must try again


def _claim(port: int) -> socket.socket | None:
    claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        claim.bind((HOST, port))
        with socket.socket() as probe:  # without SO_REUSEADDR: stricter than PostgreSQL, so it will do for PostgreSQL
            probe.bind((HOST, port))
    except OSError:
        claim.close()
        return None
    return claim
