"""`import dbguard` is quick: what it does not need stays out."""

from __future__ import annotations

import subprocess
import sys


def test_importing_dbguard_leaves_heavy_packages_out() -> None:
    code = "import sys, dbguard; print(sorted(set(sys.modules) & {'psycopg','yaml','pydantic','rich','requests','tenacity'}))"

    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout.strip() == "[]"


def test_a_dsn_needs_neither_yaml_nor_pydantic() -> None:
    code = (
        "import sys, dbguard; dbguard.Guard('postgresql://app@db1,db2/shop');"
        "print(sorted(set(sys.modules) & {'psycopg','yaml','pydantic'}))"
    )

    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout.strip() == "[]"
