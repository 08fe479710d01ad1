"""What `Guard.wrap` is given: pools of the application's, and its word on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dbguard.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["ASYNCPG", "Following", "Kind", "Wrapped", "follows", "wrapped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of pool that can be wrapped.

    name: its class. opens: what opens pools of its own, from a DSN. used: what of it is used. fits: says whether one that
    has all that is of this kind. closed, most: whether one is closed, and how many connections it may have.
    """

    name: str
    opens: str
    used: Sequence[str]
    closed: Callable[[Any], bool]
    most: Callable[[Any], int]
    fits: Callable[[Any], bool] = lambda _: True


ASYNCPG = Kind(
    name="an asyncpg.Pool",
    opens="dbguard.connect",
    used=("acquire", "release", "expire_connections", "get_idle_size", "get_max_size", "get_size", "is_closing"),
    closed=lambda pool: pool.is_closing(),
    most=lambda pool: pool.get_max_size(),
)


_TAKERS = {
    ("asyncpg", "Pool"): "dbguard.Guard.wrap",
    ("psycopg_pool", "AsyncConnectionPool"): "dbguard.PsycopgGuard.wrap",
    ("psycopg_pool", "ConnectionPool"): "dbguard.SyncGuard.wrap",
}
"""What wraps which pools, by their package and class."""


@dataclass(frozen=True, slots=True)
class Following:
    """A pool whose address follows the primary. Made by `follows`."""

    pool: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapped:
    """One pool of the application's.

    follows: its address leads to whoever is the primary. hold: connections that stay out between calls at most.
    """

    pool: Any
    follows: bool
    hold: int


def follows(pool: Any) -> Following:
    """Declare a pool whose address follows the primary: ``Guard.wrap(primary=dbguard.follows(pool))``.

    For a name that is moved, a virtual address, a proxy, or a DSN of several hosts with ``target_session_attrs``: there a
    new connection may lead to another server than the ones at hand. So where these lead to a standby, or there is no
    primary, they are replaced (by `asyncpg.Pool.expire_connections`, or psycopg_pool's `drain`), at most twice a second.
    Not for a pool with the fixed address of one node: its connections would be replaced for nothing in each failover.
    """
    return Following(pool)


def wrapped(primary: Any, replicas: Sequence[Any], hold: int, kind: Kind = ASYNCPG) -> Mapping[str, Wrapped]:
    """Name the pools, and check that each is one of *kind*, or says that it follows the primary.

    Raises `TypeError` for what is no pool, such as a DSN; `ConfigError` for one that is closed or was given twice, and for
    a *hold* that leaves nobody else a connection.
    """
    if isinstance(hold, bool) or not isinstance(hold, int) or hold < 0:
        raise ConfigError(f"hold is a number of connections, 0 or more, not {hold!r}", path="hold")
    if isinstance(replicas, Following) or hasattr(replicas, kind.used[0]):
        raise TypeError("replicas= is a list of pools, not one pool")
    given = {"primary": primary} | {f"replica{i}": pool for i, pool in enumerate(replicas, 1)}
    pools: dict[str, Wrapped] = {}
    for name, one in given.items():
        pool = one.pool if isinstance(one, Following) else one
        _check(name, pool, kind)
        twice = next((other for other, its in pools.items() if its.pool is pool), None)
        if twice is not None:
            raise ConfigError(
                f"{name} is the same pool as {twice}: give one pool per node, each once (roles are found out, so that "
                "a single node is primary= alone)",
                path=name,
            )
        most = kind.most(pool)
        if hold >= most > 0 and hold:
            raise ConfigError(
                f"hold={hold} of the pool of {name}, which has {most} at most, would leave none for probes and for the "
                f"application's own use: at most {most - 1}, or a larger max_size",
                path="hold",
            )
        pools[name] = Wrapped(pool=pool, follows=isinstance(one, Following), hold=hold)
    return pools


def _check(name: str, pool: Any, kind: Kind) -> None:
    if not (all(hasattr(pool, word) for word in kind.used) and kind.fits(pool)):
        raise TypeError(
            f"{name} should be {kind.name}, not {type(pool).__name__}{_taken_by(pool)}; `{kind.opens}` takes a DSN, and "
            "opens pools of its own"
        )
    if kind.closed(pool):
        raise ConfigError(f"the pool of {name} is closed: wrap open pools, and close them after the guard", path=name)


def _taken_by(pool: Any) -> str:
    """Say what takes something that is no pool of the kind that was asked for, if anything does."""
    kinds = [(base.__module__.partition(".")[0], base.__name__) for base in type(pool).__mro__]
    taker = next((_TAKERS[kind] for kind in kinds if kind in _TAKERS), None)
    if taker is not None:
        return f" ({taker} takes that)"
    if any(package == "sqlalchemy" for package, _ in kinds):
        return " (dbguard.integrations.sqlalchemy makes engines over a guard)"
    another = any(hasattr(pool, word) for word in ("connection", "acquire", "getconn"))
    return f" ({type(pool).__module__} is another driver's)" if another else ""
