"""The line of a connection in our own hand: to cut it, and to see that it hangs loose.

psycopg's connections can be ended by nobody but who uses them: closing one that is in use frees what the other one still
works with. So each has a duplicate of its socket, taken at birth, which can be shut down from anywhere: who waits on the
connection, a thread or a task, is woken with the end of the stream.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading

from dbguard.forked import dialled

__all__ = ["Cord"]

_GONE: int = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


class Cord:
    """A duplicate of the socket *fileno*, to be closed with the connection."""

    __slots__ = ("_lock", "_poll", "_socket")

    def __init__(self, fileno: int) -> None:
        # Whatever family it is of: told one, Python asks the system for nothing.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=os.dup(fileno))
        dialled(self._socket.fileno())  # a forked child that cut it would end its parent's stream
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN | _GONE)
        self._lock = threading.Lock()  # a number of a socket that another thread closes soon is somebody else's

    def cut(self) -> None:
        """End the stream in both directions, at once; from any thread. Nothing happens to a line that is closed."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def hangs_loose(self) -> bool:
        """Whether the other side has ended the stream, as far as this machine knows; asks nobody, and does not wait.

        Where the system does not tell (other than Linux), only once everything before the end was read. Asked while nothing
        runs on the connection: there a server that reports an error is about to end it, which is seen unless TLS hides it.
        """
        with self._lock:
            if self._socket.fileno() < 0:
                return True
            said = self._poll.poll(0)
            if not said:
                return False
            if said[0][1] & _GONE:
                return True
            try:
                waiting = self._socket.recv(4096, socket.MSG_PEEK)
            except BlockingIOError:
                return False
            except OSError:
                return True
            return not waiting or _brings_an_error(waiting)

    def close(self) -> None:
        """Let go of it."""
        with self._lock:
            self._socket.close()


def _brings_an_error(waiting: bytes) -> bool:
    """Say whether what an idle connection has to read brings an error, behind notifications, notices and settings."""
    at = 0
    while waiting[at : at + 1] in (b"A", b"N", b"S"):
        at += 1 + int.from_bytes(waiting[at + 1 : at + 5])
    return waiting[at : at + 1] == b"E"
