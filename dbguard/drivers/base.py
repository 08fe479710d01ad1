"""What the runtime asks of a driver: leases, pools, and names for failures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from uuid import UUID

    from dbguard.core.failure import Failure
    from dbguard.core.route import Node
    from dbguard.core.statement import Touch
    from dbguard.core.topology import Drain, Instance, Sighting
    from dbguard.errors import DbGuardError

__all__ = [
    "Colour",
    "Control",
    "Driver",
    "Interruptible",
    "Lease",
    "NodePool",
    "NotReplicated",
    "OwnedPool",
    "Registry",
    "TooOld",
    "Waiter",
    "WrongNode",
]

T = TypeVar("T")


class Lease(Protocol):
    """A connection in use.

    con: the driver's connection. touched: the worst done to its session in this use. ours: ended by ourselves.
    """

    con: Any
    touched: Touch
    ours: bool

    @property
    def synchronous(self) -> bool:
        """Whether commits on it wait for a standby."""

    @property
    def instance(self) -> Instance:
        """The running server behind it; what it did not tell is None."""

    @property
    def backend(self) -> tuple[int, float | None]:
        """The server's process, and when it began (seconds since the epoch)."""

    def end(self) -> None:
        """End it because it must not be used any more; what fails by that is our own doing."""

    def terminate(self) -> None:
        """Terminate the connection at once; whoever waits on it is woken with the driver's error."""


class NodePool(Protocol):
    """The connections of one node.

    return_within: seconds that what `settle` returns may take before the lease is terminated.
    """

    node: Node
    return_within: float

    @property
    def idle(self) -> int:
        """Connections at hand."""

    def take_now(self) -> Lease | None:
        """Return a lease if one is at hand that is not closed, without waiting."""

    async def take(self) -> Lease:
        """Return a lease; raises what the dial raised. The caller bounds it, by cancelling."""

    @property
    def full(self) -> bool:
        """Whether every connection there may be is out: who waits, waits for another caller."""

    def give(self, lease: Any, touched: Touch) -> None:
        """Take a lease back; what must be awaited happens in the background. *touched*: what this use may have left."""

    def settle(self, lease: Any, touched: Touch) -> Awaitable[Callable[[], object] | None] | None:
        """Take a lease back as `give` does, but return what must be awaited where a task of its own would cost more.

        What that returns hands the lease on, and is called once nothing of this use can end it any more.
        """

    def expire(self, how: Drain) -> tuple[int, int]:
        """End what was born under an older epoch, as `Drain` says. Returns how many idle, how many in use."""

    def end_in_use(self) -> int:
        """Terminate every lease in use; returns how many."""

    def end_stale(self) -> int:
        """Terminate the leases in use that were born under an older epoch; returns how many."""

    def rest(self) -> None:
        """Close what has been idle too long."""

    async def warm(self, count: int, timeout: float) -> None:
        """Dial until *count* connections are at hand."""

    async def close(self, timeout: float) -> None:
        """Close what this pool opened: what is in use when it comes back, or after *timeout* seconds."""

    def terminate(self) -> None:
        """End everything now: `close` has nothing to wait for any more."""


class OwnedPool(NodePool, Protocol):
    """One that the guard has opened itself."""

    async def open(self) -> None:
        """Make it ready; nothing is dialled."""

    def stay_warm(self) -> None:
        """From now on replace what is missing of its least size."""


class Control(Protocol):
    """The monitor's own connection to one node, outside the pool."""

    @property
    def alive(self) -> bool:
        """Whether there is a connection that looks usable."""

    async def ask(self, timeout: float) -> Sighting:
        """Ask the node who it is over the present connection. Raises what the driver raises."""

    async def dial(self, timeout: float) -> Sighting:
        """Connect anew, and ask. Raises what the driver raises."""

    async def strayed(self) -> bool:
        """Whether the node's name leads to other addresses by now than the one that was dialled, as far as is known."""

    async def end_backend(
        self,
        pid: int,
        started: float | None,
        *,
        instance: Instance,
        doomed: bool,
        timeout: float,
    ) -> bool | None:
        """Say whether a backend that was given up is gone; None: this is another server than *instance*.

        doomed: end it, unless it waits for a standby.
        """

    async def mark(self, timeline: int, mark: str, timeout: float) -> str | None:
        """Mark the reign on *timeline*, unless somebody has done so; return why that is not possible, None if it was done.

        mark: 32 hexadecimal digits. Raises what the driver raises of a lost connection.
        """

    def drop(self) -> None:
        """Close the connection, at once."""


class WrongNode(Exception):
    """A new connection reached a server that must not be used: an old primary, or one of another cluster."""


class NotReplicated(Exception):
    """A commit was answered, but its wait for a synchronous standby was cut short: no acknowledgement."""


class TooOld(Exception):
    """A token lies below the horizon: whether its row was there cannot be told any more."""


class Registry(Protocol):
    """One node's table of tokens, asked on connections of its own.

    turn: to be held while a claim is made: so many at one time.
    """

    @property
    def turn(self) -> AbstractAsyncContextManager[object]:
        """What admits some claims at one time."""

    async def claim(self, token: UUID, own: tuple[int, float | None], within: float) -> bool:
        """Claim *token*; return whether its write had committed. The caller bounds it, by cancelling.

        own: the backend that the write was sent to, which may be ended; 0: not known.
        within: seconds for which the claim lets itself be held up. Raises `TooOld`, or what the driver raises.
        """

    async def prepare(self, within: float) -> bool:
        """Dial for a claim that may come; return whether that was done, or there was no need. Raises what the driver raises.

        within: seconds for it.
        """

    def rest(self) -> None:
        """Close the connections that wait for the next claim."""

    def close(self) -> None:
        """Close its connections; claims under way raise `GuardClosed`."""


class Driver(Protocol):
    """What a driver does in its own way: names for what it raises, and how what commits is sent."""

    def name_dial(self, error: BaseException, node: str, *, full: bool = False) -> Failure:
        """Name what went wrong before the call had a connection; *full*: the pool had none left to wait for."""

    def name_failure(self, error: BaseException, node: str, lease: Any, *, unsent: bool, closed: bool) -> Failure:
        """Name what went wrong on a leased connection; *closed*: it was closed before anybody ended it."""

    def in_standby(self, lease: Any) -> bool | None:
        """Whether the server that *lease* is of says that it is a standby; None where it does not say."""

    def describe(self, error: BaseException) -> str:
        """Say what went wrong with a connection, without the server's text."""

    def dress(self, error: DbGuardError) -> DbGuardError:
        """Return dbguard's own error as one that the driver's users catch already."""

    def is_drivers(self, error: BaseException) -> bool:
        """Whether *error* is the driver's own, and so about the connection or what ran on it."""

    def is_conflict(self, error: BaseException) -> bool:
        """Whether the transaction lost against another one, so that it is worth running again."""

    def is_refusal(self, error: BaseException) -> bool:
        """Whether the server answered with an error, which aborts an open transaction."""

    def released(self) -> Exception:
        """Return the error for a connection that was given back and is used again."""

    def cut_off(self) -> Exception:
        """Return the error for a transaction that ends while something that was not waited for still uses it."""

    def rolled_back(self) -> Exception:
        """Return the error for a COMMIT that the server answered with ROLLBACK."""

    def fed(self, con: Any, work: Any) -> Awaitable[Any]:
        """Await *work* on *con*, which feeds the server or runs code of the application's: it can be interrupted there."""

    def heard(self, lease: Any, work: Any) -> Awaitable[Any]:
        """Await *work*, which commits; raises the driver's `NotReplicated` if its wait for a standby was cut short."""

    async def commit(self, lease: Any, inner: Any, ending: str = "") -> None:
        """Send COMMIT to the transaction *inner* and return only if the server says COMMIT.

        ending: a token and COMMIT as one simple query; empty: COMMIT alone.
        """

    def refused_ending(self, tokens: Any, error: Exception) -> Exception | None:
        """Return the error for a block whose end was refused because of its token; None: for another reason."""


class Interruptible(Protocol):
    """What the sweep interrupts when it waits for a connection longer than it may: a task, or a thread's `Worker`."""

    def cancel(self) -> bool:
        """Interrupt it where it waits, or as soon as it does; returns whether it will be."""

    def uncancel(self) -> int:
        """Take one interruption back; returns how many are left."""


class Waiter(Protocol):
    """One call that waits for something that another one brings."""

    def done(self) -> bool:
        """Whether it waits no longer."""

    def give(self, value: Any) -> bool:
        """End its wait with a value; False if it has ended already, and the value is still the giver's."""

    def fail(self, error: Exception) -> bool:
        """End its wait with an error; False if it has ended already."""

    async def wait(self) -> Any:
        """Wait; returns the value, or raises the error, or `asyncio.CancelledError` if it is interrupted.

        After an interruption `give` may have been first: `taken` says so.
        """

    def taken(self) -> Any:
        """Return what was given although the wait was interrupted; None: nothing was, and nothing will be."""


class Colour(Protocol):
    """What differs between tasks and threads.

    lock: held while what several threads share is changed; can be taken again by who holds it.
    """

    lock: AbstractContextManager[object]

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The guard's loop."""

    def task(self) -> Interruptible | None:
        """Return the attempt that the caller begins, to be interrupted."""

    def waiter(self) -> Waiter:
        """Return something to wait at; made by who will wait."""

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Let *work*, which handles its own errors, run beside the caller: dials and resets."""

    def on_loop(self, act: Callable[..., object], *args: Any) -> None:
        """Call *act* on the guard's loop: at once where that is the caller's."""

    async def elsewhere(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for *work*, which needs the guard's loop."""
