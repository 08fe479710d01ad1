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


FILES = ["forms", "sqlalchemy", "django"]


def test_the_corpus_is_large_enough_to_mean_something():
    counted = [line for name in FILES for line in lines(name) if line["label"] != "invalid"]

    assert len(counted) >= 2000
    assert sum(line["label"] in MUST_STAY for line in counted) >= 700


@pytest.mark.parametrize("name", FILES)
def test_nothing_that_must_stay_on_the_primary_is_called_a_read(name):
    wrong = [line for line in lines(name) if line["label"] in MUST_STAY and CLASSIFIER.classify(line["sql"]).is_read]

    assert wrong == []


@pytest.mark.parametrize("name", FILES)
def test_no_read_is_kept_from_the_replicas(name):
    kept = [line for line in lines(name) if line["label"] == "read" and not CLASSIFIER.classify(line["sql"]).is_read]

    assert kept == []


@pytest.mark.parametrize("name", FILES)
def test_session_and_transaction_are_called_by_their_names(name):
    wrong = [
        line
        for line in lines(name)
        if line["label"] in {"session", "transaction"}
        and CLASSIFIER.classify(line["sql"]).kind is not Kind(line["label"])
    ]

    assert wrong == []
