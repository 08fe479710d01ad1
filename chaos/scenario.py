"""Scenarios, as YAML files: a topology, a guard, a workload, a timeline of faults, and the checkers that judge the run.

    topology: {replicas: 2}
    guard: {timeout: 10s}                 # anything of guard.yaml but where the nodes are and how to log in
    workload: {append: {readers: 4, writers: 2}}
    warm_up: 1s                           # statements are prepared before anything breaks
    duration: 6s
    timeline:
      - {at: 1s, for: 4s, toxic: {link: app->b, kind: timeout, stream: downstream}}
      - {at: 1s, for: 100ms, every: 500ms, times: 8, jitter: 100ms, down: {link: b->a}}
    checkers:
      reads-go-on: {gap: 1s, away: b}
      lost: {}
      felt: {}                            # always, where something breaks: a fault that did nothing proves nothing

Everything that is wrong with a file is told at once, each with file, line and column.
(Annotations are evaluated here, since `Section` reads the rules in them.)
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from random import Random
from typing import Annotated, Any, NamedTuple, TypeVar

from chaos.checkers import CHECKERS, Checker, Felt, Order
from chaos.faults import FAULTS, Breakage
from chaos.workloads import WORKLOADS, Workload
from dbguard.config import load as load_settings
from dbguard.config.document import read
from dbguard.config.problems import Report
from dbguard.config.quantities import Duration, Whole
from dbguard.config.section import Section, key_of
from dbguard.config.values import Fault, Rule, Text, Unfit
from dbguard.errors import ConfigError
from dbguard.testing.cluster import NAMES
from dbguard.testing.roles import ROLES

__all__ = ["Due", "Scenario", "Step", "Topology", "every", "find", "load", "parse"]

_FOLDER = Path(__file__).parent / "scenarios"
_HOUR = 3_600.0
_FELT = 1.0  # seconds in which what is over at once is to be felt
_WHEN = ("at", "for", "times", "every", "jitter")  # the keys of a step that do not say what is broken
_Made = TypeVar("_Made", bound=Section)


class _Flag(Rule):
    """True or false."""

    __slots__ = ()

    def parse(self, value: Any) -> bool:
        """Return it."""
        if isinstance(value, bool):
            return value
        raise Unfit("should be true or false")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Topology(Section):
    """The cluster: primary a, and replicas b, c, ..."""

    replicas: Annotated[int, Whole(0, len(NAMES) - 1)] = 2
    """How many replicas. Default 2."""
    synchronous: Annotated[bool, _Flag()] = False
    """Whether commits wait for a replica. Default false."""

    @property
    def names(self) -> str:
        """The names of the nodes, one letter each."""
        return NAMES[: self.replicas + 1]


class Due(NamedTuple):
    """One fault on a run's timeline: at *at* it is broken, *seconds* later it is healed."""

    at: float
    seconds: float
    fault: Breakage


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Step(Section):
    """A fault on the timeline, once or again and again; its own key, such as ``toxic``, says which."""

    at: Annotated[float, Duration(0, _HOUR)]
    """Seconds after the warm-up, the first time. No default."""
    fault: Breakage
    """What is broken."""
    for_: Annotated[float, Duration(0, _HOUR)] = 0.0
    """Seconds until it is healed, above 0. Default, for what is over at once: the 1 s in which it is to be felt."""
    times: Annotated[int, Whole(1, 10_000)] = 1
    """How often. Default once."""
    every: Annotated[float, Duration(0, _HOUR)] = 0.0
    """Seconds from one time to the next; more than *for* and *jitter* together. Needed where *times* is above 1."""
    jitter: Annotated[float, Duration(0, _HOUR)] = 0.0
    """Seconds by which each time may be later, at most; the seed says by how much. Default 0."""

    @property
    def end(self) -> float:
        """By when all is healed, in seconds after the warm-up."""
        return self.at + (self.times - 1) * self.every + self.jitter + self.seconds

    @property
    def seconds(self) -> float:
        """How long it lasts each time, or is felt."""
        return self.for_ or _FELT

    def due(self, rng: Random) -> list[Due]:
        """List its faults."""
        return [
            Due(self.at + n * self.every + rng.uniform(0, self.jitter), self.seconds, self.fault)
            for n in range(self.times)
        ]

    def _contradictions(self) -> list[Fault]:
        if not self.for_ and not self.fault.momentary:
            return [(("for",), "is missing, or 0: what lasts is to be healed after some time")]
        if self.times == 1 or self.every > self.seconds + self.jitter:
            return []
        return [
            (("every",), f"should be above {self.seconds + self.jitter:g} s, so that one time is over before the next")
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Scenario(Section):
    """One scenario."""

    name: str
    """The name of its file."""
    about: Annotated[str, Text()]
    """What it shows, in a sentence. No default."""
    workload: Workload
    """What clients do. No default."""
    duration: Annotated[float, Duration(0, _HOUR, above=True)]
    """Seconds that they do it after the warm-up, above 0. No default."""
    timeline: tuple[Step, ...]
    """What breaks, and when. No default."""
    checkers: Mapping[str, Checker]
    """Who judges, at least one. No default."""
    topology: Topology = field(default_factory=Topology)
    """The cluster."""
    guard: Mapping[str, Any] = field(default_factory=dict)
    """What the guard is told beside its nodes. Default: nothing."""
    warm_up: Annotated[float, Duration(0, _HOUR, above=True)] = 1.0
    """Seconds that clients work before time zero, above 0: the first run of a statement on a connection takes two round
    trips, and what is cut there proves nothing. Default 1."""

    def schedule(self, seed: int) -> list[Due]:
        """List all faults of a run in the order in which they are due; the same for the same seed."""
        rng = Random(seed)  # noqa: S311  a schedule, no secret
        return sorted((due for step in self.timeline for due in step.due(rng)), key=lambda due: due.at)

    def _contradictions(self) -> list[Fault]:
        found: list[Fault] = [
            (("timeline", n, "for"), f"ends after the run, at {step.end:g} s of {self.duration:g} s")
            for n, step in enumerate(self.timeline)
            if step.end > self.duration
        ]
        kinds = {type(checker): name for name, checker in self.checkers.items()}
        if self.timeline and Felt not in kinds:
            found.append((("checkers",), "lacks felt: a fault that did nothing would prove nothing"))
        ordered = [name for name, kind in WORKLOADS.items() if kind.ordered]
        if Order in kinds and not self.workload.ordered:
            found.append(
                (("checkers", kinds[Order]), f"needs a workload whose values have an order: {', '.join(ordered)}")
            )
        return found


def every() -> list[Path]:
    """List the files of all scenarios."""
    return sorted(_FOLDER.glob("*.yaml"))


def find(name: str) -> Scenario:
    """Load a scenario by its name. Raises ConfigError if there is none, or if it is wrong."""
    known = {path.stem: path for path in every()}
    if name not in known:
        raise ConfigError(f"no scenario {name}; there are {', '.join(known)}")
    return load(known[name])


def load(path: Path) -> Scenario:
    """Load a scenario's file. Raises ConfigError with every problem, each with file, line and column."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read: {getattr(e, 'strerror', None) or 'it is not UTF-8'}") from None
    return parse(text, path.stem, where=str(path))


def parse(text: str, name: str, *, where: str | None = None) -> Scenario:
    """Make a scenario of YAML text. Raises ConfigError as `load`; *where*: what it calls the text, by default *name*."""
    tree, report = read(text, where or name)
    scenario = _Reading(report).scenario(tree, name) if report.error() is None else None
    if error := report.error():
        raise error
    assert scenario is not None  # what could not be read was reported
    return scenario


class _Reading:
    """Makes sections of plain values, and reports what cannot be made."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def scenario(self, tree: Any, name: str) -> Scenario | None:
        """Make all of it."""
        if not isinstance(tree, Mapping):
            self._wrong((), "should be a mapping of keys to values")
            return None
        made: dict[str, Any] = dict(tree)
        if "topology" in tree:
            made["topology"] = self._section(Topology, tree["topology"], ("topology",))
        if "workload" in tree:
            made["workload"] = self._one(WORKLOADS, tree["workload"], ("workload",))
        if "timeline" in tree:
            made["timeline"] = self._timeline(tree["timeline"])
        if "checkers" in tree:
            made["checkers"] = self._checkers(tree["checkers"])
        self._guard(tree.get("guard", {}))
        scenario = self._section(Scenario, made, (), name=name)
        if scenario is not None:
            self._names(scenario)
        return scenario

    def _timeline(self, tree: Any) -> tuple[Step, ...] | None:
        if not isinstance(tree, tuple):
            self._wrong(("timeline",), "should be a list of faults")
            return None
        steps = []
        for n, step in enumerate(tree):
            path = ("timeline", n)
            if not isinstance(step, Mapping):
                self._wrong(path, "should be a mapping, such as {at: 1s, for: 4s, toxic: {...}}")
                continue
            when = {key: value for key, value in step.items() if key in _WHEN}
            what = {key: value for key, value in step.items() if key not in when}
            fault = self._one(FAULTS, what, path)
            steps.append(self._section(Step, when, path, fault=fault))
        found = tuple(step for step in steps if step is not None)
        return found if len(found) == len(tree) else None

    def _checkers(self, tree: Any) -> dict[str, Checker] | None:
        if not isinstance(tree, Mapping) or not tree:
            self._wrong(("checkers",), f"should be a mapping of checkers to their bounds; known: {', '.join(CHECKERS)}")
            return None
        made = {name: self._one(CHECKERS, {name: bounds}, ("checkers",)) for name, bounds in tree.items()}
        found = {name: checker for name, checker in made.items() if checker is not None}
        return found if len(found) == len(made) else None

    def _guard(self, tree: Any) -> None:
        """Have the guard's settings looked at by those who know them."""
        if not isinstance(tree, Mapping):
            self._wrong(("guard",), "should be a mapping, with the keys of guard.yaml")
            return
        for key in ("nodes", "connection", "dsn"):
            if key in tree:
                self._wrong(("guard", key), "is the harness's to say")
        try:
            load_settings({"nodes": [{"host": "a"}], **{key: tree[key] for key in tree if key not in ("nodes", "dsn")}})
        except ConfigError as e:
            for problem in e.problems:
                at = problem.partition(":")[0].split(".")  # as far as such a path is in the file, it is shown there
                self._report.add(("guard", *at), f"guard.{problem}")

    def _names(self, scenario: Scenario) -> None:
        """See that all nodes that are named are there."""
        there = (*scenario.topology.names, *ROLES)
        sections: list[tuple[tuple[str | int, ...], Breakage | Checker]] = [
            (("checkers", name), checker) for name, checker in scenario.checkers.items()
        ]
        for n, step in enumerate(scenario.timeline):
            kind = next(name for name, made in FAULTS.items() if isinstance(step.fault, made))
            sections.append((("timeline", n, kind), step.fault))
        for path, section in sections:
            for key, name in section.names().items():
                if name not in there:
                    self._wrong(
                        (*path, key.split()[0]), f"names {name}, which is no node; there are {', '.join(there)}"
                    )

    def _one(self, kinds: Mapping[str, type[_Made]], tree: Any, path: tuple[str | int, ...]) -> _Made | None:
        """Make the one section that a mapping holds, whose key says which it is."""
        if not isinstance(tree, Mapping) or len(tree) != 1:
            self._wrong(path, f"should hold one of {', '.join(kinds)}")
            return None
        ((name, bounds),) = tree.items()
        if name not in kinds:
            self._wrong((*path, name), f"unknown; known: {', '.join(kinds)}")
            return None
        return self._section(kinds[name], {} if bounds is None else bounds, (*path, name))

    def _section(self, kind: type[_Made], tree: Any, path: tuple[str | int, ...], **made: Any) -> _Made | None:
        """Make a section of a mapping; *made*: fields that the mapping cannot hold. None if it cannot be made."""
        if not isinstance(tree, Mapping):
            self._wrong(path, "should be a mapping of keys to values")
            return None
        known = {key_of(entry.name): entry for entry in fields(kind) if entry.name not in made}  # type: ignore[arg-type]  # every section is a dataclass
        unknown = [key for key in tree if key not in known]
        for key in unknown:
            self._wrong((*path, key), f"unknown key; known here: {', '.join(known)}")
        missing = [
            key
            for key, entry in known.items()
            if key not in tree and entry.default is MISSING and entry.default_factory is MISSING
        ]
        for key in missing:
            self._wrong((*path, key), "is missing")
        given = {known[key].name: value for key, value in tree.items() if key in known}
        if unknown or missing or None in [*given.values(), *made.values()]:
            return None  # None: was told already
        try:
            return kind(**given, **made)
        except Unfit as unfit:
            for at, text in unfit.faults:
                self._wrong((*path, *at), text)
            return None

    def _wrong(self, path: tuple[str | int, ...], text: str) -> None:
        said = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        self._report.add(path, f"{said}: {text}" if said else text)
