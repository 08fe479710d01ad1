"""What is done about each fault of the catalogue, from psycopg's exception to the verdict."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import psycopg
import pytest

from dbguard.core.retry import Act, Purse, Stake, Work, judge
from dbguard.drivers.base import WrongNode
from dbguard.drivers.psycopg.failures import NotReplicated, name_dial, name_failure
from tests.drivers.psycopg.told import WHERE, refused, server_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.core.failure import Failure

R, N, U = Act.REPEAT, Act.RAISE, Act.UNKNOWN
ALL = R, R, R, R
LOST = R, U, R, U
NONE = N, N, N, N
READS = R, N, N, N  # another replica may do; for writes there is one primary
MAYBE = N, N, N, U

dialled: Callable[[BaseException], Failure] = partial(name_dial, node="a")
met: Callable[..., Failure] = partial(name_failure, node="a", unsent=False, closed=False, standby=False)
died: Callable[..., Failure] = partial(met, closed=True)
fatal = partial(server_error, severity="FATAL")

VERDICTS: list[tuple[str, Failure, tuple[Act, ...]]] = [
    # name, failure, what is done about a read, a write, a transaction, its COMMIT
    ("port closed", dialled(psycopg.OperationalError(WHERE + "Connection refused")), ALL),
    ("black hole", dialled(psycopg.errors.ConnectionTimeout("connection timeout expired")), ALL),
    ("handshake cut", dialled(psycopg.OperationalError(WHERE + "server closed the connection unexpectedly")), ALL),
    ("starting up", dialled(refused("the database system is starting up")), ALL),
    ("too many", dialled(refused("sorry, too many clients already")), ALL),
    ("words not known", dialled(refused("das Datenbanksystem startet")), ALL),
    ("no such name", dialled(psycopg.OperationalError("failed to resolve host 'x': [Errno -2]")), ALL),
    ("wrong role", dialled(psycopg.OperationalError(WHERE + "server is not in hot standby mode")), ALL),
    ("wrong node", dialled(WrongNode("of an older reign")), ALL),
    ("wrong password", dialled(refused('password authentication failed for user "app"')), READS),
    ("no such role", dialled(refused('role "app" does not exist')), READS),
    ("no such database", dialled(refused('database "shop" does not exist')), READS),
    ("no TLS", dialled(psycopg.OperationalError(WHERE + "server does not support SSL, but SSL was required")), READS),
    ("closed before", died(psycopg.OperationalError("the connection is closed"), unsent=True), ALL),
    ("terminated", died(fatal("57P01")), LOST),
    ("crashed", died(psycopg.OperationalError("server closed the connection unexpectedly")), LOST),
    ("idle in transaction", died(fatal("25P03")), ALL),
    ("idle", died(fatal("57P05")), ALL),
    ("transaction too long", died(fatal("25P04")), LOST),
    ("conflict that ended the session", died(fatal("40001"), standby=None), LOST),
    ("database dropped", died(fatal("57P04")), LOST),
    ("out of time", met(TimeoutError()), LOST),
    ("not replicated", met(NotReplicated("cut short")), LOST),
    ("serialization failure", met(server_error("40001")), ALL),
    ("deadlock", met(server_error("40P01")), ALL),
    ("conflict with recovery", met(server_error("40001"), standby=True), ALL),
    ("lock not available", met(server_error("55P03")), NONE),
    ("cancelled by others", met(server_error("57014")), NONE),
    ("write on a standby", met(server_error("25006"), standby=True), ALL),
    ("read write on a standby", met(server_error("0A000"), standby=True), ALL),
    ("positions on a standby", met(server_error("55000"), standby=True), ALL),
    ("read-only session", met(server_error("25006")), NONE),
    ("not supported", met(server_error("0A000")), NONE),
    ("stale plan", met(server_error("0A000", source_function="RevalidateCachedQuery")), ALL),
    ("constraint", met(server_error("23505")), NONE),
    ("aborted transaction", met(server_error("25P02")), NONE),
    ("raised by a function", met(server_error("57P01")), NONE),
    ("parameters that do not fit", met(psycopg.ProgrammingError("the query has 1 placeholders but 2 ...")), NONE),
    ("loader", met(ValueError("no")), MAYBE),
]


@pytest.mark.parametrize(("failure", "acts"), [row[1:] for row in VERDICTS], ids=[row[0] for row in VERDICTS])
def test_what_is_repeated_is_what_cannot_have_been_applied(failure: Failure, acts: tuple[Act, ...]) -> None:
    assert tuple(judge(failure, Work(stake=stake)).act for stake in Stake) == acts


def verdict(name: str, stake: Stake = Stake.WRITE) -> tuple[bool, bool, Purse | None]:
    failure = next(failure for known, failure, _ in VERDICTS if known == name)
    found = judge(failure, Work(stake=stake))
    return found.elsewhere, found.reresolve, found.purse


def test_who_pays_for_a_repeat_and_where_it_goes() -> None:
    assert verdict("port closed") == (False, True, None)
    assert verdict("starting up") == (False, True, None)
    assert verdict("too many") == (False, False, None)
    assert verdict("idle") == (False, False, None)
    assert verdict("write on a standby") == (False, True, Purse.INFRASTRUCTURE)
    assert verdict("stale plan") == (False, False, Purse.CONTENTION)
    assert verdict("terminated", Stake.READ) == (True, False, Purse.INFRASTRUCTURE)
    assert verdict("terminated", Stake.TRANSACTION) == (False, True, Purse.INFRASTRUCTURE)
    assert verdict("conflict that ended the session", Stake.READ) == (True, False, Purse.CONTENTION)
