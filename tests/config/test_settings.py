"""Settings made in code, without a file."""

import dataclasses
import math
import pickle
from functools import partial
from typing import get_args

import pytest

from dbguard.config.section import Section
from dbguard.config.settings import (
    BreakerSettings,
    Connection,
    FunctionNames,
    NodeSettings,
    PoolSettings,
    ProbeSettings,
    RoutingRule,
    Settings,
)
from dbguard.config.values import Rule, Secret
from dbguard.errors import ConfigError

NODE = NodeSettings(host="db1")


def test_everything_but_the_nodes_has_a_default() -> None:
    settings = Settings(nodes=(NODE,))

    assert (settings.mode, settings.timeout, settings.pool.max_size) == ("enforce", 30.0, 20)
    assert (settings.breaker.open, settings.retry.budget) == ((1.0, 15.0), 0.2)


def test_rules_hold_for_settings_made_in_code() -> None:
    with pytest.raises(ConfigError, match="PoolSettings: max_size: should be a whole number"):
        PoolSettings(max_size=0)


def test_words_are_checked_in_code_too() -> None:
    with pytest.raises(ConfigError, match="mode: should be enforce or observe"):
        Settings(nodes=(NODE,), mode="maybe")  # type: ignore[arg-type]


def test_a_section_is_not_a_mapping_in_code() -> None:
    with pytest.raises(ConfigError, match="pool: should be PoolSettings"):
        Settings(nodes=(NODE,), pool={"max_size": 5})  # type: ignore[arg-type]


def test_contradictions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"min_size: should not be above max_size \(20\)"):
        PoolSettings(min_size=30)
    with pytest.raises(ConfigError, match="hold: should not be above max_size"):
        PoolSettings(max_size=5, hold=6)
    with pytest.raises(ConfigError, match="first duration should not be longer"):
        BreakerSettings(open=(15.0, 1.0))
    with pytest.raises(ConfigError, match="urgent: should not be longer than interval"):
        ProbeSettings(interval=0.1, urgent=0.2)
    with pytest.raises(ConfigError, match="stands under read, too"):
        FunctionNames(read=("f",), write=("g", "F"))


def test_a_node_is_called_by_its_address_unless_it_has_a_name() -> None:
    assert NodeSettings(host="db1").name == "db1:5432"
    assert NodeSettings(host="::1", port=5433).name == "[::1]:5433"
    assert NodeSettings(host="/run/postgresql").name == "/run/postgresql:5432"
    assert NodeSettings(host="db1", name="a").name == "a"


def test_no_two_nodes_bear_one_name_or_one_address() -> None:
    with pytest.raises(ConfigError, match=r"nodes\.1: has the same host and port as nodes\[0\]"):
        Settings(nodes=(NODE, NodeSettings(host="DB1", name="other")))
    with pytest.raises(ConfigError, match=r"name: is the name of nodes\[0\], too"):
        Settings(nodes=(NODE, NodeSettings(host="db2", name="db1:5432")))


def test_a_cluster_has_nodes() -> None:
    with pytest.raises(ConfigError, match="nodes: is empty"):
        Settings(nodes=())


def test_a_password_given_in_code_is_kept_secret() -> None:
    settings = Settings(nodes=(NODE,), connection=Connection(password="hunter2", sslpassword="hunter3"))  # type: ignore[arg-type]

    assert settings.connection.password == Secret("hunter2")
    assert "hunter" not in repr(settings) + str(dataclasses.asdict(settings))


def test_the_function_that_gives_the_password_is_not_shown() -> None:
    connection = Connection(password=partial(str, "hunter2"))

    assert callable(connection.password)
    assert "hunter2" not in repr(connection)


def test_tls_is_told_by_libpq_names() -> None:
    connection = Connection(sslmode="verify-full", sslrootcert="ca.pem", sslpassword=Secret("key"))

    assert connection.tls() == {"sslmode": "verify-full", "sslrootcert": "ca.pem", "sslpassword": "key"}
    assert Connection().tls() == {}


def test_settings_are_frozen_hashable_values() -> None:
    settings = Settings(nodes=(NODE,), connection=Connection(server_settings={"jit": "off"}), timeout=math.inf)

    assert pickle.loads(pickle.dumps(settings)) == settings
    assert hash(settings) == hash(dataclasses.replace(settings))
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.mode = "observe"  # type: ignore[misc]


def sections(kind: type[Section] = Settings) -> list[type[Section]]:
    below = [
        found
        for entry in dataclasses.fields(kind)  # type: ignore[arg-type]
        for found in (entry.type, *get_args(get_args(entry.type)[0] if get_args(entry.type) else None))
        if isinstance(found, type) and issubclass(found, Section)
    ]
    return [kind, *(deeper for found in below for deeper in sections(found))]


@pytest.mark.parametrize("kind", sections(), ids=lambda kind: kind.__name__)
def test_each_field_has_a_rule_or_is_a_section(kind: type[Section]) -> None:
    for entry in dataclasses.fields(kind):  # type: ignore[arg-type]
        rules = getattr(entry.type, "__metadata__", ())
        assert any(isinstance(rule, Rule) for rule in rules) or issubclass(entry.type, Section), entry.name


@pytest.mark.parametrize("kind", sections(), ids=lambda kind: kind.__name__)
def test_each_default_keeps_its_own_rule(kind: type[Section]) -> None:
    needed = {Settings: {"nodes": (NODE,)}, NodeSettings: {"host": "db1"}, RoutingRule: {"match": "x", "to": "primary"}}
    kind(**needed.get(kind, {}))
