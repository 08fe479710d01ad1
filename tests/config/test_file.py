"""YAML files."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from dbguard.config import Secret, Settings, load
from dbguard.config.document import MAX_BYTES
from dbguard.errors import ConfigError

EXAMPLE = """\
# guard.yaml: everything but nodes has a default; roles are always found out, never believed
connection: {user: app, password: "${DB_PASSWORD}", database: shop, sslmode: verify-full}
nodes:
  - {name: a, host: 10.0.0.1}
  - {name: b, host: 10.0.0.2, weight: 2}
pool: {min_size: 2, max_size: 20, acquire_timeout: 5s, max_lifetime: 30min, max_idle: 5min}
reads: {from: replicas, consistency: own-writes, fallback: primary, max_lag: 5s, balance: least-busy}
retry: {attempts: 4, budget: 20%}
breaker: {consecutive: 5, open: [1s, 15s]}
failover: {writes: wait, max_wait: 60s}
outcome: {resolve: none}    # token-table once `dbguard outcome install` has run
startup: {wait: 30s, need: any}
mode: enforce              # observe: decide and report, send everything to the primary
"""

Read = Callable[[str], Settings]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "guard.yaml"


@pytest.fixture
def read(file: Path) -> Read:
    def from_text(text: str) -> Settings:
        file.write_text(text, encoding="utf-8")
        return load(file, environ={"DB_PASSWORD": "hunter2"})

    return from_text


def problems(read: Read, text: str) -> list[str]:
    """Return what is wrong with *text*, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    assert "hunter2" not in str(caught.value)
    return [problem.partition("guard.yaml:")[2].lstrip() for problem in caught.value.problems]


def test_the_example_of_the_manual_says_the_defaults(read: Read) -> None:
    settings = read(EXAMPLE)

    assert settings.connection.password == Secret("hunter2")
    assert [(node.name, node.host, node.weight) for node in settings.nodes] == [
        ("a", "10.0.0.1", 1),
        ("b", "10.0.0.2", 2),
    ]
    assert settings == Settings(nodes=settings.nodes, connection=settings.connection)


def test_a_file_may_be_named_as_text_or_path(file: Path) -> None:
    file.write_text("nodes: [{host: db1}]")

    assert load(str(file)) == load(file)


def test_a_byte_order_mark_is_no_key(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfnodes: [{host: db1}]")

    assert load(file).nodes[0].host == "db1"


def test_json_is_yaml(read: Read) -> None:
    assert read('{"nodes": [{"host": "db1", "port": 5433}], "timeout": 1.5e1}').timeout == 15.0


def test_an_empty_section_has_its_defaults(read: Read) -> None:
    assert read("nodes: [{host: db1}]\npool:\n  # max_size: 5\nreads:\n").pool.max_size == 20


def test_anchors_and_aliases_are_resolved(read: Read) -> None:
    assert read("nodes: [{host: a, weight: &w 3}, {host: b, weight: *w}]").nodes[1].weight == 3


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml: does not exist"):
        load(tmp_path / "missing.yaml")


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        load(tmp_path)


def test_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load("a\0b.yaml")


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "~"], ids=repr)
def test_an_empty_file_is_told_what_it_needs(read: Read, text: str) -> None:
    assert problems(read, text)[0].endswith("is empty: name at least one node, such as `nodes: [{host: 10.0.0.1}]`")


def test_a_file_that_is_not_utf8_is_told_where(file: Path) -> None:
    file.write_bytes(b"nodes: [{host: db1}] # \xff")

    with pytest.raises(ConfigError, match="is not UTF-8, at byte 24"):
        load(file)


def test_a_huge_file_is_refused_at_once(file: Path) -> None:
    file.write_bytes(b"#" * (MAX_BYTES + 1))

    with pytest.raises(ConfigError, match="larger than 256 KiB"):
        load(file)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nodes: [{host: db1}", "1:20: is not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("nodes:\n  - host: db1\n port: 1", "3:2: is not valid YAML: "),
        ("a: b: hunter2", "1:5: is not valid YAML: mapping values are not allowed here; a value that holds a colon"),
        ("connection:\n  password: %hunter2", "2:13: is not valid YAML: a value that begins with such a character"),
        ("connection:\n  password: @hunter2", "2:13: is not valid YAML: a value that begins with such a character"),
        ("connection:\n  password: *hunter2", "2:13: is not valid YAML: found undefined alias something"),
        ('connection: {password: "\\hunter2"}', "1:26: is not valid YAML: found unknown escape character something"),
        ("connection: {password: !hunter2!x y}", "1:24: is not valid YAML: found undefined tag handle something"),
        ("a: 1\n---\nb: 2", "2:1: is not valid YAML: but found another document"),
        ("a: \x07hunter2", "1:4: is not valid YAML: a character that cannot stand here"),
        ('a: "\\UFFFFFFFF"', "is not valid YAML: it cannot be read"),
        ('a: "\\U00110000"', "is not valid YAML: it cannot be read"),
        ("a: " + "[" * 5000, "is not valid YAML: it is nested too deeply"),
    ],
)
def test_broken_yaml_is_placed_and_not_shown(read: Read, text: str, says: str) -> None:
    (problem,) = problems(read, text)

    assert says in problem


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nodes: [{host: db1, port: 5432:30}]", "1:27: nodes[0].port: should be a whole number from 1 to 65535"),
        ("nodes: [{host: db1, port: 010}]", "1:27: nodes[0].port: should be a whole number"),
        ("nodes: [{host: db1, port: 0x10}]", "1:27: nodes[0].port: should be a whole number"),
        ("nodes: [{host: db1, port: 5_432}]", "1:27: nodes[0].port: should be a whole number"),
        ("nodes: [{host: db1, port: on}]", "1:27: nodes[0].port: should be a whole number"),
        ("nodes: [{host: db1, port: true}]", "1:27: nodes[0].port: should be a whole number"),
        ("nodes: [{host: db1, port: }]", "1:26: nodes[0].port: should be a whole number"),
        (
            'nodes: [{host: db1, port: "5432"}]',
            "1:27: nodes[0].port: should be a whole number from 1 to 65535 (without",
        ),
        ("nodes: [{host: db1, port: " + "9" * 5000 + "}]", "1:27: nodes[0].port: should be a whole number"),
        ("nodes: [{host: db1}]\nmode: yes", "2:7: mode: should be enforce or observe"),
        ("nodes: [{host: db1}]\nfailover: {writes: no}", "2:20: failover.writes: should be wait or fail"),
        ("nodes: [{host: db1}]\ntimeout: -5s", "2:10: timeout: should be a duration"),
        ("nodes: [{host: db1}]\ntimeout: .nan", "2:10: timeout: should be a duration"),
        ("nodes: [{host: db1}]\ntimeout: 12:30", "2:10: timeout: should be a duration"),
        ("nodes: [{host: db1}]\nconnection: {password: 12345}", "2:24: connection.password: should be text; put it in"),
        ("nodes: [{host: db1}]\nconnection: {user: [hunter2]}", "2:20: connection.user: should be text"),
        ("nodes: [{host: db1}]\npool: 5", "2:7: pool: should be a mapping"),
        ("nodes: [{host: db1}]\npool: [1]", "2:7: pool: should be a mapping"),
        ("nodes: [{host: db1}]\npool: {min_size: 30}", "2:18: pool.min_size: should not be above max_size (20)"),
        ("nodes: [{host: db1}]\nbreaker: {open: [15s, 1s]}", "2:17: breaker.open: the first duration should not be"),
        ("nodes: [{host: db1}]\nbreaker: {open: [1s, x]}", "2:22: breaker.open[1]: should be a duration"),
        ("nodes: [{host: db1}]\nretry: {budget: 20}", "2:17: retry.budget: should be a share"),
        ("nodes:", "1:7: nodes: should be a list"),
        ("nodes: []", "1:8: nodes: is empty"),
        ("nodes: db1", "1:8: nodes: should be a list"),
        ("nodes: {a: 1}", "1:8: nodes: should be a list"),
        ("nodes: [db1]", "1:9: nodes[0]: should be a mapping"),
        ("nodes: [{port: 1}]", "1:9: nodes[0].host: is missing"),
        ("nodes: [{host: db1:5433}]", "1:16: nodes[0].host: should be one host"),
        ("nodes: [{host: a}, {host: A}]", "1:20: nodes[1]: has the same host and port as nodes[0]"),
        ("nodes: [{host: a, name: x}, {host: b, name: x}]", "1:45: nodes[1].name: is the name of nodes[0], too"),
        ("mode: enforce", "1:1: nodes: is missing"),
        ("[1, 2]", "1:1: should be a mapping"),
        ("hunter2", "1:1: should be a mapping"),
        ("nodes: !!set {a}", "1:8: nodes: bears a tag"),
        ("nodes: [{host: !!python/name:os.system }]", "1:16: nodes[0].host: bears a tag"),
        ("nodes: [{host: db1}]\n? [a]\n: 1", "2:3: a key should be a word"),
        ("nodes: [{host: '${NOBODY}'}]", "1:16: nodes[0].host: not set in the environment: NOBODY"),
        (
            "nodes: [{host: db1}]\nconnection: {server_settings: {hunter2: }}",
            "2:40: connection.server_settings: should",
        ),
    ],
)
def test_each_problem_is_placed(read: Read, text: str, says: str) -> None:
    (problem,) = problems(read, text)

    assert problem.startswith(says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pol: {}", "2:1: pol: unknown key; did you mean pool?"),
        ("pool: {max_sise: 5}", "2:8: pool.max_sise: unknown key; did you mean max_size?"),
        ("reads: {from_: primary}", "2:9: reads.from_: unknown key; did you mean from?"),
        (
            "pool: {drain_timeout: 5s}",
            "2:8: pool.drain_timeout: unknown key; did you mean failover.drain_timeout or acquire_timeout?",
        ),
        ("password: x", "2:1: password: unknown key; did you mean connection.password?"),
        ("pool: {hunter2: 5}", "2:8: pool: unknown key; known here: min_size, max_size, acquire_timeout, max_lifetime"),
        ("hunter2_connection: 5", "2:1: unknown key; did you mean connection?"),
        ("hunter2: 5", "2:1: unknown key; known here: nodes, connection"),
        ("connection: {user: app, password, hunter2}", "2:35: connection: unknown key; known here: user"),
        ("<<: {mode: enforce}", "2:1: unknown key"),
    ],
)
def test_an_unknown_key_is_told_with_what_was_meant(read: Read, text: str, says: str) -> None:
    (problem,) = problems(read, f"nodes: [{{host: db1}}]\n{text}\n")

    assert problem.startswith(says)


def test_a_misspelt_key_is_not_missing_too(read: Read) -> None:
    assert problems(read, "nodes: [{hots: db1}]") == ["1:10: nodes[0].hots: unknown key; did you mean host?"]


def test_duplicate_keys_are_refused(read: Read) -> None:
    assert problems(read, "nodes: [{host: db1}]\nmode: enforce\nmode: observe") == [
        "3:1: mode: the same key stands at 2:1"
    ]


def test_duplicate_keys_are_found_under_unknown_ones(read: Read) -> None:
    assert len(problems(read, "nodes: [{host: db1}]\nhunter2: {a: 1, a: 2}")) == 2


def test_everything_is_told_at_once_in_the_order_of_the_file(read: Read) -> None:
    text = """\
connection: {user: 5, pasword: x}
nodes:
  - {host: db1, port: 0}
  - {host: db1:5433}
pool: {min_size: 3, min_size: 30, max_size: on}
reads: {consistency: strong}
breaker: {open: [5s, 1s]}
timeout: "${NOBODY}"
hunter2: 1
"""

    found = problems(read, text)

    assert [problem.split(": ")[0] for problem in found] == [
        "1:20", "1:23", "3:23", "4:12", "5:21", "5:45", "6:22", "7:17", "8:10", "9:1",
    ]  # fmt: skip


def test_the_message_tells_all_and_the_path_the_first(read: Read) -> None:
    with pytest.raises(ConfigError) as caught:
        read("nodes: [{host: db1, port: 0}]\nmode: x")

    assert caught.value.path == "nodes[0].port"
    assert str(caught.value).startswith("2 problems in ")
    assert all(problem in str(caught.value) for problem in caught.value.problems)


def test_aliases_of_aliases_end(read: Read) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
    )

    assert any("too deeply, or too large" in problem for problem in problems(read, bomb))


def test_an_alias_of_itself_ends(read: Read) -> None:
    assert any("too deeply" in problem for problem in problems(read, "nodes: &n [*n]"))


# --- DSNs in files


def test_a_dsn_stands_for_nodes_and_connection(read: Read) -> None:
    settings = read('dsn: "postgresql://app:${DB_PASSWORD}@db1,db2/shop?sslmode=require"\nmode: observe')

    assert [node.host for node in settings.nodes] == ["db1", "db2"]
    assert (settings.connection.user, settings.connection.sslmode) == ("app", "require")
    assert settings.mode == "observe"


def test_connection_adds_to_what_the_dsn_says(read: Read) -> None:
    settings = read(
        "dsn: postgresql://app@db1/shop?jit=off\nconnection: {password: x, server_settings: {work_mem: 8MB}}"
    )

    assert (settings.connection.user, settings.connection.password) == ("app", Secret("x"))
    assert settings.connection.server_settings == {"jit": "off", "work_mem": "8MB"}


def test_a_dsn_without_hosts_goes_with_nodes(read: Read) -> None:
    settings = read("dsn: postgresql://app@/shop\nnodes: [{host: db1, weight: 2}]")

    assert (settings.nodes[0].weight, settings.connection.database) == (2, "shop")


def test_a_node_may_be_a_dsn(read: Read) -> None:
    settings = read(
        "nodes:\n"
        "  - {dsn: 'postgresql://app:${DB_PASSWORD}@db1:5433/shop', weight: 2}\n"
        "  - {dsn: 'postgresql://app:${DB_PASSWORD}@db2/shop', name: b}\n"
    )

    assert [(node.host, node.port, node.weight) for node in settings.nodes] == [("db1", 5433, 2), ("db2", 5432, 1)]
    assert (settings.nodes[1].name, settings.connection.password) == ("b", Secret("hunter2"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dsn: postgresql://db1\nnodes: [{host: db2}]", ["2:8: nodes: are named by dsn, too"]),
        ("dsn: postgresql://a@db1\nconnection: {user: a}", ["2:20: connection.user: is said by the dsn, too"]),
        ("dsn: postgresql://a@db1\nconnection: 5", ["2:13: connection: should be a mapping"]),
        ("dsn: postgresql://db1:hunter2/x", ["1:6: dsn: the port of host 1 should be"]),
        ("dsn: postgresql://db1/?sslmode=x", ["1:6: connection.sslmode: should be disable"]),
        ("dsn: postgresql://db1,db1", ["1:6: nodes[1]: has the same host"]),
        ("dsn: postgresql://app@/x", ["1:1: nodes: is missing"]),
        ("dsn: 5", ["1:6: dsn: should be a DSN"]),
        ("dsn: '${NOBODY}'", ["1:6: dsn: not set in the environment: NOBODY"]),
        ("nodes: [{dsn: 'postgresql://a,b'}]", ["1:15: nodes[0].dsn: should name one host"]),
        ("nodes: [{dsn: 'postgresql://a@'}]", ["1:15: nodes[0].dsn: should name one host"]),
        ("nodes: [{dsn: x}]", ["1:15: nodes[0].dsn: should begin with postgresql://"]),
        ("nodes: [{dsn: 'postgresql://a', host: b}]", ["1:39: nodes[0].host: is said by this node's dsn, too"]),
        (
            "nodes: [{dsn: 'postgresql://x:hunter2@a'}, {dsn: 'postgresql://x:other@b'}]",
            ["1:50: nodes[1].dsn: has another password than nodes[0].dsn"],
        ),
        (
            "nodes: [{dsn: 'postgresql://x@a'}]\nconnection: {user: y}",
            ["2:20: connection.user: is said by the dsn, too"],
        ),
    ],
)
def test_what_a_dsn_contradicts_is_told(read: Read, text: str, says: list[str]) -> None:
    found = problems(read, text)

    assert len(found) == len(says)
    assert all(problem.startswith(start) for problem, start in zip(found, says, strict=True))


def test_loading_logs_no_secret(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        read('dsn: "postgresql://app:${DB_PASSWORD}@db1/shop?target_session_attrs=any"')

    assert "target_session_attrs" in caplog.text
    assert "hunter2" not in caplog.text
