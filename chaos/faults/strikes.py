"""What a scenario can break at a statement: the connection on which it runs, before the server has it or behind it.

Toxiproxy breaks a link from one moment on; what became of a commit depends on which of its bytes had passed by then.
(Annotations are evaluated here, since `Section` reads the rules in them.)
"""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

from chaos.faults.base import Breakage
from chaos.stage import Stage
from dbguard.config.quantities import Whole
from dbguard.config.values import Choice, Text
from dbguard.testing.wire import Break

__all__ = ["How", "Strike", "What", "met"]

_COMMIT = re.compile(r"\bCOMMIT\s*;?\s*\Z", re.IGNORECASE)
_BEGIN = re.compile(r"\s*(?:BEGIN|START)\b", re.IGNORECASE)
_CLAIM = "dbguard.token AS t"  # so a claim calls the table of tokens, and no write does


What = Literal["write", "commit", "outcome", "claim"]
"""Which statements are waited for.

write: one that writes to the workload's table; in autocommit it is its own commit. commit: the COMMIT of a transaction
that did. outcome: what decides a write's outcome, whether the client sends it by itself or in a transaction: the write in
autocommit, or that COMMIT. claim: the COMMIT of a claim, by which the guard finds out what became of a write.
"""

How = Literal["request-cut", "ack-cut", "reset", "request-hole", "ack-hole", "late", "orphan"]
"""What becomes of the statement and its connection, as `dbguard.testing.wire.Break` says."""


def met(what: What, script: tuple[str, ...], table: str) -> bool:
    """Return whether the last statement of a transaction, *script*, is waited for. table: the workload's."""
    writes = re.compile(rf"\b(?:INSERT\s+INTO|UPDATE|DELETE\s+FROM|COPY)\s+\"?{table}\b", re.IGNORECASE)
    alone = len(script) == 1 and not _BEGIN.match(script[0])
    if what == "write" or (what == "outcome" and alone):
        return writes.search(script[-1]) is not None
    meant = any(_CLAIM in said if what == "claim" else writes.search(said) for said in script)
    return meant and _COMMIT.search(script[-1]) is not None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Strike(Breakage):
    """The next statements of a kind to one node are broken, each with its connection; healed, those left open end.

    What is late reaches the server when it is healed.
    """

    on_wire: ClassVar[bool] = True
    what: Annotated[What, Choice(What)]
    """Which statements: write, commit, outcome or claim. No default."""
    how: Annotated[How, Choice(How)]
    """request-cut: the server never sees it; ack-cut: it answers to nobody; reset: who knows; request-hole, ack-hole: the
    connection stays open; late: the client's end is reset, and the server gets it when all is healed; orphan: the same at
    once. No default."""
    node: Annotated[str, Text()] = "primary"
    """Which node's. Default primary."""
    requests: Annotated[int, Whole(1, 10_000)] = 1
    """How many statements are broken at most, 1 to 10,000. Default 1."""
    skip: Annotated[int, Whole(0, 10_000)] = 0
    """How many are let through before the first, 0 to 10,000. Default 0."""

    def inject(self, stage: Stage) -> AbstractContextManager[object]:
        """Arm the node's wire."""
        return self._armed(stage)

    @contextmanager
    def _armed(self, stage: Stage) -> Iterator[str]:
        app, name = stage.application, stage.node(self.node).name
        wire, how = app.wires[name], Break[self.how.upper().replace("-", "_")]
        said = partial(met, self.what, table=app.table)
        armed = app.do(lambda: wire.arm(said, how, skip=self.skip, times=self.requests))
        app.armed[self].append(armed)
        try:
            yield f"{self.how} at {self.what} to {name}"
        finally:
            app.armed[self].remove(armed)
            app.do(lambda: wire.heal(armed))

    def effect(self, stage: Stage) -> str | None:
        """Say how many statements it has broken."""
        struck = sum(armed.struck for armed in stage.application.armed[self])
        return f"{struck} struck" if struck else None

    @property
    def tells(self) -> bool:
        """It does."""
        return True

    @property
    def on_tokens(self) -> bool:
        """A claim is made by token."""
        return self.what == "claim"

    def names(self) -> dict[str, str]:
        """Return the node."""
        return {"node": self.node}

    def __str__(self) -> str:
        return f"{self.how} at {self.what} to {self.node}"
