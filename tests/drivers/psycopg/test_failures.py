"""What psycopg raises, named: the fault catalogue as a table.

The phase comes from what was recorded around the call. A failed dial carries no SQLSTATE: what its words say is a hint,
and words that are not known are believed to be an answer of a server that lives, and nothing else.
"""

from __future__ import annotations

import pickle
import socket
import traceback
from typing import Any

import psycopg
import pytest

from dbguard import errors
from dbguard.core.failure import Failure, Family, Phase
from dbguard.drivers.base import WrongNode
from dbguard.drivers.named import NotDialled, PoolExhausted
from dbguard.drivers.psycopg.failures import (
    NotReplicated,
    PoolClosed,
    PsycopgDriver,
    describe,
    dress,
    is_conflict,
    is_drivers,
    is_refusal,
    name_dial,
    name_failure,
)
from tests.drivers.psycopg.told import WHERE, refused, server_error

# ---------------------------------------------------------------------- before there is a connection

AT_THE_DOOR = [
    ('password authentication failed for user "app"', "28P01", Family.CONFIG),
    ('role "nobody" does not exist', "28000", Family.CONFIG),
    ('role "nologin" is not permitted to log in', "28000", Family.CONFIG),
    ('no pg_hba.conf entry for host "::1", user "app", database "shop", no encryption', "28000", Family.CONFIG),
    ('Peer authentication failed for user "app"', "28000", Family.CONFIG),
    ('database "missing" does not exist', "3D000", Family.CONFIG),
    ('database "closed" is not currently accepting connections', "55000", Family.CONFIG),
    (
        'permission denied for database "private"\nDETAIL:  User does not have CONNECT privilege.',
        "42501",
        Family.CONFIG,
    ),
    ('unrecognized configuration parameter "no_such"', "42704", Family.CONFIG),
    ('invalid value for parameter "statement_timeout": "soon"', "22023", Family.CONFIG),
    ("sorry, too many clients already", "53300", Family.SOFT),
    ('too many connections for role "crowded"', "53300", Family.SOFT),
    ("remaining connection slots are reserved for roles with the SUPERUSER attribute", "53300", Family.SOFT),
    ("the database system is starting up", "57P03", Family.HARD),
    ("the database system is shutting down", "57P03", Family.HARD),
    ("the database system is not yet accepting connections\nDETAIL:  Consistent ...", "57P03", Family.HARD),
    ("terminating connection due to administrator command", "57P01", Family.HARD),
]


@pytest.mark.parametrize(("message", "sqlstate", "family"), AT_THE_DOOR, ids=lambda value: str(value)[:50])
def test_what_a_server_says_at_the_door_has_the_code_that_came_with_it(
    message: str, sqlstate: str, family: Family
) -> None:
    failure = name_dial(refused(message), "a")

    assert (failure.phase, failure.sqlstate, failure.family) == (Phase.CONNECT, sqlstate, family)
    assert sqlstate in describe(failure.cause)


@pytest.mark.parametrize(
    ("severity", "message"),
    [
        ("FATAL", "das Datenbanksystem startet"),
        ("ВАЖНО", "система баз данных запускается"),
        ("FATAL", "現在クライアント数が多すぎます"),
        ("致命错误", '用户 "app" Password 认证失败'),
        ("FATAL", "something that no server of ours has ever said"),
        ("FATAL", "sorry, too many clients already, said the proxy"),
        ("FATAL", 'database "password authentication failed for user "x"" is on holiday'),
    ],
)
def test_an_answer_in_words_not_known_ends_no_wait_and_trips_no_breaker(severity: str, message: str) -> None:
    failure = name_dial(refused(message, severity), "a")

    assert (failure.phase, failure.sqlstate, failure.family) == (Phase.CONNECT, None, Family.SOFT)
    assert message not in describe(failure.cause)


def test_a_name_that_reads_like_another_message_is_not_taken_for_it() -> None:
    failure = name_dial(refused('database "the database system is starting up" does not exist'), "a")

    assert failure.sqlstate == "3D000"


NOT_ANSWERED = [
    (WHERE + "Connection refused\n\tIs the server running on that host?", Family.HARD),
    (WHERE + "server closed the connection unexpectedly\n\tThis probably means the server ...", Family.HARD),
    (WHERE + "could not receive data from server: Connection reset by peer", Family.HARD),
    (WHERE + "SSL SYSCALL error: EOF detected", Family.HARD),
    ("failed to resolve host 'nowhere': [Errno -2] Name or service not known", Family.HARD),
    (WHERE + "server does not support SSL, but SSL was required", Family.CONFIG),
    (WHERE + "SSL error: certificate verify failed", Family.CONFIG),
    (WHERE + 'server certificate for "db" does not match host name "127.0.0.1"', Family.CONFIG),
    (WHERE + 'root certificate file "/no/where" does not exist\nEither provide the file ...', Family.CONFIG),
    (WHERE + "SSL error: tlsv13 alert certificate required", Family.CONFIG),
    ('connection is bad: invalid sslmode value: "bogus"', Family.CONFIG),
    ('connection is bad: invalid port number: "x"', Family.CONFIG),
    (WHERE + "session is read-only", Family.ROLE),
    (WHERE + "server is not in hot standby mode", Family.ROLE),
]


@pytest.mark.parametrize(("message", "family"), NOT_ANSWERED, ids=lambda value: str(value)[-40:])
def test_what_is_not_an_answer_is_hard_but_for_what_libpq_refuses_itself(message: str, family: Family) -> None:
    failure = name_dial(psycopg.OperationalError(message), "a")

    assert (failure.phase, failure.sqlstate, failure.family) == (Phase.CONNECT, None, family)
    assert "127.0.0.1" not in describe(failure.cause)


OTHERS = [
    (psycopg.errors.ConnectionTimeout("connection timeout expired"), Family.HARD, True),
    (psycopg.ProgrammingError('missing "=" after "s3cret" in connection info string'), Family.CONFIG, False),
    (psycopg.InterfaceError("cannot use the 'ProactorEventLoop'"), Family.HARD, False),
    (server_error("57P01", severity="FATAL"), Family.HARD, False),
    (PoolClosed("the application has closed its pool of a"), Family.SHUT, False),
    (socket.gaierror(-2, "Name or service not known"), Family.HARD, False),
    (TimeoutError(), Family.HARD, True),
    (PoolExhausted("none free"), Family.NEUTRAL, True),
    (ZeroDivisionError("in the application's configure"), Family.NEUTRAL, False),
]


@pytest.mark.parametrize(("error", "family", "timed_out"), OTHERS, ids=lambda value: type(value).__name__)
def test_other_ways_not_to_get_a_connection(error: Exception, family: Family, *, timed_out: bool) -> None:
    failure = name_dial(error, "a")

    assert (failure.phase, failure.family, failure.cause) == (Phase.CONNECT, family, error)
    assert failure.timed_out is timed_out
    assert "s3cret" not in describe(error)


def test_a_password_that_is_asked_for_and_missing_is_known_without_words() -> None:
    asked = psycopg.errors.FinishedPGconn(needs_password=True)
    error = psycopg.OperationalError(WHERE + "fe_sendauth: kein Passwort angegeben", pgconn=asked)

    assert name_dial(error, "a").family is Family.CONFIG
    assert "connection.password" in describe(error)


def test_a_code_that_was_found_out_counts_for_more_than_the_words() -> None:
    error = refused("das Datenbanksystem startet")
    error.sqlstate = "57P03"

    failure = name_dial(error, "a")

    assert (failure.sqlstate, failure.family) == ("57P03", Family.HARD)
    assert describe(error) == "starting up or shutting down (57P03)"


def test_a_wait_for_a_full_pool_says_nothing_about_the_node() -> None:
    failure = name_dial(TimeoutError(), "a", full=True)

    assert (failure.family, type(failure.cause)) == (Family.NEUTRAL, PoolExhausted)


def test_a_dial_that_was_not_made_is_our_own_and_means_what_the_last_one_meant() -> None:
    failure = name_dial(NotDialled(refused("sorry, too many clients already")), "a")

    assert (failure.ours, failure.sqlstate, failure.family) == (True, "53300", Family.SOFT)


def test_a_server_that_must_not_be_used_is_told_in_words_that_the_application_can_catch() -> None:
    failure = name_dial(WrongNode("a belongs to an older reign"), "a")

    assert (failure.phase, failure.family) == (Phase.CONNECT, Family.ROLE)
    assert isinstance(failure.cause, errors.NoPrimary)
    assert isinstance(failure.cause, psycopg.OperationalError)
    assert "a belongs to an older reign" in str(failure.cause)


# ---------------------------------------------------------------------- on a connection

CLOSED: dict[str, Any] = {"closed": True}
PREPARED = {"source_function": "RevalidateCachedQuery"}

ON_A_CONNECTION: list[tuple[BaseException, dict[str, Any], Phase, Family, bool]] = [
    # The session is over.
    (psycopg.OperationalError("the connection is closed"), CLOSED | {"unsent": True}, Phase.UNSENT, Family.HARD, True),
    (psycopg.OperationalError("server closed the connection"), CLOSED, Phase.SENT, Family.HARD, True),
    (server_error("57P01", severity="FATAL"), CLOSED, Phase.SENT, Family.HARD, True),
    (server_error("57P01", severity="FATAL"), {}, Phase.SENT, Family.HARD, True),
    (server_error("40001", severity="FATAL"), CLOSED, Phase.SENT, Family.CONTENTION, True),
    (server_error("57P04", severity="FATAL"), CLOSED, Phase.SENT, Family.CONFIG, True),
    (server_error("25P04", severity="FATAL"), CLOSED, Phase.SENT, Family.NEUTRAL, True),
    (server_error("25P03", severity="FATAL"), CLOSED, Phase.UNSENT, Family.NEUTRAL, True),
    (server_error("57P05", severity="FATAL"), CLOSED, Phase.UNSENT, Family.NEUTRAL, True),
    (TimeoutError(), {}, Phase.SENT, Family.SOFT, True),
    (TimeoutError(), CLOSED, Phase.SENT, Family.SOFT, True),
    (NotReplicated("cut short"), {}, Phase.SENT, Family.NEUTRAL, True),
    # The server said no, and the session lives: any function can raise any code.
    *(
        (server_error(code), {}, Phase.ERROR, Family.ANSWERED, False)
        for code in ("23505", "42P01", "57P01", "57P03", "08006", "53300", "25P03", "57P05", "55P03", "28P01", "0A000")
    ),
    (server_error("40001"), {"standby": True}, Phase.ERROR, Family.CONTENTION, False),
    (server_error("40P01"), {}, Phase.ERROR, Family.CONTENTION, False),
    (server_error("57014"), {}, Phase.ERROR, Family.NEUTRAL, False),
    (server_error("25006"), {"standby": True}, Phase.ERROR, Family.ROLE, False),
    (server_error("25006"), {"standby": None}, Phase.ERROR, Family.ROLE, False),
    (server_error("25006"), {"standby": False}, Phase.ERROR, Family.ANSWERED, False),
    (server_error("0A000"), {"standby": True}, Phase.ERROR, Family.ROLE, False),
    (server_error("0A000"), {"standby": None}, Phase.ERROR, Family.ANSWERED, False),
    (server_error("55000"), {"standby": True}, Phase.ERROR, Family.ROLE, False),
    (server_error("55000"), {"standby": False}, Phase.ERROR, Family.ANSWERED, False),
    (server_error("0A000", **PREPARED), {}, Phase.ERROR, Family.CONTENTION, False),
    (server_error("0A000", **PREPARED), {"standby": True}, Phase.ERROR, Family.CONTENTION, False),
    # psycopg said no.
    (psycopg.ProgrammingError("the query has 1 placeholders but 2 ..."), {}, Phase.ERROR, Family.NEUTRAL, False),
    (psycopg.ProgrammingError("cannot adapt type 'object' using ..."), {}, Phase.ERROR, Family.NEUTRAL, False),
    (psycopg.DataError("PostgreSQL text fields cannot contain NUL ..."), {}, Phase.ERROR, Family.NEUTRAL, False),
    (psycopg.DataError("timestamp too large (after year 10K)"), {}, Phase.SENT, Family.NEUTRAL, False),
    (psycopg.ProgrammingError("the last operation didn't produce records"), {}, Phase.SENT, Family.NEUTRAL, False),
    (ValueError("raised by a loader"), {}, Phase.SENT, Family.NEUTRAL, False),
]


@pytest.mark.parametrize(
    ("error", "facts", "phase", "family", "broken"),
    ON_A_CONNECTION,
    ids=lambda value: f"{type(value).__name__} {value}"[:50] if isinstance(value, BaseException) else None,
)
def test_the_phase_comes_from_what_was_recorded(
    error: BaseException, facts: dict[str, Any], phase: Phase, family: Family, *, broken: bool
) -> None:
    failure = name_failure(error, "a", **({"unsent": False, "closed": False, "standby": False} | facts))

    assert (failure.phase, failure.family, failure.broken) == (phase, family, broken)
    assert failure.sqlstate == getattr(error, "sqlstate", None)


def named(error: BaseException) -> Failure:
    return name_failure(error, "a", unsent=False, closed=False, standby=False)


def test_a_text_that_cannot_be_read_and_a_statement_that_is_refused_are_told_apart() -> None:
    unreadable = named(server_error("42601", statement_position="1", source_function="scanner_yyerror"))
    no_table = named(server_error("42P01", statement_position="15", source_function="parserOpenTable"))
    within = named(server_error("42P01", statement_position="15", context="PL/pgSQL function f() line 3"))

    assert (unreadable.unparsed, unreadable.refused) == (True, True)
    assert (no_table.unparsed, no_table.refused) == (False, True)
    assert (within.unparsed, within.refused) == (False, False)


def test_which_errors_are_psycopgs_which_abort_a_transaction_and_which_are_worth_running_again() -> None:
    conflict, plan = server_error("40001"), server_error("0A000", **PREPARED)
    no, gone, lost = server_error("23505"), server_error("57P01", severity="FATAL"), psycopg.OperationalError("lost")

    assert [is_refusal(error) for error in (conflict, plan, no, gone, lost, ValueError())] == [True] * 3 + [False] * 3
    assert [is_conflict(error) for error in (conflict, plan, no, gone, lost, ValueError())] == [True] * 2 + [False] * 4
    assert [is_drivers(error) for error in (no, gone, lost, ValueError(), TimeoutError())] == [True] * 3 + [False] * 2


class Line:
    """A leased connection, as far as naming a failure goes."""

    def __init__(self, *, closed: bool, standby: bool | None) -> None:
        self.con = self
        self.ours = False
        self._closed = closed
        self._standby = standby

    def is_closed(self) -> bool:
        return self._closed

    def in_standby(self) -> bool | None:
        assert not self._closed
        return self._standby


def test_what_the_session_says_of_recovery_is_asked_of_the_line() -> None:
    error = server_error("25006")

    def family(standby: bool | None) -> Family:  # noqa: FBT001
        line = Line(closed=False, standby=standby)
        return PsycopgDriver.name_failure(error, "a", line, unsent=False, closed=False).family

    assert [family(said) for said in (True, False, None)] == [Family.ROLE, Family.ANSWERED, Family.ROLE]
    assert PsycopgDriver.in_standby(Line(closed=True, standby=None)) is None


# ---------------------------------------------------------------------- dbguard's errors, as psycopg's


@pytest.mark.parametrize("late", [True, False])
def test_what_dbguard_raises_is_psycopgs_operational_error_and_can_be_pickled(*, late: bool) -> None:
    made = [
        errors.NoPrimary("n", retry_after=1.0),
        errors.SplitBrain("n"),
        errors.NoReplica("n"),
        errors.Overloaded("n"),
        errors.GuardClosed("n"),
        errors.OutcomeUnknown("n", node="a", phase="sent", token="t"),
        errors.DeadlineExceeded("n"),
    ]
    for error in made:
        error.__dict__["timed_out"] = late
        error.__cause__ = ValueError()
        dressed = dress(error)
        again = pickle.loads(pickle.dumps(dressed))
        (shown,) = traceback.format_exception_only(dressed)

        assert isinstance(dressed, type(error))
        assert isinstance(dressed, psycopg.OperationalError)
        assert dressed.__cause__ is error.__cause__
        assert (dressed.sqlstate, dressed.diag.sqlstate, dressed.pgconn) == (None, None, None)
        assert (type(again), str(again)) == (type(dressed), "n")
        assert error.__dict__.items() <= again.__dict__.items()
        assert shown == f"dbguard.{type(error).__name__}: n\n"
        assert dress(dressed) is dressed
    timely = [isinstance(dress(error), TimeoutError) for error in made]
    assert timely == ([True, False, True, False, False, True, True] if late else [False] * 6 + [True])


def test_what_is_not_for_the_drivers_handlers_stays_as_it_is() -> None:
    error = errors.ConfigError("wrong")

    assert dress(error) is error
