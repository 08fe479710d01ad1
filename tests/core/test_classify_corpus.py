"""The figures: what the classifier says of a corpus whose labels come from real servers.

`tools/label_corpus.py` wrote the labels; `tests/integration/test_classifier_oracle.py` asks the servers again.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dbguard.core.classify import Classifier, Kind

CORPUS = Path(__file__).parent.parent / "corpus"
MUST_STAY = {"refused", "session", "wrong", "transaction"}

# What an application would declare: the one function of the corpus's schema that only computes.
CLASSIFIER = Classifier(read_functions=frozenset({"app_pure"}))


def lines(name):
    return [json.loads(line) for line in (CORPUS / f"{name}.jsonl").read_text().splitlines()]


FILES = sorted(path.stem for path in CORPUS.glob("*.jsonl"))

# Reads that nobody's application sends, kept away on purpose: names of functions whose other forms run SQL text or read
# what the text does not name, options that contradict each other, and statements that happen to do nothing.
KEPT = {
    "SELECT database_to_xml(true, true, '')",
    "SELECT schema_to_xml('app', true, true, '')",
    "SELECT table_to_xml('users', true, true, '')",
    "SELECT ts_rewrite('a'::tsquery, 'SELECT ''a''::tsquery, ''b''::tsquery')",
    "SELECT ts_rewrite('a & b'::tsquery, 'a'::tsquery, 'c'::tsquery)",
    "SELECT currtid2('users', '(0,1)')",
    "EXPLAIN (ANALYZE on, ANALYZE off) INSERT INTO log (msg) VALUES ('x')",
    "EXPLAIN ANALYZE REFRESH MATERIALIZED VIEW totals",
    "WITH a AS (SELECT 1) MERGE INTO log USING users ON log.id = users.id WHEN MATCHED THEN DO NOTHING",
}


def test_the_corpus_is_large_enough_to_mean_something():
    counted = [line for name in FILES for line in lines(name) if line["label"] != "invalid"]

    assert len(counted) >= 4500
    assert sum(line["label"] in MUST_STAY for line in counted) >= 1500


@pytest.mark.parametrize("name", FILES)
def test_nothing_that_must_stay_on_the_primary_is_called_a_read(name):
    wrong = [line for line in lines(name) if line["label"] in MUST_STAY and CLASSIFIER.classify(line["sql"]).is_read]

    assert wrong == []


@pytest.mark.parametrize("name", FILES)
def test_no_read_is_kept_from_the_replicas_but_those_named_here(name):
    reads = [line["sql"] for line in lines(name) if line["label"] == "read"]
    kept = {sql for sql in reads if not CLASSIFIER.classify(sql).is_read}

    assert kept == KEPT.intersection(reads)


@pytest.mark.parametrize("name", FILES)
def test_session_and_transaction_are_called_by_their_names(name):
    wrong = [
        line
        for line in lines(name)
        if line["label"] in {"session", "transaction"}
        and CLASSIFIER.classify(line["sql"]).kind is not Kind(line["label"])
    ]

    assert wrong == []
