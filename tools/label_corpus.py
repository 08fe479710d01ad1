"""Ask real servers what each statement of the corpus is.

    python tools/label_corpus.py PRIMARY_DSN STANDBY_DSN FILE.jsonl ...

Rewrites the `label` of each line. Run on every version that is to be supported; a statement that one of them does not
know is left as the other one labelled it. The labels:

* read: a hot standby accepts it and nothing on the session has changed.
* refused: the standby refuses it as a standby.
* session: the standby accepts it, and the session is another one afterwards.
* wrong: the standby accepts it, and it still must not go there; by its name, from a list, as no observation shows it.
* transaction: it leaves a transaction open, or speaks of one.
* invalid: primary and standby refuse it alike, so they say nothing about it.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import ExecStatus, TransactionStatus

if TYPE_CHECKING:
    from typing import Self

    from psycopg.pq.abc import PGconn

# Accepted by a standby, and not seen by looking at the session afterwards.
WRONG_START = re.compile(
    r"\s*(?:/\*.*?\*/\s*|--[^\n]*\n\s*)*(set|reset|discard|unlisten|load|deallocate|close|checkpoint|lock|do|call|execute"
    r"|alter\s+system|prepare|listen)\b",
    re.IGNORECASE,
)
WRONG_CALL = re.compile(
    r"(?<![\w.'\"])(?:pg_catalog\.)?(setseed|dblink\w*|pg_advisory_\w+|pg_try_advisory_\w+|pg_export_snapshot|pg_reload_conf"
    r"|pg_terminate_backend|pg_cancel_backend|pg_stat_reset\w*|pg_rotate_logfile|pg_drop_replication_slot"
    r"|pg_replication_slot_advance|pg_logical_slot_\w+|pg_create_\w+|pg_wal_replay_pause|pg_wal_replay_resume"
    r"|pg_log_backend_memory_contexts|pg_stat_clear_snapshot|query_to_xml\w*|ts_stat|lo_unlink|lo_open|set_config|nextval|setval"
    r"|currval|lastval|txid_current|pg_notify|app_write|app_rows|(?-i:\"Lower\"))\s*\(",
    re.IGNORECASE,
)
WRONG_COPY = re.compile(r"\bcopy\b.*\bto\s+(?:program\b|'/)", re.IGNORECASE | re.DOTALL)
TRANSACTION = re.compile(
    r"(?:^|;)\s*(?:/\*.*?\*/\s*)*(begin|start\s+transaction|commit|end|rollback|abort|savepoint|release|prepare\s+transaction"
    r"|set\s+(?:local\s+|session\s+)?transaction|set\s+constraints)\b",
    re.IGNORECASE,
)
LITERAL = re.compile(r"\$\$.*?\$\$|'[^']*'", re.DOTALL)
PLANNED = re.compile(r"\s*explain\b(?!\s*\(?\s*\"?analy)", re.IGNORECASE)
RECOVERY = re.compile("recovery|read-only|standby", re.IGNORECASE)
STATE = b"""
SELECT current_user, session_user,
       (SELECT md5(string_agg(name || setting, ',' ORDER BY name)) FROM pg_settings WHERE source = 'session'),
       concat_ws(',', current_setting('app.x', true), current_setting('a.b', true), current_setting('app.tenant', true)),
       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
       (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_cursors WHERE name <> ''),
       (SELECT count(*) FROM pg_listening_channels())
"""
PLACEHOLDER = re.compile(r"%\(\w+\)s|%s|\$\d+(?![\w$])")


def run(connection: PGconn, sql: str) -> str | None:
    """Run a text by the simple protocol; return its SQLSTATE (with 'R' before it if recovery is to blame), or None."""
    result = connection.exec_(sql.encode())
    while result.status in {ExecStatus.COPY_OUT, ExecStatus.COPY_IN}:
        if result.status == ExecStatus.COPY_IN:
            connection.put_copy_end(b"not now")
        else:
            while connection.get_copy_data(0)[0] > 0:
                pass
        result = connection.get_result() or connection.exec_(b"")
    while (more := connection.get_result()) is not None:
        result = more
    if result.status in {ExecStatus.FATAL_ERROR, ExecStatus.BAD_RESPONSE}:
        code = (result.error_field(67) or b"XXXXX").decode()
        message = (result.error_field(77) or b"").decode(errors="replace")
        refused = code == "25006" or (code in {"55000", "0A000", "XX000"} and RECOVERY.search(message))
        return f"R{code}" if refused else code
    return None


def state(connection: PGconn) -> list[bytes | None]:
    """Return what can be seen of a session."""
    result = connection.exec_(STATE)
    return [result.get_value(0, i) for i in range(result.nfields)]


class Oracle:
    """A primary and its hot standby, asked statement by statement."""

    def __init__(self, primary: str, standby: str) -> None:
        self.dsns = (primary, standby)
        self.connections: list[psycopg.Connection | None] = [None, None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for known in self.connections:
            if known is not None:
                known.close()

    def connection(self, index: int) -> PGconn:
        """Return a session in its first state."""
        known = self.connections[index]
        if known is not None and not known.closed:
            if known.pgconn.transaction_status != TransactionStatus.IDLE:
                known.pgconn.exec_(b"ROLLBACK")
            known.pgconn.exec_(b"SET SESSION AUTHORIZATION DEFAULT")
            if known.pgconn.exec_(b"DISCARD ALL").status == ExecStatus.COMMAND_OK:
                known.pgconn.exec_(b"SET client_min_messages = error; SET statement_timeout = '5s'")
                return known.pgconn
            known.close()
        fresh = psycopg.connect(self.dsns[index], autocommit=True)
        fresh.pgconn.exec_(b"SET client_min_messages = error; SET statement_timeout = '5s'")
        self.connections[index] = fresh
        return fresh.pgconn

    def label(self, sql: str) -> str:
        """Say what *sql* is."""
        if "%s" in sql or "%(" in sql:
            sql = sql.replace("%%", "%")
        if not sql.startswith("CREATE") and TRANSACTION.search(LITERAL.sub("''", sql)):
            return "transaction"
        # Parameters have no types here: the first value that fits all of them will do.
        for filled in dict.fromkeys(PLACEHOLDER.sub(value, sql) for value in ("'1'", "NULL", "ARRAY['1']")):
            label = self._label(filled)
            if label != "invalid":
                return label
        return "invalid"

    def _label(self, sql: str) -> str:
        standby = self.connection(1)
        before = state(standby)
        code = run(standby, sql)
        if standby.transaction_status != TransactionStatus.IDLE:
            return "transaction"
        if code is not None and code.startswith("R"):
            return "refused"
        if code is not None:
            primary = self.connection(0)
            run(primary, "BEGIN")
            return "refused" if run(primary, sql) in {None, "25001"} else "invalid"
        if state(standby) != before:
            return "session"
        if PLANNED.match(sql):
            return "read"
        if WRONG_START.match(sql) or WRONG_CALL.search(sql) or WRONG_COPY.search(sql):
            return "wrong"
        return "read"


def prepare(primary: str, schema: Path) -> None:
    """Create the corpus's tables and functions."""
    with psycopg.connect(primary, autocommit=True) as connection:
        connection.execute(schema.read_bytes())


def main() -> None:
    """Label the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("primary")
    parser.add_argument("standby")
    parser.add_argument("files", nargs="+", type=Path)
    arguments = parser.parse_args()
    for path in arguments.files:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        with Oracle(arguments.primary, arguments.standby) as oracle:
            for line in lines:
                label = oracle.label(line["sql"])
                if label != "invalid" or "label" not in line:
                    line["label"] = label
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        print(
            path, {label: sum(line["label"] == label for line in lines) for label in {line["label"] for line in lines}}
        )


if __name__ == "__main__":
    main()
