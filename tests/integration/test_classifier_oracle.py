"""The corpus's labels, asked of real servers: what a hot standby refuses, accepts, and lets a session keep."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dbguard.core.classify import Classifier

if TYPE_CHECKING:
    from dbguard.testing.cluster import Cluster

ROOT = Path(__file__).parent.parent.parent
CORPUS = ROOT / "tests" / "corpus"


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


label_corpus = load(ROOT / "tools" / "label_corpus.py")


@pytest.mark.every_postgres
def test_real_servers_say_of_each_statement_what_its_label_says(cluster_factory):
    cluster: Cluster = cluster_factory(replicas=1)
    label_corpus.prepare(cluster.dsn(cluster.primary), CORPUS / "schema.sql")
    cluster.wait_streaming()
    classifier = Classifier(read_functions=frozenset({"app_pure"}))
    differing, wrong, asked = [], [], 0

    with label_corpus.Oracle(cluster.dsn(cluster.primary), cluster.dsn(cluster.replicas[0])) as oracle:
        for path in sorted(CORPUS.glob("*.jsonl")):
            for line in map(json.loads, path.read_text().splitlines()):
                label = oracle.label(line["sql"])
                if label == "invalid":  # this version does not know it, or the schema lacks its table
                    continue
                asked += 1
                if label != line["label"]:
                    differing.append((label, line))
                if label != "read" and classifier.classify(line["sql"]).is_read:
                    wrong.append((label, line["sql"]))

    assert wrong == []
    assert differing == []
    assert asked >= 3500
