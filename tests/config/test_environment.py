"""Variables in files and mappings."""

import pytest

from dbguard.config import Secret, load
from dbguard.config.environment import substitute
from dbguard.errors import ConfigError

PASSWORD = "p@ss/w:rd#1%"


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("${A}", "x"),
        ("a-${A}-b", "a-x-b"),
        ("${A}${B}", "xy z"),
        ("${C:-d}", "d"),
        ("${C:-}", ""),
        ("${E:-d}", "d"),
        ("${A:-d}", "x"),
        ("${E}", ""),
        ("$${A}", "${A}"),
        ("$A $", "$A $"),
        ("${REF}", "${A}"),
        ("${C:-a:-b}", "a:-b"),
    ],
)
def test_variables_are_filled_in_once(text: str, filled: str) -> None:
    assert substitute(text, {"A": "x", "B": "y z", "E": "", "REF": "${A}"}) == filled


def test_every_unset_variable_is_named() -> None:
    with pytest.raises(ConfigError, match="not set in the environment: B, C"):
        substitute("${A}${B}${C}${B}", {"A": "x"})


@pytest.mark.parametrize("text", ["${", "${}", "${1}", "${A", "${A-b}", "${hunter 2}"])
def test_a_malformed_reference_is_told_and_not_shown(text: str) -> None:
    with pytest.raises(ConfigError, match="without a variable") as caught:
        substitute(text, {"A": "x"})

    assert "hunter" not in str(caught.value)


def test_a_value_in_a_dsn_is_percent_encoded() -> None:
    settings = load({"dsn": "postgresql://app:${PW}@db1/${DB}"}, environ={"PW": PASSWORD, "DB": "my shop"})

    assert settings.connection.password == Secret(PASSWORD)
    assert settings.connection.database == "my shop"


def test_a_variable_that_is_the_whole_dsn_is_taken_as_it_is() -> None:
    settings = load({"dsn": "${URL}"}, environ={"URL": "postgresql://app:p%40@db1,db2/shop\n"})

    assert settings.connection.password == Secret("p@")
    assert len(settings.nodes) == 2


def test_a_variable_may_name_several_hosts() -> None:
    settings = load({"dsn": "postgresql://${HOSTS}/shop"}, environ={"HOSTS": "db1:1,[::1]:2"})

    assert [node.name for node in settings.nodes] == ["db1:1", "[::1]:2"]


def test_a_value_outside_a_dsn_is_not_encoded() -> None:
    given = {
        "connection": {"password": "${PW}", "server_settings": {"dsn": "x${PW}"}},
        "nodes": [{"host": "db1"}],
    }

    connection = load(given, environ={"PW": PASSWORD}).connection

    assert connection.password == Secret(PASSWORD)
    assert connection.server_settings == {"dsn": f"x{PASSWORD}"}


def test_variables_take_the_type_of_their_place() -> None:
    given = {
        "nodes": [{"host": "${H}", "port": "${P}"}],
        "pool": {"acquire_timeout": "${T}", "hold": "${HOLD}"},
        "retry": {"budget": "${B}"},
        "mode": "${M:-observe}",
        "connection": {"user": "${NOBODY:-}", "password": "${P}"},
    }

    settings = load(given, environ={"H": "db1", "P": "5433", "T": "7", "HOLD": "3", "B": "30%"})

    assert settings.nodes[0].port == 5433
    assert (settings.pool.acquire_timeout, settings.pool.hold) == (7.0, 3)
    assert (settings.retry.budget, settings.mode) == (0.3, "observe")
    assert (settings.connection.user, settings.connection.password) == (None, Secret("5433"))


def test_a_variable_of_the_wrong_kind_is_told_and_not_shown() -> None:
    with pytest.raises(ConfigError, match=r"nodes\[0\].port: should be a whole number") as caught:
        load({"nodes": [{"host": "db1", "port": "${P}"}]}, environ={"P": "hunter2"})

    assert "hunter2" not in str(caught.value)


def test_a_secret_in_a_mapping_is_not_looked_through() -> None:
    given = {"connection": {"password": Secret("${A}")}, "nodes": [{"host": "db1"}]}

    assert load(given, environ={"A": "x"}).connection.password == Secret("${A}")


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBGUARD_TEST_HOST", "db9")

    assert load({"nodes": [{"host": "${DBGUARD_TEST_HOST}"}]}).nodes[0].host == "db9"
