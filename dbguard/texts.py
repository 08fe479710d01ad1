"""What is known about a statement's text: one dictionary look-up once it was seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dbguard.core.retry import Stake, Work
from dbguard.core.statement import Kind, Touch

if TYPE_CHECKING:
    from dbguard.core.classify import Classifier
    from dbguard.core.statement import Statement

__all__ = ["Text", "Texts"]

MOST_TEXTS = 4_096
"""Texts remembered at most; above that all are forgotten at once, which costs less than counting their uses."""

LONGEST_TEXT = 4_096
"""Characters; longer texts are rarely seen twice and would fill the memory."""


class Text:
    """One statement's text, classified.

    reads: it may go to a replica. liftable: it is not understood, and may go there if the caller says so. work: what is at stake when it runs in autocommit.
    touched: what it may leave on the session, as far as can be proven.
    """

    __slots__ = ("liftable", "reads", "statement", "touched", "work")

    def __init__(self, statement: Statement, *, clean: bool) -> None:
        self.statement = statement
        self.reads = statement.is_read
        self.liftable = statement.kind is Kind.UNKNOWN
        self.touched = statement.touch if clean or statement.touch is not Touch.NOTHING else Touch.SETTINGS
        self.work = Work(
            stake=Stake.READ if statement.kind is Kind.READ else Stake.WRITE,
            one_transaction=statement.one_transaction,
            leaves_nothing=statement.locks_only,
        )


class Texts:
    """The texts of one guard.

    plain: relations that are proven to run no user-defined function (RULES 6.1); until the catalogue has been read,
    only statements that name none and call none leave out the reset.
    """

    __slots__ = ("_classifier", "_known", "_plain", "get")

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._plain: frozenset[str] = frozenset()
        self._known: dict[str, Text] = {}
        self.get = self._known.get

    def learn(self, query: str) -> Text:
        """Return what is known of *query*, classifying it if it is new."""
        known = self._known.get(query)
        if known is not None:
            return known
        statement = self._classifier.classify(query)
        relations = statement.relations
        clean = not statement.user_functions and relations is not None and relations <= self._plain
        text = Text(statement, clean=clean)
        if len(query) <= LONGEST_TEXT:
            if len(self._known) >= MOST_TEXTS:
                self._known.clear()
            self._known[query] = text
        return text

    def trust(self, plain: frozenset[str]) -> None:
        """Take over the catalogue's set of plain relations."""
        self._plain = plain
        self._known.clear()
