"""DSNs of one host and several."""

import logging
import subprocess
import sys
from urllib.parse import quote

import pytest

from dbguard.config import Secret, Settings, load
from dbguard.errors import ConfigError


def addresses(settings: Settings) -> list[tuple[str, int]]:
    return [(node.host, node.port) for node in settings.nodes]


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://db1", [("db1", 5432)]),
        ("postgres://db1:5433/shop", [("db1", 5433)]),
        ("POSTGRESQL://db1/shop", [("db1", 5432)]),
        ("postgresql://db1,db2,db3/shop", [("db1", 5432), ("db2", 5432), ("db3", 5432)]),
        ("postgresql://db1:1,db2:2/shop", [("db1", 1), ("db2", 2)]),
        ("postgresql://db1,db2:5433/shop", [("db1", 5432), ("db2", 5433)]),
        ("postgresql://db1:/shop", [("db1", 5432)]),
        ("postgresql://[::1]/shop", [("::1", 5432)]),
        ("postgresql://[2001:db8::1]:5433,[::1]/shop", [("2001:db8::1", 5433), ("::1", 5432)]),
        ("postgresql://[fe80::1%25eth0]:1/shop", [("fe80::1%eth0", 1)]),
        ("postgresql://%2Frun%2Fpostgresql:5433/shop", [("/run/postgresql", 5433)]),
        ("postgresql:///shop?host=/run/postgresql", [("/run/postgresql", 5432)]),
        ("postgresql:///shop?host=db1,db2", [("db1", 5432), ("db2", 5432)]),
        ("postgresql:///shop?host=db1,db2&port=5433", [("db1", 5433), ("db2", 5433)]),
        ("postgresql:///shop?host=db1,db2&port=1,2", [("db1", 1), ("db2", 2)]),
        ("postgresql:///shop?host=::1&port=1", [("::1", 1)]),
        (" postgresql://db1/shop\n", [("db1", 5432)]),
    ],
)
def test_hosts_and_ports_are_read_as_libpq_reads_them(dsn: str, expected: list[tuple[str, int]]) -> None:
    assert addresses(load(dsn)) == expected


def test_login_and_database_are_decoded() -> None:
    connection = load("postgresql://a%40b:p%40ss%2Fw%3Ard%231%25@db1/my%20shop").connection

    assert (connection.user, connection.database) == ("a@b", "my shop")
    assert connection.password == Secret("p@ss/w:rd#1%")


@pytest.mark.parametrize("password", ["p@ss/w:rd#1%", "a:b", "a+b c", "ä", "%41", "?&=", "'\"\\"])
def test_any_password_can_be_written(password: str) -> None:
    assert load(f"postgresql://app:{quote(password, safe='')}@db1/shop").connection.password == Secret(password)


def test_a_colon_in_a_password_needs_no_encoding() -> None:
    assert load("postgresql://app:a:b@db1/shop").connection.password == Secret("a:b")


def test_what_a_dsn_does_not_say_is_left_to_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGUSER", "PGPASSWORD", "PGDATABASE", "PGSSLMODE", "PGPORT", "PGHOST"):
        monkeypatch.setenv(name, "1234")

    settings = load("postgresql://db1")

    assert settings.connection == Settings(nodes=settings.nodes).connection
    assert settings.nodes[0].port == 5432


def test_parameters_become_fields_of_the_connection() -> None:
    connection = load(
        "postgresql:///?host=db1&user=app&password=x%2By+z&dbname=shop&sslmode=verify-full&sslrootcert=/ca.pem"
        "&sslcert=c&sslkey=k&passfile=/p&connect_timeout=10"
    ).connection

    assert (connection.user, connection.password, connection.database) == ("app", Secret("x+y+z"), "shop")
    assert (connection.sslmode, connection.sslrootcert, connection.sslcert, connection.sslkey) == (
        "verify-full",
        "/ca.pem",
        "c",
        "k",
    )
    assert (connection.passfile, connection.connect_timeout) == ("/p", 10.0)


def test_other_parameters_are_settings_of_the_server() -> None:
    connection = load(
        "postgresql://db1/?application_name=shop&options=-c%20jit%3Doff&statement_timeout=5s&app.tenant=t"
    ).connection

    assert connection.server_settings == {
        "application_name": "shop",
        "options": "-c jit=off",
        "statement_timeout": "5s",
        "app.tenant": "t",
    }


@pytest.mark.parametrize(
    "parameter", ["target_session_attrs=read-write", "load_balance_hosts=random", "keepalives=1", "gssencmode=disable"]
)
def test_parameters_without_effect_are_accepted_and_told(parameter: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="dbguard.config"):
        settings = load(f"postgresql://db1/?{parameter}")

    assert settings.connection.server_settings == {}
    assert f"{parameter.partition('=')[0]} in the DSN has no effect: " in caplog.text


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        ("postgresql+asyncpg://db1/shop", "leave out the +"),
        ("mysql://db1/shop", "should begin with postgresql://"),
        ("://", "should begin with postgresql://"),
        ("postgresql:///shop", "names no host"),
        ("postgresql://app@/shop", "names no host"),
        ("postgresql://db1,,db2/shop", "host 2 should be"),
        ("postgresql://:5432/shop", "host 1 should be"),
        ("postgresql://db1:99999/shop", "port of host 1 should be a whole number from 1 to 65535"),
        ("postgresql://db1:0/shop", "port of host 1"),
        ("postgresql://db1:5432:30/shop", "port of host 1"),
        ("postgresql://db1:-1/shop", "port of host 1"),
        ("postgresql://db1:%D9%A1/shop", "port of host 1"),
        ("postgresql://::1/shop", "stands in brackets"),
        ("postgresql://[::1/shop", "stands in brackets"),
        ("postgresql://[::x]/shop", "stands in brackets"),
        ("postgresql://db1,db1/shop", "same host and port as nodes[0]"),
        ("postgresql://db1/shop?host=db2", "say them once"),
        ("postgresql://db1/shop?port=1", "say them once"),
        ("postgresql:///shop?port=1", "a port without a host"),
        ("postgresql:///shop?host=a,b,c&port=1,2", "3 hosts and 2 ports"),
        ("postgresql://app@db1/shop?user=app", "user is said twice"),
        ("postgresql://db1/shop?dbname=shop", "database is said twice"),
        ("postgresql://db1/shop?dbname=a&database=a", "database is said twice"),
        ("postgresql://db1/?jit=on&jit=off", "parameter 2 stands twice"),
        ("postgresql://db1/?jit", "parameter 1 should be name=value"),
        ("postgresql://db1/?a%20b=1", "parameter 1 should be name=value"),
        ("postgresql://db1/?&a=1", "parameter 1 should be name=value"),
        ("postgresql://db1/?sslmod=require", "has a parameter that is not known; did you mean sslmode?"),
        ("postgresql://db1/?sslmode=Require", "connection.sslmode: should be disable, allow"),
        ("postgresql://db1/?connect_timeout=0", "connection.connect_timeout: should be a duration"),
        ("postgresql://db1/?service=shop", "service files are not read: write host, user and dbname"),
        ("postgresql://db1/?hostaddr=10.0.0.1", "write the address as the host"),
        ("postgresql://db1/?channel_binding=require", "channel_binding=require is not taken"),
        ("postgresql://db1/?requiressl=1", "write sslmode=require"),
        ("postgresql://app:%zz@db1/shop", "password holds a % that is not followed"),
        ("postgresql://app:%ff@db1/shop", "password holds a NUL character, or is not UTF-8"),
        ("postgresql://app:%00@db1/shop", "password holds a NUL character, or is not UTF-8"),
        ("postgresql://app@db1/my shop", "holds a space"),
        ("postgresql://app:${PW}@db1/shop", "variables are filled in in files and mappings only"),
        ("postgresql://db1/shop#x", "%23"),
    ],
)
def test_what_is_wrong_is_told_with_the_way_out(dsn: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(dsn)

    assert says in str(caught.value)
    assert str(caught.value).count("DSN: ") == len(caught.value.problems)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://app:hunt@er2@db1/shop",
        "postgresql://app:hunt/er2@db1/shop",
        "postgresql://app:12/er2@db1/shop",
        "postgresql://app:hunt?er2@db1/shop",
        "postgresql://app:12?er2=hunt@db1/shop",
        "postgresql://app:hunt#er2@db1/shop",
        "postgresql://app:12#er2@db1/shop",
        "postgresql://app:hunt%er2@db1/shop",
        "postgresql://app:hunt[er2@db1:x/shop",
        "postgresql://app:hunter2/shop",
        "postgresql://db1:hunter2",
        "postgresql:/app:hunter2@db1/shop",
        "hunter2://app:hunter2@db1/shop",
        "postgresql://app:hunter2@db1:x/?hunter2&sslmode=hunter2&password=hunter2",
        "host=db1 password=hunter2",
        "app:hunter2@db1",
    ],
)
def test_no_piece_of_a_broken_dsn_is_shown(dsn: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(dsn)

    for piece in ("hunt", "er2", "12"):
        assert piece not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_everything_wrong_with_a_dsn_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load("postgresql://app@db1:x,db2:y/shop?user=a&service=b&sslmod=c")

    assert len(caught.value.problems) == 5


def test_a_dsn_loads_without_pydantic_and_yaml() -> None:
    code = (
        "import sys; from dbguard.config import load; load('postgresql://app:x@db1,db2/shop?sslmode=require'); "
        "print([m for m in sys.modules if m.partition('.')[0] in {'yaml', 'pydantic', 'pydantic_core'}])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
