"""Who overrules where a statement goes, in their order of strength: a hint, `using`, a rule, what the statement is."""

from __future__ import annotations

import pytest

WHERE = "SELECT current_setting('cluster_name')"
PRIMARY, REPLICA = "/* dbguard: primary */ ", "/* dbguard: replica */ "


def ruled(*rules: dict[str, str], **groups: list[str]) -> dict[str, object]:
    return {"routing": {"rules": list(rules), "groups": groups}}


@pytest.mark.parametrize(
    ("hint", "role", "rule", "expected"),
    [
        pytest.param(PRIMARY, "replica", "replica", {"a"}, id="a-hint-over-using-and-rule"),
        pytest.param(REPLICA, "primary", "primary", {"b", "c"}, id="a-hint-for-replicas-over-using-and-rule"),
        pytest.param("", "primary", "replica", {"a"}, id="using-over-a-rule"),
        pytest.param("", "replica", "primary", {"b", "c"}, id="using-for-replicas-over-a-rule"),
        pytest.param("", None, "primary", {"a"}, id="a-rule-over-what-it-is"),
        pytest.param("", None, "few", {"c"}, id="a-rule-that-names-a-group"),
        pytest.param(PRIMARY, None, "few", {"a"}, id="a-hint-over-a-group"),
        pytest.param(REPLICA, None, "few", {"b", "c"}, id="a-hint-lifts-the-bounds-of-a-group"),
        pytest.param("", "replica", "few", {"b", "c"}, id="using-lifts-the-bounds-of-a-group"),
        pytest.param("", "primary", "few", {"a"}, id="using-over-a-group"),
        pytest.param("", None, None, {"b", "c"}, id="nothing-but-what-it-is"),
    ],
)
async def test_the_stronger_word_counts(calm_cluster, open_guard, hint, role, rule, expected):
    rules = [{"match": "cluster_name", "to": rule}] if rule else []
    guard = await open_guard(calm_cluster, config=ruled(*rules, few=["c"]))
    view = guard.using(role=role) if role else guard

    ran_on = {await view.fetchval(hint + WHERE) for _ in range(50)}

    assert ran_on == expected
    assert {view.route(hint + WHERE).node for _ in range(50)} == expected


@pytest.mark.parametrize("by", ["hint", "using", "rule", "group"])
async def test_nothing_sends_a_definite_write_to_a_replica(calm_cluster, open_guard, table, by):
    rule = {"match": "INSERT", "to": "few" if by == "group" else "replica"}
    guard = await open_guard(calm_cluster, config=ruled(*([rule] if by in {"rule", "group"} else []), few=["c"]))
    view = guard.using(role="replica") if by == "using" else guard
    write = (
        f"{REPLICA if by == 'hint' else ''}INSERT INTO {table} VALUES (1, 1) RETURNING current_setting('cluster_name')"
    )

    assert await view.fetchval(write) == "a"

    assert view.route(write).role == "primary"
    assert guard.status().counts["misread"] == 0  # no replica was asked first


@pytest.mark.parametrize("by", ["hint", "using", "rule", "group"])
async def test_whoever_asks_for_a_replica_lifts_what_is_not_known(calm_cluster, open_guard, by, until):
    calm_cluster.sql("a", "DROP FUNCTION IF EXISTS overrides_where()")
    calm_cluster.sql(
        "a",
        "CREATE FUNCTION overrides_where() RETURNS text LANGUAGE sql STABLE"
        " AS $$ SELECT current_setting('cluster_name') $$",
    )
    for replica in calm_cluster.replicas:
        calm_cluster.wait_for(replica, "SELECT to_regproc('overrides_where') IS NOT NULL")
    calm_cluster.sql("a", "CREATE SCHEMA IF NOT EXISTS overrides")
    rule = {"match": "overrides_where", "to": "few" if by == "group" else "replica"}
    guard = await open_guard(calm_cluster, config=ruled(*([rule] if by in {"rule", "group"} else []), few=["c"]))
    view = guard.using(role="replica") if by == "using" else guard
    # A name that the catalogue does not list, so that nothing but the override can lift it.
    query = f"{REPLICA if by == 'hint' else ''}SELECT postgres.public.overrides_where()"

    assert guard.route("SELECT postgres.public.overrides_where() AS x, 1").kind.value == "unknown"
    ran_on = {await view.fetchval(query) for _ in range(50)}

    assert ran_on == ({"c"} if by == "group" else {"b", "c"})
    calm_cluster.sql("a", "DROP FUNCTION overrides_where()")
    calm_cluster.sql("a", "DROP SCHEMA overrides")


async def test_a_group_whose_nodes_are_not_fit_falls_back_to_the_primary_or_says_so(calm_cluster, open_guard):
    rule = {"match": "cluster_name", "to": "few"}
    guard = await open_guard(calm_cluster, "a", "b", config=ruled(rule, few=["a"]))

    assert await guard.fetchval(WHERE) == "a"

    route = guard.route(WHERE)
    assert (route.node, route.others) == ("a", {"b": "not in the group that its rule names"})


async def test_a_route_names_what_overruled_it(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster)

    hinted = guard.route(PRIMARY + WHERE)
    asked = guard.using(role="primary").route(WHERE)

    assert (hinted.kind.value, hinted.because) == ("read", "hint: primary")
    assert set(hinted.others.values()) == set(asked.others.values()) == {"the primary was asked for"}
