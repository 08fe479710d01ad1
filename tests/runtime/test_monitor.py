"""The monitor: it notices when a name has come to lead to another server than its connection does."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from dbguard.core.causal import Orphan
from dbguard.core.failure import Failure, Family, Phase
from dbguard.core.topology import Instance, Role
from dbguard.runtime.monitor import LOOK_UP, PATIENT, Monitor, Pace
from dbguard.testing.fake import DriverError, known_state, seen

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.core.state import GuardState
    from dbguard.testing.clock import ManualClock

    Run = Callable[[object], object]


class Server:
    """What a name can lead to."""

    def __init__(self, name: str, role: Role, timeline: int = 1) -> None:
        self.name = name
        self.role = role
        self.timeline = timeline
        self.backends: set[int] = set()


class NameControl:
    """A control connection by name: it lives on when the name leads elsewhere."""

    def __init__(self, node: str, server: Server, clock: ManualClock) -> None:
        self.node = node
        self.leads_to = server
        self.clock = clock
        self.connected: Server | None = server
        self.dials = 0
        self.dial_hangs = False
        self.late_by = 0.001
        self.look_ups = 0

    @property
    def alive(self) -> bool:
        return self.connected is not None

    def instance(self) -> Instance:
        instance: Instance = self._say(fresh=False).instance
        return instance

    def _say(self, *, fresh: bool) -> Any:
        server = self.connected
        if server is None:
            raise ConnectionResetError
        said = seen(self.node, server.role, self.clock.now, timeline=server.timeline)
        instance = replace(said.instance, started=f"{server.name} first")
        return replace(said, instance=instance, fresh=fresh)

    async def ask(self, timeout: float) -> Any:
        await asyncio.sleep(min(self.late_by, timeout))
        if self.late_by > timeout:
            self.drop()
            raise TimeoutError
        return self._say(fresh=False)

    async def strayed(self) -> bool:
        self.look_ups += 1
        return self.connected is not self.leads_to

    async def dial(self, timeout: float) -> Any:
        self.dials += 1
        if self.dial_hangs:
            await asyncio.sleep(timeout)
            raise TimeoutError
        await asyncio.sleep(0.001)
        self.connected = self.leads_to
        return self._say(fresh=True)

    async def end_backend(self, pid: int, *_: Any, instance: Any, doomed: bool, **__: Any) -> bool | None:
        if self._say(fresh=False).instance != instance:
            return None
        assert self.connected is not None
        backends = self.connected.backends
        there = pid in backends
        if doomed:
            backends.discard(pid)
        return not there

    def drop(self) -> None:
        self.connected = None


class Scene:
    """A monitor over named servers; a is the primary, b and c are replicas."""

    def __init__(self, state: GuardState, clock: ManualClock) -> None:
        self.state = state
        self.clock = clock
        self.servers = {name: Server(name, Role.PRIMARY if name == "a" else Role.REPLICA) for name in "abc"}
        self.controls = {name: NameControl(name, server, clock) for name, server in self.servers.items()}
        self.orphans: list[Orphan] = []
        engine: Any = SimpleNamespace(
            state=state,
            pools={},
            orphans=self.orphans,
            hurry=None,
            flush=state.take_effects,
            driver=SimpleNamespace(name_dial=_name_dial, describe=str),
        )
        self.monitor = Monitor(engine, self.controls, Pace(interval=0.5, jitter=0.2, limit=0.5, urgent=0.025))

    async def watch(self, seconds: float) -> None:
        self.monitor.start()
        await asyncio.sleep(seconds)
        await self.monitor.stop()


def _name_dial(error: BaseException, node: str) -> Failure:
    return Failure(node=node, phase=Phase.CONNECT, family=Family.HARD, cause=DriverError(str(error)))


@pytest.fixture
def scene(state: GuardState, clock: ManualClock) -> Scene:
    clock.advance(1.0)
    return Scene(state, clock)


def test_a_steady_cluster_is_asked_and_never_dialled_anew(scene: Scene, run: Run) -> None:
    run(scene.watch(30.0))

    assert scene.monitor.rounds > 50
    assert [control.dials for control in scene.controls.values()] == [0, 0, 0]


def test_a_name_that_pools_reach_elsewhere_is_dialled_anew(scene: Scene, run: Run) -> None:
    other = Server("d", Role.REPLICA)
    scene.controls["b"].leads_to = other

    async def pool_meets_the_other_one() -> None:
        await asyncio.sleep(1.0)
        met = seen("b", Role.REPLICA, scene.clock.now)
        scene.state.probed([replace(met, instance=replace(met.instance, started="d first"))], full=False)

    async def both() -> None:
        await asyncio.gather(scene.watch(3.0), pool_meets_the_other_one())

    run(both())

    epoch = scene.state.view.nodes["b"].epoch
    assert scene.controls["b"].dials == 1
    assert scene.state.view.nodes["b"].instance.started == "d first"
    assert epoch == 1, "it changed once, and not back and forth"


def test_a_primary_behind_a_name_that_was_moved_is_found_when_the_old_one_is_gone(scene: Scene, run: Run) -> None:
    new = Server("d", Role.PRIMARY, timeline=2)
    scene.controls["b"].leads_to = new
    scene.servers["a"].role = Role.REPLICA

    run(scene.watch(2.0))

    assert scene.state.view.primary == "b"
    assert scene.state.view.reign is not None
    assert scene.state.view.reign.timeline == 2


def test_a_dial_beside_the_questions_holds_up_no_round(scene: Scene, run: Run) -> None:
    scene.controls["c"].leads_to = scene.servers["c"]
    for control in scene.controls.values():
        control.dial_hangs = True
    scene.servers["a"].role = Role.REPLICA

    async def promoted_later() -> None:
        await asyncio.sleep(3.0)
        scene.servers["b"].role, scene.servers["b"].timeline = Role.PRIMARY, 2

    async def both() -> None:
        await asyncio.gather(scene.watch(3.1), promoted_later())

    run(both())

    assert scene.state.view.primary == "b"
    assert scene.state.view.nodes["c"].reachable


def test_while_there_is_no_primary_nodes_are_dialled_now_and_then(clock: ManualClock, run: Run) -> None:
    chance = SimpleNamespace(random=lambda: 0.5)
    scene = Scene(known_state(clock, rng=chance), clock)
    scene.servers["a"].role = Role.REPLICA

    run(scene.watch(30.0))

    assert all(5 <= control.dials <= 7 for control in scene.controls.values())


def given_up(scene: Scene, server: str, pid: int = 7) -> Orphan:
    """A backend of *server* that was given up before its COMMIT was sent."""
    scene.servers[server].backends.add(pid)
    orphan = Orphan(
        node=server,
        instance=scene.controls[server].instance(),
        pid=pid,
        started=1.0,
        reign=scene.state.view.reign,
        doomed=True,
    )
    scene.orphans.append(orphan)
    return orphan


def test_a_backend_that_was_given_up_is_ended_and_then_gone(scene: Scene, run: Run) -> None:
    orphan = given_up(scene, "a")

    run(scene.watch(2.0))

    assert orphan.gone
    assert scene.servers["a"].backends == set()


def test_a_backend_is_neither_judged_nor_ended_on_the_server_that_its_name_leads_to_now(scene: Scene, run: Run) -> None:
    orphan = given_up(scene, "a")
    other = Server("d", Role.REPLICA)
    other.backends = {orphan.pid}
    scene.controls["a"].leads_to = scene.controls["a"].connected = other

    run(scene.watch(2.0))

    assert other.backends == {orphan.pid}
    assert not orphan.gone, "that it is not on another server says nothing"


def test_a_backend_is_asked_about_by_another_name_of_its_server(scene: Scene, run: Run) -> None:
    orphan = given_up(scene, "a")
    moved, other = scene.servers["a"], Server("d", Role.REPLICA)
    scene.controls["a"].leads_to = scene.controls["a"].connected = other
    scene.controls["c"].leads_to = scene.controls["c"].connected = moved

    run(scene.watch(2.0))

    assert orphan.gone
    assert moved.backends == set()


def test_a_name_that_leads_elsewhere_is_followed_while_its_old_connection_answers(scene: Scene, run: Run) -> None:
    scene.controls["b"].leads_to = Server("d", Role.REPLICA)

    run(scene.watch(2 * LOOK_UP))

    assert [control.dials for control in scene.controls.values()] == [0, 1, 0]
    assert scene.state.view.nodes["b"].instance.started == "d first"
    assert scene.state.view.nodes["b"].epoch == 1, "connections to the old one are drained"


def test_names_are_looked_up_now_and_then_and_none_that_stands_for_several_servers(scene: Scene, run: Run) -> None:
    servers = [Server("d", Role.REPLICA), scene.servers["b"]]

    async def pools_meet_both() -> None:
        for turn in range(12):
            met = seen("b", Role.REPLICA, scene.clock.now)
            instance = replace(met.instance, started=f"{servers[turn % 2].name} first")
            scene.state.probed([replace(met, instance=instance)], full=False)
            await asyncio.sleep(0.2)

    run(pools_meet_both())
    assert scene.state.view.nodes["b"].group

    run(scene.watch(10 * LOOK_UP))

    assert 6 <= scene.controls["a"].look_ups <= 21
    assert scene.controls["b"].look_ups == 0


def test_a_node_that_answers_late_is_dialled_beside_once_and_not_at_every_question(scene: Scene, run: Run) -> None:
    scene.controls["b"].late_by = 0.3

    run(scene.watch(PATIENT - 1))

    assert scene.monitor.rounds > 8
    assert scene.controls["b"].dials <= 1
    assert scene.state.view.nodes["b"].reachable


def test_a_node_that_falls_silent_after_late_answers_is_dialled_when_its_limit_is_over(scene: Scene, run: Run) -> None:
    control = scene.controls["b"]
    control.late_by = 0.3

    async def silent_later() -> None:
        await asyncio.sleep(3.0)
        control.late_by, control.dial_hangs = 1e6, True

    async def both() -> None:
        await asyncio.gather(scene.watch(5.5), silent_later())

    run(both())

    assert not scene.state.view.nodes["b"].reachable


def test_a_primary_that_comes_and_goes_is_not_asked_at_the_urgent_pace_for_ever(scene: Scene, run: Run) -> None:
    async def come_and_go() -> None:
        for _ in range(30):
            await asyncio.sleep(2.0)
            scene.servers["a"].role = Role.REPLICA
            await asyncio.sleep(2.0)
            scene.servers["a"].role = Role.PRIMARY

    async def both() -> None:
        await asyncio.gather(scene.watch(120.0), come_and_go())

    run(both())

    # Urgent are 10 seconds, at 20 to 40 rounds each, and steady most of the other 110.
    assert 300 < scene.monitor.rounds < 1_000
