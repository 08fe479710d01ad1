"""What is known about a statement's text: one dictionary look-up once it was seen."""

from __future__ import annotations

import asyncio
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

    ddl: it may change the catalogue. reads: it may go to a replica. liftable: it is not understood, and may go there if the caller says so. work: what is at stake when it runs in autocommit.
    touched: what it may leave on the session, as far as can be proven.
    """

    __slots__ = ("ddl", "liftable", "reads", "statement", "touched", "work")

    def __init__(self, statement: Statement, *, clean: bool) -> None:
        self.statement = statement
        self.reads = statement.is_read
        self.ddl = statement.ddl
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

    __slots__ = ("_known", "_plain", "changed_event", "classify", "get", "version")

    def __init__(self, classifier: Classifier) -> None:
        self.classify = classifier.classify
        self.version = 0
        self.changed_event = asyncio.Event()
        self._plain: frozenset[str] = frozenset()
        self._known: dict[str, Text] = {}
        self.get = self._known.get

    def learn(self, query: str) -> Text:
        """Return what is known of *query*, classifying it if it is new."""
        known = self._known.get(query)
        if known is not None:
            return known
        statement = self.classify(query)
        relations = statement.relations
        clean = not statement.user_functions and relations is not None and relations <= self._plain
        text = Text(statement, clean=clean)
        if len(query) <= LONGEST_TEXT:
            if len(self._known) >= MOST_TEXTS:
                self._known.clear()
            self._known[query] = text
        return text

    def trust(self, plain: frozenset[str], version: int) -> None:
        """Take over the catalogue's set of plain relations, unless DDL was seen since its reading began."""
        if version == self.version and plain != self._plain:
            self._plain = plain
            self._forget()

    def changed(self) -> None:
        """Take in that DDL was or will be run: nothing is plain until the catalogue has been read again."""
        self.version += 1
        self.changed_event.set()
        if self._plain:
            self._plain = frozenset()
            self._forget()

    def _forget(self) -> None:
        """Forget what follows from the catalogue; what replicas have refused stays known."""
        refused = {query: text for query, text in self._known.items() if text.statement.is_read and not text.reads}
        self._known.clear()
        for query, text in refused.items():
            self._known[query] = Text(text.statement, clean=False)
            self._known[query].reads = False
