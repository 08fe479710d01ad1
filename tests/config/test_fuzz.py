"""Whatever comes in, settings or a ConfigError comes out, and no secret with it."""

import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dbguard.config import Settings, describe, load
from dbguard.config.problems import keys_at
from dbguard.errors import ConfigError

SECRET = "Zq7%Xw@9K/v2"
ENCODED = quote(SECRET, safe="")
FILE = f"""\
connection:
  user: app
  password: "{SECRET}"
  server_settings: {{jit: off}}
nodes:
  - {{name: a, host: 10.0.0.1, weight: 2}}
  - {{dsn: "postgresql://app:{ENCODED}@db2:5433/shop?sslmode=require"}}
pool: {{min_size: 2, hold: auto, max_lifetime: 30min}}
retry: {{budget: 20%}}
breaker: {{open: [1s, 15s], state: "${{STATE:-auto}}"}}
routing: {{functions: {{read: [f, s.g]}}}}
timeout: none
"""
DSN = f"postgresql://app:{ENCODED}@db1,db2:5433,[::1]:5/shop?sslmode=require&application_name=x&password2=y"
PIECES = [text[n : n + 4] for text in (SECRET, ENCODED) for n in range(len(text) - 3)]

many = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "guard.yaml"


def judge(source: Any) -> None:
    """Load *source*; pass judgement on what comes out."""
    problem = None
    try:
        found = load(source, environ={"STATE": "auto"})
    except ConfigError as error:
        problem = error
    if problem is None:
        assert isinstance(found, Settings)
        assert isinstance(describe(found), dict)
        return
    said = "".join(traceback.format_exception_only(problem)) + str(problem.problems) + str(problem.path)
    assert not [piece for piece in PIECES if piece in said]
    assert problem.__context__ is None  # pydantic's and yaml's own errors hold values
    assert problem.problems


@st.composite
def mutations(draw: st.DrawFn, original: bytes) -> bytes:
    """A few bytes cut out, put in or changed; pieces of the same text are likely to be put in."""
    data = original
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        cut = draw(st.integers(0, 6))
        start = draw(st.integers(0, len(original) - 1))
        piece = original[start : start + draw(st.integers(1, 12))]
        put = draw(st.one_of(st.just(b""), st.binary(max_size=3), st.sampled_from(list(b"{}[]:,-&*!|>'\"%@#?\n ")).map(lambda b: bytes([b])), st.just(piece)))  # fmt: skip
        data = data[:at] + put + data[at + cut :]
    return data


@many
@given(data=mutations(FILE.encode()))
@example(data=FILE.encode())
@example(data=FILE.replace("password: ", "password, ").encode())
@example(data=FILE.replace("password: ", "password: *").replace('"', "").encode())
def test_any_mutation_of_a_file_gives_settings_or_a_problem(file: Path, data: bytes) -> None:
    file.write_bytes(data)

    judge(file)


@many
@given(data=st.binary(max_size=200))
def test_any_bytes_give_settings_or_a_problem(file: Path, data: bytes) -> None:
    file.write_bytes(data)

    judge(file)


@many
@given(text=st.one_of(mutations(DSN.encode()).map(lambda data: data.decode("utf-8", "surrogateescape")), st.text().map("postgresql://".__add__)))  # fmt: skip
@example(text=DSN)
def test_any_dsn_gives_settings_or_a_problem(text: str) -> None:
    judge(text)


words = st.sampled_from([SECRET, DSN, "5s", "20%", "auto", "none", "${STATE}", "${NOBODY}", "db1", "postgresql://db1,db2/x", "1:2", ""])  # fmt: skip
leaves = st.one_of(
    words, st.text(max_size=8), st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=3)
)
every_key = sorted({key for path in [(), *((home,) for home in keys_at(())), ("nodes", 0), ("routing", "functions")] for key in keys_at(path)})  # fmt: skip
keys = st.one_of(st.sampled_from(every_key), st.sampled_from(every_key), st.text(max_size=6), st.integers())
anything = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(keys, inner, max_size=4),
    ),
    max_leaves=12,
)
sections = st.fixed_dictionaries(
    {"nodes": st.one_of(anything, st.lists(st.fixed_dictionaries({"host": words, "port": leaves}), max_size=3))},
    optional={
        home: st.one_of(anything, st.dictionaries(st.sampled_from(keys_at((home,)) or ("x",)), anything, max_size=4))
        for home in keys_at(())
        if home != "nodes"
    },
)


@many
@given(source=st.one_of(sections, st.dictionaries(keys, anything, max_size=5)))
def test_any_structure_gives_settings_or_a_problem(source: dict[Any, Any]) -> None:
    judge(source)


@many
@given(source=st.one_of(sections, anything))
def test_any_structure_in_a_file_gives_settings_or_a_problem(file: Path, source: Any) -> None:
    file.write_text(yaml.safe_dump(source, allow_unicode=True), encoding="utf-8", errors="replace")

    judge(file)


@pytest.mark.parametrize("home", [*keys_at(())])
@pytest.mark.parametrize("value", [SECRET, [SECRET], {"x": SECRET}, {SECRET: 1}], ids=["text", "list", "value", "key"])
def test_a_secret_in_the_wrong_place_is_not_shown(home: str, value: Any) -> None:
    judge({"nodes": [{"host": "db1"}], home: value})
    for key in keys_at((home,)):
        judge({"nodes": [{"host": "db1"}], home: {key: value}})
        judge({"nodes": [{"host": "db1", key: value}]})
