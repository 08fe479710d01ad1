"""The public surface as text: a change of it is a visible diff of `public_api.txt`."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import asyncpg
import pytest

import dbguard
from dbguard import errors, events
from dbguard.drivers.asyncpg import failures

TEXT = Path(__file__).parent / "public_api.txt"


def surface() -> str:
    lines = []
    for name in dbguard.__all__:
        thing = getattr(dbguard, name)
        if isinstance(thing, type) and not issubclass(thing, BaseException):
            lines.append(name)
            for member in sorted(dir(thing)):
                if member.startswith("_") or not hasattr(thing, member):
                    continue
                value = getattr(thing, member)
                if callable(value):
                    lines.append(f"    {member}{inspect.signature(value)}")
                else:
                    lines.append(f"    {member}")
        elif isinstance(thing, type):
            lines.append(f"{name}({thing.__mro__[1].__name__})")
        elif callable(thing):
            lines.append(f"{name}{inspect.signature(thing)}")
        else:
            lines.append(name)
    return "\n".join(lines) + "\n"


def test_public_surface_is_as_written() -> None:
    now = surface()

    assert now == TEXT.read_text(), "the public API changed: if that is meant, write the new text to public_api.txt"


def test_public_names_are_sorted_and_literal() -> None:
    assert list(dbguard.__all__) == sorted(dbguard.__all__)


def test_every_public_name_is_described() -> None:
    for name in dbguard.__all__:
        thing = getattr(dbguard, name)
        if isinstance(thing, type) or callable(thing):
            assert inspect.getdoc(thing), name


ERRORS = [
    errors.NoPrimary("no primary", retry_after=1.0),
    errors.SplitBrain("two of them"),
    errors.NoReplica("none fit"),
    errors.Overloaded("too many", retry_after=0.5),
    errors.GuardClosed("closed"),
    errors.DeadlineExceeded("over", spent={"wait": 1.0}),
    errors.OutcomeUnknown("maybe", node="a (10.0.0.1:5432)", phase="sent", reign="timeline 2", sent_at=1.0),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_dbguard_raises_is_caught_as_the_drivers_connection_error(error: errors.DbGuardError) -> None:
    dressed = failures.dress(error)

    assert isinstance(dressed, type(error))
    assert isinstance(dressed, asyncpg.PostgresConnectionError)
    assert str(dressed) == str(error)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("ended", ["", "by time"])
def test_errors_survive_pickling(error: errors.DbGuardError, ended: str) -> None:
    error.__dict__["timed_out"] = bool(ended) and isinstance(error, errors.NoPrimary | errors.OutcomeUnknown)
    dressed = failures.dress(error)

    again = pickle.loads(pickle.dumps(dressed))

    assert type(again) is type(dressed)
    assert again.args == dressed.args
    assert again.__dict__ == dressed.__dict__


def test_what_was_ended_by_time_is_a_timeout() -> None:
    error = errors.OutcomeUnknown("maybe", node="a", phase="sent")
    error.__dict__["timed_out"] = True

    assert isinstance(failures.dress(error), TimeoutError)


def test_events_are_frozen_and_say_themselves() -> None:
    event = events.PrimaryChanged(at=1.0, node="b", was="a", reign="timeline 2")

    with pytest.raises(AttributeError):
        event.node = "c"  # type: ignore[misc]
    assert event.text() == "primary is b (was a), reign timeline 2"
    assert event.as_dict()["event"] == "PrimaryChanged"
