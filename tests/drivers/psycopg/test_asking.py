"""A refusal in words that are not known: the server is asked once more, for the code that comes with them."""

from __future__ import annotations

import socket
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from dbguard.core.failure import Family
from dbguard.drivers.psycopg.asking import learn
from dbguard.drivers.psycopg.dial import own_dialer
from dbguard.drivers.psycopg.failures import describe, name_dial
from dbguard.drivers.psycopg.refusals import LEARNT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbguard.testing.cluster import Cluster

TLS_ASKED_FOR = 80877103  # the code of an SSLRequest
NOT_READ_YET = psycopg.pq.version() < 180000


class Refusing:
    """A server that refuses each dial with the next of its answers, in its own words, and the last one ever after."""

    def __init__(self, *answers: tuple[str, str, str]) -> None:
        self.dials = 0
        self._answers = list(answers)
        self._listens = socket.create_server(("127.0.0.1", 0))
        self._serves = threading.Thread(target=self._serve)
        self._serves.start()

    @property
    def conninfo(self) -> str:
        return make_conninfo(host="127.0.0.1", port=self._listens.getsockname()[1], user="app", connect_timeout=5)

    def close(self) -> None:
        self._listens.shutdown(socket.SHUT_RDWR)
        self._serves.join()
        self._listens.close()

    def _serve(self) -> None:
        while True:
            try:
                con, _ = self._listens.accept()
            except OSError:
                return
            with con:
                self._refuse(con)

    def _refuse(self, con: socket.socket) -> None:
        while True:
            length, code = struct.unpack("!II", con.recv(8, socket.MSG_WAITALL))
            con.recv(length - 8)
            if code != TLS_ASKED_FOR:
                break
            con.sendall(b"N")
        self.dials += 1
        severity, sqlstate, text = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        fields = (f"S{severity}", "VFATAL", f"C{sqlstate}", f"M{text}", "Fpostmaster.c", "L1", "RProcessStartupPacket")
        body = b"".join(field.encode() + b"\0" for field in fields) + b"\0"
        con.sendall(b"E" + struct.pack("!I", len(body) + 4) + body)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture(autouse=True)
def nothing_learnt() -> Iterator[None]:
    LEARNT.clear()
    yield
    LEARNT.clear()


def refused(conninfo: str) -> psycopg.OperationalError:
    with pytest.raises(psycopg.OperationalError) as raised:
        psycopg.connect(conninfo)
    return raised.value


def known(code: str | None) -> str | None:
    """Return what can be learnt of a refusal before the login: nothing, before version 18 of libpq."""
    return None if NOT_READ_YET else code


@pytest.mark.parametrize(
    ("severity", "sqlstate", "text", "family"),
    [
        ("FATAL", "57P03", "das Datenbanksystem startet", Family.HARD),
        ("ВАЖНО", "53300", "извините, уже слишком много клиентов", Family.SOFT),
        ("致命错误", "28P01", '用户 "app" Password 认证失败', Family.CONFIG),
        ("FATAL", "28000", 'pas d\'entrée C "57P03" M "dans pg_hba.conf"', Family.CONFIG),
    ],
)
def test_the_code_of_words_not_known_is_asked_for_once(severity: str, sqlstate: str, text: str, family: Family) -> None:
    with Refusing((severity, sqlstate, text)) as server:
        first = refused(server.conninfo)
        before = name_dial(first, "a")
        learn(first, server.conninfo, timeout=5)
        second = refused(server.conninfo)
        learn(second, server.conninfo, timeout=5)
        dials = server.dials

    assert (before.sqlstate, before.family) == (None, Family.SOFT)
    for error in (first, second):
        failure = name_dial(error, "a")
        assert (failure.sqlstate, failure.family) == (known(sqlstate), (known(sqlstate) and family) or Family.SOFT)
        assert text not in describe(error)
    assert dials == 3


def test_another_answer_says_nothing_about_the_first_one() -> None:
    answers = ("FATAL", "53300", "schon zu viele Verbindungen"), ("FATAL", "57P03", "das Datenbanksystem startet")
    with Refusing(*answers) as server:
        error = refused(server.conninfo)
        learn(error, server.conninfo, timeout=5)

    failure = name_dial(error, "a")
    assert (failure.sqlstate, failure.family) == (None, Family.SOFT)


def test_words_that_a_server_could_not_write_are_not_remembered() -> None:
    answers = [("FATAL", code, "?" * 12) for code in ("57P03", "57P03", "53300")]
    with Refusing(*answers) as server:
        error = refused(server.conninfo)
        learn(error, server.conninfo, timeout=5)
        other = refused(server.conninfo)

    assert name_dial(error, "a").sqlstate == known("57P03")
    assert name_dial(other, "a").sqlstate is None


def test_words_that_are_known_are_not_asked_for() -> None:
    with Refusing(("FATAL", "53300", "sorry, too many clients already")) as server:
        learn(refused(server.conninfo), server.conninfo, timeout=5)
        dials = server.dials

    assert dials == 1


def test_a_server_that_falls_silent_holds_nobody_up_and_teaches_nothing() -> None:
    with Refusing(("FATAL", "57P03", "das Datenbanksystem startet")) as server:
        error = refused(server.conninfo)
    began = time.monotonic()
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        learn(error, make_conninfo(host="127.0.0.1", port=silent.getsockname()[1], user="app"), timeout=0.1)

    assert time.monotonic() - began < 10
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files
    assert name_dial(error, "a").sqlstate is None


async def test_a_dial_of_the_guards_own_learns_what_it_does_not_understand() -> None:
    with Refusing(("FATAL", "57P03", "das Datenbanksystem startet")) as server:
        dialer = own_dialer(conninfo_to_dict(server.conninfo), {})
        failures = []
        for _ in range(2):
            with pytest.raises(psycopg.OperationalError) as raised:
                await dialer.control(timeout=5)
            failures.append(name_dial(raised.value, "a"))
        dials = server.dials

    assert [failure.sqlstate for failure in failures] == [known("57P03")] * 2
    assert dials == 3


@pytest.mark.every_postgres
def test_a_real_server_is_understood_in_words_of_any_kind(calm_cluster: Cluster) -> None:
    conninfo = make_conninfo(calm_cluster.dsn("a"), options="-c shared_buffers=1")
    error = refused(conninfo)
    learn(error, conninfo, timeout=5)

    assert name_dial(error, "a").sqlstate == "55P02"
    assert name_dial(refused(conninfo), "a").sqlstate == "55P02"
    assert describe(error) == "55P02 CantChangeRuntimeParam"
    assert calm_cluster.sql("a", "SELECT 1") == [(1,)]
