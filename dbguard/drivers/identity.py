"""Who a session is: what functions of users' can change, and a driver's own reset leaves as it is.

A trigger or a policy can set a role, or make a temporary table that hides the application's own, and no text shows it.
Where the role at birth was the login's and there was nothing temporary, both are taken back. Elsewhere they may be the
doing of an `init` of the application's, which nothing may undo: there a session is asked who it is, and closed if it is
somebody else than it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from dbguard.drivers.speaker import Speaker

__all__ = ["DEEP_RESET", "FORGET_SEQUENCES", "Identity", "forget_sequences", "identify"]

FORGET_SEQUENCES = "DISCARD SEQUENCES"
"""What no `init` can miss: what lastval() and currval() say."""

DEEP_RESET = f"RESET SESSION AUTHORIZATION; RESET ROLE; DISCARD TEMP; {FORGET_SEQUENCES}"
"""What a reset by `RESET ALL`, as asyncpg's own, leaves behind: role, session authorization, temporary objects, lastval()."""

_ASK = """
SELECT session_user::text, current_user::text,
    session_user = current_user AND pg_my_temp_schema() = 0
        AND session_user = pg_get_userbyid((SELECT usesysid FROM pg_stat_get_activity(pg_backend_pid()))),
    CASE WHEN pg_my_temp_schema() = 0 THEN '' ELSE (
        SELECT coalesce(string_agg(oid::text, ' ' ORDER BY oid), '') FROM (
            SELECT oid FROM pg_class WHERE relnamespace = pg_my_temp_schema()
            UNION ALL SELECT oid FROM pg_type WHERE typnamespace = pg_my_temp_schema()
            UNION ALL SELECT oid FROM pg_proc WHERE pronamespace = pg_my_temp_schema()) AS made) END
"""


class Identity(NamedTuple):
    """Who a session is. plain: the login itself, with nothing temporary: the deep reset leads back to that.

    temporary: the temporary objects, by number; not what is in them.
    """

    session_user: Any
    current_user: Any
    plain: Any
    temporary: Any

    def differs(self, other: Identity) -> bool:
        """Whether a session was changed from one to the other; an empty temporary schema that was left behind is none."""
        return (self.session_user, self.current_user, self.temporary) != (
            other.session_user,
            other.current_user,
            other.temporary,
        )


async def identify(con: Speaker) -> Identity:
    """Ask *con*; raises what the driver raises. The caller bounds it."""
    return Identity(*await con.fetchrow(_ASK))


class Drawing(Protocol):
    """A lease, as far as sequences go.

    con: what statements are run on. tag: what is known of it since its birth; its *drew*: an earlier use may have drawn
    from sequences. drew: this one may have.
    """

    con: Any
    tag: Any
    drew: bool


async def forget_sequences(lease: Drawing) -> None:
    """Let a statement that may ask for lastval() or currval() see nothing of what an earlier use drew.

    Writes on plain tables are handed on without a reset, though a default may have drawn a number: who does not ask for it
    pays nothing.
    """
    if lease.tag.drew and not lease.drew:
        await lease.con.execute(FORGET_SEQUENCES)
        lease.tag.drew = False
