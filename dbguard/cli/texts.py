"""What each command says about itself: `dbguard COMMAND --help`."""

from __future__ import annotations

ABOUT = """\
dbguard keeps a Python application going through PostgreSQL failovers: it
sends each statement to the right node, repeats only what is safe to repeat,
and says truthfully what became of every write.
"""

EXAMPLES = """\
examples:
  dbguard demo                       see it: a killed primary, with and without
  dbguard check guard.yaml           is it right, and is the cluster fit for it?
  dbguard check postgresql://app@db1,db2/shop
  dbguard status guard.yaml          who is the primary now, and why?
  dbguard watch guard.yaml           the same, live, with what happens
  dbguard route "SELECT * FROM item" where would it go, and why?
  dbguard outcome install guard.yaml so that no write's outcome stays unknown

exit codes: 0 fine; 1 something is wrong; 2 bad input or not reachable.
`dbguard COMMAND --help` tells more.
"""

DEMO = """\
Starts a primary with two streaming replicas on this machine (a PostgreSQL
that is installed, or the one of the extra `demo`), lets readers and writers
work on it through dbguard and, beside them, the same ones through a plain pool
of the same driver (asyncpg, or psycopg on asyncio or in threads); kills the
primary, promotes a replica, brings the old primary back. Each guarded write
carries a token, which proves what became of it if its answer is lost. At the
end both tables are read back and compared with what was acknowledged. Nothing
stays behind.
"""

DEMO_EXAMPLES = """\
examples:
  dbguard demo
  dbguard demo --seconds 60
  dbguard demo --facade threads      psycopg in threads: SyncGuard
  dbguard demo --json=result.json    figures and events, for programs
  dbguard demo | cat                 plain lines instead of the live view

exit codes: 0 the guarded side saw no error, lost nothing, wrote nothing twice
and, with tokens, left no outcome unknown; 1 it did not keep that; 2 the demo
could not run.
"""

CHECK = """\
Reads a configuration, connects to every node, and says what it finds: roles,
timelines, lag, versions, rights, the connections needed against those there
are, and what is wrong. Changes nothing on any server.

CONFIG is a YAML file or a DSN of one or several hosts.
"""

CHECK_EXAMPLES = """\
examples:
  dbguard check guard.yaml
  dbguard check guard.yaml --processes 24   connections of 24 processes
  dbguard check guard.yaml --settings       all settings as they take effect
  dbguard check guard.yaml --rights         the least rights, as SQL
  dbguard check guard.yaml --json | jq .problems

exit codes: 0 fine; 1 reachable, and something is wrong; 2 the configuration is
wrong, or no node can be used.
"""

ROUTE = """\
Says what dbguard takes each statement for, by its text alone. With --config
it connects, and says which node would get it now and what speaks against each
of the others. The statements themselves are never sent.
"""

ROUTE_EXAMPLES = """\
examples:
  dbguard route "SELECT 1" "SELECT * FROM item FOR UPDATE"
  dbguard route --config guard.yaml "SELECT * FROM item"
  dbguard route - < statements.sql           one statement per line
  dbguard route --json - < statements.jsonl  {"sql": "..."} or a string per line

exit codes: 0 fine; 1 a statement could go nowhere now; 2 bad input or not
reachable.
"""


STATUS_NOW = """\
Asks every node once who it is, and says how the cluster stands: roles,
timelines, lag, who is the primary and why, and what is wrong. Takes a second
with a frozen node, three at most. Changes nothing on any server.

This is what a guard that is opened now would see. Breakers, waiting calls and
past failovers of a running service are its own, and cannot be seen from
another process: let its health endpoint return guard.status().as_dict().
"""

STATUS_NOW_EXAMPLES = """\
examples:
  dbguard status guard.yaml
  dbguard status postgresql://app@db1,db2/shop
  dbguard status guard.yaml --json | jq -r .primary
  until dbguard status guard.yaml >/dev/null; do sleep 1; done

exit codes: 0 writes can flow; 1 they cannot; 2 the configuration is wrong.
"""

WATCH = """\
Shows a cluster live until Ctrl-C: each node's role, whether it answers, its
breaker, lag, timeline and epoch, the last episodes (failovers and the like), and
events as they happen. On a terminal, with `rich` installed, as a picture; else
as lines. Asks each node every half second over one connection, as a guard does,
and changes nothing.

It is a guard of its own without any calls. Waiting calls, breakers and past
failovers of a running service cannot be seen from another process: they are in
its log, and in its guard.status().
"""

WATCH_EXAMPLES = """\
examples:
  dbguard watch guard.yaml
  dbguard watch guard.yaml --interval 0.2
  dbguard watch guard.yaml | tee watch.log     lines
  dbguard watch guard.yaml --count 1           one view

exit codes: 0 ended by Ctrl-C or --count; 2 the configuration is wrong.
"""

OUTCOME = """\
With a table of tokens in the database, dbguard can prove what became of every
write whose answer was lost with its connection: each write stores a token in
its own transaction, and the token is there if and only if the write is.
"""

OUTCOME_EXAMPLES = """\
examples:
  dbguard outcome install guard.yaml            the SQL, to read or to hand on
  dbguard outcome install guard.yaml --apply    put it on the primary
  dbguard outcome status guard.yaml             is it there, and fit?
  dbguard outcome prune guard.yaml              delete old tokens; for cron
  dbguard outcome resolve guard.yaml TOKEN      what became of that write?

exit codes: 0 fine; 1 something is wrong with the schema; 2 bad input, or the
primary was not reached or refused.
"""

INSTALL = """\
Prints the SQL of the schema `dbguard`, or with --apply runs it on the primary,
in one transaction: three tables (token, horizon, reign), two functions (mark,
prune), and the least rights for the role that guards log in as. Run again it
changes nothing, or upgrades what an earlier dbguard installed.

Then say `outcome: {resolve: token-table}` in the configuration, and let old
tokens be deleted every few minutes.

Tokens must not reach a logical subscriber that has no schema `dbguard`: it
stops. Where a publication FOR ALL TABLES exists, --apply refuses and says how
to keep them out.
"""

INSTALL_EXAMPLES = """\
examples:
  dbguard outcome install guard.yaml | less
  dbguard outcome install guard.yaml --role shop | psql -h db1 -d shop
  dbguard outcome install guard.yaml --apply --user postgres
  dbguard outcome install guard.yaml --apply --user admin --owner dbguard_owner

The pruner, in pg_cron:
  SELECT cron.schedule('dbguard-prune', '*/5 * * * *',
    'DO $$BEGIN WHILE dbguard.prune() = 10000 LOOP COMMIT; END LOOP; END$$')

exit codes: 0 done; 1 refused, or the schema is not fit; 2 bad input, or the
primary was not reached or refused.
"""

STATUS = """\
Says whether the schema is on the primary and fit: its shape, the rights of the
guard's role, publications, the size of the table, the age of the oldest token,
when the pruner ran last. Changes nothing.
"""

STATUS_EXAMPLES = """\
examples:
  dbguard outcome status guard.yaml
  dbguard outcome status guard.yaml --role shop
  dbguard outcome status guard.yaml --json | jq .problems

exit codes: 0 fine; 1 something is wrong; 2 bad input or not reachable.
"""

PRUNE = """\
Deletes the tokens of writes older than CONFIG's outcome.retention, in batches,
and moves the horizon: a write older than that cannot be asked for any more.
What claims left behind is kept for 30 days more. Any number may run at once.
Call it every few minutes, by cron or a timer; without it the table grows for
ever.
"""

PRUNE_EXAMPLES = """\
examples:
  dbguard outcome prune guard.yaml
  dbguard outcome prune guard.yaml --retention 24h
  */5 * * * *  dbguard outcome prune /etc/shop/guard.yaml     (crontab)

exit codes: 0 done; 2 bad input, or the primary was not reached or refused.
"""

RESOLVE = """\
Says what became of one write, by the token that stands in the log line of its
unknown outcome (and in `OutcomeUnknown.token`). It asks on the primary that a
guard accepts, from anywhere that reaches it, as often as you like: the answer
stays the same. Asking closes the door on a write that is still under way: it
fails then, and the answer is "not applied".
"""

RESOLVE_EXAMPLES = """\
examples:
  dbguard outcome resolve guard.yaml 019aa8c2-5d30-7c1e-8f00-3b6f0a9d7e11
  dbguard outcome resolve guard.yaml TOKEN --json --timeout 5s

exit codes: 0 applied; 1 not applied, and never will be; 2 it cannot be told
now (no primary, a standby is waited for, older than what is kept), or bad
input.
"""
