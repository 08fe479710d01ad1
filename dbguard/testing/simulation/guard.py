"""The guard in the simulation: the real state and plans, with an engine of processes around them.

The twin of `dbguard.runtime.engine`, `attempt` and `waiting`: what is decided is decided by `dbguard.core`, here as
there; what is done about it is done to simulated connections.
"""

from __future__ import annotations

from collections.abc import Generator
from itertools import count
from typing import TYPE_CHECKING, Any

from dbguard.core.causal import Orphan
from dbguard.core.failure import Failure, Family, Phase
from dbguard.core.plan import Attempt, Bury, Call, Done, Pause, Resolve, Stopped, recover
from dbguard.core.retry import Stake
from dbguard.runtime.backoff import Backoff
from dbguard.testing.fake import DriverError
from dbguard.testing.simulation.agenda import LATE, Signal
from dbguard.testing.simulation.claims import resolve
from dbguard.testing.simulation.pool import Pool
from dbguard.testing.simulation.runner import drive_simulated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dbguard.core.route import Node
    from dbguard.core.state import GuardState
    from dbguard.core.topology import Drain, Reign
    from dbguard.events import Event
    from dbguard.testing.simulation.agenda import Agenda
    from dbguard.testing.simulation.judge import Judge
    from dbguard.testing.simulation.messages import Answer
    from dbguard.testing.simulation.network import Link
    from dbguard.testing.simulation.pool import Lease

__all__ = ["ACQUIRE_TIMEOUT", "DRAIN_TIMEOUT", "SimulatedGuard", "Waits"]

Waits = Generator[Signal, Any, Any]
"""A process that waits for signals and ends with a value."""

ACQUIRE_TIMEOUT = 3.0
DRAIN_TIMEOUT = 1.0


class SimulatedGuard:
    """One process's guard over the nodes behind *links*.

    size: connections per node. tokens: writes carry tokens. fast: the first attempt is made without a plan, as
        `Engine.call` does.
    listen: called with each event. tell: called with each step of a call: its number, what happens, and where.
    """

    def __init__(
        self,
        state: GuardState,
        links: Mapping[str, Link],
        agenda: Agenda,
        judge: Judge,
        *,
        size: int,
        tokens: bool,
        fast: bool,
        listen: Callable[[Event], None],
        tell: Callable[[int, str], None],
    ) -> None:
        self.state = state
        self.links = links
        self.agenda = agenda
        self.judge = judge
        self.tokens = tokens
        self.fast = fast
        self.listen = listen
        self.tell = tell
        self.orphans: list[Orphan] = []
        self.hurry: Callable[[], None] = _nobody
        self.dialled: Callable[[], int] = count(1).__next__
        self.pools = {
            name: Pool(state.nodes[name], link, size, self.check, self.dialled) for name, link in links.items()
        }
        self._turns: dict[Signal, bool] = {}
        self._pauses: dict[Signal, bool] = {}
        self._release_at: float | None = None

    # ------------------------------------------------------------------ calls

    def call(self, number: int, call: Call, job: Callable[[Lease, Call], Waits]) -> Waits:
        """Make one call; ends with its value, or raises what the application would see."""
        state = self.state
        self.judge.begins(self.agenda.now)
        last: Failure | None = None
        previous: Failure | None = None
        forgiven = False
        if self.fast:
            node = state.pick(call)
            if node is not None:
                reply = yield from self._attempt(number, call, node, job)
                if isinstance(reply, Done):
                    return reply.value
                last = previous = reply
        backoff: Backoff | None = None
        turn: int | None = None

        def attempt(step: Attempt) -> Waits:
            nonlocal previous, forgiven
            if previous is not None:
                free = previous.ours and not forgiven
                forgiven = forgiven or previous.ours
                self.judge.repeats(previous, self.agenda.now, free=free)
            reply = yield from self._attempt(number, call, state.nodes[step.node], job)
            previous = reply if isinstance(reply, Failure) else None
            return reply

        def pause(step: Pause) -> Waits:
            nonlocal backoff, turn
            now = self.agenda.now
            if step.gate:
                if turn is not None:
                    state.gate.setback()
                self._back(turn)
                turn = None
                refusal = state.admit(call)
                if refusal is not None:
                    raise refusal
                self.tell(number, "waits at the gate")
                said = yield from self._wait(self._turns, now + step.at_most, call.reads)
                turn = said if isinstance(said, int) else None
                return None
            backoff = backoff or Backoff(state.retry, call.began)
            seconds = backoff.seconds(step, now)
            if seconds is None:
                return Stopped()
            yield from self._wait(self._pauses, now + seconds, step.deaf)
            return None

        def settle(step: Resolve | Bury) -> Waits:
            assert isinstance(step, Resolve)  # noqa: S101  no call here is idempotent
            return (yield from resolve(self, number, step))

        try:
            return (yield from drive_simulated(recover(call, state, last), attempt, pause, settle))
        finally:
            self._back(turn)
            self.flush()

    def _attempt(self, number: int, call: Call, node: Node, job: Callable[[Lease, Call], Waits]) -> Waits:
        """Make one attempt: the twin of `dbguard.runtime.attempt`."""
        state, agenda = self.state, self.agenda
        pool = self.pools[node.name]
        generation = node.breaker.generation
        epoch = node.epoch
        lease = pool.take_now()
        if lease is None:
            taken = yield from pool.take(min(call.deadline, agenda.now + ACQUIRE_TIMEOUT))
            if isinstance(taken, Failure):
                self.tell(number, f"finds no way to {node.name} ({taken.why})")
                state.failed(taken, generation)
                self.flush()
                return taken
            lease = taken
            overtaken = state.overtaken(call, node, epoch)
            if overtaken is not None:
                pool.give(lease)
                return overtaken
        reign = state.view.reign
        self.tell(number, f"tries {node.name}")
        if lease.connection.closed:
            failure = self._name(node, lease, None, unsent=True)
        else:
            answer = yield from job(lease, call)
            if answer is not LATE and answer.code is None and not answer.dead and not answer.unproven:
                stake = call.work.stake
                if stake is not Stake.READ:
                    state.wrote(call.box, reign, acknowledged=stake is not Stake.TRANSACTION)
                state.succeeded(node, generation)
                pool.give(lease)
                return Done(answer.value)
            if answer is LATE or answer.unproven:
                lease.connection.end()
            failure = self._name(node, lease, answer, unsent=False)
            stake = call.work.stake
            if stake is not Stake.READ:
                state.wrote(call.box, reign)
                if failure.phase is Phase.SENT and failure.broken:
                    self._orphan(call, node, lease, reign, sent=stake is not Stake.TRANSACTION)
        self.tell(number, f"fails: {failure.why}")
        pool.give(lease, close=failure.phase is Phase.SENT)
        if call.reads and failure.family is Family.ROLE and node is not state.primary:
            state.misread(call, failure)
        else:
            state.failed(failure, generation)
        self.flush()
        return failure

    def _name(self, node: Node, lease: Lease, answer: Answer | object, *, unsent: bool) -> Failure:
        """Name what went wrong on a leased connection, as the drivers do."""
        code: str | None = getattr(answer, "code", None)
        closed = lease.connection.closed
        if unsent:
            phase, family, what = Phase.UNSENT, Family.HARD, "connection is closed"
        elif answer is LATE:
            phase, family, what = Phase.SENT, Family.SOFT, "no answer in time"
        elif getattr(answer, "unproven", False):
            phase, family, what = Phase.SENT, Family.NEUTRAL, "no standby has it"
        elif closed:
            phase, family, what = Phase.SENT, Family.HARD, "connection was lost"
        else:
            phase, what = Phase.ERROR, f"error {code}"
            family = {"25006": Family.ROLE, "40001": Family.CONTENTION}.get(code or "", Family.ANSWERED)
        return Failure(
            node=node.name,
            phase=phase,
            family=family,
            cause=DriverError(f"{what} on {node.name}", code),
            sqlstate=code,
            broken=closed,
            timed_out=answer is LATE,
            ours=lease.ours,
        )

    def _orphan(self, call: Call, node: Node, lease: Lease, reign: Reign | None, *, sent: bool) -> None:
        backend = lease.connection.backend
        if backend is None:
            return
        started = lease.connection.server.born
        instance = lease.connection.server.instance
        orphan = Orphan(
            node=node.name, instance=instance, pid=backend.pid, started=started, reign=reign, doomed=not sent
        )
        self.orphans.append(orphan)
        self.hurry()
        if sent:
            call.orphan = orphan
            self.state.pin(call.box, orphan)

    def check(self, seen: Any) -> str | None:
        """Take in what a new connection's server said of itself; the reason if it must not be used."""
        refusal = self.state.met(seen)
        self.flush()
        return refusal

    # ------------------------------------------------------------------ waiting

    def pause(self, until: float) -> Waits:
        """Wait until the topology changes, or *until*."""
        yield from self._wait(self._pauses, until, None)

    def _wait(self, room: dict[Signal, Any], until: float, mark: Any) -> Waits:
        signal = self.agenda.signal(until)
        room[signal] = mark
        self.state.waiting = len(self._turns)
        said = yield signal
        room.pop(signal, None)
        self.state.waiting = len(self._turns)
        return said

    def _back(self, release: int | None) -> None:
        """Take in that a call which got its turn has ended, or waits again."""
        if release is not None:
            self.state.gate.returned(release)
            if self._turns and self.state.gate.paced:
                self._give()

    def _give(self) -> None:
        """Give as many turns as the gate's pace allows, and come back for the rest."""
        self._release_at = None
        state, now = self.state, self.agenda.now
        if not state.gate.writable:
            for signal, reads in self._turns.items():
                if reads or state.gate.declines:
                    signal.wake()
            return
        waiting = [signal for signal in self._turns if not signal.done]
        go, again_at = state.gate.release(now, len(waiting))
        for signal in waiting[:go]:
            signal.wake(state.gate.releases)
        if again_at is not None:
            self._release_at = again_at
            self.agenda.at(again_at, self._give_again, again_at)

    def _give_again(self, due: float) -> None:
        if self._release_at == due:
            self._give()

    # ------------------------------------------------------------------ effects

    def flush(self) -> None:
        """Do what the state has decided."""
        effects = self.state.take_effects()
        if effects is None:
            return
        for name, (_, how) in effects.epochs.items():
            self.expire(name, how)
        for name in effects.silent:
            self.pools[name].end_in_use()
            self.pools[name].dismiss()
        if effects.hurry:
            self.hurry()
        if effects.changed:
            for signal, deaf in self._pauses.items():
                if not deaf:
                    signal.wake()
            self._give()
        for event in effects.events:
            self.listen(event)

    def expire(self, name: str, how: Drain) -> None:
        """End the leases of an older epoch."""
        pool = self.pools[name]
        pool.expire(how)
        if how == "now":
            pool.dismiss()
        elif pool.out:
            self.agenda.after(DRAIN_TIMEOUT, _end_stale, pool)

    def leftovers(self) -> list[str]:
        """Say what is out although no call is under way."""
        out = [f"{len(pool.out)} leases of {name}" for name, pool in self.pools.items() if pool.out]
        out += [f"{pool.taken} places of {name}" for name, pool in self.pools.items() if pool.taken != len(pool.free)]
        return out + ([f"{len(self._turns)} calls at the gate"] if self._turns or self.state.waiting else [])


def _end_stale(pool: Pool) -> None:
    pool.end_in_use(stale=True)


def _nobody() -> None:
    """Nobody to hurry: the monitor is not running."""
