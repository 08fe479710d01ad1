"""What became of a write: claims of its token, made as `dbguard.runtime.resolve` makes them, on simulated connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbguard.core.outcome import Answer, Applied, NotApplied, StillOpen, to_end
from dbguard.core.topology import Role
from dbguard.testing.simulation.agenda import LATE
from dbguard.testing.simulation.messages import Request
from dbguard.testing.simulation.network import Connection, dial

if TYPE_CHECKING:
    from dbguard.core.plan import Resolve
    from dbguard.core.route import Node
    from dbguard.testing.simulation.guard import SimulatedGuard, Waits

__all__ = ["PRUNED", "resolve"]

LIMIT = 1.0
"""Seconds that a dial, or a question to the server, may take."""

AGAIN = 0.05
"""Seconds before a claim is made again that was not answered."""

PRUNED = "its token is older than"


def resolve(guard: SimulatedGuard, number: int, step: Resolve) -> Waits:
    """Claim a token until the claim is answered under the reign in which it was made; ends with the answer."""
    state, agenda = guard.state, guard.agenda
    while agenda.now < step.until:
        guard.tell(number, "asks what became of it")
        answer = yield from _claim(guard, step)
        if answer is not None:
            guard.tell(number, f"learns: {answer}")
            return answer
        guard.flush()
        pause = AGAIN * (0.5 + state.rng.random())
        yield from guard.pause(min(step.until, agenda.now + (pause if state.primary is not None else LIMIT)))
    return StillOpen("no primary could be asked in time")


def _claim(guard: SimulatedGuard, step: Resolve) -> Waits:
    """Claim once, on a connection of its own; ends with an answer, or None if there is none."""
    state, agenda = guard.state, guard.agenda
    node, reign = state.primary, state.view.reign
    if node is None or not state.gate.writable:
        return None
    epoch = node.epoch
    connection = yield dial(guard.links[node.name], min(step.until, agenda.now + LIMIT), guard.dialled())
    if not isinstance(connection, Connection):
        return None
    at = agenda.now
    said = yield connection.send(Request("ask"), min(step.until, at + LIMIT))
    answer: Answer | None = None
    if said is not LATE and said.value is not None:
        seen = said.value.sighting(node.name, at, fresh=True)
        refusal = state.met_to_claim(seen)
        guard.flush()
        if refusal is None and seen.role is Role.PRIMARY and state.still_asked(node, epoch, reign):
            answer = yield from _ask(guard, step, connection, node, epoch)
    connection.end()
    return answer if state.still_asked(node, epoch, reign) else None


def _ask(guard: SimulatedGuard, step: Resolve, connection: Connection, node: Node, epoch: int) -> Waits:
    agenda, reign = guard.agenda, guard.state.view.reign
    request = Request("claim", token=step.token)
    said: Any = yield connection.send(request, min(step.until, agenda.now + LIMIT))
    if said is LATE or said.dead or said.unproven:
        return None
    if said.code == "pruned":
        return StillOpen(f"{PRUNED} what the pruner has kept")
    if said.code == "55P03" and step.orphan is not None:
        doomed = to_end([said.value], (step.orphan.pid, step.orphan.started))
        if doomed is not None:
            yield connection.send(Request("end", (doomed, True)), min(step.until, agenda.now + LIMIT))
    if said.code is not None:
        return None
    if not guard.state.still_asked(node, epoch, reign):
        return None
    guard.judge.resolves(step.token, said.value, connection.server, guard.state.view, agenda.now)
    return Applied() if said.value == "w" else NotApplied(reign)
