"""Sessions that read from the primary, unless they were opened read-only or a statement asks for a replica.

What a replica has may be old. An object loaded from there and flushed to the primary would undo what others have written
since: a lost update. So a session reads from replicas only where it is told to, and what was loaded that way is kept
apart in its identity map, by an identity token, and cannot be flushed.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, exc, inspect, orm
from sqlalchemy.engine import Connection
from sqlalchemy.ext import asyncio as sa_asyncio

from dbguard.integrations.sqlalchemy.engines import lead_of, sync_engine
from dbguard.integrations.sqlalchemy.errors import LoadedFromReplica, NotARead

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.engine import Engine
    from sqlalchemy.orm import SessionTransaction

    from dbguard.integrations.sqlalchemy.engines import Lead

__all__ = ["FROM_REPLICA", "ROLE", "AsyncSession", "Session"]

ROLE = "dbguard_role"
"""The execution option by which a statement asks for a replica; also how `Session.get_bind` is told."""

FROM_REPLICA = "dbguard: loaded from a replica"
"""The identity token of what was loaded by a statement that asked for a replica."""

_TOP = "sa_top_level_orm_context"
"""SQLAlchemy's own option by which an eager load knows the statement that it belongs to."""


class Session(orm.Session):
    """SQLAlchemy's session over an engine of `create_engine` or `create_async_engine`; also as ``sync_session_class``.

    readonly: all of it runs on one replica, in READ ONLY transactions, and nothing can be flushed. Default: no.
    The other arguments are SQLAlchemy's.

    Without *readonly* everything goes to the primary, but a statement with ``execution_options(dbguard_role="replica")``
    that is known to be a read goes to a replica. What writes or locks goes to the primary all the same, and so does
    everything in a transaction that has written. Objects that such a statement has loaded can be looked at, and not be
    flushed: that raises `LoadedFromReplica`. They are other objects than those that the session has loaded otherwise.

    A read-only session over an engine that no guard leads raises `sqlalchemy.exc.ArgumentError` when it is first used;
    what is no read raises `NotARead` there.
    """

    def __init__(self, bind: Any = None, *, readonly: bool = False, **arguments: Any) -> None:
        super().__init__(bind, **arguments)
        self.readonly = readonly
        self._begun: list[Connection] = []
        self._apart: dict[Engine, Connection] = {}

    def get_bind(
        self, mapper: Any = None, *, clause: Any = None, bind: Any = None, **given: Any
    ) -> Engine | Connection:
        """Return the engine or connection for a statement; as SQLAlchemy's, which documents it as a hook."""
        asked = given.pop(ROLE, None)
        found = super().get_bind(mapper, clause=clause, bind=bind, **given)
        if asked is None and not self.readonly:
            return found
        lead = None if isinstance(found, Connection) else lead_of(found)
        if lead is None or lead.role == "replica":
            if self.readonly and lead is None:
                raise exc.ArgumentError(
                    "a read-only session needs an engine made by dbguard.integrations.sqlalchemy, to know its replicas"
                )
            return found
        if self.readonly:
            return sync_engine(lead.beside())
        return found if self._has_written(lead) else self._connect_apart(lead, asked)

    # ------------------------------------------------------------------ statements that ask for a replica

    if not TYPE_CHECKING:  # their types stay SQLAlchemy's

        def execute(self, statement: Any, params: Any = None, **given: Any) -> Any:
            """As SQLAlchemy's."""
            return self._run(super().execute, statement, params, given)

        def scalar(self, statement: Any, params: Any = None, **given: Any) -> Any:
            """As SQLAlchemy's."""
            return self._run(super().scalar, statement, params, given)

        def scalars(self, statement: Any, params: Any = None, **given: Any) -> Any:
            """As SQLAlchemy's."""
            return self._run(super().scalars, statement, params, given)

    def _run(self, method: Callable[..., Any], statement: Any, params: Any, given: dict[str, Any]) -> Any:
        options = given.get("execution_options") or {}
        if not self.readonly and not self.twophase and self._asks(statement, options):
            how = "stream" if _streams(statement, options) else "replica"
            apart = {
                **given,
                "execution_options": {**options, "identity_token": FROM_REPLICA},
                "bind_arguments": {**(given.get("bind_arguments") or {}), ROLE: how},
            }
            try:
                return method(statement, params, **apart)
            except NotARead:
                pass  # nothing was sent: it belongs on the primary
        return method(statement, params, **given)

    def _asks(self, statement: Any, options: Mapping[str, Any]) -> bool:
        """Whether a statement asks for a replica: by how it was called, by itself, or by the session's own options."""
        asked = options.get(ROLE)
        if asked is None:
            own = getattr(statement, "_execution_options", None)
            asked = own.get(ROLE) if own else None
        if asked is None and _TOP in options:
            top = options[_TOP]
            asked = top.execution_options.get(ROLE) or top.query.get_execution_options().get(ROLE)
        if asked is None:
            asked = getattr(self, "execution_options", {}).get(ROLE)  # sessions have them since SQLAlchemy 2.1
        if asked not in (None, "primary", "replica"):
            raise exc.ArgumentError(f"{ROLE} must be primary or replica, not {asked!r}")
        return bool(asked == "replica")

    def _has_written(self, lead: Lead) -> bool:
        """Whether the present transaction has sent to the primary what is not known to be a read."""
        return any(not con.closed and lead.may_have_written(con) for con in self._begun)

    def _connect_apart(self, lead: Lead, how: str) -> Connection:
        """Return the connection for statements that ask for a replica, until the session's transaction ends.

        It is given to the session as one that has begun, so that the session does not commit on it: what became of a
        commit must not hang on a replica. Nothing need be sent when it is given back, either: its statements commit by
        themselves, but those that stream, since cursors need a transaction.
        """
        engine = lead.apart(how)
        con = self._apart.get(engine)
        if con is None:
            con = self._apart[engine] = engine.connect()
        if con.invalidated:
            con.rollback()  # what was read there was read: the next statement gets another replica
        if not con.in_transaction():
            con.begin()
        return con


class AsyncSession(sa_asyncio.AsyncSession):
    """SQLAlchemy's `AsyncSession` over `Session`, which see; ``AsyncSession(engine, readonly=True)`` is read-only."""

    sync_session_class = Session


def _streams(statement: Any, options: Mapping[str, Any]) -> bool:
    """Whether a statement's rows come by a cursor of the server's."""
    own = getattr(statement, "_execution_options", None) or {}
    return any(given.get("stream_results") or given.get("yield_per") for given in (options, own))


@event.listens_for(Session, "after_transaction_end")
def _close_apart(session: Session, transaction: SessionTransaction) -> None:
    if session._apart and transaction.parent is None:  # noqa: SLF001  of this very module
        apart, session._apart = session._apart, {}  # noqa: SLF001  same
        for con in apart.values():
            try:
                con.close()
            except (
                exc.DBAPIError
            ):  # a replica was lost; the session may have committed, and must not hear of it as failed
                con.invalidate()
                con.close()


@event.listens_for(Session, "after_begin")
def _remember(session: Session, _transaction: object, con: Connection) -> None:
    begun = session._begun  # noqa: SLF001  of this very module
    if begun:
        begun[:] = [other for other in begun if not other.closed]
    begun.append(con)


@event.listens_for(Session, "before_flush")
def _refuse(session: Session, _context: object, _instances: object) -> None:
    """Refuse to write what comes from a replica, and anything in a read-only session."""
    if session.readonly:
        raise NotARead("this session is read-only, and something in it was changed, added or deleted")
    for instance in chain(session.dirty, session.deleted):
        if inspect(instance).identity_token == FROM_REPLICA and (
            instance in session.deleted or session.is_modified(instance, include_collections=False)
        ):
            raise LoadedFromReplica(
                f"{type(instance).__name__} was loaded by a statement that asked for a replica, and may be old: "
                f"load it without {ROLE}='replica' to change it"
            )
