"""Who is the primary: the decision alone (RULES 4.3, 4.4).

A *claim* is a node that answers as primary. The *office* is the accepted reign, with what became of its holder. Which
verdict follows:

    timeline of the claim    nothing      holder answers       holder is       holder is gone
                             accepted     as primary           overloaded      (silent, in recovery, another instance)
    higher, a known replica  -            accept               accept          accept
    higher, a stranger       -            contested            contested       accept
    equal, another instance  -            split brain          wait            accept, or continue the reign
    lower                    -            (fenced by whoever keeps the memory)
    any                      the highest  -                    -               -
    any, below what another  outlived     -                    -               -
    node has heard of

Two instances that claim the same highest timeline are a split brain in every column. Only a full round can show who
answers *beside* whom, or that nobody higher is there: so *contested*, *split brain* and the first acceptance need one,
and everything that a single probe shows is settled at once: a known replica promoted, a holder in recovery, a restart.
Nothing is latched: each round is judged by what it says.

An overloaded holder (it answers 53300, and does not tell its role) keeps its office, and is not proof of anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from dbguard.core.topology import Instance, Reign

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Accept", "Claim", "Contest", "Holder", "Keep", "Office", "Outlived", "Split", "Verdict", "Witness", "judge"]


class Holder(Enum):
    """What is known about the holder of the office."""

    ANSWERS = "answers as primary"
    OVERLOADED = "answers, without telling its role, or missed a single probe"
    GONE = "does not answer, is in recovery, or is another instance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Office:
    """The accepted reign and who held it.

    reign: what was accepted.
    node, instance: the holder, as it was last seen in office.
    flushed: the last flush position it told; None if it did not.
    """

    reign: Reign
    node: str
    instance: Instance
    flushed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A node that answers as primary, and is not the holder of the office.

    node, instance, timeline, position, branched: as its sighting says.
    known: it was known here as a replica of this cluster, across restarts.
    risen: it was a replica when it was last seen before it claimed.
    mark: of the reign on its timeline, as its table says; empty: it has none; None: it does not tell.
    unasked: nobody has asked it for the mark.
    """

    node: str
    instance: Instance
    timeline: int | None
    position: int | None = None
    branched: int | None = None
    known: bool = False
    risen: bool = False
    mark: str | None = None
    unasked: bool = False

    def compared_to(self, reign: Reign) -> int:
        """Return 1, 0 or -1: above, on or below the timeline of *reign*. What is not told is no mismatch.

        Timelines of two clusters cannot be compared; a claim of another cluster (asked about only where the system
        identifier may change) stands above, as a stranger.
        """
        if self.instance.is_of_another_system(Instance(reign.system_id)):
            return 1
        if self.timeline is None or self.timeline == reign.timeline:
            return 0
        return 1 if self.timeline > reign.timeline else -1

    def begins(self, after: Reign) -> int | None:
        """Return where a reign of its own begins that follows *after*, or a position above; None: it does not tell.

        It begins where its timeline does, if that is another one: by its number, or its mark, or because it was a replica
        before. Else (a restore on the same number) where it stands now.
        """
        apart = None not in (after.agreed, self.mark) and self.mark != after.agreed
        if self.position is None or self.branched is None or not (apart or self.risen or self.compared_to(after) > 0):
            return self.position
        return min(self.position, self.branched)


@dataclass(frozen=True, slots=True)
class Witness:
    """A node of this cluster, and the highest timeline that it was seen to have heard of."""

    node: str
    timeline: int


@dataclass(frozen=True, slots=True)
class Keep:
    """All stays as it is. doubt: a full round would tell more."""

    doubt: bool = False


@dataclass(frozen=True, slots=True)
class Accept:
    """The claim takes the office. continues: under the same reign (a restart); else another one begins."""

    claim: Claim
    continues: bool = False


@dataclass(frozen=True, slots=True)
class Contest:
    """A stranger claims a higher timeline than *reign* while its holder answers: writes are refused."""

    claim: Claim
    reign: Reign

    @property
    def why(self) -> str:
        """What is odd about the claim."""
        return (
            f"it claims timeline {self.claim.timeline} and was never a replica here, accepted is {self.reign.timeline}"
        )

    def refusal(self, incumbent: str | None) -> str:
        """Say why writes are refused, and the way out."""
        return f"contested: {self.claim.node} claims to be primary beside {incumbent}; trust one of them"


@dataclass(frozen=True, slots=True)
class Split:
    """Several instances claim one timeline. beside: the holder is one of them."""

    claims: tuple[Claim, ...]
    beside: bool


@dataclass(frozen=True, slots=True)
class Outlived:
    """Nothing was accepted yet, and *witness* has heard of a later timeline, whose primary is away: writes are refused."""

    claim: Claim
    witness: Witness

    @property
    def why(self) -> str:
        """What is odd about the claim."""
        node, later = self.witness.node, self.witness.timeline
        return (
            f"it claims timeline {self.claim.timeline}, and {node} has followed timeline {later}, whose primary is away"
        )

    def refusal(self, incumbent: str | None) -> str:  # noqa: ARG002  as of `Contest`; here is none
        """Say why writes are refused, and the way out."""
        return f"contested: {self.claim.node} seems to be an old primary: {self.why}; bring that one back, or trust {self.claim.node}"


Verdict = Keep | Accept | Contest | Split | Outlived


def judge(
    office: Office | None,
    holder: Holder,
    claims: Sequence[Claim],
    *,
    full: bool,
    witness: Witness | None = None,
    doubted: bool = False,
    twinned: bool = False,
) -> Verdict:
    """Return what follows from one round.

    office: None if nothing was accepted yet; *holder* then means nothing.
    claims: those heard in this round that may become primary, in the order of the configuration.
    full: all nodes were asked in parallel.
    witness: who has heard of the highest timeline; None: nobody told any.
    doubted: two reigns were seen to bear the number of the accepted timeline, so a restart cannot be told from another
        reign by its number, nor by a mark.
    twinned: by its mark alone.
    """
    if not claims:
        return Keep()
    if office is None:
        return _first(claims, witness) if full else Keep(doubt=True)
    reign = office.reign
    higher = [claim for claim in claims if claim.compared_to(reign) > 0]
    lawful = higher if holder is Holder.GONE else [claim for claim in higher if claim.known]
    if lawful:
        native = [claim for claim in lawful if not claim.instance.is_of_another_system(office.instance)]
        verdict = _highest(native or lawful)
        return verdict if full or isinstance(verdict, Accept) else Keep(doubt=True)
    if higher:
        return Contest(max(higher, key=_timeline), reign) if full else Keep(doubt=True)
    equal = [claim for claim in claims if claim.compared_to(reign) == 0]
    if holder is Holder.ANSWERS:
        rivals = tuple(claim for claim in equal if claim.instance.differs(office.instance))
        if rivals:
            return Split(rivals, beside=True) if full else Keep(doubt=True)
    elif equal and holder is Holder.GONE:
        verdict = _highest(equal)
        if isinstance(verdict, Accept):
            if reign.agreed is not None and verdict.claim.unasked:
                return Keep(doubt=True)
            return Accept(verdict.claim, continues=not doubted and _continues(office, verdict.claim, twinned=twinned))
        return verdict if full else Keep(doubt=True)
    elif equal:
        return Keep(doubt=True)
    return Keep()


def _first(claims: Sequence[Claim], witness: Witness | None) -> Verdict:
    """Choose the first reign, unless a later one has been: its primary is away, and has what was acknowledged since."""
    verdict = _highest(claims)
    if not isinstance(verdict, Accept) or verdict.claim.timeline is None or witness is None:
        return verdict
    return Outlived(verdict.claim, witness) if witness.timeline > verdict.claim.timeline else verdict


def _highest(claims: Sequence[Claim]) -> Accept | Split:
    """Choose the claim on the highest timeline, if it is one server's."""
    top = max(_timeline(claim) for claim in claims)
    best = [claim for claim in claims if _timeline(claim) == top]
    first = best[0]
    rivals = [claim for claim in best[1:] if claim.instance.differs(first.instance)]
    return Split((first, *rivals), beside=False) if rivals else Accept(first)


def _timeline(claim: Claim) -> int:
    return claim.timeline or 0


def _continues(office: Office, claim: Claim, *, twinned: bool) -> bool:
    """Return whether a new instance on the accepted timeline is the old primary restarted: a move, a managed failover.

    Not if it was seen to be a replica before, not if it lacks the reign's mark, and not if it lacks what the old one had
    flushed.
    """
    agreed = office.reign.agreed
    told = agreed is not None and claim.mark is not None
    if claim.risen or (claim.mark != agreed if told else twinned):
        return False
    return office.flushed is None or claim.position is None or claim.position >= office.flushed
