"""The lexer's verdict beside PostgreSQL's own grammar (libpg_query), on the corpus and on thousands of its mutants.

Both use the same list of functions. A read of ours that the grammar does not call one fails; a read of the grammar's
that we keep away is counted, and must be rare.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import postgast
import pytest

from dbguard.core.classify import Classifier, classify
from dbguard.core.functions import INFORMATION_FUNCTIONS, OPERATORS, PLANNED_FUNCTIONS, READ_FUNCTIONS
from dbguard.core.lexer import HEAD, written
from dbguard.core.query import Trust
from dbguard.core.quick import plainly_read
from dbguard.core.verbs import QUERIES
from tests.core.test_classify import CALLS

CORPUS = Path(__file__).parent.parent / "corpus"
DML = {"InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"}
PLACEHOLDER = re.compile(r"%\(\w+\)s|%s")
NAMES = Trust(frozenset(), frozenset()).backwards

# What makes a read something else, what only looks so, and the words between.
WORDS = [
    r"select",
    r"from",
    r"where",
    r"(",
    r")",
    r",",
    r";",
    r"as",
    r"with",
    r"recursive",
    r"insert",
    r"into",
    r"update",
    r"delete",
    r"merge",
    r"set",
    r"values",
    r"for",
    r"share",
    r"no",
    r"key",
    r"using",
    r"on",
    r"distinct",
    r"all",
    r"any",
    r"exists",
    r"in",
    r"not",
    r"and",
    r"or",
    r"is",
    r"null",
    r"case",
    r"when",
    r"then",
    r"else",
    r"end",
    r"union",
    r"except",
    r"group",
    r"by",
    r"order",
    r"limit",
    r"offset",
    r"fetch",
    r"first",
    r"next",
    r"only",
    r"rows",
    r"row",
    r"lateral",
    r"join",
    r"left",
    r"natural",
    r"cross",
    r"table",
    r"explain",
    r"analyze",
    r"copy",
    r"to",
    r"stdout",
    r"show",
    r"over",
    r"filter",
    r"within",
    r"partition",
    r"cube",
    r"rollup",
    r"grouping",
    r"sets",
    r"materialized",
    r"returning",
    r"operator",
    r"cast",
    r"coalesce",
    r"extract",
    r"substring",
    r"trim",
    r"overlay",
    r"like",
    r"ilike",
    r"between",
    r"similar",
    r"at",
    r"time",
    r"zone",
    r"interval",
    r"ordinality",
    r"tablesample",
    r"bernoulli",
    r"collate",
    r"=",
    r"+",
    r"-",
    r"||",
    r"~",
    r"@>",
    r"->",
    r"===",
    r"[",
    r"]",
    r".",
    r"*",
    r"::",
    r"$1",
    r"1",
    r"'x'",
    r"E'a\''",
    r"$$a$$",
    r"x",
    r"t",
    r"a.b",
    r'"Q"',
    r"value",
    r"data",
    r"name",
    r"type",
    r"/*c*/",
    r"--c",
    r"to",
    r"day",
    r"conflict",
    r"do",
    r"nothing",
    r"atomic",
    r"create",
    r"begin",
    r"search",
    r"cycle",
    r"operator(1)",
    r"operator(*)",
    r"second(x)",
    r"insert(1)",
    r"conflict(1)",
    r"materialized(1)",
    r"information_schema._pg_expandarray(x)",
    r"json_table(x,'$' columns(a int))",
    r"(select 1)",
    r"f(1)",
    r"nextval('s')",
    r"app.f(2)",
    r"lower(x)",
    r"count(*)",
    r'"Lower"(x)',
    r'"lower"(x)',
    r"pg_catalog.lower(y)",
    r"first(x)",
    r"value(x)",
    r"key(x)",
    r"over(x)",
    r"filter(x)",
    r"rollup(x)",
    r"join(x)",
    r"by(x)",
    r"zone(x)",
    r"escape(x)",
    r"rows(x)",
    r"range(x)",
    r"set_config('a','b',false)",
    r"numeric(10,2)",
    r"geometry(3)",
    r"OPERATOR(pg_catalog.=)",
    r"OPERATOR(public.=)",
    r"x(a,b)",
    r"g(a)",
    r"left(x,1)",
]

# Key words that can name a function on one of the supported versions, of PostgreSQL 15 and 18.
NAMING_WORDS = """
abort absent absolute access action add admin after aggregate also alter always asensitive assertion assignment at
atomic attach attribute authorization backward before begin binary breadth by cache call called cascade cascaded
catalog chain characteristics checkpoint class close cluster collation columns comment comments commit committed
compression concurrently conditional configuration conflict connection constraints content continue conversion copy
cost cross csv cube current current_schema cursor cycle data database day deallocate declare defaults deferred definer
delete delimiter delimiters depends depth detach dictionary disable discard document domain double drop each empty
enable encoding encrypted enforced enum error escape event exclude excluding exclusive execute explain expression
extension external family filter finalize first following force format forward freeze full function functions
generated global granted groups handler header hold hour identity if ilike immediate immutable implicit import include
including increment indent index indexes inherit inherits inline inner input insensitive insert instead invoker is
isnull isolation join keep key keys label language large last leakproof left level like listen load local location
lock locked logged mapping match matched materialized maxvalue merge method minute minvalue mode month move name names
natural nested new next nfc nfd nfkc nfkd no normalized nothing notify notnull nowait nulls object objects of off oids
old omit operator option options ordinality others outer over overlaps overriding owned owner parallel parameter
parser partial partition passing password path period plan plans policy preceding prepare prepared preserve prior
privileges procedural procedure procedures program publication quote quotes range read reassign recheck recursive ref
referencing refresh reindex relative release rename repeatable replace replica reset restart restrict return returns
revoke right role rollback rollup routine routines rows rule savepoint scalar schema schemas scroll search second
security sequence sequences serializable server session set sets share show similar simple skip snapshot source sql
stable standalone start statement statistics stdin stdout storage stored strict string strip subscription support
sysid system tables tablesample tablespace target temp template temporary text ties transaction transform trigger
truncate trusted type types uescape unbounded uncommitted unconditional unencrypted unknown unlisten unlogged until
update vacuum valid validate validator value varying verbose version view views virtual volatile whitespace within
without work wrapper write xml year yes zone
"""


def texts() -> list[str]:
    lines = [
        json.loads(line)["sql"] for path in sorted(CORPUS.glob("*.jsonl")) for line in path.read_text().splitlines()
    ]
    return [PLACEHOLDER.sub("$1", sql).replace("%%", "%") if "%" in sql else sql for sql in lines]


def nodes(message):
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in value if field.is_repeated else [value]:
                yield from nodes(part)


def strings(parts) -> list[str]:
    return [part.string.sval for part in parts]


def is_own(path: list[str]) -> bool:
    return len(path) == 1 or path[:-1] == ["pg_catalog"]


def is_plain(tree, *, planned: bool) -> bool:
    """Whether nothing in a tree makes it more than a read; *planned*: under EXPLAIN."""
    for node in nodes(tree):
        kind = node.DESCRIPTOR.name
        if kind == "ExecuteStmt":
            return False
        if kind == "FuncCall":
            path = strings(node.funcname)
            listed = is_own(path) and path[-1] in READ_FUNCTIONS
            listed = listed or (path[:-1] == ["information_schema"] and path[-1] in INFORMATION_FUNCTIONS)
            if not (listed or (planned and not (is_own(path) and path[-1] in PLANNED_FUNCTIONS))):
                return False
        elif kind in {"A_Expr", "SubLink", "SortBy"}:
            path = strings(node.name if kind == "A_Expr" else node.oper_name if kind == "SubLink" else node.use_op)
            between = bool(path) and "BETWEEN" in path[-1]
            if path and not between and (not is_own(path) or path[-1] not in OPERATORS):
                return False
        elif kind == "RangeTableSample":
            if strings(node.method)[-1] not in {"bernoulli", "system"}:
                return False
        elif not planned and (kind in DML or kind in {"LockingClause", "IntoClause"}):
            return False
    return True


def runs(options) -> bool:
    for option in (part.def_elem for part in options):
        if option.defname == "analyze":
            kind = option.arg.WhichOneof("node") if option.HasField("arg") else ""
            off = (kind == "string" and option.arg.string.sval.lower() in {"false", "off", "0"}) or (
                kind == "integer" and option.arg.integer.ival == 0
            )
            if not off:
                return True
    return False


def is_read(node) -> bool:
    kind = node.WhichOneof("node")
    statement = getattr(node, kind)
    if kind == "select_stmt":
        return is_plain(statement, planned=False)
    if kind == "explain_stmt":
        if runs(statement.options):
            return is_read(statement.query)
        return is_plain(statement.query, planned=True)
    if kind == "copy_stmt":
        if statement.is_from or statement.is_program or statement.filename:
            return False
        return not statement.HasField("query") or is_read(statement.query)
    return kind == "variable_show_stmt"


def grammar(sql: str) -> bool | None:
    """Whether the grammar calls it a read; None if it does not know it, or there is nothing to judge."""
    try:
        statements = postgast.parse(sql).stmts
    except (postgast.PgQueryError, ValueError):
        return None
    return all(is_read(part.stmt) for part in statements) if statements else None


def mutants(seed: int, count: int) -> list[str]:
    """Return texts made from the corpus by putting in, taking out and exchanging tokens."""
    chance = random.Random(seed)
    corpus = [toks for sql in texts() if len(sql) < 400 and (toks := written(sql))]
    made = []
    for _ in range(count):
        toks = list(chance.choice(corpus))
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            at = chance.randrange(len(toks) + 1)
            act = chance.random()
            if act < 0.6:
                toks[at:at] = chance.sample(WORDS, chance.choice((1, 1, 2)))
            elif act < 0.8:
                toks[at : at + 1] = [chance.choice(WORDS)]
            else:
                other = chance.choice(corpus)
                start = chance.randrange(len(other))
                toks[at:at] = other[start : start + chance.randrange(1, 12)]
        made.append("\n".join(toks) if chance.random() < 0.1 else " ".join(toks))
    return made


def test_no_text_of_the_corpus_is_a_read_to_us_and_not_to_the_grammar():
    wrong = [sql for sql in texts() if classify(sql).is_read and grammar(sql) is False]

    assert wrong == []


def test_no_text_of_the_corpus_is_a_read_to_the_grammar_and_not_to_us():
    kept = [sql for sql in texts() if not classify(sql).is_read and grammar(sql)]

    assert kept == []


@pytest.mark.parametrize("seed", range(6))
def test_no_mutant_is_a_read_to_us_and_not_to_the_grammar(seed):
    judged = kept = 0
    wrong = []
    classifier = Classifier()

    for sql in mutants(seed, 15_000):
        ours = classifier.classify(sql).is_read
        theirs = grammar(sql)
        if theirs is None:
            continue
        judged += 1
        kept += theirs and not ours
        if ours and not theirs:
            wrong.append(sql)

    assert wrong == []
    assert judged >= 800
    assert kept <= judged * 0.03  # mostly `f(x) 'a'`: the grammar takes f for a type with a modifier


@pytest.mark.parametrize("arguments", ["(1)", "(*)"])
def test_a_call_of_a_function_with_a_key_words_name_is_seen_wherever_it_stands(arguments):
    # A method of sampling is C, made by a superuser, and the text alone cannot tell it from a function of that name.
    places = [sql for sql in CALLS if "f(1)" in sql and "TABLESAMPLE f" not in sql]
    classifier = Classifier()
    judged, wrong = 0, []

    for place in places:
        for word in NAMING_WORDS.split():
            sql = place.replace("f(1)", word + arguments)
            theirs = grammar(sql)
            judged += theirs is not None
            if theirs is False and classifier.classify(sql).is_read:
                wrong.append(sql)

    assert wrong == []
    assert judged >= 10_000


@pytest.mark.parametrize("seed", range(10, 14))
def test_the_fast_way_never_says_read_where_the_long_way_does_not(seed):
    slow = Classifier()._read
    wrong = [
        sql
        for sql in [*texts(), *mutants(seed, 15_000)]
        for verb in [(HEAD.match(sql)[1] or "").lower()]
        if verb in QUERIES and plainly_read(sql, NAMES, verb) and not slow(sql, verb).is_read
    ]

    assert wrong == []
