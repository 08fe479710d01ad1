"""From settings to an engine: which pools, which control connections, which policies."""

from __future__ import annotations

import math
import random
import time
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from dbguard.config.values import Secret
from dbguard.core.breaker import BreakerPolicy
from dbguard.core.flap import Flaps
from dbguard.core.gate import Gate
from dbguard.core.merge import Topology
from dbguard.core.retry import RetryPolicy
from dbguard.core.router import ReadPolicy
from dbguard.core.state import GuardState
from dbguard.drivers.asyncpg.borrow import Lender
from dbguard.drivers.asyncpg.borrowed import BorrowedControl
from dbguard.drivers.asyncpg.dial import Dialer
from dbguard.drivers.asyncpg.driver import Asyncpg
from dbguard.drivers.asyncpg.pool import OwnPool
from dbguard.drivers.asyncpg.wrapped import WrappedPool
from dbguard.drivers.base import WrongNode
from dbguard.drivers.control import OwnControl
from dbguard.drivers.marks import Marks
from dbguard.drivers.registry import Registry
from dbguard.runtime.engine import Engine
from dbguard.runtime.monitor import Monitor, Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dbguard.config.settings import Connection, FailoverSettings, NodeSettings, Settings
    from dbguard.core.topology import Sighting
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
    names = [node.name for node in settings.nodes]
    state = GuardState(
        Topology(
            names,
            new_mark=lambda: uuid.uuid4().hex,
            split_brain=settings.failover.split_brain,
            system_id=settings.cluster.system_id,
            max_loss=None if (loss := settings.failover.max_loss) == "none" else loss,
        ),
        clock=clock,
        rng=chance,
        retry=RetryPolicy(
            attempts=settings.retry.attempts,
            contention_attempts=None if (most := settings.retry.contention_attempts) == "unlimited" else most,
            budget=settings.retry.budget,
            floor=settings.retry.floor,
            wait=wait,
            stop=stop,
        ),
        breaker=_breaker(settings),
        gate=_gate(settings.failover),
        reads=ReadPolicy(
            from_replicas=settings.reads.from_ == "replicas",
            max_lag=settings.reads.max_lag,
            balance=settings.reads.balance,
        ),
        weights={node.name: node.weight for node in settings.nodes},
        addresses={
            node.name: node.name if node.name == node.address else f"{node.name} ({node.address})"
            for node in settings.nodes
        },
        observe=settings.mode == "observe",
        wall=time.time,
    )
    _set_breakers(state, settings)
    probe = settings.probe
    pools: dict[str, Any] = {}
    controls: dict[str, Any] = {}
    own: list[OwnPool] = []
    registries: dict[str, Any] = {}
    tokens = settings.outcome.resolve == "token-table"

    def check(seen: Sighting) -> None:
        heed(state.met(seen))

    def check_claim(seen: Sighting) -> None:
        heed(state.met_to_claim(seen))

    def heed(refusal: str | None) -> None:
        engine.flush()
        if refusal is not None:
            raise WrongNode(refusal)

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
                check=check,
                ask_within=probe.timeout * 4,
                hold=given.hold,
                max_lifetime=settings.pool.max_lifetime,
                max_idle=settings.pool.max_idle,
            )
            controls[node.name] = BorrowedControl(node.name, pool, clock=clock, marks=marks, follows=given.follows)
            if tokens:
                lender = Lender(pool, node.name)
                registries[node.name] = Registry(node.name, lender.dial, check_claim, clock=clock, give=lender.give)
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
            check=check,
            ask_within=settings.connection.connect_timeout,
            rng=chance,
            init=arguments.get("init"),
            setup=arguments.get("setup"),
            foreign=arguments.get("connect") is not None,
        )
        own.append(opened)
        if tokens:
            registries[node.name] = Registry(node.name, dialer.registry, check_claim, clock=clock)
        controls[node.name] = OwnControl(
            node.name, dialer.control, clock=clock, marks=marks, has_strayed=dialer.strayed
        )
    engine = Engine(
        state,
        pools,
        Asyncpg(),
        acquire_timeout=settings.pool.acquire_timeout,
        drain_timeout=settings.failover.drain_timeout,
        registries=registries,
    )
    pace = Pace(interval=probe.interval, jitter=probe.jitter, limit=probe.timeout, urgent=probe.urgent)
    return engine, Monitor(engine, controls, pace, keeps_marks=tokens and not looks_only), own


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


def _gate(failover: FailoverSettings) -> Gate:
    allowed = None if failover.flap_changes == "unlimited" else failover.flap_changes
    first, most = failover.flap_stay
    flaps = Flaps(allowed, failover.flap_window, first=first, most=most)
    return Gate(failover.max_wait, failover.max_waiting, flaps=flaps)


def _breaker(settings: Settings) -> BreakerPolicy:
    given = settings.breaker
    return BreakerPolicy(
        consecutive=given.consecutive,
        min_failures=given.min_failures,
        ratio=given.ratio,
        window=given.window,
        open_min=given.open[0],
        open_max=given.open[1],
        jitter=given.jitter,
    )


def _set_breakers(state: GuardState, settings: Settings) -> None:
    now = state.clock()
    for node in state.nodes.values():
        match settings.breaker.state:
            case "forced_open":
                node.breaker.force_open(now, "breaker.state")
            case "disabled":
                node.breaker.disable(now, "breaker.state")
            case "metrics_only":
                node.breaker.metrics_only(now, "breaker.state")
            case _:
                continue
