"""Which statements a client runs, whatever bytes it says it in."""

from __future__ import annotations

import struct

import pytest

from dbguard.testing.frontend import Frontend


def message(kind: str, body: bytes) -> bytes:
    return kind.encode() + struct.pack("!i", len(body) + 4) + body


def start(code: int = 3 << 16) -> bytes:
    return struct.pack("!ii", 8, code)


def simple(text: str) -> bytes:
    return message("Q", text.encode() + b"\0")


def parse(name: str, text: str) -> bytes:
    return message("P", f"{name}\0{text}\0".encode() + b"\0\0")


def run(name: str) -> bytes:
    return message("B", f"\0{name}\0".encode() + b"\0" * 6) + message("E", b"\0" + b"\0" * 4) + message("S", b"")


def said(*pieces: bytes) -> list[tuple[str, ...]]:
    frontend = Frontend()
    return [script for piece in (start(), *pieces) for script in frontend.feed(piece)]


def test_simple_query_is_run_at_once() -> None:
    assert said(simple("SELECT 1")) == [("SELECT 1",)]


def test_prepared_statement_is_run_when_it_is_executed_and_not_when_it_is_parsed() -> None:
    prepare = parse("s1", "INSERT INTO t VALUES ($1)") + message("D", b"Ss1\0") + message("S", b"")

    assert said(prepare) == []
    assert said(prepare, run("s1"), run("s1")) == [("INSERT INTO t VALUES ($1)",)] * 2


def test_unnamed_statement_is_the_last_one_that_was_parsed() -> None:
    assert said(parse("", "SELECT 1") + run(""), parse("", "SELECT 2") + run("")) == [("SELECT 1",), ("SELECT 2",)]


def test_transaction_is_told_up_to_each_of_its_statements() -> None:
    pieces = (simple("BEGIN;"), parse("s", "UPDATE t"), run("s"), simple("INSERT INTO x; COMMIT"), simple("SELECT 1"))

    assert said(*pieces) == [
        ("BEGIN;",),
        ("BEGIN;", "UPDATE t"),
        ("BEGIN;", "UPDATE t", "INSERT INTO x; COMMIT"),
        ("SELECT 1",),
    ]


def test_rollback_to_a_savepoint_ends_no_transaction() -> None:
    pieces = (simple("START TRANSACTION"), simple("ROLLBACK TO SAVEPOINT a"), simple("ROLLBACK"), simple("SELECT 1"))

    assert [len(script) for script in said(*pieces)] == [1, 2, 3, 1]


def test_several_messages_in_one_packet_are_told_one_by_one() -> None:
    assert [script[-1] for script in said(simple("BEGIN") + simple("UPDATE t") + simple("COMMIT"))] == [
        "BEGIN",
        "UPDATE t",
        "COMMIT",
    ]


@pytest.mark.parametrize("piece", [1, 3, 7])
def test_message_in_pieces_is_told_once_it_is_whole(piece: int) -> None:
    sent = start() + simple("BEGIN") + parse("s", "UPDATE t") + run("s")
    frontend = Frontend()

    found = [script for at in range(0, len(sent), piece) for script in frontend.feed(sent[at : at + piece])]

    assert found == [("BEGIN",), ("BEGIN", "UPDATE t")]


@pytest.mark.parametrize("begun", ["simple", "extended"])
def test_copy_is_run_when_its_last_row_is_sent(begun: str) -> None:
    text = 'COPY "t"("a") FROM STDIN WITH (FORMAT binary)'
    copy = simple(text) if begun == "simple" else parse("", text) + run("")

    assert said(copy, message("d", b"rows")) == []
    assert said(copy, message("d", b"rows"), message("c", b"")) == [(text,)]
    assert said(copy, message("f", b"no\0"), simple("SELECT 1")) == [("SELECT 1",)]


def test_refused_encryption_is_followed_by_another_start() -> None:
    frontend = Frontend()

    found = [
        script
        for piece in (start(80877104), start(80877103), start(), simple("SELECT 1"))
        for script in frontend.feed(piece)
    ]

    assert found == [("SELECT 1",)]


def test_nothing_is_told_of_what_is_encrypted() -> None:
    frontend = Frontend()
    tls = b"\x16\x03\x01\x02\x00" + simple("SELECT 1")

    assert [script for piece in (start(80877103), tls, simple("SELECT 1")) for script in frontend.feed(piece)] == []
