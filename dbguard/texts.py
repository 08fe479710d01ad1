"""What is known about a statement's text: one dictionary look-up once it was seen."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dbguard.core.catalogue import NOTHING_KNOWN, conclude, trusted_functions
from dbguard.core.classify import Classifier
from dbguard.core.retry import Stake, Work
from dbguard.core.statement import Kind, Token, Touch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dbguard.core.catalogue import Catalogue, Knowledge
    from dbguard.core.statement import Statement

__all__ = ["Direction", "Text", "Texts"]

MOST_TEXTS = 4_096
"""Texts remembered at most; above that all are forgotten at once, which costs less than counting their uses."""

LONGEST_TEXT = 4_096
"""Characters; longer texts are rarely seen twice and would fill the memory."""

_RECALLS = re.compile("lastval|currval", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Direction:
    """One rule of the configuration: texts that *match* finds go to *role*, and reads among them to *group* alone."""

    match: re.Pattern[str]
    role: str
    group: frozenset[str] | None = None


class Text:
    """One statement's text, classified.

    reads: it may go to a replica. doubtful: on a primary it may write all the same, as far as is known: it names relations
    of which nothing is known yet, and one of them may be a view that runs a volatile function. liftable: it is not understood, and may go there if the caller says so.
    hint: where a comment in the text sends it, the strongest word of all. rule: where a rule of the configuration does,
    the weakest; group: to which nodes. why: one short phrase. refused: a replica has refused it as a write.
    work: what is at stake when it runs in autocommit.
    token: the form in which it carries one as a write in autocommit.
    controls: it may begin or end a transaction. touched: what it may leave on the session, as far as proven. ddl: it may change the catalogue.
    recalls: it may ask what was last drawn from sequences on its session.
    """

    __slots__ = (
        "controls",
        "ddl",
        "doubtful",
        "group",
        "hint",
        "liftable",
        "reads",
        "recalls",
        "refused",
        "rule",
        "statement",
        "token",
        "touched",
        "why",
        "work",
    )

    def __init__(self, query: str, statement: Statement, known: Knowledge, rule: Direction | None = None) -> None:
        clean = statement.touch is Touch.NOTHING and known.is_clean(statement, query)
        taint = known.taints(statement, query) if statement.kind is Kind.READ else None
        self.statement = statement
        self.controls = statement.kind is Kind.TRANSACTION or not statement.one_transaction
        self.hint = statement.hint
        self.rule = rule.role if rule is not None else None
        self.group = rule.group if rule is not None and statement.hint is None else None
        self.why = f"hint: {self.hint}" if self.hint else taint or statement.why
        self.reads = statement.is_read and taint is None and self.hint != "primary"
        self.doubtful = known.unread and self.reads and statement.relations != frozenset()
        self.liftable = statement.kind is Kind.UNKNOWN and self.hint != "primary"
        self.refused = False
        self.ddl = statement.ddl
        self.touched = statement.touch if clean or statement.touch is not Touch.NOTHING else Touch.SETTINGS
        self.recalls = statement.kind is not Kind.TRANSACTION and (
            self.touched is not Touch.NOTHING or _RECALLS.search(query) is not None
        )
        self.work = Work(
            stake=Stake.READ if statement.kind is Kind.READ and taint is None else Stake.WRITE,
            one_transaction=statement.one_transaction,
            single=not statement.several,
            leaves_nothing=(statement.locks_only or statement.sets_only) and known.taints(statement, query) is None,
        )

        self.token = self._form(notifies=known.notifies(statement))

    def _form(self, *, notifies: bool) -> Token:
        """Return how it carries a token. A block's holds whatever a view's function wrote, or a rule's NOTIFY told."""
        statement = self.statement
        if not statement.one_transaction or self.controls:
            return Token.NONE
        if statement.kind is Kind.READ:
            return Token.NONE if self.work.leaves_nothing or self.work.stake is Stake.READ else Token.BLOCK
        return Token.BLOCK if statement.token is Token.CTE and notifies else statement.token

    def refuse(self) -> None:
        """Take in that a replica has refused it as a write: from now on it is one, wherever it runs."""
        self.reads, self.refused = False, True
        self.work = replace(self.work, stake=Stake.WRITE)
        self.token = self._form(notifies=False)


class Texts:
    """The texts of one guard, and what the live catalogue says about them.

    read, write: functions of the application's that the configuration names; they count for more than the catalogue.
    rules: of the configuration, in its order; the first whose expression is found in a text counts.
    announce: called on whatever thread DDL was seen on; it must not wait.

    Until the catalogue has been read, no statement leaves out the reset, and no read of a relation that the primary
    was sent is sent again.
    """

    __slots__ = (
        "_functions",
        "_known",
        "_lock",
        "_read",
        "_rules",
        "_write",
        "announce",
        "classify",
        "get",
        "knowledge",
        "version",
    )

    def __init__(
        self,
        read: frozenset[str] = frozenset(),
        write: frozenset[str] = frozenset(),
        rules: Sequence[Direction] = (),
    ) -> None:
        self._rules = rules
        self._read = read
        self._write = write
        self._known: dict[str, Text] = {}
        self.classify = Classifier(read_functions=read, write_functions=write).classify
        self.get = self._known.get
        self.knowledge = NOTHING_KNOWN
        self._functions: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
        self.version = 0
        self._lock = (
            threading.RLock()
        )  # calls of several threads may learn at once, and the catalogue is read on another one
        self.announce: Callable[[], object] = _to_nobody

    def learn(self, query: str) -> Text:
        """Return what is known of *query*, classifying it if it is new."""
        known = self._known.get(query)
        if known is not None:
            return known
        rule = next((rule for rule in self._rules if rule.match.search(query)), None)
        with self._lock:
            text = Text(query, self.classify(query), self.knowledge, rule)
            if len(query) <= LONGEST_TEXT:
                if len(self._known) >= MOST_TEXTS:
                    self._known.clear()
                self._known[query] = text
        return text

    def trust(self, catalogue: Catalogue, version: int) -> None:
        """Take over what follows from the catalogue, unless DDL was seen since its reading began."""
        if version != self.version:
            return
        read, write = trusted_functions(catalogue)
        classify = Classifier(
            read_functions=(read | self._read) - self._write, write_functions=(write - self._read) | self._write
        ).classify
        knowledge = conclude(catalogue, classify)
        with self._lock:
            if version == self.version and (knowledge != self.knowledge or (read, write) != self._functions):
                self.classify, self.knowledge, self._functions = classify, knowledge, (read, write)
                self._forget()

    def changed(self) -> None:
        """Take in that DDL was or will be run: nothing is plain until the catalogue has been read again."""
        with self._lock:
            self.version += 1
            if not (self.knowledge.unsure and self.knowledge.unread):
                self.knowledge = replace(self.knowledge, plain=frozenset(), unsure=True, unread=True)
                self._forget()
        self.announce()

    def _forget(self) -> None:
        """Forget what follows from the catalogue; what replicas have refused stays known."""
        refused = [query for query, text in self._known.items() if text.refused]
        self._known.clear()
        for query in refused:
            self.learn(query).refuse()


def _to_nobody() -> None:
    """Nobody reads the catalogue just now."""
