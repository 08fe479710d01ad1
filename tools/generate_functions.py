# ruff: noqa: SIM905  # word lists are read more easily than quoted ones
"""Write `dbguard/core/functions.py` from the catalogues of real servers.

    python tools/generate_functions.py DSN [DSN ...]

Each DSN names a freshly initialised server, one per major version, without extensions of its own in `pg_catalog`.
A function is listed if no overload of its name is volatile on any of them, it can be called from SQL, and it is not on
the list of exceptions below; harmless volatile ones are added by name. Read the diff before committing it: a new
version may bring a function that is declared stable and still must not run on a replica.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import psycopg

TARGET = Path(__file__).resolve().parent.parent / "dbguard" / "core" / "functions.py"

# Volatile, and still harmless on any node: chance, clocks, identifiers, sizes, and what this server says about itself.
HARMLESS = """
array_sample array_shuffle clock_timestamp current_query gen_random_uuid lo_get pg_available_wal_summaries
pg_blocking_pids pg_collation_actual_version pg_control_checkpoint pg_control_init pg_control_recovery
pg_control_system pg_current_logfile pg_database_collation_actual_version pg_database_size pg_get_aios
pg_get_backend_memory_contexts pg_get_loaded_modules pg_get_multixact_members pg_get_sequence_data
pg_get_shmem_allocations pg_get_shmem_allocations_numa pg_get_wait_events pg_get_wal_replay_pause_state pg_get_wal_resource_managers
pg_get_wal_summarizer_state pg_hba_file_rules pg_ident_file_mappings pg_indexes_size pg_is_in_recovery
pg_is_wal_replay_paused pg_jit_available pg_last_wal_receive_lsn pg_last_wal_replay_lsn pg_last_xact_replay_timestamp
pg_lock_status pg_ls_archive_statusdir pg_ls_dir pg_ls_logdir pg_ls_logicalmapdir pg_ls_logicalsnapdir pg_ls_replslotdir
pg_ls_summariesdir pg_ls_tmpdir pg_ls_waldir pg_notification_queue_usage pg_partition_ancestors pg_partition_tree
pg_prepared_xact pg_read_binary_file pg_read_file pg_relation_size pg_safe_snapshot_blocking_pids pg_sequence_last_value
pg_show_all_file_settings pg_show_replication_origin_status pg_sleep pg_sleep_for pg_sleep_until pg_stat_file
pg_stat_get_backend_io pg_stat_get_backend_wal pg_stat_get_io pg_stat_get_recovery_prefetch
pg_stat_get_xact_blocks_fetched pg_stat_get_xact_blocks_hit pg_stat_get_xact_function_calls
pg_stat_get_xact_function_self_time pg_stat_get_xact_function_total_time pg_stat_get_xact_numscans
pg_stat_get_xact_tuples_deleted pg_stat_get_xact_tuples_fetched pg_stat_get_xact_tuples_hot_updated
pg_stat_get_xact_tuples_inserted pg_stat_get_xact_tuples_newpage_updated pg_stat_get_xact_tuples_returned
pg_stat_get_xact_tuples_updated pg_stat_have_stats pg_table_size pg_tablespace_size pg_total_relation_size
pg_wal_summary_contents random random_normal timeofday uuidv4 uuidv7
""".split()

# Not volatile, and still not for a replica: they need a transaction id or a primary, load a library, or read relations
# that the text does not name.
REFUSED = """
fmgr_c_validator fmgr_internal_validator fmgr_sql_validator
pg_replication_origin_oid txid_current pg_current_xact_id pg_walfile_name pg_walfile_name_offset
table_to_xml table_to_xmlschema table_to_xml_and_xmlschema schema_to_xml schema_to_xmlschema
schema_to_xml_and_xmlschema database_to_xml database_to_xmlschema database_to_xml_and_xmlschema
""".split()

FUNCTIONS = """
SELECT proname::text, bool_or(provolatile = 'v'),
       bool_or(prorettype <> ALL (ARRAY['internal', 'trigger', 'event_trigger', 'language_handler', 'fdw_handler',
                                        'index_am_handler', 'tsm_handler', 'table_am_handler', 'cstring']::regtype[])
               AND NOT proargtypes::oid[] && ARRAY['internal', 'cstring']::regtype[]::oid[])
  FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace GROUP BY proname
"""

INFORMATION = """
SELECT proname::text FROM pg_proc
 WHERE pronamespace = 'information_schema'::regnamespace AND provolatile <> 'v' AND oid < 16384
"""

HEADER = '''# ruff: noqa: SIM905  # word lists are read more easily than quoted ones
"""The names that the classifier may trust. Made by tools/generate_functions.py; do not edit.

Read from {versions}.

READ_FUNCTIONS: functions of pg_catalog that neither write, nor touch the session, nor act on the server. An allow-list:
what is not on it is taken for a write, so a name missing here costs a trip to the primary, never a wrong one. A name that
only newer versions have is listed too: a user's own function of that name on an older server is the catalogue's to find.
INFORMATION_FUNCTIONS: those of information_schema, none of which is volatile.
VOLATILE_FUNCTIONS: all others of pg_catalog that can be called: known, and not for a replica.
OPERATORS: every operator of pg_catalog.
CALL_PROOF: key words that cannot name a function: followed by a parenthesis, they are syntax.
NEWER_WORDS: those of CALL_PROOF that can name one on an older server.
RESERVED: key words that are reserved somewhere: they name no column, no table or no function.
PLANNED_FUNCTIONS: those of VOLATILE_FUNCTIONS that are not declared volatile, so that the planner may run them.
"""

from __future__ import annotations

__all__ = [
    "CALL_PROOF",
    "INFORMATION_FUNCTIONS",
    "NEWER_WORDS",
    "OPERATORS",
    "PLANNED_FUNCTIONS",
    "READ_FUNCTIONS",
    "RESERVED",
    "VOLATILE_FUNCTIONS",
]
'''


def read(dsns: list[str]) -> tuple[list[str], dict[str, set[str]]]:
    """Ask every server; return their versions and the names by list."""
    versions = []
    volatile: set[str] = set()
    callable_: set[str] = set()
    information: set[str] = set()
    operators: set[str] = set()
    call_proof: list[set[str]] = []
    reserved: set[str] = set()
    for dsn in dsns:
        with psycopg.connect(dsn) as connection:
            versions.append(connection.execute("SHOW server_version").fetchone()[0].split()[0])  # type: ignore[index]  # SHOW returns a row
            for name, is_volatile, is_callable in connection.execute(FUNCTIONS):
                volatile |= {name} if is_volatile else set()
                callable_ |= {name} if is_callable else set()
            information |= {name for (name,) in connection.execute(INFORMATION)}
            operators |= {
                name
                for (name,) in connection.execute(
                    "SELECT DISTINCT oprname::text FROM pg_operator WHERE oprnamespace = 11"
                )
            }
            call_proof.append(set())
            for word, kind in connection.execute("SELECT word, catcode::text FROM pg_get_keywords()"):
                reserved |= {word} if kind != "U" else set()
                call_proof[-1] |= {word} if kind in "RC" else set()
    reads = (callable_ - volatile - set(REFUSED)) | set(HARMLESS)
    others = callable_ - reads - {name for name in callable_ if name.startswith("binary_upgrade_")}
    return versions, {
        "READ_FUNCTIONS": reads,
        "INFORMATION_FUNCTIONS": information,
        "VOLATILE_FUNCTIONS": others,
        "OPERATORS": operators | {"!=", "=>"},
        "CALL_PROOF": set.union(*call_proof),
        "NEWER_WORDS": set.union(*call_proof) - set.intersection(*call_proof),
        "RESERVED": reserved,
        "PLANNED_FUNCTIONS": others - volatile,
    }


def main() -> None:
    """Write the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dsn", nargs="+")
    versions, lists = read(parser.parse_args().dsn)
    text = HEADER.format(versions="PostgreSQL " + " and ".join([", ".join(versions[:-1]), versions[-1]]).strip(" and"))
    for name, words in lists.items():
        body = textwrap.fill(" ".join(sorted(words)), 119, break_long_words=False, break_on_hyphens=False)
        text += f'\n{name} = frozenset(\n    """\n{body}\n""".split()\n)\n'
    TARGET.write_text(text)
    print(f"{TARGET}: " + ", ".join(f"{len(words)} {name}" for name, words in lists.items()))


if __name__ == "__main__":
    main()
