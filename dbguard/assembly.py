"""From settings to an engine, whichever driver: policies, state, engine, monitor."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

from dbguard.core.breaker import BreakerPolicy
from dbguard.core.flap import Flaps
from dbguard.core.gate import Gate
from dbguard.core.merge import Topology
from dbguard.core.retry import RetryPolicy
from dbguard.core.router import ReadPolicy
from dbguard.core.state import GuardState
from dbguard.drivers.base import WrongNode
from dbguard.runtime.colour import ASYNCIO
from dbguard.runtime.engine import Engine
from dbguard.runtime.monitor import Monitor, Pace

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

    from dbguard.config.settings import FailoverSettings, Settings
    from dbguard.core.topology import Sighting
    from dbguard.drivers.base import Colour, Control, Driver, NodePool, Registry
    from dbguard.runtime.flights import Flights

__all__ = ["Checks", "new_engine", "new_state"]


def new_state(
    settings: Settings,
    *,
    clock: Callable[[], float],
    rng: random.Random,
    wait: object | None = None,
    stop: object | None = None,
    make: Callable[..., GuardState] = GuardState,
    addressed: bool = True,
) -> GuardState:
    """Return the state of a guard that knows nothing yet.

    wait, stop: tenacity strategies. make: its class. addressed: nodes are at the addresses that the settings give, and
    errors tell them.
    """
    state = make(
        Topology(
            [node.name for node in settings.nodes],
            new_mark=lambda: uuid.uuid4().hex,
            split_brain=settings.failover.split_brain,
            system_id=settings.cluster.system_id,
            max_loss=None if (loss := settings.failover.max_loss) == "none" else loss,
        ),
        clock=clock,
        rng=rng,
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
            node.name: f"{node.name} ({node.address})" if addressed and node.name != node.address else node.name
            for node in settings.nodes
        },
        observe=settings.mode == "observe",
        wall=time.time,
    )
    _set_breakers(state, settings)
    return state


class Checks:
    """What every new connection must pass, and every one that answers a claim: see `GuardState.met`.

    engine: set once there is one.
    """

    engine: Engine

    def __init__(self, state: GuardState) -> None:
        self._state = state

    def met(self, seen: Sighting) -> None:
        """Take in what a new connection's server said. Raises `WrongNode` if it must not be used."""
        self._heed(self._state.met(seen))

    def met_to_claim(self, seen: Sighting) -> None:
        """Take in what a server said that is to answer a claim. Raises `WrongNode` if it must not."""
        self._heed(self._state.met_to_claim(seen))

    def _heed(self, refusal: str | None) -> None:
        self.engine.flush()
        if refusal is not None:
            raise WrongNode(refusal)


def new_engine(
    settings: Settings,
    state: GuardState,
    checks: Checks,
    pools: Mapping[str, NodePool],
    driver: Driver,
    controls: Mapping[str, Control],
    registries: Mapping[str, Registry],
    *,
    looks_only: bool = False,
    colour: Colour = ASYNCIO,
    flights: Flights | None = None,
) -> tuple[Engine, Monitor]:
    """Tie the parts together; nothing is dialled. looks_only: nothing is to be written, not even the mark of a reign."""
    engine = checks.engine = Engine(
        state,
        pools,
        driver,
        acquire_timeout=settings.pool.acquire_timeout,
        drain_timeout=settings.failover.drain_timeout,
        registries=registries,
        colour=colour,
        flights=flights,
    )
    probe = settings.probe
    pace = Pace(interval=probe.interval, jitter=probe.jitter, limit=probe.timeout, urgent=probe.urgent)
    return engine, Monitor(engine, controls, pace, keeps_marks=bool(registries) and not looks_only)


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
