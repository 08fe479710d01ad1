"""Looking at each node by itself: who answers there, and what this role may see and use. Reads only."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from dbguard.cli.outcome_look import look_at_schema
from dbguard.core.failure import Family
from dbguard.core.topology import Role
from dbguard.drivers.asyncpg.dial import Dialer
from dbguard.drivers.asyncpg.failures import describe, name_dial
from dbguard.drivers.probe import ask, sighting
from dbguard.wiring import connect_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dbguard.cli.outcome_look import TokenSchema
    from dbguard.config import Settings
    from dbguard.config.settings import NodeSettings

__all__ = ["Look", "Unusable", "look_at_all"]

_AGAIN = 0.25
"""Seconds between two rounds while no node answers."""

_OTHERS_WITHIN = 2.0
"""Seconds that the other nodes get once one has answered: a frozen one is not waited for as long as it may take to connect."""

# Works on versions 13 to 18, with the least of rights: what the role may not see is NULL.
_DETAILS = """
SELECT current_setting('server_version') AS version,
    current_setting('server_version_num')::int AS number,
    current_user::text AS role,
    current_setting('max_connections')::int AS most,
    current_setting('superuser_reserved_connections')::int
        + coalesce(current_setting('reserved_connections', true)::int, 0) AS reserved,
    (SELECT sum(numbackends)::int FROM pg_stat_database) - 1 AS others,
    (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user) AS role_limit,
    (SELECT datconnlimit FROM pg_database WHERE datname = current_database()) AS database_limit,
    pg_has_role(current_user, 'pg_read_all_stats', 'usage') AS sees_stats,
    has_function_privilege('pg_control_system()', 'execute') AS sees_system,
    has_function_privilege('pg_control_checkpoint()', 'execute') AS sees_checkpoint,
    current_setting('synchronous_standby_names') AS standbys,
    CASE WHEN pg_is_in_recovery() AND pg_last_wal_receive_lsn() IS DISTINCT FROM pg_last_wal_replay_lsn()
         THEN extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8
         WHEN pg_is_in_recovery() THEN 0 END AS lag
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a node said.

    role: ``primary`` or ``replica``. user: the role that was logged in as. most: ``max_connections``.
    reserved: connections kept for superusers and the like. others: connections in use, without those of this check.
    role_limit, database_limit: of the role and the database; -1: none. sees_stats, sees_system, sees_checkpoint:
    whether the role may read other sessions' statistics, the system identifier, the last checkpoint.
    standbys: ``synchronous_standby_names``. tokens: of a primary, its schema of tokens. lag: seconds that a replica is behind what it has received; None: it
    receives nothing, or does not say.
    """

    role: str
    version: str
    number: int
    user: str
    system_id: str | None
    timeline: int | None
    streaming: bool | None
    lag: float | None
    most: int
    reserved: int
    others: int
    role_limit: int
    database_limit: int
    sees_stats: bool
    sees_system: bool
    sees_checkpoint: bool
    standbys: str
    tokens: TokenSchema | None = None


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why a node could not be looked at.

    why: what it is, and the way out. configured: the configuration is wrong; otherwise the node may come later.
    """

    why: str
    configured: bool


async def look_at_all(
    settings: Settings, waiting: Callable[[float, Mapping[str, Unusable]], None]
) -> dict[str, Look | Unusable]:
    """Look at every node, in parallel, again and again until one answers or ``startup.wait`` is over.

    waiting: called with the seconds that are left and what is wrong with each node, once, if none answers at first.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + settings.startup.wait
    told = False
    while True:
        said = await _look_once(settings)
        silent = {name: look for name, look in said.items() if isinstance(look, Unusable) and not look.configured}
        left = until - loop.time()
        if len(silent) < len(said) or left <= 0:
            return said
        if not told:
            told = True
            waiting(left, silent)
        await asyncio.sleep(min(_AGAIN, left))


async def _look_once(settings: Settings) -> dict[str, Look | Unusable]:
    """Look at every node, in parallel; once one has answered, the others have `_OTHERS_WITHIN` seconds."""
    looks = {node.name: asyncio.create_task(_look(settings, node)) for node in settings.nodes}
    left = set(looks.values())
    while left:
        answered = any(isinstance(look.result(), Look) for look in looks.values() if look.done())
        done, left = await asyncio.wait(
            left, timeout=_OTHERS_WITHIN if answered else None, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            break
    for look in left:
        look.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    late = Unusable(
        f"does not answer within {_OTHERS_WITHIN:g} s, and others did: is it frozen, or out of reach?", False
    )
    return {name: late if look in left else look.result() for name, look in looks.items()}


async def _look(settings: Settings, node: NodeSettings) -> Look | Unusable:
    limit = settings.connection.connect_timeout
    con: Any = None
    try:
        con = await Dialer(connect_arguments(settings.connection, node), {}).control(timeout=limit)
        seen = sighting(await ask(con, timeout=limit), node.name, 0.0, fresh=True)
        details = await con.fetchrow(_DETAILS, timeout=limit)
        tokens = await look_at_schema(con, None, timeout=limit) if seen.role is Role.PRIMARY else None
    except Exception as error:  # noqa: BLE001  every one of them is a finding
        return _named(error, settings, node)
    finally:
        if con is not None:
            with contextlib.suppress(Exception):
                await con.close(timeout=limit)
    return Look(
        role=seen.role.value,
        version=details["version"].split()[0],
        number=details["number"],
        user=details["role"],
        system_id=seen.instance.system_id,
        timeline=seen.timeline,
        streaming=seen.streaming,
        lag=details["lag"] if seen.streaming else None,
        most=details["most"],
        reserved=details["reserved"],
        others=max(0, details["others"] or 0),
        role_limit=details["role_limit"] if details["role_limit"] is not None else -1,
        database_limit=details["database_limit"] if details["database_limit"] is not None else -1,
        sees_stats=details["sees_stats"],
        sees_system=details["sees_system"],
        sees_checkpoint=details["sees_checkpoint"],
        standbys=details["standbys"],
        tokens=tokens,
    )


_REFUSALS = {
    "28P01": "refuses the password: set connection.password, PGPASSWORD or the password file",
    "28000": "does not let this user in: see connection.user, and the server's pg_hba.conf",
    "3D000": "has no such database: see connection.database",
    "55000": "takes no connections to this database: see connection.database",
    "42501": "does not let this user connect to the database: GRANT CONNECT ON DATABASE ... TO ...",
    "53300": "has no connection left: raise max_connections, or lower pool.max_size of its clients",
    "57P03": "is starting up or shutting down",
}


def _named(error: Exception, settings: Settings, node: NodeSettings) -> Unusable:
    """Say what went wrong in our own words: a driver's text can hold what must not be shown."""
    failure = name_dial(error, node.name)
    configured = failure.family is Family.CONFIG
    if failure.sqlstate in _REFUSALS:
        return Unusable(f"{_REFUSALS[failure.sqlstate]} ({failure.sqlstate})", configured)
    if configured and failure.sqlstate == "0A000":
        why = describe(error)
    elif isinstance(error, ssl.SSLError):
        why = "its certificate is not trusted: see connection.sslrootcert and sslmode"
    elif configured and isinstance(error, OSError):
        why = "speaks no TLS: see connection.sslmode"
    elif isinstance(error, TimeoutError):
        seconds = settings.connection.connect_timeout
        why = (
            f"does not answer within {seconds:g} s (connection.connect_timeout): is the address right, is it reachable?"
        )
    elif isinstance(error, ConnectionRefusedError):
        why = "nobody listens there: is the address right, does PostgreSQL run?"
    elif isinstance(error, asyncpg.ClientConfigurationError):
        why = f"{str(error).splitlines()[0]}: see connection.sslmode, sslrootcert, sslcert and sslkey"
    elif isinstance(error, FileNotFoundError):
        files = "its socket" if node.host.startswith("/") else "connection.sslrootcert, sslcert, sslkey and sslcrl"
        why = f"a file is not there: see {files}"
    elif isinstance(error, OSError) and type(error).__name__ == "gaierror":
        why = "its host name is not known: see its host"
    else:
        why = f"cannot be used: {type(error).__name__}" + (f" ({failure.sqlstate})" if failure.sqlstate else "")
    return Unusable(why, configured)
