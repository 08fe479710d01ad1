"""What every fault is: a dataclass whose fields are its YAML keys, which gives back what it took."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import ClassVar, Self

from chaos.stage import Stage
from dbguard.config.section import Section

__all__ = ["Breakage", "Nothing"]


class Nothing(str):
    """What a fault says of itself that found nothing to break."""

    __slots__ = ()


class Breakage(Section, ABC):
    """A fault, with what it needs to be told.

    momentary: whether it is over at once, with nothing to heal; a step's ``for`` is then the time in which it is felt.
    on_wire: whether it needs the wires between the application and its links.
    in_calls: whether it needs calls that can be given up.
    """

    __slots__ = ()
    momentary: ClassVar[bool] = False
    on_wire: ClassVar[bool] = False
    in_calls: ClassVar[bool] = False

    @property
    def on_tokens(self) -> bool:
        """Whether it meets only clients whose writes carry tokens."""
        return False

    @abstractmethod
    def inject(self, stage: Stage) -> AbstractContextManager[object]:
        """Break it, now or on entering; what is returned heals exactly this on leaving. Blocks.

        A text that is entered to says what was broken in the end, with the nodes that had the roles; else ``str`` does.
        Raises LookupError, here or on entering, if nobody has the role that it is for now: it may be tried again.
        """

    def resolved(self, stage: Stage) -> Self:  # noqa: ARG002  as below
        """Return it with who has the roles now, where `effect` is to look at the same nodes later."""
        return self

    def effect(self, stage: Stage) -> str | None:  # noqa: ARG002  see below
        """Say what it does to the nodes themselves while it lasts; None if that is nothing. Blocks.

        What it does to clients is theirs to tell.
        """
        return None

    @property
    def tells(self) -> bool:
        """Whether `effect` tells of whatever it does: where that is nothing, it did nothing, whatever else went wrong."""
        return False

    def names(self) -> dict[str, str]:
        """Return the nodes that the fields name, by letter or role, by the field that does."""
        return {}
