"""The simulated cluster, and the hand that breaks and mends it.

`World.truth` is the server that is the primary by right: the one promoted last. The hand acts as a careful operator
does: one promotion at a time, of a replica of the truth; replicas are pointed at the new primary after a while; the old
one comes back as a replica of it, at last. Now and then it is less careful: an old primary starts as what it was, or as a
replica with a history of its own, or a replica follows the wrong one of two successors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dbguard.core.topology import Role
from dbguard.testing.simulation.names import RECOVERY, Names
from dbguard.testing.simulation.schedule import NODES, RENAMED, Fault, Schedule

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from dbguard.testing.simulation.agenda import Agenda
    from dbguard.testing.simulation.network import Link
    from dbguard.testing.simulation.servers import Server

__all__ = ["World"]


class World(Names):
    """The servers and their names, what becomes of them, and what there was of it.

    promotions: how many there were. faults: how many other things went wrong.
    lossless: every promotion took over what a standby had confirmed. renamed: a name has come to lead elsewhere.
    """

    def __init__(self, schedule: Schedule, agenda: Agenda, rng: Random, tell: Callable[[str], None]) -> None:
        super().__init__(schedule, agenda, rng)
        self.tell = tell
        self.promotions = 0
        self.faults = 0
        self.lossless = True
        self.renamed = False
        self._healed = False
        self._tokens = schedule.tokens
        self._misled: tuple[Server, ...] = ()
        self._promises = any(fault.kind == "promote" for fault in schedule.faults)
        for server in self.servers.values():
            server.follow(self.truth)

    def schedule(self, faults: tuple[Fault, ...], healed_at: float) -> None:
        """Put the faults down, and the end of them all."""
        if any(fault.who == "stranger" for fault in faults):
            self._cut_link(self.links[NODES[-1]])  # until it is promoted: a full round is over before it is known
        for fault in faults:
            self.agenda.at(self.agenda.now + fault.at, self._break, fault)
        self.agenda.at(self.agenda.now + healed_at, self.heal)
        self.agenda.after(0.25, self._operate)

    # ------------------------------------------------------------------ how things break

    def _break(self, fault: Fault) -> None:
        if self._healed:
            return
        server = self._find(fault.node)
        if fault.kind == "promote":
            self._oust(fault)
            return
        self.faults += 1
        self.tell(f"{fault.kind}: {server.name}, for {fault.lasts:.3f} s")
        self.renamed = self.renamed or fault.kind in RENAMED
        links, after = self._links_of(server), self.agenda.after
        if not links:
            return
        link = links[0]
        match fault.kind:
            case "restart":
                server.die()
                after(fault.lasts, self._start, server)
            case "freeze":
                server.freeze()
                after(fault.lasts, server.thaw)
            case "hole":
                self._cut_link(link)
                after(fault.lasts, link.heal)
            case "requests swallowed":
                link.requests = "hole"
                after(fault.lasts, link.heal)
            case "replies swallowed":
                link.replies = "hole"
                after(fault.lasts, link.heal)
            case "held back":
                link.requests = link.replies = "held"
                after(fault.lasts, link.heal)
            case "resets":
                link.reset()
                after(fault.lasts / 2, link.reset)
                after(fault.lasts, link.reset)
            case "requests lost":
                link.requests = fault.share
                after(fault.lasts, link.heal)
            case "replies lost":
                link.replies = fault.share
                after(fault.lasts, link.heal)
            case "replay paused":
                server.resume_replay(on=False)
                after(fault.lasts, self._resume, server)
            case "replication cut":
                self._cut(server)
                after(fault.lasts, self._follow, server)
            case "waits cut short":
                after(fault.lasts, self._cut_waits_short)
            case "full":
                server.full = True
                after(fault.lasts, self._lend, server)
            case "slow":
                link.delay = 0.05
                after(fault.lasts, link.heal)
            case "switchover":
                self._switch_over()
            case "moved":
                self._move(link, server, fault.lasts)
            case "swapped":
                self._swap(link)
            case "grouped":
                self._group(link, server, fault.lasts)
            case "aliased":
                self._alias(link, server, fault.lasts)
            case _:
                raise ValueError(f"there is no fault called {fault.kind!r}")

    def _find(self, name: str) -> Server:
        if name == "primary":
            return self.truth
        if name == "replica":
            others = [server for server in self.servers.values() if server is not self.truth and self._links_of(server)]
            return others[self.rng.randrange(len(others))]
        return self.links[name].servers[0]

    def _oust(self, fault: Fault) -> None:
        """Get the old primary out of the way, more or less, and promote another one."""
        old = self.truth
        self.tell(f"promotion: {old.name} ({fault.how}) gives way in {fault.lasts / 3:.3f} s")
        match fault.how:
            case "crash" | "twice":
                old.die()
            case "stop":
                old.die("57P01")
            case "freeze":
                old.freeze()
            case "isolate":
                for link in self._links_of(old):
                    self._cut_link(link)
            case "cut off":
                for stream, _ in old.streams:
                    stream.flows = False
            case _:
                pass
        self.agenda.after(fault.lasts / 3, self._promote, old, fault)

    def _promote(self, old: Server, fault: Fault) -> None:
        """Promote a replica of the truth; where there is none now, in a moment."""
        if old is not self.truth or (self._healed and self.promotions):
            return
        fit = [
            server
            for server in self.servers.values()
            if server is not old
            and server.up
            and not server.starting
            and not server.frozen
            and server.role is Role.REPLICA
            and server.timeline == old.timeline
            and old.is_ahead_of(server)
            and self._links_of(server)
        ]
        if not fit:
            self.agenda.after(0.1, self._promote, old, fault)
            return
        chosen = self._choose(fault.who, fit, old)
        lasts = fault.lasts
        self._enthrone(chosen)
        if fault.how == "twice":
            self._again(old, chosen, fit, lasts)
        for server in fit:
            if server is not chosen:
                self.agenda.after(lasts * self.rng.random(), self._follow, server)
        self.agenda.after(lasts, self._return, old)

    def _choose(self, who: str, fit: list[Server], old: Server) -> Server:
        """Return the one of *fit* to promote, or a server that nobody knew."""
        if who == "behind":
            return min(fit, key=_received)
        chosen = max(fit, key=_received)
        if who == "stranger":
            link = self.links[NODES[-1]]
            link.heal()
            return link.servers[0] if link.servers[0] in fit else chosen
        if who == "newcomer" and (spare := self._hire(chosen)) is not None:
            link = self._links_of(old if self.rng.random() < 0.7 and self._links_of(old) else chosen)[0]
            link.servers = [spare]
            self.renamed = True
            self.tell(f"the name {link.node} leads to {spare.name}")
            return spare
        return chosen

    def _again(self, old: Server, first: Server, fit: list[Server], lasts: float) -> None:
        """Lose the new primary too, before anybody follows it, and promote the other: both bear one timeline number."""
        others = [server for server in fit if server is not first and self._links_of(server)]
        if others:
            first.die() if self.rng.random() < 0.5 else first.freeze()
            self._enthrone(others[0])
            self.agenda.after(lasts, self._return, first)
            if self.rng.random() < 0.5:
                self._misled = (first, old)
                self.agenda.after(0.1 * self.rng.random(), self._mislead, first, old)
                self.agenda.after(0.5 + 1.5 * lasts, self._enlighten)

    def _mislead(self, first: Server, other: Server) -> None:
        """Let *first*, which is not the primary by right, go on as one, and *other* follow it."""
        if not self._misled or self.truth in self._misled:
            return
        first.thaw()
        self._start(first)
        other.thaw()
        other.die()
        other.rewind(first)
        other.start(RECOVERY)
        self.tell(f"{other.name} follows {first.name}")
        other.follow(first)
        self._write_elsewhere(first)

    def _write_elsewhere(self, server: Server) -> None:
        """Let other applications write to it, so that positions alone do not show that its history is another one."""
        if server in self._misled and server.up:
            server.advance()
            self.agenda.after(0.1 * self.rng.random(), self._write_elsewhere, server)

    def _enlighten(self) -> None:
        misled, self._misled = self._misled, ()
        for server in misled:
            self._return(server)

    def _enthrone(self, chosen: Server) -> None:
        """Make *chosen* the primary by right."""
        chosen.promote()
        if self._tokens and self.rng.random() < 0.5:  # another process accepts it, too
            mark = f"{self.rng.getrandbits(128):032x}"
            chosen.later(0.1 * self.rng.random(), chosen.mark, chosen.timeline, mark)
        self.lossless = self.lossless and chosen.position >= self.truth.confirmed_upto
        chosen.confirmed_upto = min(chosen.position, self.truth.confirmed_upto)
        self.truth = chosen
        self.promotions += 1
        self.tell(f"{chosen.name} is promoted to timeline {chosen.timeline}")

    def _switch_over(self) -> None:
        """Stop the primary in order, when its replicas have everything, and promote one of them."""
        old = self.truth
        if old.up and not old.frozen:
            old.die("57P01")
            self.agenda.after(0.05, self._promote, old, Fault(0.0, "promote", old.name, 0.3))

    def _promote_once(self) -> None:
        """Where no replica was fit in time, promote one now: no run goes without."""
        if not self.promotions:
            self._switch_over()

    def _cut_link(self, link: Link) -> None:
        link.requests = link.replies = "hole"

    def _cut(self, server: Server) -> None:
        for stream in (pair[0] for pair in server.streams):
            stream.flows = False
        if server.source is not None:
            server.source.flows = False

    # ------------------------------------------------------------------ how they are mended

    def _start(self, server: Server) -> None:
        """Start a server again as what it was; a replica follows the truth."""
        if not server.up:
            server.start(RECOVERY)
            self.tell(f"{server.name} starts as {server.role.value} on timeline {server.timeline}")

    def _resume(self, server: Server) -> None:
        server.resume_replay(on=True)

    def _cut_waits_short(self) -> None:
        self.truth.cut_waits_short()

    def _lend(self, server: Server) -> None:
        server.full = False

    def _follow(self, server: Server) -> None:
        """Point a replica at the truth; if their histories have parted, make it a copy."""
        if server is self.truth or not server.up or server.role is Role.PRIMARY or server.frozen:
            return
        if server in self._misled:
            return
        if not server.follow(self.truth) and self.truth.up and not self.truth.frozen:
            self._return(server)

    def _return(self, server: Server) -> None:
        """Let a server come back as a copy of the truth; for a while it may claim what it was."""
        if server is self.truth or server in self._misled:
            return
        links = self._links_of(server)
        if not links:
            server.die()
            return
        if not server.up and server.role is Role.PRIMARY and not self._healed and self.rng.random() < 0.5:
            if self.rng.random() < 0.3:
                server.role = Role.REPLICA  # with a history of its own: it follows nobody
            self._start(server)
            self.agenda.after(0.2 + self.rng.random(), self._return, server)
            return
        server.thaw()
        for link in links:
            link.heal()
        server.die("57P01")
        if not self.truth.up:
            self.agenda.after(0.2, self._return, server)
            return
        server.rewind(self.truth)
        server.start(RECOVERY)
        self.tell(f"{server.name} comes back as a copy of {self.truth.name}")
        server.follow(self.truth)

    def _operate(self) -> None:
        """Now and then: replicas that lost their upstream look for the truth again."""
        for server in self.servers.values():
            lonely = server.role is Role.REPLICA and (server.source is None or server.source.upstream is not self.truth)
            if lonely and server.up and not server.starting and self.rng.random() < 0.5:
                self._follow(server)
        if self._tokens and self.rng.random() < 0.25:
            self.truth.prune()
        self.agenda.after(0.25, self._operate)

    def heal(self) -> None:
        """Mend everything: one primary, all others its replicas."""
        self._healed = True
        self._misled = ()
        self.tell("everything is healed")
        for link in self.links.values():
            link.heal()
            if len(link.servers) > 1 and any(server.role is Role.PRIMARY for server in link.servers):
                self._ungroup(link)
        truth = self.truth
        for server in self.servers.values():
            server.thaw()
            server.full = False
            server.resume_replay(on=True)
        self._start(truth)
        for server in self.servers.values():
            if server is not truth and self._links_of(server):
                if not server.up:
                    server.start(RECOVERY)
                if server.role is Role.PRIMARY or not server.follow(truth):
                    self._return(server)
        if self._promises:
            self.agenda.after(1.0, self._promote_once)


def _received(server: Server) -> int:
    return len(server.wal)
