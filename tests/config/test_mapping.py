"""Mappings, and what is no configuration at all."""

from collections import UserDict
from types import MappingProxyType
from typing import Any

import pytest

from dbguard.config import Settings, describe, load, schema
from dbguard.config.settings import Connection, NodeSettings, PoolSettings
from dbguard.config.values import Secret
from dbguard.errors import ConfigError


def test_settings_are_returned_as_they_are() -> None:
    settings = load("postgresql://db1")

    assert load(settings) is settings


@pytest.mark.parametrize("kind", [dict, MappingProxyType, UserDict])
def test_any_mapping_will_do(kind: Any) -> None:
    assert load(kind({"nodes": [kind({"host": "db1"})], "pool": kind({"max_size": 5})})).pool.max_size == 5


def test_sections_in_a_mapping_may_be_settings() -> None:
    settings = load({"nodes": (NodeSettings(host="db1"), {"host": "db2"}), "pool": PoolSettings(max_size=5)})

    assert (len(settings.nodes), settings.pool.max_size) == (2, 5)


def test_a_mapping_may_hold_the_function_that_gives_the_password() -> None:
    def ask() -> str:
        return "x"

    assert load({"nodes": [{"host": "db1"}], "connection": {"password": ask}}).connection.password is ask


def test_a_mapping_is_not_changed() -> None:
    given = {"dsn": "postgresql://app@db1", "connection": {"password": "x"}}

    load(given)

    assert given == {"dsn": "postgresql://app@db1", "connection": {"password": "x"}}


def test_problems_of_a_mapping_are_told_by_path() -> None:
    with pytest.raises(ConfigError) as caught:
        load({"nodes": [{"host": "db1", "port": "hunter2"}], "pool": {"max_sise": 5}, 5: 1})

    assert sorted(caught.value.problems) == [
        "nodes[0].port: should be a whole number from 1 to 65535",
        "pool.max_sise: unknown key; did you mean max_size?",
        f"unknown key; known here: {', '.join([*describe(load('postgresql://db1')), 'dsn'])}",
    ]


def test_a_dsn_does_not_silently_lose_against_settings() -> None:
    with pytest.raises(ConfigError, match="connection: should be a mapping beside a dsn"):
        load({"dsn": "postgresql://app@db1", "connection": Connection(user="other")})


def test_a_mapping_that_holds_itself_ends() -> None:
    given: dict[str, Any] = {"nodes": [{"host": "db1"}]}
    given["pool"] = given

    with pytest.raises(ConfigError, match="too deeply"):
        load(given)


@pytest.mark.parametrize("source", [None, 5, b"postgresql://db1", [], "nope", "", "host=db1", 5.5], ids=repr)
def test_what_is_no_configuration_is_told_what_one_is(source: Any) -> None:
    with pytest.raises(ConfigError, match=r"a configuration is settings, a mapping, a DSN \(postgresql://"):
        load(source)


def test_all_effective_values_can_be_shown() -> None:
    shown = describe(
        load(
            {
                "nodes": [{"host": "db1"}],
                "connection": {"password": "hunter2", "sslpassword": Secret("hunter3")},
                "timeout": "none",
                "pool": {"max_idle": "1min"},
            }
        )
    )

    assert shown["connection"]["password"] == shown["connection"]["sslpassword"] == "***"
    assert (shown["timeout"], shown["pool"]["max_idle"], shown["reads"]["from"]) == ("none", 60.0, "replicas")
    assert shown["nodes"] == [{"host": "db1", "port": 5432, "name": "db1:5432", "weight": 1}]
    assert "hunter" not in str(shown)


def test_what_is_shown_loads_again() -> None:
    settings = load("postgresql://app@db1,[::1]/shop?sslmode=require&jit=off")

    assert load(describe(settings)) == settings


def test_the_function_that_gives_the_password_is_not_shown() -> None:
    shown = describe(Settings(nodes=(NodeSettings(host="db1"),), connection=Connection(password=lambda: "x")))

    assert shown["connection"]["password"] == "*** (a function)"


def test_showing_does_not_hand_out_what_settings_hold() -> None:
    settings = load("postgresql://db1/?jit=off")

    describe(settings)["connection"]["server_settings"]["jit"] = "on"

    assert settings.connection.server_settings == {"jit": "off"}


def test_the_schema_knows_every_key() -> None:
    assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema()["properties"]) == {*describe(load("postgresql://db1")), "dsn"}
