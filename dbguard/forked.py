"""What a process that forks must not share with its child: connections to servers, and the guards that own them.

A forked child has the very sockets of its parent. A byte that it writes there lands in the middle of the parent's
conversation; a Terminate message ends the parent's session; and where it merely takes such a socket off the event loop that
it has inherited, the parent's loop, which shares the kernel's list, never hears of it again. asyncpg's connections do the
last one when they are collected.

So in a child, before anything else runs there, the *numbers* of these sockets are made to lead to a dead one: whatever uses
them afterwards, a transport, libpq or a collector, finds the end of a conversation. Closing them instead would leave their
numbers to the next file that is opened. And each guard that was open refuses, and says what to do. A process that does not
fork pays one look at each new socket for this, and nothing per call.
"""

from __future__ import annotations

import os
import socket
import threading
import weakref
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Inherited", "Turn", "dialled", "refusal", "watch"]


class Inherited(Protocol):
    """What a child inherits and must give up."""

    def forked(self) -> None:
        """Give up, in the child, what is the parent's: nothing is sent or awaited, and no lock is taken.

        Only the thread that forked is alive, and whatever others were in the midst of is left as it was.
        """


_owners: weakref.WeakSet[Inherited] = weakref.WeakSet()
_sockets: dict[int, tuple[int, int]] = {}
"""Each file descriptor that ever was a connection to a server, and the socket that it led to then: numbers are used again."""
_pid = _parent = os.getpid()
"""This process, and the one that it was forked from."""


class Turn:
    """A lock, for use by ``with``, that is free in a child, whichever of the parent's threads had it at the fork."""

    def __init__(self) -> None:
        self.forked()
        watch(self)

    def forked(self) -> None:
        """Begin anew: nobody is left who would give it back."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


def watch(owner: Inherited) -> None:
    """Call `Inherited.forked` of *owner* in a child that is forked while it lives."""
    _owners.add(owner)


def dialled(fd: int) -> None:
    """Note that *fd* is a connection to a server, which a forked child must not use."""
    _sockets[fd] = _socket(fd)


def refusal() -> str:
    """Return what to tell who uses, in a child that was just forked, what was opened before the fork."""
    return (
        f"the guard was opened in process {_parent}, of which this one ({_pid}) is a fork, and connections cannot be shared: "
        "open it in this process, with guard.open() in the ASGI lifespan, gunicorn's post_fork, Celery's worker_process_init "
        "or the initializer of a multiprocessing pool (docs/forking.md)"
    )


def _socket(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _in_child() -> None:
    """Cut what was inherited off its servers, then tell its owners; they see it closed."""
    global _pid, _parent
    _parent, _pid = _pid, os.getpid()
    _cut_off([fd for fd, meant in _sockets.items() if _is_still(fd, meant)])
    _sockets.clear()
    for owner in list(_owners):
        owner.forked()


def _is_still(fd: int, meant: tuple[int, int]) -> bool:
    try:
        return _socket(fd) == meant
    except OSError:
        return False  # closed since


def _cut_off(inherited: list[int]) -> None:
    if not inherited:
        return
    try:
        dead, other = socket.socketpair()
    except OSError:  # no file descriptors are left: then these are
        for fd in inherited:
            os.close(fd)
        return
    other.close()
    with dead:
        for fd in inherited:
            os.dup2(dead.fileno(), fd, inheritable=False)


if hasattr(os, "register_at_fork"):  # Windows cannot fork
    os.register_at_fork(after_in_child=_in_child)
