"""The settings, as frozen dataclasses: the one definition of what can be configured.

A file, a mapping and a DSN end here; so does code that builds them by hand. The rule beside each field says what it may
be and is applied whichever way the value came. Times are float seconds. Field names are the keys of the YAML file, but
for a trailing underscore that Python needs (``from_`` is the key ``from``). Annotations are evaluated here (no
``from __future__ import annotations``), since the rules in them are read at run time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from dbguard.config.quantities import Duration, Flag, Number, Share, Span, Whole
from dbguard.config.routing import FunctionNames, RoutingRule, RoutingSettings
from dbguard.config.section import Section
from dbguard.config.values import (
    Choice,
    Fault,
    Host,
    Password,
    PasswordSource,
    Rule,
    Secret,
    ServerParameters,
    Text,
    Unfit,
)

__all__ = [
    "Balance",
    "BreakerSettings",
    "BreakerState",
    "ClusterSettings",
    "Connection",
    "Consistency",
    "FailoverSettings",
    "Fallback",
    "FunctionNames",
    "Mode",
    "Need",
    "NodeSettings",
    "OutcomeSettings",
    "PoolSettings",
    "ProbeSettings",
    "ReadFrom",
    "ReadSettings",
    "Resolve",
    "RetrySettings",
    "RoutingRule",
    "RoutingSettings",
    "Settings",
    "SplitBrainPolicy",
    "SslMode",
    "SslNegotiation",
    "StartupSettings",
    "SystemId",
    "TlsVersion",
    "WriteWhileDown",
]

SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
SslNegotiation = Literal["postgres", "direct"]
TlsVersion = Literal["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]
ReadFrom = Literal["replicas", "primary"]
Consistency = Literal["own-writes", "eventual", "bounded", "primary"]
Fallback = Literal["primary", "error"]
Balance = Literal["least-busy", "round-robin", "random"]
BreakerState = Literal["auto", "forced_open", "disabled", "metrics_only"]
WriteWhileDown = Literal["wait", "fail"]
SplitBrainPolicy = Literal["refuse", "incumbent"]
Resolve = Literal["none", "token-table"]
Need = Literal["any", "primary", "all"]
Mode = Literal["enforce", "observe"]
SystemId = Literal["pin", "follow"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Connection(Section):
    """How to log in: the same on every node.

    What is not said is left to the driver: PGUSER, PGPASSWORD, PGSSLMODE and the like, ``~/.pgpass``, ``~/.postgresql``.
    Files are named as the process sees them: a relative path counts from its working directory.
    """

    user: Annotated[str | None, Text(optional=True)] = None
    """The role to log in as. Default: the driver's (PGUSER, else the system user)."""
    password: Annotated[Secret | PasswordSource | None, Password()] = field(default=None, repr=False)
    """Its password, or in code a function, plain or async, that is asked at each connect. Default: the driver's
    (PGPASSWORD, the password file)."""
    database: Annotated[str | None, Text(optional=True)] = None
    """The database. Default: the driver's (PGDATABASE, else the user's name)."""
    passfile: Annotated[str | None, Text(optional=True)] = None
    """The password file. Default: the driver's (PGPASSFILE, else ``~/.pgpass``)."""
    sslmode: Annotated[SslMode | None, Choice(SslMode, optional=True)] = None
    """What TLS must prove, in libpq's words: disable, allow, prefer, require, verify-ca, verify-full. Default: the
    driver's (PGSSLMODE, else prefer). Only verify-full knows that it speaks to the right server."""
    sslrootcert: Annotated[str | None, Text(optional=True)] = None
    """The file of the authorities that servers' certificates are checked against. Default: the driver's."""
    sslcert: Annotated[str | None, Text(optional=True)] = None
    """The file of the client's certificate. Default: the driver's."""
    sslkey: Annotated[str | None, Text(optional=True)] = None
    """The file of the client's key. Default: the driver's."""
    sslpassword: Annotated[Secret | PasswordSource | None, Password()] = field(default=None, repr=False)
    """The password of the client's key. Default none."""
    sslcrl: Annotated[str | None, Text(optional=True)] = None
    """The file of revoked certificates. Default: the driver's."""
    sslnegotiation: Annotated[SslNegotiation | None, Choice(SslNegotiation, optional=True)] = None
    """How TLS begins: postgres (asks first), direct (PostgreSQL 17 and later). Default: the driver's."""
    ssl_min_protocol_version: Annotated[TlsVersion | None, Choice(TlsVersion, optional=True)] = None
    """The lowest TLS version to accept: TLSv1 to TLSv1.3. Default: the driver's (TLSv1.2)."""
    ssl_max_protocol_version: Annotated[TlsVersion | None, Choice(TlsVersion, optional=True)] = None
    """The highest TLS version to accept. Default none."""
    krbsrvname: Annotated[str | None, Text(optional=True)] = None
    """The Kerberos service name. Default: the driver's (postgres)."""
    gsslib: Annotated[str | None, Text(optional=True)] = None
    """The GSS library, on Windows: gssapi or sspi. Default: the driver's."""
    server_settings: Annotated[Mapping[str, str], ServerParameters()] = field(default_factory=dict)
    """PostgreSQL's own settings for each session, such as ``{application_name: shop, statement_timeout: 5s}``.
    Default none."""
    connect_timeout: Annotated[float, Duration(above=True)] = 5.0
    """Seconds that one connection may take, TLS and login included, above 0. Default 5."""
    statement_cache_size: Annotated[int, Whole(0, 100_000)] = 100
    """Prepared statements that asyncpg keeps per connection, 0 to 100,000. Default 100. 0 behind a transaction pooler
    that knows no prepared statements."""

    def tls(self) -> dict[str, str]:
        """Return what is said about TLS, by libpq's parameter names, the key's password in clear, for the driver."""
        names = [entry.name for entry in fields(self) if entry.name.startswith("ssl")]
        said = {name: getattr(self, name) for name in names}
        return {
            name: value.reveal() if isinstance(value, Secret) else value
            for name, value in said.items()
            if value is not None
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NodeSettings(Section):
    """One node. Its role is found out, never believed, so it has none here."""

    host: Annotated[str, Host()]
    """A host name, an IPv4 or IPv6 address, or the directory of a Unix socket. No default."""
    port: Annotated[int, Whole(1, 65_535)] = 5432
    """Its port, 1 to 65,535. Default 5432; PGPORT is not looked at."""
    name: Annotated[str, Text(empty=True)] = ""
    """What logs, metrics and errors call it. Default: ``host:port``."""
    weight: Annotated[int, Whole(1, 1_000)] = 1
    """Its share of the reads, beside those of the others, 1 to 1,000. Default 1."""

    def __post_init__(self) -> None:
        Section.__post_init__(self)  # super() does not survive slots=True on Python 3.11
        if not self.name:
            object.__setattr__(self, "name", self.address)

    @property
    def address(self) -> str:
        """``host:port``, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Distinct(Rule):
    """At least one node, and no two with one name or one address."""

    __slots__ = ()

    def parse(self, value: Any) -> Any:
        """Return the nodes."""
        if not isinstance(value, list | tuple) or not all(isinstance(node, NodeSettings) for node in value):
            raise Unfit("should be a list of nodes")
        if not value:
            raise Unfit("is empty: name at least one node, such as `nodes: [{host: 10.0.0.1}]`")
        faults: list[Fault] = []
        names: dict[str, int] = {}
        addresses: dict[str, int] = {}
        for index, node in enumerate(value):
            twin = addresses.setdefault(node.address.lower(), index)
            namesake = names.setdefault(node.name, index)
            if twin != index:
                faults.append(((index,), f"has the same host and port as nodes[{twin}]"))
            elif namesake != index:
                faults.append(((index, "name"), f"is the name of nodes[{namesake}], too"))
        if faults:
            raise Unfit(faults[0][1], faults=tuple(faults))
        return tuple(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        """Tell pydantic to validate the nodes, then to call `parse`."""
        return {
            "type": "function-after",
            "function": {"type": "no-info", "function": self.parse},
            "schema": handler(source),
        }

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """Add to the schema of the list that it is not empty."""
        return {**handler(schema), "minItems": 1}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class PoolSettings(Section):
    """The pool that the guard opens on each node. Without meaning for wrapped pools, but for `acquire_timeout`."""

    min_size: Annotated[int, Whole(0, 10_000)] = 2
    """Connections kept open per node, 0 to 10,000, not above *max_size*. Default 2."""
    max_size: Annotated[int, Whole(1, 10_000)] = 20
    """Connections at most per node, 1 to 10,000. Default 20. The monitor's one per node comes on top."""
    acquire_timeout: Annotated[float, Duration(above=True)] = 5.0
    """Seconds that one attempt waits for a connection, above 0. Default 5."""
    max_lifetime: Annotated[float, Duration(above=True, none=True)] = 1_800.0
    """Seconds after which a connection is replaced, above 0, or none. Default 30min."""
    max_idle: Annotated[float, Duration(above=True, none=True)] = 300.0
    """Seconds after which an unused connection above *min_size* is closed, above 0, or none. Default 5min."""
    hold: Annotated[int | Literal["auto"], Whole(0, 10_000, word="auto")] = "auto"
    """Connections per node that stay leased between calls, 0 to *max_size*; auto: as many as there are, but none where
    `setup` or `reset` hooks must run at each checkout. Default auto."""

    def _contradictions(self) -> list[Fault]:
        faults: list[Fault] = []
        if self.min_size > self.max_size:
            faults.append((("min_size",), f"should not be above max_size ({self.max_size})"))
        if self.hold != "auto" and self.hold > self.max_size:
            faults.append((("hold",), f"should not be above max_size ({self.max_size})"))
        return faults


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ReadSettings(Section):
    """Where reads go."""

    from_: Annotated[ReadFrom, Choice(ReadFrom)] = "replicas"
    """replicas, or primary: replicas are then only for calls that ask for one. Default replicas."""
    consistency: Annotated[Consistency, Choice(Consistency)] = "own-writes"
    """own-writes: a read sees every write that its context has finished; bounded: a replica may lag up to *max_lag*;
    eventual: any replica; primary: always the primary. Default own-writes."""
    fallback: Annotated[Fallback, Choice(Fallback)] = "primary"
    """When no replica is fit: primary, or error (`NoReplica`), which keeps the load of reads off the primary.
    Default primary."""
    max_lag: Annotated[float, Duration(above=True)] = 5.0
    """Seconds of replay lag above which a replica gets no reads, above 0; unknown lag counts as above. Default 5."""
    balance: Annotated[Balance, Choice(Balance)] = "least-busy"
    """Which of the fit replicas: least-busy (of two chosen by chance), round-robin, random. Default least-busy."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class RetrySettings(Section):
    """How often a call that may be repeated is repeated, and what all repeats together may cost."""

    attempts: Annotated[int, Whole(1, 100)] = 4
    """Attempts per call when nodes fail, the first included, 1 to 100; 1 is no repeat. Default 4."""
    contention_attempts: Annotated[int | Literal["unlimited"], Whole(1, 1_000, word="unlimited")] = "unlimited"
    """Attempts per call on 40001 and 40P01, the first included, 1 to 1,000, or unlimited: until the call's deadline.
    Default unlimited."""
    budget: Annotated[float, Share()] = 0.2
    """Repeats of all calls together, as a share of first attempts, 0 to 1. Default 20%: a failing cluster meets at most
    1.2 times the load. Beyond it repeats on 40001 and 40P01 slow down to two or four a second, all others are refused."""
    floor: Annotated[float, Number(0, 1_000)] = 3.0
    """Repeats per second that are allowed whatever the budget says, 0 to 1,000. Default 3."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class BreakerSettings(Section):
    """When a node's breaker opens, and for how long."""

    consecutive: Annotated[int, Whole(1, 1_000)] = 5
    """Hard failures in a row that open it, 1 to 1,000. Default 5."""
    min_failures: Annotated[int, Whole(1, 100_000)] = 5
    """Hard failures within *window* before *ratio* counts, 1 to 100,000. Default 5."""
    ratio: Annotated[float, Share(above=True)] = 0.5
    """Share of calls within *window* that must fail, above 0, to 1. Default 50%."""
    window: Annotated[float, Duration(1.0, 3_600.0)] = 10.0
    """Seconds that are looked back on, 1 to 3,600. Default 10."""
    open: Annotated[tuple[float, float], Span(above=True)] = (1.0, 15.0)
    """Seconds before it lets a probe through: at first, and at most; doubles while probes fail. Default [1s, 15s]."""
    jitter: Annotated[float, Share()] = 0.5
    """How much of the open time is left to chance, 0 to 1, so that processes do not probe in step. Default 50%."""
    state: Annotated[BreakerState, Choice(BreakerState)] = "auto"
    """auto; forced_open: the nodes get nothing; disabled: always closed; metrics_only: reports, refuses nothing.
    Default auto."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class FailoverSettings(Section):
    """What happens to calls while there is no writable primary, and to connections when roles change."""

    writes: Annotated[WriteWhileDown, Choice(WriteWhileDown)] = "wait"
    """wait for a primary, or fail at once (`NoPrimary`). Default wait."""
    max_wait: Annotated[float, Duration()] = 60.0
    """Seconds that a call waits at most; its own deadline may be shorter. Default 60."""
    max_waiting: Annotated[int, Whole(1, 1_000_000)] = 10_000
    """Calls that wait at one time; more get `Overloaded`. 1 to 1,000,000. Default 10,000."""
    drain_timeout: Annotated[float, Duration()] = 5.0
    """Seconds that leases of an old epoch may stay in use after a planned change. Default 5. Leases on a fenced node
    are ended at once."""
    flap_changes: Annotated[int | Literal["unlimited"], Whole(1, 1_000, word="unlimited")] = 2
    """Changes of primary within *flap_window* that are followed at once, 1 to 1,000, or unlimited. After another one
    writes wait until the new primary has stayed for *flap_stay*. Default 2: a switchover and back."""
    flap_window: Annotated[float, Duration(above=True)] = 60.0
    """Seconds in which changes of primary are counted, above 0. Default 60."""
    flap_stay: Annotated[tuple[float, float], Span(above=True)] = (1.0, 10.0)
    """Seconds that a primary must stay before writes go on: at first, and at most; doubles with each further change
    within *flap_window*. However primaries alternate, writes wait for no longer than the second. Default [1s, 10s]."""
    split_brain: Annotated[SplitBrainPolicy, Choice(SplitBrainPolicy)] = "refuse"
    """Two primaries on one timeline: refuse writes, or incumbent: go on with the one that never went away.
    Default refuse."""
    max_loss: Annotated[int | Literal["none"], Whole(0, 2**50, word="none")] = "none"
    """Bytes that a new primary may begin below what the old one had acknowledged to this process, 0 to 2^50, or none: any
    number. One that begins further below gets no writes (`NoPrimary`) until ``guard.trust(node)``. Default none."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class OutcomeSettings(Section):
    """How a write of unknown fate is settled."""

    resolve: Annotated[Resolve, Choice(Resolve)] = "none"
    """none: it is raised as `OutcomeUnknown`; token-table: each write stores a token, which proves what became of it, in
    the schema that ``dbguard outcome install`` makes. Default none."""
    reserve: Annotated[float, Duration(high=60.0)] = 2.0
    """Seconds of a call that its commit leaves for asking what became of it, 0 to 60; never more than a third of what is
    left. Default 2."""
    keep_result: Annotated[bool, Flag()] = False
    """true: an autocommit write that returns rows is sent as a block, so that they arrive before the commit; it takes two
    round trips more, and is never applied with its rows lost (`ResultLost`). Default false."""
    retention: Annotated[float, Duration(60.0, 365 * 86_400.0)] = 3_600.0
    """Seconds for which a write's outcome can be asked, 1min to 365d: what ``dbguard outcome prune`` keeps, at about 100
    bytes per write. Default 1h: a call asks within its own deadline; the hour is for `guard.resolve` from another process,
    once an operator has brought a primary back."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class StartupSettings(Section):
    """What opening a guard waits for."""

    wait: Annotated[float, Duration()] = 30.0
    """Seconds to wait for what *need* says; 0: all nodes are asked once. Default 30."""
    need: Annotated[Need, Choice(Need)] = "any"
    """any node that answers, a primary, or all nodes. Default any: reads work, writes wait for a primary."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ProbeSettings(Section):
    """How nodes are watched."""

    interval: Annotated[float, Duration(0.01, 3_600.0)] = 0.5
    """Seconds between two probes of a node, 10ms to 1h. Default 500ms."""
    timeout: Annotated[float, Duration(0.01, 3_600.0)] = 0.5
    """Seconds after which a probe counts as missed, 10ms to 1h. Default 500ms."""
    jitter: Annotated[float, Share()] = 0.2
    """How much of the interval is left to chance, 0 to 1. Default 20%."""
    urgent: Annotated[float, Duration(0.005, 3_600.0)] = 0.025
    """Seconds between polls while the primary is missing, 5ms to *interval*. Default 25ms."""

    def _contradictions(self) -> list[Fault]:
        return [(("urgent",), "should not be longer than interval")] if self.urgent > self.interval else []


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ClusterSettings(Section):
    """What makes the nodes one cluster."""

    system_id: Annotated[SystemId, Choice(SystemId)] = "pin"
    """pin: a node with another system identifier than the first one seen is refused; follow: a new identifier of the
    primary is accepted (a restore, an upgrade). Default pin."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Settings(Section):
    """All settings of a guard. Everything but the nodes has a default."""

    nodes: Annotated[tuple[NodeSettings, ...], Distinct()]
    """The nodes of the cluster, at least one; no two with one name or one address. No default."""
    connection: Connection = field(default_factory=Connection)
    """How to log in: the same on every node."""
    pool: PoolSettings = field(default_factory=PoolSettings)
    """The pool that the guard opens on each node."""
    reads: ReadSettings = field(default_factory=ReadSettings)
    """Where reads go."""
    retry: RetrySettings = field(default_factory=RetrySettings)
    """How often a call is repeated, and what repeats may cost."""
    breaker: BreakerSettings = field(default_factory=BreakerSettings)
    """When a node's breaker opens, and for how long."""
    failover: FailoverSettings = field(default_factory=FailoverSettings)
    """What happens while there is no writable primary."""
    outcome: OutcomeSettings = field(default_factory=OutcomeSettings)
    """How a write of unknown fate is settled."""
    startup: StartupSettings = field(default_factory=StartupSettings)
    """What opening a guard waits for."""
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    """How nodes are watched."""
    routing: RoutingSettings = field(default_factory=RoutingSettings)
    """What the classifier cannot know by itself."""
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    """What makes the nodes one cluster."""
    mode: Annotated[Mode, Choice(Mode)] = "enforce"
    """enforce, or observe: decide and report, and send everything to the primary. Default enforce."""
    timeout: Annotated[float, Duration(above=True, none=True)] = 30.0
    """Seconds that a call may take in all, waiting and repeats included, above 0, or none (`math.inf`). Default 30."""

    def _contradictions(self) -> list[Fault]:
        known = {node.name for node in self.nodes}
        return [
            (("routing", "groups", name, index), "is not the name of a node")
            for name, nodes in self.routing.groups.items()
            for index, node in enumerate(nodes)
            if node not in known
        ]
