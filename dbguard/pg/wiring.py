"""From settings to an engine over psycopg, for both colours."""

from __future__ import annotations

import math
import random
import time
from typing import TYPE_CHECKING, Any

from dbguard.assembly import Checks, new_engine, new_state
from dbguard.core.state import GuardState
from dbguard.drivers.catalogue import read_catalogue
from dbguard.drivers.control import OwnControl
from dbguard.drivers.marks import Marks
from dbguard.drivers.psycopg.dial import OF_CONNECT, Dialer, dialer_of_pool, of_tasks, own_dialer
from dbguard.drivers.psycopg.driver import Psycopg
from dbguard.drivers.psycopg.line import AsyncLine, SyncLine
from dbguard.drivers.psycopg.pool import OwnPool
from dbguard.drivers.psycopg.wrapped import WrappedPool
from dbguard.drivers.registry import Registry
from dbguard.errors import NoPrimary
from dbguard.login import libpq_keywords
from dbguard.refresh import READ_WITHIN
from dbguard.runtime.colour import ASYNCIO, Threads
from dbguard.runtime.shared import SharedFlights, SharedState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from dbguard.config.settings import Settings
    from dbguard.core.catalogue import Catalogue
    from dbguard.drivers.base import Colour, OwnedPool
    from dbguard.runtime.engine import Engine
    from dbguard.runtime.monitor import Monitor
    from dbguard.wrapping import Wrapped

__all__ = ["catalogue_over", "wire"]


def wire(
    settings: Settings,
    arguments: Mapping[str, Any],
    wrapped: Mapping[str, Wrapped] | None,
    colour: Colour,
    *,
    wait: object | None = None,
    stop: object | None = None,
) -> tuple[Engine, Monitor, list[OwnedPool], dict[str, Dialer]]:
    """Make the parts and tie them together; nothing is dialled. Runs on the guard's loop.

    arguments: what was given beside the settings, in the words of `psycopg_pool`. wrapped: the application's own pools by
    node name; None: the guard opens its own. Returns the dialers by node name as well.
    """
    clock, chance = time.monotonic, random.Random()  # noqa: S311  jitter, not secrets
    threads = colour if isinstance(colour, Threads) else None

    def make(*given: Any, **options: Any) -> GuardState:
        return SharedState(*given, lock=colour.lock, **options) if threads else GuardState(*given, **options)

    state = new_state(settings, clock=clock, rng=chance, wait=wait, stop=stop, make=make, addressed=wrapped is None)
    checks = Checks(state)
    tokens = settings.outcome.resolve == "token-table"
    line = AsyncLine if threads is None else SyncLine
    pools: dict[str, Any] = {}
    controls: dict[str, Any] = {}
    registries: dict[str, Any] = {}
    dialers: dict[str, Dialer] = {}
    own: list[OwnedPool] = []
    for node in settings.nodes:
        name, target = node.name, state.nodes[node.name]
        if wrapped is not None:
            given = wrapped[name]
            dialers[name] = dialer = dialer_of_pool(given.pool)
            pools[name] = WrappedPool(
                target,
                given.pool,
                line,
                colour=colour,
                clock=clock,
                check=checks.met,
                ask_within=settings.probe.timeout * 4,
                hold=given.hold,
                max_lifetime=settings.pool.max_lifetime,
                max_idle=settings.pool.max_idle,
            )
        else:
            keywords = libpq_keywords(settings.connection, node)
            dialers[name] = dialer = own_dialer(
                keywords,
                settings.connection.server_settings,
                kwargs=arguments.get("kwargs"),
                kind=of_tasks(arguments.get("connection_class")),
                aside=threads is not None,
            )
            within = settings.connection.connect_timeout
            pools[name] = opened = OwnPool(
                target,
                _dial(dialer, arguments, colour, within),
                line,
                colour=colour,
                clock=clock,
                size=arguments.get("max_size", settings.pool.max_size),
                keep=arguments.get("min_size", settings.pool.min_size),
                max_lifetime=arguments.get("max_lifetime", settings.pool.max_lifetime),
                max_idle=arguments.get("max_idle", settings.pool.max_idle),
                max_uses=math.inf,
                check=checks.met,
                ask_within=within,
                rng=chance,
                configure=arguments.get("configure"),
                reset=arguments.get("reset"),
                checkout=arguments.get("check"),
            )
            own.append(opened)
        marks = Marks(clock=clock) if tokens else None
        controls[name] = OwnControl(name, dialer.control, clock=clock, marks=marks, has_strayed=dialer.strayed)
        if tokens:
            registries[name] = Registry(name, dialer.registry, checks.met_to_claim, clock=clock)
    flights = SharedFlights(clock, threads) if threads else None
    engine, monitor = new_engine(
        settings, state, checks, pools, Psycopg(), controls, registries, colour=colour, flights=flights
    )
    return engine, monitor, own, dialers


def _dial(dialer: Dialer, arguments: Mapping[str, Any], colour: Colour, within: float) -> Callable[[], Awaitable[Any]]:
    """Return what dials for a pool of the guard's own: awaited by a task, or blocking a thread."""
    kwargs = arguments.get("kwargs") or {}
    given = {name: kwargs[name] for name in kwargs.keys() & OF_CONNECT} | {"autocommit": True}
    kind = arguments.get("connection_class")

    async def awaited() -> Any:
        return await dialer.connect(timeout=within, kind=kind, **given)

    async def blocking() -> Any:
        return await dialer.connect_blocking(colour.elsewhere, timeout=within, kind=kind, **given)

    return awaited if colour is ASYNCIO else blocking


def catalogue_over(
    engine: Callable[[], Engine], dialers: Mapping[str, Dialer], within: float
) -> Callable[[], Awaitable[Catalogue | None]]:
    """Return what reads the catalogue of the primary, over a connection of its own; on the guard's loop."""

    async def read() -> Catalogue | None:
        primary = engine().state.view.primary
        if primary is None:
            raise NoPrimary("there is no primary to read the catalogue of")
        con = await dialers[primary].registry(timeout=within)
        try:
            return await read_catalogue(con, timeout=READ_WITHIN)
        finally:
            con.terminate()

    return read
