"""Boxes: what a context has written decides where its reads may go (RULES 5.1)."""

from __future__ import annotations

from dbguard.core.causal import Box, Orphan
from dbguard.core.topology import Instance, NodeView, Reign, View

FIRST = Reign("42", 1, "m1")
SECOND = Reign("42", 2, "m2")
ELDER, YOUNGER = Instance("42", "1"), Instance("42", "2")


def orphan(reign: Reign | None = FIRST) -> Orphan:
    return Orphan(node="a", instance=ELDER, pid=7, started=1.0, reign=reign, doomed=False)


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


def view(a: Instance, b: Instance, *, primary: str | None = "a", reign: Reign = FIRST) -> View:
    return View({"a": NodeView(name="a", instance=a), "b": NodeView(name="b", instance=b)}, primary, reign)


def test_a_backend_is_asked_about_on_its_own_server_alone_by_whatever_name() -> None:
    left = orphan()

    assert left.names(view(ELDER, YOUNGER)) == ["a"]
    assert left.names(view(YOUNGER, ELDER)) == ["b"]
    assert left.names(view(YOUNGER, YOUNGER)) == []
    assert left.names(view(ELDER, ELDER)) == ["a", "b"], "the name it was reached by comes first"
    assert left.names(view(Instance(), YOUNGER)) == ["a"], "what is not told is no mismatch"


def test_a_backend_is_past_when_its_server_is_gone_and_the_office_is_another_ones() -> None:
    left = orphan()

    assert not left.is_past(view(ELDER, YOUNGER))
    assert not left.is_past(view(YOUNGER, ELDER)), "its own server can be asked"
    assert left.is_past(view(YOUNGER, YOUNGER)), "restarted in place"
    assert left.is_past(view(ELDER, YOUNGER, primary="b", reign=SECOND))
    assert not left.is_past(view(ELDER, YOUNGER, reign=SECOND)), "trusted anew, it goes on with its backends"
    assert not left.is_past(view(ELDER, YOUNGER, primary=None, reign=SECOND)), "it may be the very server"
    assert not left.is_past(view(YOUNGER, YOUNGER, primary=None)), "its server may come back by another name"
