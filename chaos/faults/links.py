"""What a scenario can break on the links: toxics, links that are down, and holes.

(Annotations are evaluated here, since `Section` reads the rules in them.)
"""

import asyncio
import re
import statistics
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NamedTuple, Self

import asyncpg

from chaos.faults.base import Breakage
from chaos.stage import Stage
from dbguard.config.quantities import Number, Whole
from dbguard.config.values import Choice, Fault, Rule, Unfit
from dbguard.testing.proxied import APPLICATION
from dbguard.testing.toxiproxy import TOXICS, Proxy, Stream, ToxicKind

__all__ = ["Down", "Hole", "Link", "Toxic"]

_FRESH = 0.3  # seconds in which a replica that streams has what its upstream wrote; usually 0.001
_SLOW = ("latency", "bandwidth", "slicer")  # the toxics that cut nothing
_SLOWER = 0.03  # seconds by which an answer is slow
_ANSWER = 500  # bytes of an answer: a few packets of what is read of a table
_PATIENCE = 10.0  # seconds for it


class Link(NamedTuple):
    """From who dials to who listens, written ``app->b``."""

    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source}->{self.target}"


class _LinkRule(Rule):
    """A link."""

    __slots__ = ()

    def parse(self, value: Any) -> Link:
        """Return the link."""
        if isinstance(value, Link):
            return value
        if isinstance(value, str) and (ends := re.fullmatch(r"([a-z-]+?)->([a-z-]+)", value)):
            return Link(ends[1], ends[2])
        raise Unfit("should be a link, such as app->b for the application's way to b, or b->a for b's to its upstream")


class _Attributes(Rule):
    """The attributes of a toxic: whole numbers by name."""

    __slots__ = ()

    def parse(self, value: Any) -> dict[str, int]:
        """Return them."""
        if not isinstance(value, Mapping):
            raise Unfit("should be a mapping of names to whole numbers")
        number = Whole(0, 2**31)
        faults: list[Fault] = []
        for name, setting in value.items():
            try:
                number.parse(setting)
            except Unfit as unfit:
                faults.append(((name,), str(unfit)))
        if faults:
            raise Unfit(faults[0][1], faults=tuple(faults))
        return dict(value)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class _OnLink(Breakage):
    """A fault of one link."""

    link: Annotated[Link, _LinkRule()]
    """Where. No default."""

    def proxy(self, stage: Stage) -> Proxy:
        """Return the link's proxy."""
        return stage.link(*self.link)

    def resolved(self, stage: Stage) -> Self:
        """Return it with letters for the ends of the link."""
        ends = [end if end == APPLICATION else stage.node(end).name for end in self.link]
        return replace(self, link=Link(*ends))

    def effect(self, stage: Stage) -> str | None:
        """Say whether a replica gets what its upstream writes, where the link is between nodes."""
        replica, upstream = self.link
        if replica == APPLICATION:
            return None
        cluster = stage.cluster
        position = "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END"
        try:
            (written,) = cluster.sql(upstream, f"SELECT ({position})::text")[0]
            cluster.wait_for(replica, f"SELECT {position} >= '{written}'", _FRESH)
        except OSError as e:  # TimeoutError is one; a node that is down is behind, too
            return f"{replica} does not have what {upstream} wrote: {type(e).__name__}"
        return None

    def names(self) -> dict[str, str]:
        """Return the nodes at the ends of the link."""
        return {f"link {end}": end for end in self.link if end != APPLICATION}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Toxic(_OnLink):
    """A toxic of Toxiproxy on one link."""

    kind: Annotated[ToxicKind, Choice(ToxicKind)]
    """Which, in Toxiproxy's words. No default."""
    stream: Annotated[Stream, Choice(Stream)] = "downstream"
    """downstream: the replies; upstream: the requests. Default downstream."""
    toxicity: Annotated[float, Number(0, 1)] = 1.0
    """The share of connections that it is for, 0 to 1. Default 1."""
    attributes: Annotated[Mapping[str, int], _Attributes()] = field(default_factory=dict)
    """Its attributes, by Toxiproxy's names. Default none: all are 0."""

    def inject(self, stage: Stage) -> AbstractContextManager[object]:
        """Add the toxic."""
        return self.proxy(stage).toxic(self.kind, stream=self.stream, toxicity=self.toxicity, **self.attributes)

    def effect(self, stage: Stage) -> str | None:
        """Say also how much slower a question is answered over the link than past it, where the toxic is to slow it down."""
        if self.link.source != APPLICATION or self.kind not in _SLOW:
            return super(Toxic, self).effect(stage)
        link, node = self.proxy(stage), stage.node(self.link.target)
        over, past = asyncio.run(_ask(link.host, link.port)), asyncio.run(_ask(node.host, node.port))
        return f"answered in {over:.3f} s, past the link in {past:.3f} s" if over - past > _SLOWER else None

    def _contradictions(self) -> list[Fault]:
        known = TOXICS[self.kind]
        return [
            (("attributes", name), f"is no attribute of {self.kind}; known: {', '.join(sorted(known))}")
            for name in self.attributes
            if name not in known
        ]

    def __str__(self) -> str:
        said = ", ".join(f"{name} {value}" for name, value in self.attributes.items())
        return f"{self.kind} ({said or 'plain'}) {self.stream} on {self.link}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Down(_OnLink):
    """One link ends its connections and refuses new ones."""

    def inject(self, stage: Stage) -> AbstractContextManager[object]:
        """Take it down."""
        return self.proxy(stage).down()

    def __str__(self) -> str:
        return f"{self.link} is down"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Hole(_OnLink):
    """One link swallows everything, both ways; connections stay open, and new ones are taken."""

    def inject(self, stage: Stage) -> AbstractContextManager[object]:
        """Make the hole."""
        return self.proxy(stage).hole()

    def __str__(self) -> str:
        return f"hole on {self.link}"


async def _ask(host: str, port: int) -> float:
    """Return the seconds that an answer takes, the middle one of three. Raises what asyncpg raises, OSError, or TimeoutError."""
    connection = await asyncpg.connect(
        host=host, port=port, user="postgres", database="postgres", ssl=False, timeout=_PATIENCE
    )
    try:
        took = []
        for _ in range(3):
            began = time.monotonic()
            await connection.execute(f"SELECT repeat('x', {_ANSWER})", timeout=_PATIENCE)
            took.append(time.monotonic() - began)
        return statistics.median(took)
    finally:
        connection.terminate()
