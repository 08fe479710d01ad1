from __future__ import annotations

from dbguard.cli.demo.history import BEAT, Ending, History, Operation


def read(ended: float, ending: Ending = Ending.ACKNOWLEDGED) -> Operation:
    return Operation("read", ended - 0.01, ended, ending, error=None if ending is Ending.ACKNOWLEDGED else "OSError")


def write(ended: float, value: int, ending: Ending = Ending.ACKNOWLEDGED) -> Operation:
    return Operation("write", ended - 0.01, ended, ending, value)


def test_operations_are_counted_by_kind_and_ending() -> None:
    history = History(10.0)

    for operation in (read(10.1), read(10.2, Ending.FAILED), write(10.3, 1), write(10.4, 2, Ending.UNKNOWN)):
        history.add(operation)

    assert history.count(Ending.ACKNOWLEDGED) == 2
    assert history.count(Ending.ACKNOWLEDGED, "write") == 1
    assert history.count(Ending.FAILED, "write") == 0
    assert history.errors == {"OSError": 1}


def test_an_unknown_outcome_is_no_error() -> None:
    history = History(0.0)

    history.add(write(0.1, 1, Ending.UNKNOWN))

    assert not history.errors
    assert history.beat("write", 0).failed == 0
    assert history.values(Ending.UNKNOWN) == {1}
    assert history.values(Ending.ACKNOWLEDGED, Ending.FAILED) == set()


def test_a_beat_sums_up_what_ended_in_it() -> None:
    history = History(10.0)

    for at in (10.0, 10.0 + BEAT / 2, 10.0 + BEAT):
        history.add(read(at))
    history.add(read(10.0 + BEAT, Ending.FAILED))

    assert history.beat("read", 0).acknowledged == 2
    assert (history.beat("read", 1).acknowledged, history.beat("read", 1).failed) == (1, 1)
    assert history.beat("write", 1).acknowledged == 0


def test_acknowledgements_are_in_the_order_of_time() -> None:
    history = History(0.0)

    for at in (0.3, 0.1, 0.2):
        history.add(read(at))

    assert history.acknowledged("read") == [0.1, 0.2, 0.3]
