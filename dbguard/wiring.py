"""From settings to an engine: which pools, which control connections, which policies."""

from __future__ import annotations

import math
import random
import time
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from dbguard.assembly import Checks, new_engine, new_state
from dbguard.config.values import Secret
from dbguard.drivers.asyncpg.borrow import Lender
from dbguard.drivers.asyncpg.borrowed import BorrowedControl
from dbguard.drivers.asyncpg.dial import Dialer
from dbguard.drivers.asyncpg.driver import Asyncpg
from dbguard.drivers.asyncpg.pool import OwnPool
from dbguard.drivers.asyncpg.wrapped import WrappedPool
from dbguard.drivers.control import OwnControl
from dbguard.drivers.marks import Marks
from dbguard.drivers.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dbguard.config.settings import Connection, NodeSettings, Settings
    from dbguard.runtime.engine import Engine
    from dbguard.runtime.monitor import Monitor
    from dbguard.wrapping import Wrapped

__all__ = ["connect_arguments", "wire"]


def wire(
    settings: Settings,
    arguments: Mapping[str, Any],
    wrapped: Mapping[str, Wrapped] | None = None,
    *,
    wait: object | None = None,
    stop: object | None = None,
    looks_only: bool = False,
    clock: Callable[[], float] = time.monotonic,
    rng: random.Random | None = None,
) -> tuple[Engine, Monitor, list[OwnPool]]:
    """Make the parts and tie them together; nothing is dialled. Needs a running loop.

    arguments: what was given beside the settings, in the words of `asyncpg.create_pool`.
    wrapped: the application's own pools by node name; None: the guard opens its own.
    looks_only: nothing is to be written, not even the mark of a reign.
    """
    chance = rng or random.Random()  # noqa: S311  jitter, not secrets
    size: int = arguments.get("max_size", settings.pool.max_size)
    state = new_state(settings, clock=clock, rng=chance, wait=wait, stop=stop, addressed=wrapped is None)
    checks = Checks(state)
    probe = settings.probe
    pools: dict[str, Any] = {}
    controls: dict[str, Any] = {}
    own: list[OwnPool] = []
    registries: dict[str, Any] = {}
    tokens = settings.outcome.resolve == "token-table"

    for node in settings.nodes:
        target = state.nodes[node.name]
        marks = Marks(clock=clock) if tokens else None
        if wrapped is not None:
            given = wrapped[node.name]
            pool = given.pool
            pools[node.name] = WrappedPool(
                target,
                pool,
                clock=clock,
                check=checks.met,
                ask_within=probe.timeout * 4,
                hold=given.hold,
                max_lifetime=settings.pool.max_lifetime,
                max_idle=settings.pool.max_idle,
            )
            controls[node.name] = BorrowedControl(node.name, pool, clock=clock, marks=marks, follows=given.follows)
            if tokens:
                lender = Lender(pool, node.name)
                registries[node.name] = Registry(
                    node.name, lender.dial, checks.met_to_claim, clock=clock, give=lender.give
                )
            continue
        dialer = Dialer(connect_arguments(settings.connection, node), arguments)
        pools[node.name] = opened = OwnPool(
            target,
            partial(dialer.pool, size),
            clock=clock,
            size=size,
            keep=arguments.get("min_size", settings.pool.min_size),
            hold=_hold(settings, arguments),
            max_lifetime=settings.pool.max_lifetime,
            max_idle=settings.pool.max_idle,
            max_uses=arguments.get("max_queries", math.inf),
            dial=dialer.dial,
            check=checks.met,
            ask_within=settings.connection.connect_timeout,
            rng=chance,
            init=arguments.get("init"),
            setup=arguments.get("setup"),
            foreign=arguments.get("connect") is not None,
        )
        own.append(opened)
        if tokens:
            registries[node.name] = Registry(node.name, dialer.registry, checks.met_to_claim, clock=clock)
        controls[node.name] = OwnControl(
            node.name, dialer.control, clock=clock, marks=marks, has_strayed=dialer.strayed
        )
    engine, monitor = new_engine(settings, state, checks, pools, Asyncpg(), controls, registries, looks_only=looks_only)
    return engine, monitor, own


def connect_arguments(connection: Connection, node: NodeSettings) -> dict[str, Any]:
    """Return the arguments of `asyncpg.connect` for *node*; what the settings leave out is left to the driver."""
    said: dict[str, Any] = {"host": node.host, "port": node.port, "timeout": connection.connect_timeout}
    for name in ("user", "database", "passfile", "krbsrvname", "gsslib"):
        value = getattr(connection, name)
        if value is not None:
            said[name] = value
    password = connection.password
    if password is not None:
        said["password"] = password.reveal() if isinstance(password, Secret) else password
    tls = connection.tls()
    if tls:
        # asyncpg takes the mode as an argument, and the rest of what libpq knows of TLS in a DSN alone.
        said["dsn"] = f"postgresql://?{urlencode(tls)}"
    said["statement_cache_size"] = connection.statement_cache_size
    said["server_settings"] = dict(connection.server_settings)
    return said


def _hold(settings: Settings, arguments: Mapping[str, Any]) -> int:
    """How many leases stay out between calls: none where hooks of the application's must run at each checkout."""
    if arguments.get("setup") is not None or arguments.get("reset") is not None:
        return 0
    size: int = arguments.get("max_size", settings.pool.max_size)
    return size if settings.pool.hold == "auto" else settings.pool.hold
