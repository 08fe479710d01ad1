"""Names of nodes, as `Faults` and scenarios have them: by letter and by role, over whatever becomes of the nodes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dbguard.testing.cluster import ClusterError
from dbguard.testing.roles import ROLES, Roles, VacantRole


class Some:
    """A cluster, as far as roles look at it."""

    def __init__(self) -> None:
        self.nodes = [Node(name) for name in "abc"]
        self.primary = self.nodes[0]

    @property
    def replicas(self) -> list[Node]:
        return [node for node in self.nodes if node is not self.primary]

    def node(self, name: str) -> Node:
        (found,) = [node for node in self.nodes if node.name == name]
        return found


class Node(SimpleNamespace):
    def __init__(self, name: str) -> None:
        super().__init__(name=name, running=True, frozen=False)

    def __str__(self) -> str:
        return str(self.name)


@pytest.fixture
def cluster() -> Any:
    return Some()


@pytest.fixture
def roles(cluster: Any) -> Roles:
    return Roles(cluster)


def who(roles: Roles) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in ROLES:
        try:
            found[name] = roles.node(name).name
        except VacantRole:
            found[name] = None
    return found


def test_roles_are_those_of_the_moment(cluster: Any, roles: Roles) -> None:
    assert who(roles) == {"primary": "a", "replica": "b", "other-replica": "c", "old-primary": None}

    cluster.primary = cluster.nodes[1]

    assert who(roles) == {"primary": "b", "replica": "a", "other-replica": "c", "old-primary": "a"}

    cluster.primary = cluster.nodes[2]

    assert who(roles) == {"primary": "c", "replica": "a", "other-replica": "b", "old-primary": "b"}


@pytest.mark.parametrize("away", [{"running": False}, {"frozen": True}])
def test_replica_that_does_not_run_has_no_role_and_one_alone_is_no_other(
    away: dict[str, bool], cluster: Any, roles: Roles
) -> None:
    vars(cluster.nodes[1]).update(away)

    assert who(roles) == {"primary": "a", "replica": "c", "other-replica": None, "old-primary": None}
    assert [node.name for node in roles.replicas()] == ["c"]


def test_letter_is_the_node_whatever_it_does(cluster: Any, roles: Roles) -> None:
    cluster.nodes[1].running = False

    assert roles.node("b") is cluster.nodes[1]


def test_vacant_role_tells_who_runs(cluster: Any, roles: Roles) -> None:
    with pytest.raises(VacantRole, match="no node is old-primary now; running replicas: b, c"):
        roles.node("old-primary")


def test_name_of_nobody_tells_which_there_are(roles: Roles) -> None:
    with pytest.raises(ClusterError, match="no node 'd'; there are a, b, c, and the roles primary, replica, ") as e:
        roles.node("d")

    assert not isinstance(e.value, VacantRole)  # it is not worth waiting for
