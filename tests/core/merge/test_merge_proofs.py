"""Which replicas are proven to follow the reign, and how far they are behind."""

from __future__ import annotations

import pytest

from dbguard.core.lag import KEPT, Samples


def test_streaming_the_timeline_of_the_reign_is_a_proof(cluster):
    cluster["b"].control_timeline = None

    cluster.restart("b")
    cluster.round()

    assert cluster.node("b").proven


@pytest.mark.parametrize(
    ("streaming", "received", "control"),
    [(False, 1, 0), (None, 1, None), (True, None, None), (True, 2, 1), (True, 1, 2)],
    ids=["not streaming", "not told", "number unknown", "another timeline", "control file is past it"],
)
def test_less_is_no_proof(cluster, streaming, received, control):
    cluster.restart("b")
    cluster["b"].streaming, cluster["b"].timeline, cluster["b"].control_timeline = streaming, received, control

    cluster.round()

    assert not cluster.node("b").proven


def test_control_file_is_a_proof_for_those_who_may_not_see_the_receiver(cluster):
    cluster.restart("b")
    cluster["b"].streaming = cluster["b"].timeline = None

    cluster.round()

    assert cluster.node("b").proven


def test_another_reign_unproves_every_replica_until_it_follows(cluster):
    cluster.silence("a")
    cluster.promote("b")
    cluster.round()
    assert not cluster.node("c").proven, "its control file and receiver show the old timeline"

    cluster["c"].timeline = 2
    cluster.round()

    assert cluster.node("c").proven


def test_proof_outlives_a_missed_probe_and_the_primary(cluster):
    cluster["b"].control_timeline = None
    cluster.silence("a")
    cluster["b"].streaming = False
    cluster.round(2)

    assert cluster.node("b").proven


def test_replica_that_turns_to_another_timeline_is_unproven(cluster):
    cluster["b"].control_timeline, cluster["b"].timeline = None, 5

    cluster.round()

    assert not cluster.node("b").proven


def test_number_borne_by_a_contester_proves_nothing_any_more(build):
    cluster = build("a", "b", "c", "x")
    cluster.silence("x")
    cluster.round()
    cluster.heal("x")
    cluster.promote("x")
    cluster.round()
    cluster.silence("x")
    cluster.promote("b")
    cluster["c"].timeline = 2

    cluster.round(2)

    assert (cluster.view.writable, cluster.view.reign.timeline) == ("b", 2)
    assert not cluster.node("c").proven


def test_split_brain_unproves_the_replicas_from_its_first_round(cluster):
    cluster.promote("b", timeline=1)

    cluster.round()

    assert not cluster.node("c").proven


def test_replica_ahead_of_the_primary_twice_in_a_row_has_diverged(cluster):
    cluster["b"].position = 99_999
    cluster.round()
    cluster.round()
    assert cluster.node("b").proven, "once may be chance"

    cluster.round(2)
    assert not cluster.node("b").proven

    cluster["a"].position = 10**6
    cluster.round(3)
    assert not cluster.node("b").proven, "the primary has overtaken it; its rows are still others"
    cluster.restart("b")
    cluster["b"].position = 1000
    cluster.round()
    assert cluster.node("b").proven


def test_replica_as_far_as_an_idle_primary_is_not_ahead(cluster):
    cluster.round(9)

    assert cluster.node("b").proven


def test_one_reading_is_compared_once(cluster):
    cluster["b"].position = 99_999
    cluster.probe("b")
    cluster.probe("a")
    cluster.probe("a")
    cluster.probe("a")

    assert cluster.node("b").proven


def test_ahead_twice_but_not_in_a_row_is_chance(cluster):
    for position in (99_999, 1000, 99_999):
        cluster["b"].position = position
        cluster.probe("b")
        cluster.probe("a")

    assert cluster.node("b").proven


def test_replica_read_after_the_primary_was_asked_may_be_ahead(cluster):
    for _ in range(6):
        cluster.probe("a")
        asked = cluster["a"].answer(cluster.now + 0.1)
        cluster.write()
        cluster.probe("b")
        cluster.topology.merge([asked], cluster.now + 0.1, full=False)
        cluster.write()

    assert cluster.node("b").proven


def test_lag_is_the_age_of_what_the_replica_has_reached(cluster):
    cluster.round()
    cluster["b"].streaming = False
    for _ in range(4):
        cluster.write()
        cluster.round()

    assert cluster.node("b").lag == pytest.approx(4 * 0.5 + 0.01)
    assert cluster.node("c").lag == 0.0


def test_lag_does_not_grow_because_there_is_no_primary(cluster):
    cluster["b"].streaming = False
    cluster.write()
    cluster.round()
    cluster.silence("a")
    cluster.round()
    lag = cluster.node("b").lag

    cluster.round(100)

    assert cluster.node("b").lag == lag == pytest.approx(0.5)


def test_lag_is_unknown_before_the_replica_has_reached_anything_that_was_seen(cluster):
    cluster["b"].position = 10
    cluster.round()

    assert cluster.node("b").lag is None


def test_lag_belongs_to_the_reign(cluster):
    cluster.silence("a")
    cluster.promote("b")
    cluster["b"].position = 50_000
    cluster.round()

    assert cluster.node("c").lag is None


def test_idle_primary_makes_no_lag():
    samples = Samples()
    for at in range(100):
        samples.add(at, 1000)

    samples.add(100, 1001)

    assert samples.lag(1000, 100.0) == 1.0
    assert samples.lag(1001, 100.0) == 0.0


def test_samples_span_a_minute_however_fast_they_come():
    samples = Samples()
    for poll in range(40_000):
        samples.add(poll * 0.025, poll)

    assert len(samples._times) <= KEPT
    assert samples.lag(40_000 - 60 * 40, 1000.0) == pytest.approx(60.0, abs=0.5)
    assert samples.lag(0, 1000.0) is None


def test_positions_that_a_crash_took_back_are_forgotten():
    samples = Samples()
    samples.add(1.0, 100)
    samples.add(2.0, 200)

    samples.add(3.0, 150)

    assert samples.lag(150, 3.0) == 0.0
    assert samples.lag(100, 3.0) == 2.0


def test_numbers_prove_nothing_from_the_moment_another_server_claims_the_timeline(cluster):
    assert cluster.node("c").proven

    cluster.restart("b")
    cluster.promote("b", 1)
    cluster.probe("b")
    assert not cluster.node("c").proven, "whom of the two it follows, a number does not tell"

    cluster.restart("b")
    cluster.rejoin("b", 1)
    cluster.round()
    assert cluster.node("c").proven, "it was gone before a full round had seen them beside each other"


def test_an_old_answer_of_the_holder_is_no_rival(cluster):
    cluster.restart("a")
    cluster.probe("a")

    assert cluster.node("c").proven
