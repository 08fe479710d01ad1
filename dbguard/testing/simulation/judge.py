"""What must hold in every run, whatever breaks: checked as it happens, and once more at the end.

resent       a write was sent again although the first sending was never resolved
duplicate    a value was committed twice, and not once in a history that was lost
false        a call raised an error that says "not applied", and the value was committed
fenced       a commit of an older reign was acknowledged after the guard had seen the new one
lost         an acknowledged value is gone, and not because the cluster lost it before the guard could know
stale        a read under own-writes missed a value that its context had finished, and that the primary has
late         a call ended after its deadline
budget       more repeats were paid for than the budget holds
open         a write's fate was left open although its token could still be asked for
silent       a failover lost what was acknowledged and had been bounded by a probe, and nothing was said of it
unended      a call never ended, or something of it is still out at the end
thin         too little happened for a seed: fewer than fifty calls, a promotion and three other faults
dead         the cluster is well again, and calls still fail
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from dbguard.core.failure import Failure, Family, Phase
from dbguard.core.topology import Role
from dbguard.testing.simulation.messages import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from dbguard.core.retry import RetryPolicy
    from dbguard.core.topology import Instance, Reign, Sighting, View
    from dbguard.testing.simulation.messages import Missing
    from dbguard.testing.simulation.servers import Server

__all__ = ["OVERSHOOT", "Judge", "Violation"]

OVERSHOOT = 0.1
"""Seconds by which a call may end after its deadline."""

EXPIRY = 10.0
"""Seconds for which the budget counts; a repeat counts for at least nine of them."""


class Violation(NamedTuple):
    """One broken promise: which, when, and how."""

    promise: str
    at: float
    what: str

    def __str__(self) -> str:
        return f"{self.promise} at {self.at:.3f}: {self.what}"


@dataclass(slots=True)
class Write:
    """What is known about one value.

    open: sent, and neither answered nor refused. acknowledged: when, by whom, on which timeline, and under which reign.
    lawful: by the server that the guard had accepted. safe: that one was the primary by right, and a standby has it.
    denied: the call ended with an error that says that nothing was applied.
    refuted: tokens that were proved not applied.
    """

    sent: int = 0
    open: bool = False
    acknowledged: float | None = None
    by: str = ""
    timeline: int = 0
    reign: Reign | None = None
    lawful: bool = False
    safe: bool = False
    denied: str | None = None
    applied: list[str] = field(default_factory=list)
    refuted: list[str] = field(default_factory=list)


class Judge:
    """Watches one run.

    servers: of the world, by name. marked: whether the guard knows the mark of the reign that it has accepted.
    unprovable: stale reads from a replica of the wrong one of two primaries with the same timeline number, of which this
        process had met one alone, and without knowing a mark: known limit, since only a mark tells the two apart.
    """

    def __init__(self, retry: RetryPolicy, servers: Mapping[str, Server]) -> None:
        self.violations: list[Violation] = []
        self.writes: dict[str, Write] = {}
        self._servers = servers
        self._accepted: Server | None = None
        self._shown: dict[int, set[str]] = {}
        self._carried: dict[str, str] = {}
        self.unprovable = 0
        self.marked: Callable[[], bool] = bool
        self._bounded: dict[Reign, float] = {}
        self._alarms: set[float] = set()
        self._number = 0
        self._retry = retry
        self._firsts: list[float] = []
        self._paid: list[float] = []

    def break_(self, promise: str, at: float, what: str) -> None:
        """Note a broken promise."""
        self.violations.append(Violation(promise, at, what))

    # ------------------------------------------------------------------ what the guard knows

    def sees(self, sighting: Sighting) -> None:
        """The guard is told what a server says of itself."""
        if sighting.role is Role.PRIMARY and sighting.timeline is not None:
            self._shown.setdefault(sighting.timeline, set()).add(self._server_of(sighting.instance).name)

    def bounds(self, sighting: Sighting, reign: Reign) -> None:
        """The primary of *reign*, which is the accepted one, has told its position."""
        self._bounded[reign] = max(self._bounded.get(reign, 0.0), sighting.at)

    def alarms(self, at: float) -> None:
        """The guard says that writes may be lost."""
        self._alarms.add(at)

    def succeeds(self, view: View, at: float) -> None:
        """Another reign was accepted: whatever it lacks of what a probe had bounded has to be said.

        A position bounds what was acknowledged under the reign in which it was told: a primary that comes back after two
        were seen to bear its number is not known to be the same, and its position says nothing of what it had before.
        (Of two that bear one number nothing shows where the second began, unless both have told their marks.)
        """
        old, new = self._accepted, self.watches(view)
        number, self._number = self._number, view.reign.timeline if view.reign is not None else 0
        if old is None or new is None or old is new or old.sync or at in self._alarms or number == self._number:
            return
        has = {value for commit in new.wal for value in commit.values}
        for value, write in self.writes.items():
            until = self._bounded.get(write.reign, 0.0) if write.reign is not None else 0.0
            bounded = write.acknowledged is not None and write.acknowledged < until
            if bounded and (write.by, write.timeline) == (old.name, number) and write.lawful and value not in has:
                self.break_("silent", at, f"{value}, acknowledged by {old.name}, is not on {new.name}")

    def watches(self, view: View) -> Server | None:
        """Return the server that the guard accepted last as primary; *view* is what it knows now."""
        if view.primary is not None:
            self._accepted = self._server_of(view.nodes[view.primary].instance)
        return self._accepted

    def _server_of(self, instance: Instance) -> Server:
        return self._servers[str(instance.started).split()[0]]

    # ------------------------------------------------------------------ writes

    def sends(self, values: Iterable[str], at: float) -> None:
        """A request that commits *values* is handed to the network."""
        for value in values:
            write = self.writes.setdefault(value, Write())
            if write.open:
                self.break_("resent", at, f"{value} was sent again, and nobody knows what became of the first sending")
            write.sent += 1
            write.open = True

    def refuses(self, values: Iterable[str]) -> None:
        """The server has answered that it did not apply them, on a connection that lives."""
        for value in values:
            self.writes[value].open = False

    def applied(self, server: Server, value: str) -> None:
        """A server has committed *value*."""
        write = self.writes.setdefault(value, Write())
        write.applied.append(server.name)
        if len(write.applied) > 1 and (not write.refuted or _times(server, value) > 1):
            self.break_("duplicate", server.agenda.now, f"{value} was committed on {' and '.join(write.applied)}")

    def carries(self, token: str, value: str) -> None:
        """The request that commits *value* carries *token*."""
        self._carried[token] = value

    def refutes(self, token: str, error: BaseException) -> None:
        """Its client was told later that the write under *token* was not applied; *error* is what it had been told first."""
        if token in self._carried:
            self.denies([self._carried[token]], error)

    def resolves(self, token: str, kind: str, server: Server, view: View, at: float) -> None:
        """A claim of *token* was answered: ``w``, its write is there, or ``x``, it is not and cannot come any more."""
        value = self._carried.get(token)
        if value is None:
            return  # its connection was closed before anything was sent
        if kind == "w":
            self.acknowledges((value,), server, Answer(server.timeline), view, at)
        else:
            self.writes[value].open = False
            self.writes[value].refuted.append(token)

    def acknowledges(self, values: Iterable[str], server: Server, answer: Answer, view: View, at: float) -> None:
        """The attempt that committed *values* on *server* succeeded."""
        timeline = answer.value
        lawful = server is self.watches(view)
        for value in values:
            write = self.writes[value]
            write.open = False
            write.acknowledged, write.by, write.timeline, write.lawful = at, server.name, timeline, lawful
            write.reign = view.reign
            write.safe = lawful and server.sync and server.rightful() is server and timeline == server.timeline
        if answer.unproven:
            self.break_(
                "lost", at, f"{server.name} said that no standby has {' '.join(values)}, and it was acknowledged"
            )
        reign = view.reign
        if not lawful or (reign is not None and timeline < reign.timeline):
            self.break_(
                "fenced",
                at,
                f"{server.name} on timeline {timeline} acknowledged a write, accepted is {reign}",
            )

    def denies(self, values: Iterable[str], error: BaseException) -> None:
        """The call ended with an error that says that nothing was applied."""
        for value in values:
            self.writes.setdefault(value, Write()).denied = f"{type(error).__name__}: {error}"

    # ------------------------------------------------------------------ reads

    def reads(self, missing: Missing, server: Server, at: float) -> None:
        """A read under own-writes missed these values, which the primary by right had at that moment.

        (Where the guard has accepted another one, which lacks them too, it could not know: two successors may bear one
        timeline number, and only one of them answered.)
        """
        for value in missing.values:
            if missing.twin is not None and len(self._shown.get(missing.twin, ())) <= 1 and not self.marked():
                self.unprovable += 1
                continue
            self.break_("stale", at, f"a read on {server.name} missed {value}, which {server.rightful().name} has")

    # ------------------------------------------------------------------ calls

    def begins(self, at: float) -> None:
        """A call makes its first attempt."""
        self._firsts.append(at)

    def repeats(self, last: Failure, at: float, *, free: bool) -> None:
        """Another attempt follows *last*; *free*: the one that our own drain is owed. After contention none is refused."""
        if free or last.phase in (Phase.CONNECT, Phase.UNSENT) or last.family is Family.CONTENTION:
            return
        paid = self._paid
        paid.append(at)
        firsts = sum(1 for first in self._firsts if first > at - EXPIRY)
        allowed = self._retry.budget * firsts + self._retry.floor * EXPIRY
        taken = sum(1 for one in paid if one > at - EXPIRY * 0.9)
        if taken > allowed + 1e-6:
            self.break_("budget", at, f"{taken} repeats within {EXPIRY:g} s, allowed are {allowed:.1f}")

    def ends(self, what: str, deadline: float, at: float) -> None:
        """A call has ended."""
        if at > deadline + OVERSHOOT:
            self.break_("late", at, f"{what} ended {at - deadline:.3f} s after its deadline")

    # ------------------------------------------------------------------ the end

    def finish(self, truth: Server, at: float, *, lossless: bool) -> None:
        """Compare what was said with what the surviving primary has.

        lossless: every promotion took over what a standby had confirmed, so nothing that was safe can be gone.
        """
        kept = {entry for commit in truth.wal for entry in commit.values}
        for value, write in self.writes.items():
            burnt = [token for token in write.refuted if f"x:{token}" in kept]
            if write.denied is not None and write.applied and (not write.refuted or (burnt and value in kept)):
                self.break_(
                    "false", at, f"{value} was committed on {write.applied[0]}, and its call ended with {write.denied}"
                )
            if write.acknowledged is None or value in truth.visible:
                continue
            if not write.lawful or not write.applied or (write.safe and lossless):
                self.break_("lost", at, f"{value}, acknowledged at {write.acknowledged:.3f} by {write.by}, is gone")
        if truth.role is not Role.PRIMARY:
            self.break_("dead", at, f"{truth.name} should be the primary: the model is wrong")


def _times(server: Server, value: str) -> int:
    """Return how often *value* stands in a server's history."""
    return sum(value in commit.values for commit in server.wal)
