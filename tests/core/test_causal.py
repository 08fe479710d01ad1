"""Boxes: what a context has written decides where its reads may go (RULES 5.1)."""

from __future__ import annotations

from dbguard.core.causal import Box, Orphan
from dbguard.core.topology import Reign

FIRST = Reign("42", 1, "m1")
SECOND = Reign("42", 2, "m2")


def orphan(reign: Reign | None = FIRST) -> Orphan:
    return Orphan(node="a", pid=7, started=1.0, reign=reign, doomed=False)


def written(at: float = 10.0, reign: Reign | None = FIRST) -> Box:
    box = Box()
    box.wrote(reign, at)
    return box


def test_context_that_wrote_nothing_may_read_anywhere() -> None:
    assert Box().floor(FIRST, None, -1.0) == 0


def test_position_is_learnt_only_from_a_question_asked_after_the_write() -> None:
    assert written(10.0).floor(FIRST, 500, 9.9) is None
    assert written(10.0).floor(FIRST, 500, 10.0) is None
    assert written(10.0).floor(FIRST, 500, 10.1) == 500


def test_position_once_learnt_stays_low() -> None:
    box = written(10.0)
    assert box.floor(FIRST, 500, 11.0) == 500

    assert box.floor(FIRST, 900, 12.0) == 500


def test_next_write_has_to_be_learnt_anew() -> None:
    box = written(10.0)
    box.floor(FIRST, 500, 11.0)

    box.wrote(FIRST, 20.0)

    assert box.floor(FIRST, 500, 11.0) is None
    assert box.floor(FIRST, 900, 21.0) == 900


def test_write_under_an_older_reign_keeps_reads_on_the_primary_until_the_new_one_has_told_a_position() -> None:
    box = written(10.0, FIRST)
    assert box.floor(FIRST, 500, 11.0) == 500

    assert box.floor(SECOND, None, -1.0) is None
    assert box.floor(SECOND, 400, 12.0) == 400, "what the new reign has of the write lies below what it tells"
    assert box.floor(SECOND, 900, 13.0) == 400


def test_next_write_under_the_new_reign_frees_the_reads() -> None:
    box = written(10.0, FIRST)

    box.wrote(SECOND, 20.0)

    assert box.floor(SECOND, 900, 21.0) == 900


def test_reign_alone_is_compared_and_not_its_number() -> None:
    twin = Reign("42", 1, "m3")

    box = written(10.0, FIRST)
    assert box.floor(FIRST, 500, 11.0) == 500
    assert box.floor(twin, None, -1.0) is None


def test_write_without_a_known_reign_keeps_reads_on_the_primary_until_a_position_is_learnt() -> None:
    assert written(10.0, None).floor(FIRST, None, -1.0) is None
    assert written(10.0, None).floor(FIRST, 900, 11.0) == 900


def test_write_of_unknown_fate_pins_reads_to_the_primary_until_its_backend_is_gone() -> None:
    box = written(10.0)
    left = orphan()
    box.pin(left)
    assert box.floor(FIRST, 900, 11.0) is None

    left.gone = True

    assert box.floor(FIRST, 900, 11.0) == 900
    assert box.pins == []


def test_every_pin_has_to_go() -> None:
    box = written(10.0)
    one, other = orphan(), orphan()
    box.pin(one)
    box.pin(other)

    one.gone = True

    assert box.floor(FIRST, 900, 11.0) is None


def test_backend_of_an_older_reign_pins_nothing_under_the_next() -> None:
    box = written(10.0)
    box.pin(orphan(FIRST))

    box.wrote(SECOND, 20.0)

    assert box.floor(SECOND, 900, 21.0) == 900
