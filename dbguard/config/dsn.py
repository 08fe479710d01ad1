"""DSNs: ``postgresql://user:password@host1,host2:5433/database?sslmode=verify-full``.

As libpq reads them, but strict where leniency would hide a slip: ``@ / : # ? %`` in a user or password must be
percent-encoded, since without that a part of the password is taken for a host, and shown. What a DSN does not say is
left out: environment variables and password files are the driver's business. Hosts must be said.

Unknown parameters are settings of the server, as asyncpg has them, unless they look like a misspelt one of libpq.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import unquote

from dbguard.config.problems import near
from dbguard.config.quantities import Whole
from dbguard.config.values import Fault, Host, Substituted, Unfit, is_text

__all__ = ["Dsn", "is_dsn", "parse"]

SCHEMES = ("postgresql", "postgres")

FIELDS = {
    "user": "user",
    "password": "password",
    "dbname": "database",
    "database": "database",
    "passfile": "passfile",
    "sslmode": "sslmode",
    "sslrootcert": "sslrootcert",
    "sslcert": "sslcert",
    "sslkey": "sslkey",
    "sslpassword": "sslpassword",
    "sslcrl": "sslcrl",
    "sslnegotiation": "sslnegotiation",
    "ssl_min_protocol_version": "ssl_min_protocol_version",
    "ssl_max_protocol_version": "ssl_max_protocol_version",
    "krbsrvname": "krbsrvname",
    "gsslib": "gsslib",
    "connect_timeout": "connect_timeout",
}
"""Parameters, and the fields of `Connection` that they are."""

_KEEPALIVE = "dbguard sets keepalives of its own"
IGNORED = {
    "target_session_attrs": "roles are found by probing, and each statement goes to a node that can run it",
    "load_balance_hosts": "`reads.balance` says how reads are spread",
    "keepalives": _KEEPALIVE,
    "keepalives_idle": _KEEPALIVE,
    "keepalives_interval": _KEEPALIVE,
    "keepalives_count": _KEEPALIVE,
    "tcp_user_timeout": _KEEPALIVE,
    "fallback_application_name": "application_name is the one that counts",
    "gssencmode": "TLS is what protects the connection",
    "channel_binding": "the driver decides on it",
    "sslcompression": "servers have none any more",
    "sslsni": "it is always sent",
}
"""Parameters that a DSN may bear and dbguard has no use for, and why."""

_TLS = "asyncpg cannot promise it; sslmode=verify-full proves the server"
REFUSED = {
    "service": "service files are not read: write host, user and dbname here",
    "servicefile": "service files are not read: write host, user and dbname here",
    "hostaddr": "write the address as the host",
    "requiressl": "write sslmode=require",
    "require_auth": _TLS,
    "requirepeer": _TLS,
    "sslcertmode": "give sslcert, or leave it out",
    "sslcrldir": "give one file, sslcrl",
    "replication": "replication connections cannot be guarded",
}
"""Parameters that dbguard will not silently leave out, and the way out."""

SERVER_SETTINGS = ("application_name", "options")
"""libpq's parameters that are sent to the server as they are."""

_KNOWN = (*FIELDS, *IGNORED, *REFUSED, *SERVER_SETTINGS, "host", "port")

ESCAPES = "in user and password @ / : # ? % are written %40 %2F %3A %23 %3F %25"

_PARTS = r"([^/?]*)(?:/([^?]*))?(?:\?(.*))?"
_BAD_ESCAPE = r"%(?![0-9A-Fa-f]{2})"
_SETTING = r"[A-Za-z_][A-Za-z0-9_$]*(?:\.[A-Za-z_][A-Za-z0-9_$]*)*"
_PORT = Whole(1, 65_535)
_HOST = Host()


class Dsn(NamedTuple):
    """What a DSN says.

    connection: fields of `Connection`.
    hosts: fields of `NodeSettings`, one mapping for each host.
    ignored: names of parameters that were left out.
    """

    connection: dict[str, Any]
    hosts: list[dict[str, Any]]
    ignored: list[str]


def is_dsn(text: str) -> bool:
    """Return whether *text* is meant as a DSN."""
    return "://" in text


def parse(text: str) -> Dsn:
    """Read a DSN. Raises `Unfit` with everything that is wrong, and shows nothing of it."""
    reader = _Reader()
    found = reader.read(text.strip())
    if reader.faults:
        raise Unfit(reader.faults[0][1], faults=tuple(reader.faults))
    return found


class _Reader:
    """Reads one DSN and collects what is wrong."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.connection: dict[str, Any] = {}
        self.settings: dict[str, str] = {}
        self.ignored: list[str] = []
        self.hinted = False

    def fault(self, text: str, *, hint: bool = False) -> None:
        """Note what is wrong; *hint*: a character that should have been written percent-encoded may be why."""
        if hint and not self.hinted:
            self.hinted = True
            text = f"{text}; {ESCAPES}"
        self.faults.append(((), text))

    def read(self, text: str) -> Dsn:
        nothing = Dsn({}, [], [])
        scheme, found, rest = text.partition("://")
        if not found or scheme.lower() not in SCHEMES:
            driver = scheme.lower().startswith(tuple(f"{name}+" for name in SCHEMES))
            out = "leave out the + and what follows it: the class decides the driver" if driver else "no other is known"
            self.fault(f"should begin with postgresql:// ({out})")
            return nothing
        if "${" in rest:
            self.fault("holds ${: variables are filled in in files and mappings only")
            return nothing
        if not rest.isprintable() or " " in rest:
            self.fault("holds a space or a character that cannot be shown; write it percent-encoded")
            return nothing
        parts = re.fullmatch(_PARTS, rest)
        authority, path, query = parts.groups(default="") if parts else ("", "", "")
        login, _, hostlist = authority.rpartition("@")
        if "#" in rest or "@" in login or "@" in path or "@" in query:
            self.fault("holds # or @ where it cannot stand", hint=True)
            return nothing
        user, _, password = login.partition(":")
        for key, said in (("user", user), ("password", password), ("database", path)):
            if said:
                self.connection[key] = self.decode(said, key)
        parameters = self.parameters(query)
        hosts = self.hosts(hostlist, parameters)
        for name, value in parameters.items():
            self.parameter(name, value)
        if self.settings:
            self.connection["server_settings"] = self.settings
        return Dsn(self.connection, hosts, self.ignored)

    def decode(self, text: str, what: str) -> str:
        """Undo percent-encoding, strictly."""
        if re.search(_BAD_ESCAPE, text):
            self.fault(f"{what} holds a % that is not followed by two hexadecimal digits", hint=True)
            return ""
        try:
            decoded = unquote(text, errors="strict")
        except UnicodeDecodeError:
            decoded = "\0"
        if not is_text(decoded):
            self.fault(f"{what} holds a NUL character, or is not UTF-8")
            return ""
        return Substituted(decoded)

    def parameters(self, query: str) -> dict[str, str]:
        """Split the query. Values are decoded; ``+`` is a plus, as in libpq."""
        found: dict[str, str] = {}
        for n, item in enumerate(query.split("&") if query else [], 1):
            name, equals, value = item.partition("=")
            name = self.decode(name, f"parameter {n}")
            if not equals or not re.fullmatch(_SETTING, name):
                self.fault(f"parameter {n} should be name=value", hint=True)
            elif name in found:
                self.fault(f"parameter {n} stands twice")
            else:
                found[name] = self.decode(value, f"parameter {n}")
        return found

    def hosts(self, hostlist: str, parameters: dict[str, str]) -> list[dict[str, Any]]:
        """Return the hosts, from before the path or from the parameters; takes ``host`` and ``port`` out of these."""
        host, port = parameters.pop("host", None), parameters.pop("port", None)
        # Decoded before it is split, so that ${HOSTS} may hold several hosts with ports.
        named = self.decode(hostlist, "the list of hosts") if hostlist else ""
        if named and (host is not None or port is not None):
            self.fault("hosts stand before the path and as parameters: say them once")
            return []
        if named:
            pairs = [_split(item) for item in named.split(",")]
            return [found for n, pair in enumerate(pairs, 1) if (found := self.host(n, *pair))]
        if not host:
            if port:
                self.fault("names a port without a host")
            return []
        hosts, ports = host.split(","), (port or "").split(",")
        if len(ports) not in {1, len(hosts)}:
            self.fault(f"names {len(hosts)} hosts and {len(ports)} ports: give one port for all, or one for each")
            return []
        ports *= len(hosts) if len(ports) == 1 else 1
        pairs = list(zip(hosts, ports, strict=True))
        return [found for n, pair in enumerate(pairs, 1) if (found := self.host(n, *pair))]

    def host(self, n: int, host: str, port: str) -> dict[str, Any] | None:
        """Read host number *n*."""
        try:
            found: dict[str, Any] = {"host": _HOST.parse(host)}
        except Unfit as unfit:
            self.fault(f"host {n} {unfit}; an IPv6 address stands in brackets", hint=True)
            return None
        try:
            return found | ({"port": _PORT.parse(Substituted(port))} if port else {})
        except Unfit as unfit:
            self.fault(f"the port of host {n} {unfit}", hint=True)
            return None

    def parameter(self, name: str, value: str) -> None:
        """Take one parameter to where it belongs."""
        field = FIELDS.get(name)
        if field in self.connection:
            self.fault(f"{field} is said twice: before the parameters and as {name}, or as dbname and database")
        elif field:
            self.connection[field] = value
        elif name in REFUSED:
            self.fault(f"{name} is not taken: {REFUSED[name]}")
        elif name in {"channel_binding", "gssencmode"} and value == "require":
            self.fault(f"{name}=require is not taken: {_TLS}")
        elif name in IGNORED:
            self.ignored.append(name)
        elif name not in SERVER_SETTINGS and (meant := near(name, _KNOWN, 0.85)):
            self.fault(f"has a parameter that is not known; did you mean {meant}?")
        else:
            self.settings[name] = value


def _split(item: str) -> tuple[str, str]:
    """Split ``host:port``; an IPv6 address must stand in brackets, else its end would be taken for a port."""
    if item.startswith("["):
        address, bracket, port = item.partition("]")
        return address + bracket, port.removeprefix(":")
    host, _, port = item.partition(":")
    return host, port
